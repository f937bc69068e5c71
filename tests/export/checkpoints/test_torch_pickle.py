"""The reader of PyTorch's files reads tensors and runs nothing."""

from __future__ import annotations

import os
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.models_write import write_torch
from whisper_opt.core.errors import CheckpointError
from whisper_opt.export.checkpoints import load_checkpoint
from whisper_opt.export.checkpoints.torch_pickle import is_torch_file, read_torch


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "x.pt"


def write_pickle(file: Path, pickled: bytes, storage: bytes = bytes(64)) -> None:
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("x/data.pkl", pickled)
        archive.writestr("x/data/0", storage)


def tensor(
    offset: int = 0, size: bytes = b"K\x04\x85", stride: bytes = b"K\x01\x85", n: int = 16
) -> bytes:
    """Pickle of one float32 tensor over storage 0, in the opcodes of torch.save."""
    storage = (
        b"(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpu"
        + b"J" + struct.pack("<i", n) + b"tQ"
    )  # fmt: skip
    rest = b"J" + struct.pack("<i", offset) + size + stride + b"\x89ccollections\nOrderedDict\n)R"
    return b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(" + storage + rest + b"tR."


def test_nested_values_and_strides(file: Path) -> None:
    values = np.arange(12, dtype=np.float32).reshape(3, 4)
    write_torch(file, {"a": (values, 3, True), "t": np.asfortranarray(values)}, "float32")
    found = read_torch(file)
    assert found["a"][1:] == (3, True)
    assert found["a"][0].strides is None
    assert found["t"].strides == (1, 3)
    for blob in (found["a"][0], found["t"]):
        np.testing.assert_array_equal(blob.read(), values)
        assert blob.read().flags.c_contiguous


def test_views_of_a_storage(file: Path) -> None:
    data = np.arange(16, dtype="<f4")
    write_pickle(file, tensor(offset=3, size=b"K\x04\x85", stride=b"K\x02\x85"), data.tobytes())
    np.testing.assert_array_equal(read_torch(file).read(), data[3:11:2])
    write_pickle(file, tensor(size=b"K\0K\x04\x86", stride=b"K\x04K\x01\x86"), data.tobytes())
    assert read_torch(file).read().shape == (0, 4)


def test_parameters(file: Path) -> None:
    call = b"ctorch._utils\n_rebuild_parameter\n("
    pickled = b"\x80\x02" + call + tensor()[2:-1] + b"\x88ccollections\nOrderedDict\n)RtR."
    write_pickle(file, pickled)
    assert read_torch(file).shape == (4,)


class Payload:
    """Pickles as a call of ``os.mkdir``."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("protocol", [2, 4])
def test_code_is_refused_and_not_run(protocol: int, file: Path, tmp_path: Path) -> None:
    target = tmp_path / "ran"
    pickled = pickle.dumps({"dims": Payload(target)}, protocol=protocol)
    write_pickle(file, pickled)
    with pytest.raises(CheckpointError, match=rf"asks to run {os.mkdir.__module__}\.mkdir"):
        load_checkpoint(file)
    assert not target.exists()
    pickle.loads(pickled)  # the payload works
    assert target.exists()


@pytest.mark.parametrize(
    "name",
    [
        b"builtins\neval",
        b"builtins\ngetattr",
        b"collections\nOrderedDict.__init__",
        b"torch\nload",
        b"torch._utils\n_rebuild_tensor_v2.__globals__",
        b"torch.serialization\nload",
        b"whisper_opt.core.errors\nCheckpointError",
    ],
)
def test_other_globals(name: bytes, file: Path) -> None:
    write_pickle(file, b"\x80\x02c" + name + b"\n.")
    shown = name.decode().replace("\n", ".")
    with pytest.raises(CheckpointError, match=f"asks to run {shown}"):
        read_torch(file)


@pytest.mark.parametrize(
    "name",
    [
        b"torch._utils\n_rebuild_tensor_v2",
        b"torch._utils\n_rebuild_parameter",
        b"collections\nOrderedDict",
        b"torch\nHalfStorage",
    ],
)
@pytest.mark.parametrize("in_slots", [True, False])
def test_allowed_names_cannot_be_altered(name: bytes, in_slots: bool, file: Path) -> None:
    """BUILD sets attributes on named objects; no change must remain."""
    attributes = b"}X\x0c\0\0\0__defaults__)s"  # {"__defaults__": ()}
    state = b"N" + attributes + b"\x86" if in_slots else attributes
    write_pickle(file, b"\x80\x02c" + name + b"\n" + state + b"b.")
    with pytest.raises(CheckpointError, match="damaged"):
        read_torch(file)


def test_unsupported_storage(file: Path) -> None:
    write_pickle(file, tensor().replace(b"FloatStorage", b"CharStorage"))
    with pytest.raises(CheckpointError, match=r"tensors of torch\.CharStorage; expected Float"):
        read_torch(file)


@pytest.mark.parametrize(
    ("pickled", "message"),
    [
        (b"", "EOFError"),
        (b"\x80\x02X\xff\0\0\0", "damaged"),
        (b"not a pickle", "damaged"),
        (tensor(offset=13), "reaches outside its storage"),
        (tensor(offset=-1), "is no integer"),
        (tensor(stride=b"K\x06\x85"), "reaches outside its storage"),
        (tensor(stride=b")"), "as many sizes as strides"),
        (tensor(n=17), "64 bytes for storage '0', 68 are declared"),
        (tensor(n=-1), "unknown persistent id"),
        (tensor().replace(b"storagec", b"Storagec"), "unknown persistent id"),
        (tensor().replace(b"\0\0\x000", b"\0\0\x001"), "lacks the data of storage '1'"),
        (b"\x80\x02ctorch\nFloatStorage\n)R.", "not callable"),
        (tensor(size=b"K\x08K\x08\x86", stride=b"K\0K\0\x86"), "outside its storage"),
        (tensor(size=b"(" + 9 * b"K\x01" + b"t", stride=b"(" + 9 * b"K\x01" + b"t"), "as many"),
        (b"\x80\x02}X\x01\0\0\0ar\xff\xff\xff\x7fNs.", None),
        (b"\x80\x02})" + b"\x85" * 1_000_000 + b"Ns.", "a key is a tuple"),
        (tensor()[:-1] + b"}X\x07\0\0\0stridesK\x01K\x02\x86sb.", "attributes of something"),
        (b"\x80\x02" + b"(" + b")" * 4 + b"ttQ.", "damaged"),
        (b"\x80\x04\x8f.", "damaged"),
        (b"\x80\x02c" + b"x" * 5000 + b"\ny\n.", "asks to run x{80}.y"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_damaged_pickle(pickled: bytes, message: str | None, file: Path) -> None:
    """A large memo index allocates no memory for smaller ones."""
    write_pickle(file, pickled)
    if message is None:
        assert read_torch(file) == {"a": None}
        return
    with pytest.raises(CheckpointError, match=message):
        read_torch(file)


def test_files_of_another_kind(file: Path) -> None:
    file.write_bytes(b"PK\x03\x04 and then nothing")
    with pytest.raises(CheckpointError, match="truncated or damaged zip"):
        load_checkpoint(file)
    file.write_bytes(b"something else")
    assert not is_torch_file(file)
    with pytest.raises(CheckpointError, match=r"not a file of torch\.save"):
        read_torch(file)


def test_truncated_zip(file: Path) -> None:
    write_torch(file, {"a": np.ones(1000, np.float32)})
    raw = file.read_bytes()
    for keep in (len(raw) - 1, len(raw) // 2, 100):
        file.write_bytes(raw[:keep])
        with pytest.raises(CheckpointError, match="fetch it again"):
            read_torch(file)


def test_archive_layout(file: Path) -> None:
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("notes.txt", "")
    with pytest.raises(CheckpointError, match=r"holds 0 data\.pkl"):
        read_torch(file)
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x/data.pkl", tensor())
        archive.writestr("x/data/0", bytes(64))
    with pytest.raises(CheckpointError, match="compressed"):
        read_torch(file)
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("x/data.pkl", tensor())
        archive.writestr("x/byteorder", "big")
    with pytest.raises(CheckpointError, match="big-endian"):
        read_torch(file)


@pytest.mark.parametrize("name", ["data.pkl", "byteorder"])
def test_compressed_members(name: str, file: Path) -> None:
    """They may expand to any size; torch.save compresses nothing."""
    with zipfile.ZipFile(file, "w") as archive:
        for each, content in (("data.pkl", tensor()), ("byteorder", b"little")):
            kind = zipfile.ZIP_DEFLATED if each == name else zipfile.ZIP_STORED
            archive.writestr(f"x/{each}", content, kind)
    with pytest.raises(CheckpointError, match="compressed or encrypted data"):
        read_torch(file)


@pytest.mark.parametrize("name", ["data.pkl", "byteorder"])
def test_members_that_are_too_large(name: str, file: Path) -> None:
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(f"x/{name}", bytes(9 << 20))
        if name != "data.pkl":
            archive.writestr("x/data.pkl", tensor())
    with pytest.raises(CheckpointError, match=r"has 9437184 bytes in .* expected at most"):
        read_torch(file)
