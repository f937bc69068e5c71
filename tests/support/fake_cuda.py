"""Fake CUDA runtime on the CPU, stricter than the real one.

Device memory is host memory. A stream does no work before it is synchronized, which exposes code
that reads too early, or overwrites memory that is still to be copied. The use of freed memory and
all undefined behaviour raise.
"""

from __future__ import annotations

import ctypes
import enum
import threading
from typing import Any, Callable

import numpy as np

__all__ = ["FakeCuda", "ViolationError"]


class ViolationError(AssertionError):
    """A call with undefined behaviour in the real library."""


class _Error(enum.Enum):
    cudaSuccess = 0  # noqa: N815
    cudaErrorInvalidValue = 1  # noqa: N815
    cudaErrorMemoryAllocation = 2  # noqa: N815
    cudaErrorNoDevice = 100  # noqa: N815
    cudaErrorStreamCaptureInvalidated = 901  # noqa: N815


class _Kind(enum.Enum):
    cudaMemcpyHostToDevice = 1  # noqa: N815
    cudaMemcpyDeviceToHost = 2  # noqa: N815
    cudaMemcpyDeviceToDevice = 3  # noqa: N815


class _Mode(enum.Enum):
    cudaStreamCaptureModeRelaxed = 2  # noqa: N815


class _Stream:
    """A stream handle as in the bindings: an object that converts to an integer."""

    def __init__(self, number: int, device: int) -> None:
        self.number, self.device = number, device
        self.work: list[Callable[[], None]] = []
        self.n_done = 0
        self.captured: list[Callable[[], None]] | None = None
        self.thread: int | None = None

    def __int__(self) -> int:
        return self.number


class FakeCuda:
    """Replaces ``cuda.bindings.runtime``.

    ``calls`` has every call by name, in order, except those that select or get the current device,
    which each thread has for itself.
    """

    cudaError_t = _Error  # noqa: N815
    cudaMemcpyKind = _Kind  # noqa: N815
    cudaStreamCaptureMode = _Mode  # noqa: N815
    cudaStreamNonBlocking = 1  # noqa: N815
    cudaHostAllocDefault = 0  # noqa: N815
    cudaEventDisableTiming = 2  # noqa: N815

    def __init__(self, memory: int = 1 << 34, n_devices: int = 1) -> None:
        self.memory, self.n_devices = memory, n_devices
        self.calls: list[tuple[Any, ...]] = []
        self.fail: dict[str, int] = {}
        """Functions that fail once, by name: number of calls that succeed before."""
        self.device: dict[int, Any] = {}
        self.pinned: dict[int, Any] = {}
        self.streams: dict[int, _Stream] = {}
        self.events: dict[int, tuple[_Stream, int] | None] = {}
        """Stream and number of enqueued tasks at which each event was recorded."""
        self.graphs: set[Any] = set()
        self.replays: set[Any] = set()
        self.homes: dict[int, int] = {}
        """Devices on which memory was allocated, by address."""
        self._current = threading.local()
        self._lock = threading.RLock()

    def __getattr__(self, name: str) -> Callable[..., tuple[Any, ...]]:
        if not name.startswith("cuda"):
            raise AttributeError(name)
        call = getattr(type(self), "_" + name)

        def checked(*args: Any) -> tuple[Any, ...]:
            with self._lock:
                if name not in ("cudaSetDevice", "cudaGetDevice"):
                    self.calls.append((name, *args))
                    self._check_current(name, args)
                fails = self._fails(name)
                if fails and name not in ("cudaStreamSynchronize", "cudaStreamEndCapture"):
                    return _Error.cudaErrorInvalidValue, None
                found: tuple[Any, ...] = call(self, *args)
                if fails:  # these take effect even if they fail
                    self.graphs.discard(found[-1])
                    return _Error.cudaErrorInvalidValue, None
                return found

        return checked

    @property
    def current(self) -> int:
        """The current device of the calling thread: the first, unless another was selected."""
        return int(getattr(self._current, "device", 0))

    @current.setter
    def current(self, index: int) -> None:
        self._current.device = index

    def _check_current(self, name: str, args: tuple[Any, ...]) -> None:
        for arg in args:
            if isinstance(arg, _Stream) and arg.device != self.current:
                raise ViolationError(f"{name} on {self.current} with a stream of {arg.device}")

    def _fails(self, name: str) -> bool:
        """Whether this call fails; the next one succeeds again."""
        if name not in self.fail:
            return False
        self.fail[name] -= 1
        if self.fail[name] >= 0:
            return False
        del self.fail[name]
        return True

    def count(self, name: str) -> int:
        """Number of calls of a function."""
        return sum(call[0] == name for call in self.calls)

    @property
    def used(self) -> int:
        return sum(map(len, self.device.values()))

    @property
    def leaks(self) -> dict[str, int]:
        """Number of unreleased objects by kind."""
        held = {
            "device": self.device,
            "pinned": self.pinned,
            "streams": self.streams,
            "events": self.events,
            "graphs": self.graphs,
            "replays": self.replays,
        }
        return {name: len(values) for name, values in held.items() if values}

    def find(self, address: int, n_bytes: int) -> Any:
        """The memory at an address, uint8 [n_bytes]."""
        for start, block in [*self.device.items(), *self.pinned.items()]:
            if start <= address and address + n_bytes <= start + len(block):
                return np.ctypeslib.as_array(block)[address - start :][:n_bytes]
        raise ViolationError(f"{n_bytes} bytes at {address} are not allocated")

    def enqueue(self, stream: Any, work: Callable[[], None]) -> None:
        found = self.streams[int(stream)]
        if found.captured is None:
            found.work.append(work)
        else:
            found.captured.append(work)

    def _cudaSetDevice(self, index: int) -> tuple[Any, ...]:  # noqa: N802
        if index not in range(self.n_devices):
            return (_Error.cudaErrorNoDevice,)
        self.current = index
        return (_Error.cudaSuccess,)

    def _cudaGetDevice(self) -> tuple[Any, ...]:  # noqa: N802
        return _Error.cudaSuccess, self.current

    def _cudaGetErrorString(self, error: _Error) -> tuple[Any, ...]:  # noqa: N802
        return _Error.cudaSuccess, error.name.encode()

    def _cudaMemGetInfo(self) -> tuple[Any, ...]:  # noqa: N802
        return _Error.cudaSuccess, self.memory - self.used, self.memory

    def _block(self, where: dict[int, Any], n_bytes: int) -> int:
        room = (ctypes.c_uint8 * (n_bytes + 256))()
        start = -ctypes.addressof(room) % 256
        block = (ctypes.c_uint8 * n_bytes).from_buffer(room, start)
        ctypes.memset(block, 0xFF, n_bytes)
        where[ctypes.addressof(block)] = block
        return ctypes.addressof(block)

    def _cudaMalloc(self, n_bytes: int) -> tuple[Any, ...]:  # noqa: N802
        if n_bytes > self.memory - self.used:
            return _Error.cudaErrorMemoryAllocation, None
        address = self._block(self.device, n_bytes)
        self.homes[address] = self.current
        return _Error.cudaSuccess, address

    def _cudaFree(self, address: int) -> tuple[Any, ...]:  # noqa: N802
        self.device.pop(address)  # a second time is an error
        return (_Error.cudaSuccess,)

    def _cudaHostAlloc(self, n_bytes: int, flags: int) -> tuple[Any, ...]:  # noqa: N802
        return _Error.cudaSuccess, self._block(self.pinned, n_bytes)

    def _cudaFreeHost(self, address: int) -> tuple[Any, ...]:  # noqa: N802
        self.pinned.pop(address)
        return (_Error.cudaSuccess,)

    def _cudaStreamCreateWithFlags(self, flags: int) -> tuple[Any, ...]:  # noqa: N802
        assert flags == self.cudaStreamNonBlocking
        stream = _Stream(7000 + len(self.calls), self.current)
        self.streams[int(stream)] = stream
        return _Error.cudaSuccess, stream

    def _cudaStreamDestroy(self, stream: _Stream) -> tuple[Any, ...]:  # noqa: N802
        self.streams.pop(int(stream))  # its work would still be done, at an unknown time
        return (_Error.cudaSuccess,)

    def _cudaStreamSynchronize(self, stream: _Stream) -> tuple[Any, ...]:  # noqa: N802
        if stream.captured is not None:
            raise ViolationError("a stream is synchronized while it is captured")
        self._work(stream, len(stream.work))
        return (_Error.cudaSuccess,)

    def _work(self, stream: _Stream, n: int) -> None:
        """Do the first ``n`` pending tasks of a stream."""
        work, stream.work = stream.work[:n], stream.work[n:]
        stream.n_done += n
        for task in work:
            task()

    def _cudaEventCreateWithFlags(self, flags: int) -> tuple[Any, ...]:  # noqa: N802
        assert flags == self.cudaEventDisableTiming
        event = 9000 + len(self.calls)
        self.events[event] = None
        return _Error.cudaSuccess, event

    def _cudaEventRecord(self, event: int, stream: _Stream) -> tuple[Any, ...]:  # noqa: N802
        if stream.captured is not None:
            raise ViolationError("an event is recorded in a capture, and would not be seen outside")
        self.events[event] = stream, stream.n_done + len(stream.work)
        return (_Error.cudaSuccess,)

    def _cudaEventSynchronize(self, event: int) -> tuple[Any, ...]:  # noqa: N802
        """Do the work before the event, and none after it."""
        recorded = self.events[event]
        if recorded is None:
            raise ViolationError("wait for an event that was never recorded")
        stream, n_before = recorded
        self._work(stream, max(n_before - stream.n_done, 0))
        return (_Error.cudaSuccess,)

    def _cudaEventDestroy(self, event: int) -> tuple[Any, ...]:  # noqa: N802
        self.events.pop(event)
        return (_Error.cudaSuccess,)

    def _cudaMemcpyAsync(  # noqa: N802
        self, target: int, source: int, n_bytes: int, kind: _Kind, stream: _Stream
    ) -> tuple[Any, ...]:
        places = {
            _Kind.cudaMemcpyHostToDevice: (self.device, self.pinned),
            _Kind.cudaMemcpyDeviceToHost: (self.pinned, self.device),
            _Kind.cudaMemcpyDeviceToDevice: (self.device, self.device),
        }[kind]
        for address, place in zip((target, source), places):
            if not any(start <= address < start + len(block) for start, block in place.items()):
                raise ViolationError(f"{kind.name} of memory that lies elsewhere")

        def copy() -> None:
            to, of = self.find(target, n_bytes), self.find(source, n_bytes)
            if np.shares_memory(to, of):
                raise ViolationError("a copy overlaps itself")
            to[:] = of

        self.enqueue(stream, copy)
        return (_Error.cudaSuccess,)

    def _cudaMemsetAsync(  # noqa: N802
        self, address: int, value: int, n_bytes: int, stream: _Stream
    ) -> tuple[Any, ...]:
        self.enqueue(stream, lambda: self.find(address, n_bytes).fill(value))
        return (_Error.cudaSuccess,)

    def _cudaStreamBeginCapture(self, stream: _Stream, mode: _Mode) -> tuple[Any, ...]:  # noqa: N802
        stream.captured = []
        return (_Error.cudaSuccess,)

    def _cudaStreamEndCapture(self, stream: _Stream) -> tuple[Any, ...]:  # noqa: N802
        graph, stream.captured = tuple(stream.captured or ()), None
        if not graph:
            return _Error.cudaErrorStreamCaptureInvalidated, None
        self.graphs.add(graph)
        return _Error.cudaSuccess, graph

    def _cudaGraphInstantiate(self, graph: Any, flags: int) -> tuple[Any, ...]:  # noqa: N802
        replay = (len(self.calls), graph)
        self.replays.add(replay)
        return _Error.cudaSuccess, replay

    def _cudaGraphDestroy(self, graph: Any) -> tuple[Any, ...]:  # noqa: N802
        self.graphs.remove(graph)
        return (_Error.cudaSuccess,)

    def _cudaGraphExecDestroy(self, replay: Any) -> tuple[Any, ...]:  # noqa: N802
        self.replays.remove(replay)
        return (_Error.cudaSuccess,)

    def _cudaGraphLaunch(self, replay: Any, stream: _Stream) -> tuple[Any, ...]:  # noqa: N802
        if replay not in self.replays:
            raise ViolationError("a graph is launched that was destroyed")
        for task in replay[1]:
            self.enqueue(stream, task)
        return (_Error.cudaSuccess,)
