from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from whisper_opt.core.errors import CheckpointError
from whisper_opt.export.checkpoints.blob import Blob, read_chunks, same_values

VALUES = np.arange(12, dtype=np.float32).reshape(3, 4)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "x.bin"
    file.write_bytes(b"head" + VALUES.astype("<f2").tobytes() + struct.pack("<6h", *range(-3, 3)))
    return file


def test_rows_of_arrays_with_and_without_strides(path: Path) -> None:
    blob = Blob(path, 4, "float16", (3, 4))
    turned = Blob(path, 4, "float16", (4, 3), (1, 4))
    np.testing.assert_array_equal(blob.rows(1, 3).read(), VALUES[1:3])
    np.testing.assert_array_equal(turned.rows(1, 3).read(), VALUES.T[1:3])
    assert turned.read().flags.c_contiguous
    assert (blob.n_items, blob.item_bytes, blob.n_bytes) == (12, 2, 24)


def test_integers(path: Path) -> None:
    assert Blob(path, 28, "int16", (6,)).read().tolist() == [-3, -2, -1, 0, 1, 2]
    assert Blob(path, 28, "int8", (4,)).read().tolist() == [-3, -1, -2, -1]


def test_same_values(path: Path) -> None:
    blob = Blob(path, 4, "float16", (3, 4))
    assert same_values(blob, Blob(path, 4, "float16", (3, 4), (4, 1)))
    assert not same_values(blob, Blob(path, 4, "float16", (4, 3)))
    assert not same_values(blob, Blob(path, 6, "float16", (3, 4)))
    assert not same_values(blob.rows(0, 2), Blob(path, 4, "float16", (2, 4), (0, 1)))


def test_chunks(path: Path) -> None:
    raw = path.read_bytes()
    assert list(read_chunks(path, 1, 10, 4)) == [raw[1:5], raw[5:9], raw[9:11]]
    assert list(read_chunks(path, 1, 0, 4)) == []
    with pytest.raises(CheckpointError, match="ends before byte 41; the copy is incomplete"):
        list(read_chunks(path, 1, len(raw), 4))
    with pytest.raises(CheckpointError, match=r"cannot read y\.bin"):
        list(read_chunks(path.with_name("y.bin"), 0, 1, 1))
