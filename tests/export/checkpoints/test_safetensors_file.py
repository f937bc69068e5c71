from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.models_write import write_safetensors
from whisper_opt.core.arrays import NDArray
from whisper_opt.core.errors import CheckpointError
from whisper_opt.export.checkpoints.safetensors_file import read_safetensors

ARRAYS = {
    "a": np.arange(6, dtype=np.float32).reshape(2, 3),
    "empty": np.zeros((0, 3), np.float32),
    "scalar": np.array(7, np.float32),
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "x.safetensors"


def test_reads_what_was_written(file: Path) -> None:
    write_safetensors(file, ARRAYS, "float32")
    blobs = read_safetensors(file)
    assert set(blobs) == set(ARRAYS)
    for name, values in ARRAYS.items():
        np.testing.assert_array_equal(blobs[name].read(), values)
        assert blobs[name].read().shape == values.shape


def test_reads_what_the_safetensors_package_writes(file: Path) -> None:
    package = pytest.importorskip("safetensors.numpy")
    arrays: dict[str, NDArray] = {**ARRAYS, "half": np.linspace(-2, 2, 9, dtype=np.float16)}
    package.save_file(arrays, file, metadata={"format": "pt"})
    for name, blob in read_safetensors(file).items():
        np.testing.assert_array_equal(blob.read(), arrays[name].astype(np.float32))


@pytest.mark.parametrize("keep", [0, 7, 8, 30, -1])
def test_truncated(keep: int, file: Path) -> None:
    write_safetensors(file, ARRAYS)
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=r"x\.safetensors has .*incomplete"):
        read_safetensors(file)


def write_header(file: Path, header: Any, n_data: int = 16) -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + bytes(n_data))


def entry(begin: Any = 0, end: Any = 16, shape: Any = (4,), dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b"{", "not JSON"),
        (b"\xff\xff", "not JSON"),
        ([], "not a JSON object"),
        ({"a": 1}, "without dtype"),
        ({"a": {"dtype": "F32", "shape": [4]}}, "without dtype"),
        ({"a": entry(dtype="I8", shape=[16])}, "as 'I8'; expected F32, F16, BF16"),
        ({"a": entry(shape=[3])}, "16 bytes for F32"),
        ({"a": entry(shape=[-4])}, "not integers"),
        ({"a": entry(shape="four")}, "not integers"),
        ({"a": entry(begin=0.0)}, "not integers"),
        ({"a": entry(-16, 0)}, "not integers"),
        ({"a": entry(16, 32)}, "gap or an overlap"),
        ({"a": entry(), "b": entry(8, 16, [2])}, "gap or an overlap"),
        ({"a": entry(0, 8, [2])}, "has .* bytes, its header describes"),
        ({"a": entry(), "b": entry(16, 32)}, "has .* bytes, its header describes"),
    ],
)
def test_invalid_header(header: Any, message: str, file: Path) -> None:
    write_header(file, header)
    with pytest.raises(CheckpointError, match=message):
        read_safetensors(file)


def test_header_longer_than_any_real_one(file: Path) -> None:
    file.write_bytes(struct.pack("<Q", 1 << 62) + bytes(64))
    with pytest.raises(CheckpointError, match="declares a header"):
        read_safetensors(file)
