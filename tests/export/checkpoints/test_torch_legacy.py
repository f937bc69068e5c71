"""Files that ``torch.save`` wrote before 1.6; what their pickles may hold is tested with zips."""

from __future__ import annotations

import io
import os
import pickle
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.models_write import write_torch_legacy
from whisper_opt.core.errors import CheckpointError
from whisper_opt.export.checkpoints import load_checkpoint
from whisper_opt.export.checkpoints.torch_legacy import is_legacy_file
from whisper_opt.export.checkpoints.torch_pickle import is_torch_file, read_torch

VALUES = np.arange(12, dtype=np.float32).reshape(3, 4)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "x.pt"
    nested = {"a": VALUES, "b": {"t": np.asfortranarray(VALUES), "n": 3}, "c": VALUES[0]}
    write_torch_legacy(path, nested, "float32")
    return path


def test_nested_values_and_strides(file: Path) -> None:
    assert is_torch_file(file)
    assert is_legacy_file(file)
    found = read_torch(file)
    assert found["b"]["n"] == 3
    assert found["b"]["t"].strides == (1, 3)
    for blob, wanted in ((found["a"], VALUES), (found["b"]["t"], VALUES), (found["c"], VALUES[0])):
        np.testing.assert_array_equal(blob.read(), wanted)


def test_counters_are_read_if_asked_for(tmp_path: Path) -> None:
    file = tmp_path / "x.pt"
    write_torch_legacy(file, {"a": VALUES, "n": np.array([7], np.int64)}, "float32")
    with pytest.raises(CheckpointError, match=r"torch\.LongStorage; expected FloatStorage"):
        read_torch(file)
    found = read_torch(file, counters=True)
    assert found["n"].read() == 7
    np.testing.assert_array_equal(found["a"].read(), VALUES)


def test_a_type_that_is_no_class_of_torch(tmp_path: Path) -> None:
    """A pickle may name the type of counters by the string that stands for it here."""
    file = tmp_path / "x.pt"
    write_torch_legacy(file, {"n": np.array([7], np.int64)})
    named = file.read_bytes()
    file.write_bytes(named.replace(b"ctorch\nLongStorage\n", b"X\5\0\0\0int64"))
    with pytest.raises(CheckpointError, match="unknown persistent id"):
        read_torch(file)


def test_truncated(file: Path) -> None:
    raw = file.read_bytes()
    for keep in (15, 20, 40, 200, len(raw) - 16 - 8 - 50, len(raw) - 17, len(raw) - 1):
        file.write_bytes(raw[:keep])
        with pytest.raises(CheckpointError, match=r"damaged|truncated"):
            read_torch(file)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b"M\xe9\x03.", b"M\xea\x03.", "version 1002"),
        (b"\x88u.", b"\x89u.", "big-endian"),
        (b"](X\x01\0\0\0" + b"0", b"](X\x01\0\0\0" + b"9", "another list of storages"),
        (b"\x0c\0\0\0\0\0\0\0" + bytes(4), b"\x0d\0\0\0\0\0\0\0" + bytes(4), "13 values"),
        (b"J\x04\0\0\0NtQ", b"J\x04\0\0\0K\1tQ", "unknown persistent id"),
        (b"X\x01\0\0\0" + b"1X\x03\0\0\0cpu", b"X\x01\0\0\0" + b"2X\x03\0\0\0cpu", "two types"),
    ],
)
def test_damaged(old: bytes, new: bytes, message: str, file: Path) -> None:
    raw = file.read_bytes()
    assert old in raw
    file.write_bytes(raw.replace(old, new, 1))
    with pytest.raises(CheckpointError, match=message):
        read_torch(file)


class Payload:
    """Pickles as a call of ``os.mkdir``."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("place", [2, 3])
def test_code_is_refused_and_not_run(place: int, file: Path, tmp_path: Path) -> None:
    stream = io.BytesIO(file.read_bytes())
    starts = []
    for _ in range(place + 1):
        starts.append(stream.tell())
        while stream.read(1) != b".":
            pass
    target = tmp_path / "ran"
    raw = stream.getvalue()
    payload = pickle.dumps(Payload(target), protocol=2)
    file.write_bytes(raw[: starts[place]] + payload + raw[starts[place] :])
    with pytest.raises(CheckpointError, match=rf"asks to run {os.mkdir.__module__}\.mkdir"):
        load_checkpoint(file)
    assert not target.exists()


def test_tar_archives(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    with tarfile.open(path, "w") as archive:
        for name in ("sys_info", "pickle", "storages", "tensors"):
            archive.addfile(tarfile.TarInfo(name))
    with pytest.raises(CheckpointError, match=r"is a tar archive, .*unpack.*torch\.save"):
        load_checkpoint(path)
