from __future__ import annotations

import json
import logging
import re
import struct
from pathlib import Path

import numpy as np
import pytest

from tests.support.models_write import ctranslate2_quantized, rounded, write_ctranslate2
from whisper_opt.core.errors import CheckpointError
from whisper_opt.export.checkpoints import Checkpoint, load_checkpoint
from whisper_opt.export.checkpoints.checkpoint import OUTPUT_HEAD


@pytest.fixture
def folder(small: Checkpoint, tmp_path: Path) -> Path:
    return write_ctranslate2(small, tmp_path / "m")


@pytest.mark.parametrize("keep", [3, 20, 40, 60, 5_000, -1])
def test_truncated(folder: Path, keep: int) -> None:
    weights = folder / "model.bin"
    weights.write_bytes(weights.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=r"model\.bin .*incomplete"):
        load_checkpoint(folder)


def test_trailing_bytes(folder: Path) -> None:
    with (folder / "model.bin").open("ab") as file:
        file.write(b"\0")
    with pytest.raises(CheckpointError, match="goes on after its last entry"):
        load_checkpoint(folder)


@pytest.mark.parametrize(
    ("dtype", "stored"),
    [
        ("int8", "float32+int8"),
        ("int8_float32", "float32+int8"),
        ("int8_float16", "float16+float32+int8"),
        ("int8_bfloat16", "bfloat16+float32+int8"),
        ("int16", "float32+int16"),
    ],
)
def test_quantized(
    dtype: str,
    stored: str,
    small: Checkpoint,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Matrices are what their integers and scales stand for; the rest is as stored."""
    integers, _, other = dtype.partition("_")
    with caplog.at_level(logging.WARNING):
        found = load_checkpoint(write_ctranslate2(small, tmp_path / "m", dtype=dtype))
    assert f"rounded to {integers}" in caplog.text
    assert set(found.source.dtype.split("+")) <= set(stored.split("+"))
    assert integers in found.source.dtype
    stacked = re.compile(r"attn\.(query|key|value)")
    for name, tensor in small.tensors.items():
        values, wanted = found.tensors[name].read(), tensor.read()
        if wanted.ndim == 1 or "positional" in name:
            wanted = rounded(wanted, other or "float32")
        elif integers == "int8" or not stacked.search(name):
            numbers, scales = ctranslate2_quantized(wanted, integers)
            wanted = numbers / scales.reshape((-1,) + (1,) * (wanted.ndim - 1))
        else:  # one scale for the matrices that are stacked
            np.testing.assert_allclose(values, wanted, atol=np.abs(wanted).max() / 1024)
            continue
        np.testing.assert_allclose(values, wanted, rtol=1e-6, err_msg=name)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b"encoder/conv1/weight_scale", b"encoder/conv1/weight_stale", "without its weight_scale"),
        (b"encoder/conv1/weight_scale\0\x01\x40\0", b"encoder/conv1/weight_scale\0\x01\x20\0",
         "bytes for"),
        (b"encoder/conv1/weight_scale\0\x01\x40\0\0\0", b"encoder/conv1/weight_scale\0\x02\x20"
         b"\0\0\0", None),
    ],
)  # fmt: skip
def test_damaged_scales(
    old: bytes, new: bytes, message: str | None, small: Checkpoint, tmp_path: Path
) -> None:
    folder = write_ctranslate2(small, tmp_path / "m", dtype="int8")
    _patch(folder, old, new)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(folder)


def test_scales_of_another_shape(small: Checkpoint, tmp_path: Path) -> None:
    changed = {"encoder/conv1/weight_scale": np.ones(3, np.float32)}
    folder = write_ctranslate2(small, tmp_path / "m", dtype="int8", changed=changed)
    with pytest.raises(CheckpointError, match=r"scales \[3\] for 'encoder/conv1/weight' of shape"):
        load_checkpoint(folder)


def test_scales_that_are_no_numbers(small: Checkpoint, tmp_path: Path) -> None:
    changed = {"encoder/conv1/weight_scale": np.zeros(64, np.float32)}
    folder = write_ctranslate2(small, tmp_path / "m", dtype="int8", changed=changed)
    found = load_checkpoint(folder)
    with pytest.raises(CheckpointError, match=r"a scale .* is not a positive number"):
        found.tensors["encoder.conv1.weight"].read()


@pytest.mark.parametrize(
    ("name", "part"), [("self_attention/linear_0", 1), ("attention/linear_1", 0)]
)
def test_key_bias_must_be_zero(name: str, part: int, small: Checkpoint, tmp_path: Path) -> None:
    bias = np.zeros((3 if "self" in name else 2, 64), dtype=np.float32)
    bias[part, -1] = 1e-3
    changed = {f"decoder/layer_0/{name}/bias": bias.reshape(-1)}
    folder = write_ctranslate2(small, tmp_path / "m", changed=changed)
    with pytest.raises(CheckpointError, match="key bias that is not zero"):
        load_checkpoint(folder)


def test_fused_shape_must_divide(small: Checkpoint, tmp_path: Path) -> None:
    changed = {"encoder/layer_0/self_attention/linear_0/weight": np.zeros((190, 64), np.float32)}
    folder = write_ctranslate2(small, tmp_path / "m", changed=changed)
    with pytest.raises(CheckpointError, match="stacked by rows"):
        load_checkpoint(folder)


def _patch(folder: Path, old: bytes, new: bytes) -> None:
    weights = folder / "model.bin"
    raw = weights.read_bytes()
    assert raw.count(old) == 1
    weights.write_bytes(raw.replace(old, new))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b"layer_0/attention/linear_2/bias", b"layer_0/attention/linear_9/bias", "no variable"),
        (b"encoder/num_heads", b"encoder/num_hands", "no encoder/num_heads"),
        (b"decoder/layer_0/ffn/linear_0/weight", b"decoder/layer_7/ffn/linear_0/weight", "layers"),
        (b"WhisperSpec", b"MarianSpecs", "holds a MarianSpecs"),
        (b"decoder/scale_embeddings\0\0\x01\x01\0\0\0\0", b"decoder/scale_embeddings\0\0\x01\x01"
         b"\0\0\0\x01", "scale_embeddings = 1"),
        (b"decoder/num_heads\0\0\x02\x02", b"decoder/num_heads\0\0\x09\x02", "unknown type 9"),
        (b"decoder/num_heads\0\0\x02\x02", b"decoder/num_heads\0\0\x03\x02", "2 bytes for int32"),
        (b"encoder/conv1/bias\0\x01", b"encoder/conv1/bias\0\x02", "bytes for"),
        (b"encoder/conv1/bias", b"encoder/conv1/bi\xff\xff", "not text"),
    ],
)  # fmt: skip
def test_damaged_index(folder: Path, old: bytes, new: bytes, message: str) -> None:
    _patch(folder, old, new)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(folder)


@pytest.mark.parametrize(("at", "message"), [(0, "binary version 7"), (18, "of revision 7")])
def test_other_versions(folder: Path, at: int, message: str) -> None:
    raw = bytearray((folder / "model.bin").read_bytes())
    raw[at : at + 4] = struct.pack("<I", 7)
    (folder / "model.bin").write_bytes(raw)
    with pytest.raises(CheckpointError, match=f"{message}.*convert"):
        load_checkpoint(folder)


def test_lists_in_the_configuration(folder: Path) -> None:
    config = folder / "config.json"
    config.write_text("{}", encoding="utf-8")
    found = load_checkpoint(folder)
    assert found.alignment_heads is None
    assert found.suppress_tokens is None
    config.write_text(json.dumps({"suppress_ids": [], "alignment_heads": []}), encoding="utf-8")
    found = load_checkpoint(folder)
    assert found.suppress_tokens is None  # empty lists say nothing
    assert found.alignment_heads == ()


def test_another_output_head(small: Checkpoint, tmp_path: Path) -> None:
    head = small.tensors["decoder.token_embedding.weight"].read()[::-1]
    changed = {"decoder/projection/weight": head}
    found = load_checkpoint(write_ctranslate2(small, tmp_path / "own", changed=changed))
    np.testing.assert_allclose(found.tensors[OUTPUT_HEAD].read(), head, atol=1e-3)
    changed = {"decoder/projection/weight": np.ascontiguousarray(head[::-1])}
    found = load_checkpoint(write_ctranslate2(small, tmp_path / "same", changed=changed))
    assert OUTPUT_HEAD not in found.tensors


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("suppress_ids", [2000], "from 0 to 1999"),
        ("suppress_ids", [-1], "from 0 to 1999"),
        ("suppress_ids_begin", "220", "list of token ids"),
        ("suppress_ids_begin", [True], "list of token ids"),
        ("alignment_heads", [[0]], r"\[layer, head\]"),
        ("alignment_heads", [[0, -1]], r"\[layer, head\]"),
    ],
)
def test_bad_lists(folder: Path, key: str, value: object, message: str) -> None:
    (folder / "config.json").write_text(json.dumps({key: value}), encoding="utf-8")
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(folder)
