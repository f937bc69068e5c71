"""Write a checkpoint in each source format, without the libraries that define the formats.

The name maps here are spelled out a second time on purpose: a test that used the loaders' own maps
could not see them wrong.
"""

from __future__ import annotations

import json
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from whisper_opt.core.arrays import F32
from whisper_opt.core.dims import ModelDims
from whisper_opt.export.checkpoints.checkpoint import Checkpoint

__all__ = [
    "ctranslate2_quantized",
    "encode",
    "huggingface_config",
    "huggingface_names",
    "rounded",
    "write_ctranslate2",
    "write_huggingface",
    "write_openai_pt",
    "write_safetensors",
    "write_torch",
    "write_torch_legacy",
]

_SAFETENSORS = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
_TORCH = {"float32": "FloatStorage", "float16": "HalfStorage", "bfloat16": "BFloat16Storage"}
_NUMPY = {"float32": "<f4", "float16": "<f2", "int8": "i1", "int16": "<i2"}
_CT2_TYPES = {"float32": 0, "int8": 1, "int16": 2, "float16": 4, "bfloat16": 5}


def encode(values: F32, dtype: str) -> bytes:
    """Values as little-endian bytes of a storage type (bfloat16 by truncation)."""
    if dtype == "bfloat16":
        return (np.ascontiguousarray(values).view(np.uint32) >> 16).astype("<u2").tobytes()
    return values.astype(_NUMPY[dtype]).tobytes()


def rounded(values: F32, dtype: str) -> F32:
    """Float32 values after storage as ``dtype``."""
    if dtype == "bfloat16":
        return (np.ascontiguousarray(values).view(np.uint32) & 0xFFFF0000).view(np.float32)
    return values.astype(dtype).astype(np.float32)


def _arrays(checkpoint: Checkpoint) -> dict[str, F32]:
    return {name: tensor.read() for name, tensor in checkpoint.tensors.items()}


# --- Hugging Face -------------------------------------------------------------------------------

_HF_BLOCK = {
    "attn.query": "self_attn.q_proj",
    "attn.key": "self_attn.k_proj",
    "attn.value": "self_attn.v_proj",
    "attn.out": "self_attn.out_proj",
    "attn_ln": "self_attn_layer_norm",
    "cross_attn.query": "encoder_attn.q_proj",
    "cross_attn.key": "encoder_attn.k_proj",
    "cross_attn.value": "encoder_attn.v_proj",
    "cross_attn.out": "encoder_attn.out_proj",
    "cross_attn_ln": "encoder_attn_layer_norm",
    "mlp.0": "fc1",
    "mlp.2": "fc2",
    "mlp_ln": "final_layer_norm",
}
_HF_REST = {
    "encoder.positional_embedding": "encoder.embed_positions.weight",
    "encoder.ln_post.weight": "encoder.layer_norm.weight",
    "encoder.ln_post.bias": "encoder.layer_norm.bias",
    "decoder.token_embedding.weight": "decoder.embed_tokens.weight",
    "decoder.positional_embedding": "decoder.embed_positions.weight",
    "decoder.ln.weight": "decoder.layer_norm.weight",
    "decoder.ln.bias": "decoder.layer_norm.bias",
}


def huggingface_names(names: list[str], prefix: str = "model.") -> dict[str, str]:
    """Canonical names -> transformers' names."""
    found = {}
    for name in names:
        if ".blocks." in name:
            side, _, i, *middle, kind = name.split(".")
            theirs = f"{side}.layers.{i}.{_HF_BLOCK['.'.join(middle)]}.{kind}"
        else:
            theirs = _HF_REST.get(name, name)
        found[name] = prefix + theirs
    return found


def write_safetensors(file: Path, arrays: dict[str, F32], dtype: str = "float16") -> None:
    """Write arrays to a ``.safetensors`` file."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset, data = 0, []
    for name, values in arrays.items():
        data.append(encode(values, dtype))
        end = offset + len(data[-1])
        kind = _SAFETENSORS[dtype]
        header[name] = {"dtype": kind, "shape": values.shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(data))


def write_huggingface(
    checkpoint: Checkpoint,
    directory: Path,
    *,
    shards: int = 1,
    dtype: str = "float16",
    kind: str = "safetensors",
    prefix: str = "model.",
) -> Path:
    """Write a Hugging Face directory; ``kind`` is ``safetensors``, ``bin`` or ``legacy-bin``.

    Returns it.
    """
    directory.mkdir(parents=True, exist_ok=True)
    arrays = _arrays(checkpoint)
    names = huggingface_names(list(arrays), prefix)
    state = {names[name]: values for name, values in arrays.items()}
    stem, suffix = ("model", ".safetensors") if kind == "safetensors" else ("pytorch_model", ".bin")
    write = {
        "safetensors": write_safetensors,
        "bin": write_torch,
        "legacy-bin": write_torch_legacy,
    }[kind]
    if shards == 1:
        write(directory / f"{stem}{suffix}", state, dtype)
    else:
        weight_map = {}
        for i in range(shards):
            part = dict(list(state.items())[i::shards])
            file = f"{stem}-{i + 1:05}-of-{shards:05}{suffix}"
            write(directory / file, part, dtype)
            weight_map.update(dict.fromkeys(part, file))
        _write_json(directory / f"{stem}{suffix}.index.json", {"weight_map": weight_map})
    _write_json(directory / "config.json", huggingface_config(checkpoint.dims))
    generation = {
        "alignment_heads": checkpoint.alignment_heads,
        "suppress_tokens": checkpoint.suppress_tokens,
        "begin_suppress_tokens": checkpoint.begin_suppress_tokens,
    }
    _write_json(directory / "generation_config.json", generation)
    (directory / "tokenizer.json").write_text(checkpoint.tokenizer_json, encoding="utf-8")
    return directory


def huggingface_config(dims: ModelDims) -> dict[str, Any]:
    """The part of ``config.json`` that describes a model."""
    return {
        "model_type": "whisper",
        "activation_function": "gelu",
        "d_model": dims.n_audio_state,
        "num_mel_bins": dims.n_mels,
        "max_source_positions": dims.n_audio_ctx,
        "max_target_positions": dims.n_text_ctx,
        "encoder_layers": dims.n_audio_layer,
        "encoder_attention_heads": dims.n_audio_head,
        "decoder_layers": dims.n_text_layer,
        "decoder_attention_heads": dims.n_text_head,
        "vocab_size": dims.n_vocab,
    }


def _write_json(file: Path, value: Any) -> None:
    file.write_text(json.dumps(value), encoding="utf-8")


# --- PyTorch ------------------------------------------------------------------------------------


class _Pickle:
    """Pickle of a checkpoint in opcodes of protocol 2."""

    def __init__(self, dtype: str, *, legacy: bool = False) -> None:
        self.storages: list[bytes] = []
        self.sizes: list[int] = []
        self._dtype = dtype
        self._view = b"N" if legacy else b""  # the older format has one more field

    def value(self, value: Any) -> bytes:
        if isinstance(value, bool):
            return b"\x88" if value else b"\x89"
        if isinstance(value, int):
            return b"J" + struct.pack("<i", value)
        if isinstance(value, str):
            return b"X" + struct.pack("<I", len(value.encode())) + value.encode()
        if isinstance(value, tuple):
            return b"(" + b"".join(map(self.value, value)) + b"t"
        if isinstance(value, dict):
            items = b"".join(self.value(key) + self.value(item) for key, item in value.items())
            return b"}(" + items + b"u"
        return self._tensor(value)

    def _tensor(self, values: F32) -> bytes:
        # A matrix stored transposed has strides, as PyTorch writes views.
        fortran = values.ndim == 2 and not values.flags.c_contiguous
        base = values.T if fortran else values
        strides = tuple(step // values.itemsize for step in values.strides)
        key = str(len(self.storages))
        counter = values.dtype == np.int64
        self.sizes.append(values.size)
        self.storages.append(base.tobytes() if counter else encode(base, self._dtype))
        kind = "LongStorage" if counter else _TORCH[self._dtype]
        storage = f"ctorch\n{kind}\n".encode()
        pid = [self.value("storage"), storage, *map(self.value, (key, "cpu", values.size))]
        arguments = [
            b"(" + b"".join(pid) + self._view + b"tQ",
            *map(self.value, (0, values.shape, strides, False)),
            b"ccollections\nOrderedDict\n)R",
        ]
        return b"ctorch._utils\n_rebuild_tensor_v2\n(" + b"".join(arguments) + b"tR"


def write_torch(file: Path, value: Any, dtype: str = "float16") -> None:
    """Write nested dicts of arrays as ``torch.save`` would."""
    pickler = _Pickle(dtype)
    pickled = b"\x80\x02" + pickler.value(value) + b"."
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(f"{file.stem}/data.pkl", pickled)
        archive.writestr(f"{file.stem}/byteorder", "little")
        for key, raw in enumerate(pickler.storages):
            archive.writestr(f"{file.stem}/data/{key}", raw)
        archive.writestr(f"{file.stem}/version", "3\n")


def write_torch_legacy(file: Path, value: Any, dtype: str = "float16") -> None:
    """Write nested dicts of arrays as ``torch.save`` did before 1.6."""
    pickler = _Pickle(dtype, legacy=True)
    pickled = pickler.value(value)
    keys = b"](" + b"".join(pickler.value(str(i)) for i in range(len(pickler.storages))) + b"e"
    machine = {"protocol_version": 1001, "little_endian": True}
    magic = b"\x8a\x0a" + 0x1950A86A20F9469CFC6C.to_bytes(10, "little")
    parts = [magic, b"M\xe9\x03", pickler.value(machine), pickled, keys]
    data = b"".join(
        struct.pack("<q", size) + raw for size, raw in zip(pickler.sizes, pickler.storages)
    )
    file.write_bytes(b"".join(b"\x80\x02" + part + b"." for part in parts) + data)


def write_openai_pt(
    checkpoint: Checkpoint, file: Path, dtype: str = "float16", *, legacy: bool = False
) -> Path:
    """Write an OpenAI ``.pt`` file. Returns it."""
    content = {"dims": checkpoint.dims.to_dict(), "model_state_dict": _arrays(checkpoint)}
    (write_torch_legacy if legacy else write_torch)(file, content, dtype)
    return file


# --- CTranslate2 --------------------------------------------------------------------------------


def _fuse(arrays: dict[str, F32], prefix: str, parts: tuple[str, ...]) -> tuple[F32, F32]:
    weight = np.concatenate([arrays[f"{prefix}.{part}.weight"] for part in parts])
    state = weight.shape[1]
    zeros = np.zeros(state, dtype=np.float32)
    bias = np.concatenate([arrays.get(f"{prefix}.{part}.bias", zeros) for part in parts])
    return weight, bias


def _ctranslate2_arrays(arrays: dict[str, F32], layers: dict[str, int]) -> dict[str, F32]:
    found: dict[str, F32] = {
        "decoder/embeddings/weight": arrays["decoder.token_embedding.weight"],
    }

    def put(theirs: str, ours: str, names: tuple[str, str] = ("weight", "bias")) -> None:
        for name, kind in zip(names, ("weight", "bias")):
            found[f"{theirs}/{name}"] = arrays[f"{ours}.{kind}"]

    norm = ("gamma", "beta")
    put("encoder/conv1", "encoder.conv1")
    put("encoder/conv2", "encoder.conv2")
    put("encoder/layer_norm", "encoder.ln_post", norm)
    put("decoder/layer_norm", "decoder.ln", norm)
    for side, n_layers in layers.items():
        encodings = arrays[f"{side}.positional_embedding"]
        found[f"{side}/position_encodings/encodings"] = encodings
        for i in range(n_layers):
            to, of = f"{side}/layer_{i}", f"{side}.blocks.{i}"
            fused = _fuse(arrays, f"{of}.attn", ("query", "key", "value"))
            found[f"{to}/self_attention/linear_0/weight"] = fused[0]
            found[f"{to}/self_attention/linear_0/bias"] = fused[1]
            put(f"{to}/self_attention/linear_1", f"{of}.attn.out")
            put(f"{to}/self_attention/layer_norm", f"{of}.attn_ln", norm)
            put(f"{to}/ffn/linear_0", f"{of}.mlp.0")
            put(f"{to}/ffn/linear_1", f"{of}.mlp.2")
            put(f"{to}/ffn/layer_norm", f"{of}.mlp_ln", norm)
            if side == "decoder":
                fused = _fuse(arrays, f"{of}.cross_attn", ("key", "value"))
                found[f"{to}/attention/linear_1/weight"] = fused[0]
                found[f"{to}/attention/linear_1/bias"] = fused[1]
                put(f"{to}/attention/linear_0", f"{of}.cross_attn.query")
                put(f"{to}/attention/linear_2", f"{of}.cross_attn.out")
                put(f"{to}/attention/layer_norm", f"{of}.cross_attn_ln", norm)
    return found


def _string(text: str) -> bytes:
    return struct.pack("<H", len(text) + 1) + text.encode() + b"\0"


def _variable(name: str, shape: tuple[int, ...], code: int, raw: bytes) -> bytes:
    index = struct.pack(f"<B{len(shape)}IBI", len(shape), *shape, code, len(raw))
    return _string(name) + index + raw


_CT2_LARGEST = {"int8": 127, "int16": 1024}


def ctranslate2_quantized(values: F32, dtype: str) -> tuple[F32, F32]:
    """Integers, and scales by which they are divided: of each row, or one for int16."""
    rows = np.abs(values).reshape(len(values), -1).max(axis=1)
    scales = np.float32(_CT2_LARGEST[dtype]) / (rows if dtype == "int8" else rows.max())
    steps = np.reshape(scales, (-1,) + (1,) * (values.ndim - 1))
    return np.rint(values * steps), np.asarray(scales, np.float32)


def _variables(arrays: dict[str, F32], dims: ModelDims, dtype: str) -> Iterator[bytes]:
    """The variables of a CTranslate2 file, one at a time."""
    integers, _, other = dtype.partition("_")
    for name, values in arrays.items():
        kind = dtype
        if integers in _CT2_LARGEST:
            kind = other or "float32"
            if values.ndim > 1 and name.endswith("weight"):
                kind = integers
                values, scales = ctranslate2_quantized(values, integers)
                raw = encode(scales, "float32")
                yield _variable(f"{name}_scale", scales.shape, 0, raw)
        yield _variable(name, values.shape, _CT2_TYPES[kind], encode(values, kind))
    for name, n_heads in (("encoder", dims.n_audio_head), ("decoder", dims.n_text_head)):
        yield _variable(f"{name}/num_heads", (), 2, struct.pack("<h", n_heads))
    for name, flag in (("pre_norm", 1), ("scale_embeddings", 0), ("activation", 3)):
        yield _variable(f"decoder/{name}", (), 1, struct.pack("<b", flag))


def write_ctranslate2(
    checkpoint: Checkpoint,
    directory: Path,
    *,
    dtype: str = "float16",
    changed: dict[str, F32] | None = None,
) -> Path:
    """Write a CTranslate2 directory; ``changed`` replaces variables under CTranslate2's names.

    With ``int8_float16`` or ``int16`` the matrices are quantized and the rest is float16 or
    float32, as the converter writes them. Returns the directory.
    """
    directory.mkdir(parents=True, exist_ok=True)
    dims = checkpoint.dims
    layers = {"encoder": dims.n_audio_layer, "decoder": dims.n_text_layer}
    arrays = {**_ctranslate2_arrays(_arrays(checkpoint), layers), **(changed or {})}
    with (directory / "model.bin").open("wb") as file:
        file.write(struct.pack("<I", 6) + _string("WhisperSpec") + struct.pack("<I", 3))
        at = file.tell()
        file.write(bytes(4))
        n_variables = 0
        for variable in _variables(arrays, dims, dtype):
            file.write(variable)
            n_variables += 1
        end = file.tell()
        file.seek(at)
        file.write(struct.pack("<I", n_variables))
        file.seek(end)
        if "decoder/projection/weight" in arrays:  # a separate output head
            file.write(struct.pack("<I", 0))
        else:
            file.write(struct.pack("<I", 1) + _string("decoder/projection/weight"))
            file.write(_string("decoder/embeddings/weight"))
    config = {
        "alignment_heads": checkpoint.alignment_heads,
        "suppress_ids": checkpoint.suppress_tokens,
        "suppress_ids_begin": checkpoint.begin_suppress_tokens,
    }
    _write_json(directory / "config.json", config)
    (directory / "tokenizer.json").write_text(checkpoint.tokenizer_json, encoding="utf-8")
    return directory
