"""Pages of mapped files."""

from __future__ import annotations

import ctypes
import mmap
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.engines import sharp_checkpoint
from tests.support.models import random_dims
from tests.support.pages import resident
from whisper_opt.export import export
from whisper_opt.runtime.native import why_no_kernels
from whisper_opt.runtime.onnxruntime.graph import load_graph
from whisper_opt.runtime.onnxruntime.mapped import release_freed, release_pages

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="not tested: Linux only")

SIZE = 64 * mmap.PAGESIZE


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "weights of a model.data"
    path.write_bytes(bytes(range(256)) * (SIZE // 256))
    return path


@pytest.fixture
def mapped(file: Path) -> Iterator[mmap.mmap]:
    """The file as ONNX Runtime maps it: private, and writable."""
    with file.open("rb") as stream, mmap.mmap(stream.fileno(), SIZE, access=mmap.ACCESS_COPY) as it:
        assert it[:] == file.read_bytes()  # every page is resident
        yield it


def test_pages_are_released_and_stay_valid(file: Path, mapped: mmap.mmap) -> None:
    assert resident(file) == SIZE // 1024
    release_pages([file])
    assert resident(file) == 0
    assert mapped[:] == file.read_bytes()


def test_other_files_keep_theirs(file: Path, mapped: mmap.mmap, tmp_path: Path) -> None:
    release_pages([tmp_path / "other"])
    assert resident(file) == SIZE // 1024


def test_changed_pages_are_kept(file: Path, mapped: mmap.mmap) -> None:
    mapped[5] = 99
    release_pages([file])
    assert mapped[5] == 99
    assert resident(file) == SIZE // 1024


def test_other_systems_have_nothing_to_release(
    file: Path, mapped: mmap.mmap, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    release_pages([file])
    assert resident(file) == SIZE // 1024


def test_other_c_libraries_keep_what_is_freed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    release_freed()


@pytest.mark.skipif(why_no_kernels() is not None, reason=f"not tested: {why_no_kernels()}")
def test_weights_of_4_bits_are_in_memory_once(tmp_path: Path) -> None:
    """Kernels copy them, whatever the instruction set."""
    engine = export(sharp_checkpoint(random_dims()), tmp_path / "engine", precision="int4")
    session = load_graph(engine, "decoder.packed.onnx", 1, kernels=True)
    assert resident(engine.file("decoder.data")) == 0
    assert session.get_inputs()
