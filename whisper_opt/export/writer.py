"""Writes graphs with their weights, and engine directories, without ever leaving half of one."""

from __future__ import annotations

import contextlib
import glob
import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Callable

import numpy as np
from onnx import TensorProto

from whisper_opt.core.arrays import NDArray
from whisper_opt.core.errors import CheckpointError, EngineError
from whisper_opt.core.files import replace_directory
from whisper_opt.export.graphs.builder import OnnxGraph, Weight
from whisper_opt.runtime.engine import MANIFEST, FileEntry
from whisper_opt.runtime.tensors import TensorEntry

__all__ = ["Progress", "directory", "write_bytes", "write_graph", "write_text"]

ALIGNMENT = 4096
"""Byte alignment of a tensor in the data file: a memory page, so that it can be mapped."""

_OPEN: set[Path] = set()
"""Temporaries this process is writing: another thread's is not a leftover."""

Progress = Callable[[int], None]
"""Called with the number of bytes just written."""


class _HashingFile:
    """Appends to a file while hashing what is written."""

    def __init__(self, path: Path) -> None:
        self._stream = path.open("wb")
        self._digest = hashlib.sha256()
        self.size = 0

    def write(self, data: bytes | memoryview) -> None:
        self._stream.write(data)
        self._digest.update(data)
        self.size += len(data)

    def close(self) -> FileEntry:
        try:
            self._stream.flush()
            os.fsync(self._stream.fileno())
        finally:
            self._stream.close()
        return FileEntry(self.size, self._digest.hexdigest())

    def abandon(self) -> None:
        self._stream.close()


def write_graph(
    graph: OnnxGraph,
    folder: Path,
    stem: str,
    progress: Progress,
    variants: Mapping[str, OnnxGraph] = MappingProxyType({}),
) -> tuple[dict[str, FileEntry], dict[str, TensorEntry]]:
    """Write ``stem.onnx`` and ``stem.data``; weights are read, written and dropped one by one.

    Peak memory is a small multiple of the largest tensor. ``graph.model`` is completed with the
    locations of its weights. ``variants`` are other graphs over the same weights, or some of them,
    by the stems of their files.

    Returns:
        The files, and where the tensors that the runtime reads itself lie.

    Raises:
        CheckpointError: a weight cannot be read, or is too large for the type it is stored in.
        OSError: the disk is full or not writable.
    """
    data = f"{stem}.data"
    stream = _HashingFile(folder / data)
    written: dict[str, TensorEntry] = {}
    try:
        for weight in graph.stored:
            written[weight.name] = entry = _append(stream, weight, data)
            progress(stream.size - entry.offset)
    except BaseException:
        stream.abandon()
        raise
    entries = {data: stream.close()}
    for name, model in {stem: graph, **variants}.items():
        for weight, slot in _slots(model):
            _locate(slot, written[weight.name], weight.nbytes)
        path = folder / f"{name}.onnx"
        entries[path.name] = write_bytes(path, model.model.SerializeToString())
    return entries, {weight.name: written[weight.name] for weight in graph.host}


def _slots(graph: OnnxGraph) -> list[tuple[Weight, TensorProto]]:
    """The weights that a graph has as initializers, with these."""
    slots = {tensor.name: tensor for tensor in graph.model.graph.initializer}
    return [(weight, slots[weight.name]) for weight in graph.weights]


def _append(stream: _HashingFile, weight: Weight, data: str) -> TensorEntry:
    padding = -stream.size % ALIGNMENT
    if padding:
        stream.write(bytes(padding))
    entry = TensorEntry(data, stream.size, weight.shape, weight.dtype.name)
    values = weight.read()
    if values.shape != weight.shape:
        raise EngineError(
            f"weight {weight.name} has shape {list(values.shape)} where the graph declares"
            f" {list(weight.shape)}"
        )
    stream.write(_stored(values, weight).data.cast("B"))
    return entry


def _locate(slot: TensorProto, entry: TensorEntry, size: int) -> None:
    slot.data_location = TensorProto.EXTERNAL
    for key, value in (
        ("location", entry.file),
        ("offset", str(entry.offset)),
        ("length", str(size)),
    ):
        slot.external_data.add(key=key, value=value)


def _stored(values: NDArray, weight: Weight) -> NDArray:
    with np.errstate(over="ignore"):
        stored = np.ascontiguousarray(values, weight.dtype.newbyteorder("<"))
    if weight.dtype == np.float16 and (np.isinf(stored) & np.isfinite(values)).any():
        raise CheckpointError(
            f"weight {weight.name} reaches {np.abs(values).max():.4g}, beyond the largest float16"
            " (65504); export with --precision fp32"
        )
    return stored


def write_bytes(path: Path, data: bytes | memoryview) -> FileEntry:
    """Write one small file and return its entry."""
    stream = _HashingFile(path)
    try:
        stream.write(data)
    except BaseException:
        stream.abandon()
        raise
    return stream.close()


def write_text(path: Path, text: str) -> FileEntry:
    """Write one small UTF-8 file and return its entry."""
    return write_bytes(path, text.encode("utf-8"))


@contextlib.contextmanager
def directory(target: Path, *, overwrite: bool) -> Iterator[Path]:
    """A temporary sibling of ``target`` that becomes ``target`` when the block ends well.

    Whatever ends the block early (an error, Ctrl-C) removes the sibling; a sibling left by a killed
    process is removed by the next export to the same target.

    Raises:
        EngineError: the target exists and ``overwrite`` is false, or cannot be written.
    """
    target = Path(os.path.realpath(target))  # of a link, what it points at is replaced
    _remove_stale(target)
    if target.exists() and not target.is_dir():
        raise EngineError(f"{target} is a file; an engine is a directory: choose another name")
    if target.exists() and not overwrite:
        raise EngineError(
            f"{target} already exists; pass --overwrite (overwrite=True), or rename it"
        )
    if target.exists() and not (target / MANIFEST).is_file() and any(target.iterdir()):
        raise EngineError(f"{target} exists and is not an engine; it will not be overwritten")
    temporary = target.parent / f".{target.name}.partial-{os.getpid()}"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary.mkdir()
    except OSError as error:
        raise _cannot_write(target, error) from error
    _OPEN.add(temporary)
    try:
        yield temporary
        replace_directory(temporary, target)
    except OSError as error:
        raise _cannot_write(target, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        _OPEN.discard(temporary)


def _cannot_write(target: Path, error: OSError) -> EngineError:
    reason = error.strerror or str(error)
    return EngineError(
        f"cannot write the engine {target}: {reason}; nothing was left there."
        " Choose a writable directory with enough free space"
    )


def _remove_stale(target: Path) -> None:
    for sibling in target.parent.glob(f".{glob.escape(target.name)}.partial-*"):
        pid = sibling.name.rsplit("-", 1)[1].split(".")[0]
        if not pid.isdigit():
            continue
        # in a container every process may have the number of the one that was killed
        ours = int(pid) == os.getpid()
        if sibling in _OPEN if ours else _alive(int(pid)):
            continue
        whole = sibling.name.endswith(".old") and (sibling / MANIFEST).is_file()
        if whole and not target.exists():
            with contextlib.suppress(OSError):  # killed between the two renames: undo the first
                sibling.rename(target)
        else:
            shutil.rmtree(sibling, ignore_errors=True)


def _alive(pid: int) -> bool:
    if os.name == "nt":  # signal 0 is Ctrl-C there
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
