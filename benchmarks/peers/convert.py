"""Convert the weights of one checkpoint to the format of every system.

    python benchmarks/peers/convert.py models/tiny.en build/peers/models/tiny.en

writes each of these atomically:

    ctranslate2/     faster-whisper (a link if the checkpoint is such a directory)
    huggingface/     transformers, and the source of Optimum's export
    openai.pt        openai-whisper
    ggml-f16.bin     whisper.cpp; ggml-q8_0.bin and ggml-q5_0.bin likewise
    optimum/         Optimum and onnx-asr; exported by the environment ``optimum``
    sherpa/          sherpa-onnx; exported by the environment ``optimum``, too

Any source that whisper-opt exports will do; it is read by whisper_opt.export.checkpoints, so that
all systems have the same values. Half-precision checkpoints lose nothing.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, Callable

import numpy as np

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from peers.catalog import python_of  # noqa: E402  # the path is set above
from tests.support.models import byte_alphabet  # noqa: E402
from tests.support.models_write import write_ctranslate2, write_huggingface, write_openai_pt  # noqa: E402
from whisper_opt.audio.features import mel_filters  # noqa: E402
from whisper_opt.core.arrays import F32  # noqa: E402
from whisper_opt.export.checkpoints import Checkpoint, load_checkpoint  # noqa: E402
from whisper_opt.text.vocabulary import Vocab  # noqa: E402

__all__ = ["FORMS", "convert", "ggml", "quantized"]

FORMS = (
    *("ctranslate2", "huggingface", "openai.pt"),
    *("ggml-f16.bin", "ggml-q8_0.bin", "ggml-q5_0.bin"),
    *("optimum", "sherpa"),
)


def convert(source: Path, folder: Path, forms: tuple[str, ...] = FORMS) -> None:
    """Write the missing formats."""
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint: Checkpoint | None = None
    for form in forms:
        target = folder / form
        if target.exists():
            continue
        checkpoint = checkpoint or load_checkpoint(source)
        part = folder / f".{form}.{os.getpid()}"
        try:
            _WRITERS[form](checkpoint, source, part)
            part.rename(target)
        finally:
            shutil.rmtree(part, ignore_errors=True)
            part.unlink(missing_ok=True)


# ---------------------------------------------------------------- directories and files


def _ctranslate2(checkpoint: Checkpoint, source: Path, target: Path) -> None:
    if (source / "model.bin").is_file():
        target.symlink_to(source.resolve(), target_is_directory=True)
    else:
        write_ctranslate2(checkpoint, target)
        words, added = _tokens(checkpoint)
        ids = {index: word for word, index in {**words, **added}.items()}
        vocabulary = [ids.get(index, f"<|{index}|>") for index in range(checkpoint.dims.n_vocab)]
        (target / "vocabulary.json").write_text(json.dumps(vocabulary), encoding="utf-8")


def _huggingface(checkpoint: Checkpoint, source: Path, target: Path) -> None:
    write_huggingface(checkpoint, target, dtype="float16")
    vocab = Vocab(checkpoint.tokenizer_json, checkpoint.dims)
    languages = {f"<|{code}|>": index for code, index in vocab.languages.items()}
    multilingual = checkpoint.dims.is_multilingual
    ids = {
        "bos_token_id": vocab.eot,
        "eos_token_id": vocab.eot,
        "pad_token_id": vocab.eot,
        "decoder_start_token_id": vocab.sot,
        "max_length": checkpoint.dims.n_text_ctx,
    }
    config = json.loads((target / "config.json").read_text(encoding="utf-8"))
    widths = {
        "encoder_ffn_dim": 4 * checkpoint.dims.n_audio_state,
        "decoder_ffn_dim": 4 * checkpoint.dims.n_text_state,
        "architectures": ["WhisperForConditionalGeneration"],
    }
    generation: dict[str, Any] = {
        **ids,
        "alignment_heads": checkpoint.heads,
        "suppress_tokens": checkpoint.suppress_tokens or list(vocab.non_speech_tokens()),
        "begin_suppress_tokens": checkpoint.begin_suppress_tokens or list(vocab.blank_tokens()),
        "is_multilingual": multilingual,
        "max_initial_timestamp_index": 50,
        "no_timestamps_token_id": vocab.no_timestamps,
        "prev_sot_token_id": vocab.sot_prev,
        "return_timestamps": True,
    }
    if multilingual:
        tasks = {"transcribe": vocab.transcribe, "translate": vocab.translate}
        generation.update(lang_to_id=languages, task_to_id=tasks)
    words, added = _tokens(checkpoint)
    end = "<|endoftext|>"
    specials = {f"{kind}_token": end for kind in ("bos", "eos", "pad", "unk")}
    features = {
        "feature_extractor_type": "WhisperFeatureExtractor",
        "feature_size": checkpoint.dims.n_mels,
    }
    tokenizer = {"tokenizer_class": "WhisperTokenizer", "model_max_length": 1024, **specials}
    merges = json.loads(checkpoint.tokenizer_json)["model"]["merges"]
    pairs = [merge if isinstance(merge, str) else " ".join(merge) for merge in merges]
    files: dict[str, Any] = {
        "config.json": {**config, **ids, **widths},
        "generation_config.json": generation,
        "preprocessor_config.json": {**features, "processor_class": "WhisperProcessor"},
        "tokenizer_config.json": tokenizer,
        "special_tokens_map.json": specials,
        "vocab.json": words,
        "added_tokens.json": added,
        "normalizer.json": {},
    }
    for name, content in files.items():
        (target / name).write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    merged = "\n".join(["#version: 0.2", *pairs, ""])
    (target / "merges.txt").write_text(merged, encoding="utf-8")


def _tokens(checkpoint: Checkpoint) -> tuple[dict[str, int], dict[str, int]]:
    """Ordinary tokens and special ones, with their ids."""
    content = json.loads(checkpoint.tokenizer_json)
    added = {entry["content"]: int(entry["id"]) for entry in content["added_tokens"]}
    words = {
        word: int(index) for word, index in content["model"]["vocab"].items() if word not in added
    }
    return words, added


def _openai(checkpoint: Checkpoint, source: Path, target: Path) -> None:
    write_openai_pt(checkpoint, target)


# ---------------------------------------------------------------- ggml
# The layout is that of whisper.cpp's models/convert-pt-to-ggml.py and of ggml's block formats.

_MAGIC = 0x67676D6C
_QUANTIZED_VERSION = 2000
_BLOCK = 32
_FILE_TYPES = {"f16": 1, "q8_0": 7 + _QUANTIZED_VERSION, "q5_0": 8 + _QUANTIZED_VERSION}
_TENSOR_TYPES = {"f32": 0, "f16": 1, "q5_0": 6, "q8_0": 8}
_KEPT = ("encoder.positional_embedding", "decoder.positional_embedding")
"""Matrices that are stored as fp32."""


def ggml(checkpoint: Checkpoint, file: BinaryIO, kind: str) -> None:
    """Write a model for whisper.cpp.

    Args:
        checkpoint: the weights.
        file: opened for writing.
        kind: ``f16``, ``q8_0`` or ``q5_0``; the type of matrices; as in whisper.cpp's own
            tools convolutions are fp16, biases, norms and positions fp32.
    """
    dims = checkpoint.dims
    audio = (dims.n_audio_ctx, dims.n_audio_state, dims.n_audio_head, dims.n_audio_layer)
    text = (dims.n_text_ctx, dims.n_text_state, dims.n_text_head, dims.n_text_layer)
    file.write(struct.pack("<2i", _MAGIC, dims.n_vocab))
    file.write(struct.pack("<10i", *audio, *text, dims.n_mels, _FILE_TYPES[kind]))
    filters = mel_filters(dims.n_mels)
    file.write(struct.pack("<2i", *filters.shape) + filters.astype("<f4").tobytes())
    words = list(_words(checkpoint))
    file.write(struct.pack("<i", len(words)))
    for word in words:
        file.write(struct.pack("<i", len(word)) + word)
    for name, tensor in checkpoint.tensors.items():
        _write_tensor(file, name, tensor.read(), kind)


def _words(checkpoint: Checkpoint) -> Iterator[bytes]:
    """Ordinary tokens in the order of their ids."""
    byte_of = {character: byte for byte, character in byte_alphabet().items()}
    words = sorted(_tokens(checkpoint)[0].items(), key=lambda item: item[1])
    for word, _ in words:
        yield bytes(byte_of[character] for character in word)


def _write_tensor(file: BinaryIO, name: str, values: F32, kind: str) -> None:
    if name in ("encoder.conv1.bias", "encoder.conv2.bias"):
        values = values[:, None]
    if values.ndim == 1 or name in _KEPT or name.endswith(("conv1.bias", "conv2.bias")):
        stored, data = "f32", values.astype("<f4").tobytes()
    elif values.ndim == 3 or kind == "f16" or values.shape[-1] % _BLOCK:
        stored, data = "f16", values.astype("<f2").tobytes()
    else:
        stored, data = kind, quantized(values, kind)
    text = name.encode()
    file.write(struct.pack("<3i", values.ndim, len(text), _TENSOR_TYPES[stored]))
    file.write(struct.pack(f"<{values.ndim}i", *reversed(values.shape)) + text + data)


def quantized(values: F32, kind: str) -> bytes:
    """A matrix in blocks of 32 neighbours: an fp16 scale, then 8- or 5-bit integers."""
    blocks = values.reshape(-1, _BLOCK)
    if kind == "q8_0":
        scale = np.abs(blocks).max(axis=1, keepdims=True) / np.float32(127)
        whole = _times_inverse(blocks, scale)
        codes = np.trunc(whole + np.copysign(np.float32(0.5), whole)).astype(np.int8)
        return np.concatenate([_bytes(scale.astype("<f2")), codes.view(np.uint8)], axis=1).tobytes()
    largest = np.take_along_axis(blocks, np.abs(blocks).argmax(axis=1)[:, None], axis=1)
    scale = largest / np.float32(-16)
    codes = np.minimum(_times_inverse(blocks, scale) + np.float32(16.5), 31).astype(np.uint8)
    high = np.packbits(codes >> 4, axis=1, bitorder="little")
    low = (codes[:, :16] & 15) | (codes[:, 16:] & 15) << 4
    return np.concatenate([_bytes(scale.astype("<f2")), high, low], axis=1).tobytes()


def _times_inverse(blocks: F32, scale: F32) -> F32:
    inverse = np.divide(np.float32(1), scale, out=np.zeros_like(scale), where=scale != 0)
    product: F32 = blocks * inverse
    return product


def _bytes(values: Any) -> Any:
    return np.ascontiguousarray(values).view(np.uint8)


def _ggml(kind: str) -> Callable[[Checkpoint, Path, Path], None]:
    def write(checkpoint: Checkpoint, source: Path, target: Path) -> None:
        with target.open("wb") as file:
            ggml(checkpoint, file, kind)

    return write


# ---------------------------------------------------------------- exported by the peers' own tools


def _optimum(checkpoint: Checkpoint, source: Path, target: Path) -> None:
    """Optimum's export; needs ``huggingface``, whose tokenizer files onnx-asr reads too."""
    huggingface = target.parent / "huggingface"
    task = "automatic-speech-recognition-with-past"
    command = [python_of("optimum"), "-m", "optimum.exporters.onnx", "--model", str(huggingface)]
    subprocess.run([*command, "--task", task, str(target)], check=True)
    for name in ("vocab.json", "added_tokens.json"):
        shutil.copy(huggingface / name, target / name)


def _sherpa(checkpoint: Checkpoint, source: Path, target: Path) -> None:
    """PyTorch's export of the two graphs of sherpa-onnx; needs ``openai.pt``."""
    vocab = Vocab(checkpoint.tokenizer_json, checkpoint.dims)
    multilingual = checkpoint.dims.is_multilingual
    start = vocab.start("en", "transcribe", timestamps=True)
    metadata = {
        **checkpoint.dims.to_dict(),
        "model_type": "whisper",
        "version": 1,
        "maintainer": "whisper_opt benchmarks",
        "sot_sequence": _listed(start),
        "all_language_tokens": _listed(vocab.languages.values()),
        "all_language_codes": _listed(vocab.languages),
        "sot_index": start.index(vocab.sot),
        "blank_id": vocab.encode(" ")[0],
        "is_multilingual": int(multilingual),
        "non_speech_tokens": _listed(vocab.non_speech_tokens()),
    }
    names = ("sot", "eot", "no_speech", "transcribe", "translate", "sot_prev", "sot_lm")
    metadata.update({name: getattr(vocab, name) for name in (*names, "no_timestamps")})
    file = target.with_suffix(".json")
    file.write_text(json.dumps(metadata), encoding="utf-8")
    script, weights = Path(__file__).with_name("export_sherpa.py"), target.parent / "openai.pt"
    command = [python_of("optimum"), str(script), str(weights), str(file), str(target)]
    try:
        subprocess.run(command, check=True)
    finally:
        file.unlink()
    words = (base64.b64encode(word).decode() for word in _words(checkpoint))
    lines = "".join(f"{word} {i}\n" for i, word in enumerate(words))
    (target / "tokens.txt").write_text(lines, encoding="utf-8")


def _listed(values: Iterable[object]) -> str:
    return ",".join(map(str, values))


_WRITERS: dict[str, Callable[[Checkpoint, Path, Path], None]] = {
    "ctranslate2": _ctranslate2,
    "huggingface": _huggingface,
    "openai.pt": _openai,
    "ggml-f16.bin": _ggml("f16"),
    "ggml-q8_0.bin": _ggml("q8_0"),
    "ggml-q5_0.bin": _ggml("q5_0"),
    "optimum": _optimum,
    "sherpa": _sherpa,
}


def main() -> int:
    """Convert the checkpoint that the arguments name."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("source", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=list(FORMS))
    args = parser.parse_args()
    convert(args.source, args.folder, tuple(args.forms))
    return 0


if __name__ == "__main__":
    sys.exit(main())
