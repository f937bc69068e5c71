"""Writing of graphs with their weights, and of engine directories, complete or not at all."""

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
from whisper_opt.core.files import replace_directory, write_remedy
from whisper_opt.core.processes import is_running
from whisper_opt.export.graphs.builder import OnnxGraph, Weight
from whisper_opt.runtime.engine import MANIFEST, FileEntry
from whisper_opt.runtime.tensors import TensorEntry

__all__ = ["Progress", "directory", "write_bytes", "write_graph", "write_text"]

ALIGNMENT = 4096
"""Byte alignment of a tensor in the data file: a memory page, so that it can be memory-mapped."""

_IN_PROGRESS: set[Path] = set()
"""Temporary directories that threads of this process are writing: these are no leftovers."""

Progress = Callable[[int], None]
"""Called with the number of bytes just written."""


class _HashingFile:
    """A file that is hashed as it is written."""

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
    """Write ``stem.onnx`` and ``stem.data``, weight by weight.

    Peak memory is a small multiple of the largest tensor. The locations of the weights are added to
    ``graph.model``.

    Args:
        graph: the graph.
        folder: directory of the files.
        stem: file name without suffix.
        progress: called after every weight.
        variants: other graphs over the same weights, or some of them, by stem.

    Returns:
        The files, and the locations of the tensors that the runtime reads itself.

    Raises:
        CheckpointError: a weight cannot be read, or is too large for its type.
        EngineError: a weight has another shape than the graph declares.
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
        for weight, tensor in _initializers(model):
            _set_location(tensor, written[weight.name], weight.nbytes)
        path = folder / f"{name}.onnx"
        entries[path.name] = write_bytes(path, model.model.SerializeToString())
    return entries, {weight.name: written[weight.name] for weight in graph.host}


def _initializers(graph: OnnxGraph) -> list[tuple[Weight, TensorProto]]:
    """The weights of a graph, each with its initializer."""
    initializers = {tensor.name: tensor for tensor in graph.model.graph.initializer}
    return [(weight, initializers[weight.name]) for weight in graph.weights]


def _append(stream: _HashingFile, weight: Weight, data: str) -> TensorEntry:
    padding = -stream.size % ALIGNMENT
    if padding:
        stream.write(bytes(padding))
    entry = TensorEntry(data, stream.size, weight.shape, weight.dtype.name)
    values = weight.read()
    if values.shape != weight.shape:
        raise EngineError(
            f"weight {weight.name} has shape {list(values.shape)}; the graph declares"
            f" {list(weight.shape)}"
        )
    stream.write(_converted(values, weight).data.cast("B"))
    return entry


def _set_location(tensor: TensorProto, entry: TensorEntry, size: int) -> None:
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (
        ("location", entry.file),
        ("offset", str(entry.offset)),
        ("length", str(size)),
    ):
        tensor.external_data.add(key=key, value=value)


def _converted(values: NDArray, weight: Weight) -> NDArray:
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
    """Context of a temporary directory beside ``target`` that is renamed to it on success.

    It is removed if the block ends with an error or Ctrl-C. The next export to the same target
    removes what a killed process left.

    Raises:
        EngineError: the target exists and ``overwrite`` is false, or cannot be written.
    """
    target = Path(os.path.realpath(target))  # of a link, its target is replaced
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
    _IN_PROGRESS.add(temporary)
    try:
        yield temporary
        replace_directory(temporary, target)
    except OSError as error:
        raise _cannot_write(target, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        _IN_PROGRESS.discard(temporary)


def _cannot_write(target: Path, error: OSError) -> EngineError:
    reason = error.strerror or str(error)
    return EngineError(
        f"cannot write the engine {target}: {reason}; nothing was left there. {write_remedy(error)}"
    )


def _remove_stale(target: Path) -> None:
    for sibling in target.parent.glob(f".{glob.escape(target.name)}.partial-*"):
        pid = sibling.name.rsplit("-", 1)[1].split(".")[0]
        if not pid.isdigit():
            continue
        # in containers a new process often has the pid of the killed one
        ours = int(pid) == os.getpid()
        if sibling in _IN_PROGRESS if ours else is_running(int(pid)):
            continue
        whole = sibling.name.endswith(".old") and (sibling / MANIFEST).is_file()
        if whole and not target.exists():
            with contextlib.suppress(OSError):  # killed between the two renames
                sibling.rename(target)
        else:
            shutil.rmtree(sibling, ignore_errors=True)
