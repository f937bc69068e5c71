"""Executor for tests on the CPU: numpy buffers, with ONNX Runtime bound to them in place.

It runs every call of the sessions of a GPU. It also raises for errors that a GPU does not report:
freed memory, overlapping buffers and wrong shapes.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from whisper_opt.core.arrays import NDArray
from whisper_opt.core.errors import EngineError
from whisper_opt.runtime.device.executor import (
    ALIGNMENT,
    GRAPHS,
    OPTIONAL,
    Buffer,
    GraphSequence,
    Tensor,
)
from whisper_opt.runtime.engine import Engine
from whisper_opt.runtime.onnxruntime.graph import graph_tensors, load_graph

__all__ = ["CpuExecutor"]


class _Block:
    """Host memory as device memory; it is counted, and cannot be used after it was freed."""

    def __init__(self, owner: CpuExecutor, n_bytes: int) -> None:
        raw = np.full(n_bytes + ALIGNMENT, 0xFF, np.uint8)  # NaN, to find code that relies on zeros
        self._memory: NDArray | None = raw[-raw.ctypes.data % ALIGNMENT :][:n_bytes]
        self._owner = owner
        self.n_bytes = n_bytes

    @property
    def array(self) -> NDArray:
        if self._memory is None:
            raise EngineError("device memory is used after it was freed")
        return self._memory

    @property
    def address(self) -> int:
        return int(self.array.ctypes.data)

    def free(self) -> None:
        if self._memory is not None:
            self._memory = None
            self._owner.count(-self.n_bytes)


class _HostBlock:
    """Plain host memory."""

    def __init__(self, n_bytes: int) -> None:
        self.array: NDArray = np.zeros(n_bytes, np.uint8)

    def free(self) -> None:
        self.array = np.zeros(0, np.uint8)


def _view(buffer: Buffer) -> NDArray:
    block = buffer.block
    assert isinstance(block, _Block)
    end = buffer.offset + buffer.n_bytes
    if end > block.n_bytes:
        raise EngineError(f"{end} bytes of device memory are used; {block.n_bytes} were allocated")
    return block.array[buffer.offset : end].view(buffer.dtype).reshape(buffer.shape)


class _Bound:
    """A graph and its bindings."""

    def __init__(self, session: Any, tensors: Mapping[str, Tensor], buffers: Mapping[str, Buffer]):
        self._session = session
        self._io = session.io_binding()
        if set(buffers) != set(tensors):
            raise EngineError(f"bound are {sorted(buffers)}; the graph has {sorted(tensors)}")
        inputs = {value.name for value in session.get_inputs()}
        self._buffers = dict(buffers)
        for name, buffer in buffers.items():
            array = _view(buffer)
            expected = tensors[name]
            sizes = zip(expected.shape, buffer.shape)
            if (
                buffer.dtype != expected.dtype
                or len(buffer.shape) != len(expected.shape)
                or any(wanted not in (-1, found) for wanted, found in sizes)
                or buffer.address % ALIGNMENT
            ):
                raise EngineError(f"{name} is bound to {buffer}; the graph has {expected}")
            bind = self._io.bind_input if name in inputs else self._io.bind_output
            bind(name, "cpu", 0, buffer.dtype.type, buffer.shape, array.ctypes.data)

    def run(self) -> None:
        for buffer in self._buffers.values():
            _view(buffer)  # refuses what was freed
        try:
            self._session.run_with_iobinding(self._io)
        except Exception as error:  # the runtime's errors share no base class
            raise EngineError(f"ONNX Runtime failed: {str(error).splitlines()[0][:300]}") from error

    def close(self) -> None:
        self._buffers.clear()


class _BoundSequence:
    """Bound graphs; a replay runs them again."""

    def __init__(self, stream: _Stream, runs: Sequence[_Bound], sequence: GraphSequence) -> None:
        self._stream, self._runs, self._downloads = stream, runs, sequence.downloads

    def run(self) -> None:
        for bound in self._runs:
            bound.run()
        for target, source in self._downloads:
            self._stream.download(target, source)

    def close(self) -> None:
        for bound in self._runs:
            bound.close()


class _Event:
    """An event; the work before it is always done."""

    def __init__(self) -> None:
        self._is_set = False

    def record(self) -> None:
        self._is_set = True

    def wait(self) -> None:
        if not self._is_set:
            raise EngineError("wait for an event that was never recorded")

    def close(self) -> None:
        self._is_set = False


class _Stream:
    """A stream whose work runs immediately."""

    def __init__(self, owner: CpuExecutor, graphs: Sequence[str]) -> None:
        self._owner, self._graphs, self.closed = owner, tuple(graphs), False
        owner.streams.append(self)

    def upload(self, target: Buffer, source: NDArray) -> None:
        np.copyto(_view(target), source)

    def download(self, target: NDArray, source: Buffer) -> None:
        np.copyto(target, _view(source))

    def copy(self, target: Buffer, source: Buffer) -> None:
        if target.shape != source.shape or np.shares_memory(_view(target), _view(source)):
            raise EngineError(f"a copy from {source} to {target} has wrong shapes or overlaps")
        np.copyto(_view(target), _view(source))

    def zero(self, target: Buffer) -> None:
        _view(target).fill(0)

    def run(self, graph: str, buffers: Mapping[str, Buffer]) -> None:
        self._bound(graph, buffers).run()

    def bind(self, sequence: GraphSequence) -> _BoundSequence:
        return _BoundSequence(
            self, [self._bound(graph, buffers) for graph, buffers in sequence.runs], sequence
        )

    def create_event(self) -> _Event:
        return _Event()

    def _bound(self, graph: str, buffers: Mapping[str, Buffer]) -> _Bound:
        if self.closed or graph not in self._graphs:
            raise EngineError(f"{graph} cannot run in this stream")
        return _Bound(self._owner.session(graph), self._owner.tensors(graph), buffers)

    def synchronize(self) -> None:
        pass

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            self._owner.streams.remove(self)


class CpuExecutor:
    """Implements :class:`whisper_opt.runtime.device.executor.Executor` for ``standard`` engines."""

    def __init__(
        self, engine: Engine, *, threads: int | None = None, memory: int | None = None
    ) -> None:
        """Load the graphs.

        Args:
            engine: an opened engine in the ``standard`` dialect.
            threads: threads per operator; None: ONNX Runtime's default.
            memory: size of the device memory in bytes; None: no limit.

        Raises:
            BackendUnavailable: ONNX Runtime is missing, or too old for the dialect.
            EngineError: another dialect, or a graph cannot be loaded.
        """
        missing = [name for name in GRAPHS if f"{name}.onnx" not in engine.manifest.files]
        if engine.manifest.dialect != "standard" or missing:
            raise EngineError(
                f"{engine.path} is in the dialect {engine.manifest.dialect} and lacks"
                f" {', '.join(missing) or 'nothing'}; sessions on a device need the standard one:"
                " export again with --dialect standard"
            )
        more = (name for name in OPTIONAL if f"{name}.onnx" in engine.manifest.files)
        self.graphs = (*GRAPHS, *more)
        self._sessions = {name: load_graph(engine, f"{name}.onnx", threads) for name in self.graphs}
        self._tensors = {name: graph_tensors(session) for name, session in self._sessions.items()}
        self._memory = sys.maxsize if memory is None else memory
        self._lock = threading.Lock()
        self.used = 0
        self.peak = 0
        self.streams: list[_Stream] = []

    def count(self, n_bytes: int) -> None:
        """Record an allocation in bytes (negative: memory that was freed)."""
        with self._lock:
            self.used += n_bytes
            self.peak = max(self.peak, self.used)

    def session(self, graph: str) -> Any:
        """The inference session of a graph."""
        return self._sessions[graph]

    def tensors(self, graph: str) -> Mapping[str, Tensor]:
        return self._tensors[graph]

    def fits(self, graph: str, shapes: Mapping[str, Sequence[int]]) -> bool:
        return True

    def allocate(self, n_bytes: int) -> _Block:
        if n_bytes > self.available():
            raise EngineError(f"out of device memory: {n_bytes} bytes, {self.available()} are free")
        self.count(n_bytes)
        return _Block(self, n_bytes)

    def pin(self, n_bytes: int) -> _HostBlock:
        return _HostBlock(n_bytes)

    def available(self) -> int:
        return self._memory - self.used

    def stream_memory(self, graphs: Sequence[str]) -> int:
        return 0

    def open_stream(self, graphs: Sequence[str]) -> _Stream:
        return _Stream(self, graphs)

    def close(self) -> None:
        self._sessions.clear()
