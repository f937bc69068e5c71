"""The parts of the CUDA runtime that executors need: every call is checked and selects its GPU.

Uses ``cuda-bindings``, a package of a few megabytes; torch would be gigabytes.
"""

from __future__ import annotations

import ctypes
import logging
import weakref
from typing import Any, Callable

import numpy as np

from whisper_opt.core.arrays import NDArray
from whisper_opt.core.errors import BackendUnavailable, EngineError
from whisper_opt.core.remedies import install_hint
from whisper_opt.runtime.device.executor import Buffer

__all__ = ["Copies", "Cuda", "DeviceBlock", "Event", "PinnedBlock", "load_runtime"]

_log = logging.getLogger(__name__)

_NO_DEVICE = (
    "cudaErrorNoDevice",
    "cudaErrorInvalidDevice",
    "cudaErrorInsufficientDriver",
    "cudaErrorDevicesUnavailable",
    "cudaErrorSystemDriverMismatch",
    "cudaErrorInitializationError",
    "cudaErrorStubLibrary",
)


def load_runtime() -> Any:
    """The module ``cuda.bindings.runtime``.

    Raises:
        BackendUnavailable: it is not installed, or cannot be imported.
    """
    try:
        from cuda.bindings import runtime
    except Exception as error:  # a broken binary package may raise anything
        raise BackendUnavailable(
            f"cuda-bindings cannot be imported ({error}); it is needed for device memory;"
            f" {install_hint('tensorrt-cu13', 'tensorrt-cu12')}"
        ) from error
    return runtime


class Cuda:
    """One GPU. Calls may come from any thread."""

    def __init__(self, index: int = 0, runtime: Any = None) -> None:
        """Select a GPU.

        Args:
            index: index of the GPU, counted from 0.
            runtime: replaces ``cuda.bindings.runtime``.

        Raises:
            BackendUnavailable: the package, the driver or the GPU is missing.
        """
        self.runtime: Any = load_runtime() if runtime is None else runtime
        self.index = index
        self("cudaMemGetInfo")  # creates the context; fails here if the driver or GPU is missing

    def __call__(self, name: str, *args: Any) -> Any:
        """Call a function of the runtime by name and return its results without the error code.

        Raises:
            BackendUnavailable: there is no usable GPU.
            EngineError: the call failed.
        """
        self.select()
        return self._checked(name, *args)

    def select(self) -> None:
        """Make this GPU the current one of the calling thread.

        Every call does so, because another model or another library may have changed the current
        device of the thread since; it takes less than a microsecond. Call this before calls of
        libraries that use the current device (TensorRT).

        Raises:
            BackendUnavailable: there is no usable GPU.
        """
        self._checked("cudaSetDevice", self.index)

    def _checked(self, name: str, *args: Any) -> Any:
        error, *found = getattr(self.runtime, name)(*args)
        if error != self.runtime.cudaError_t.cudaSuccess:
            raise self._failure(name, error)
        return found[0] if len(found) == 1 else tuple(found)

    def _failure(self, name: str, error: Any) -> Exception:
        code = str(getattr(error, "name", error))
        _, text = self.runtime.cudaGetErrorString(error)
        reason = text.decode() if isinstance(text, bytes) else str(text)
        if code in _NO_DEVICE:
            return BackendUnavailable(
                f"GPU {self.index} cannot be used: {name} gave {code} ({reason}); check the driver"
                " with nvidia-smi, or use device='cpu'"
            )
        if code == "cudaErrorMemoryAllocation":
            return EngineError(
                f"the GPU is out of memory ({name}); lower batch_size or beam_size, or free memory"
                " that other processes hold (nvidia-smi)"
            )
        return EngineError(f"{name} failed on GPU {self.index}: {code} ({reason})")

    def owned(self, owner: object, name: str, handle: Any) -> Callable[[], object]:
        """Call ``name(handle)`` once: from the returned function, or when ``owner`` is deleted.

        Not at the end of the process: the driver may be unloaded by then, and frees everything.
        """
        free = weakref.finalize(owner, self.release, name, handle)
        free.atexit = False
        return free

    def release(self, name: str, handle: Any) -> None:
        """Call a function that frees a resource; a failure is only logged.

        A finalizer may run between any two calls of a thread, so the current device is restored.
        """
        try:
            before = self._checked("cudaGetDevice")
            try:
                self(name, handle)
            finally:
                if before != self.index:
                    self._checked("cudaSetDevice", before)
        except (BackendUnavailable, EngineError) as error:
            _log.warning("%s", str(error))


class DeviceBlock:
    """Memory on the GPU; freed at the latest when the object is deleted."""

    def __init__(self, cuda: Cuda, n_bytes: int) -> None:
        """Allocate; raises EngineError if there is not enough memory."""
        self.n_bytes = n_bytes
        self.address = int(cuda("cudaMalloc", n_bytes))
        self._free = cuda.owned(self, "cudaFree", self.address)

    def free(self) -> None:
        self._free()


class PinnedBlock:
    """Page-locked host memory for asynchronous copies; freed like :class:`DeviceBlock`."""

    def __init__(self, cuda: Cuda, n_bytes: int) -> None:
        """Allocate; raises EngineError if there is not enough memory."""
        address = int(cuda("cudaHostAlloc", n_bytes, cuda.runtime.cudaHostAllocDefault))
        self._free = cuda.owned(self, "cudaFreeHost", address)
        memory = (ctypes.c_uint8 * n_bytes).from_address(address)
        self.array: NDArray = np.ctypeslib.as_array(memory)

    def free(self) -> None:
        self.array = np.zeros(0, np.uint8)
        self._free()


class Event:
    """A place in a stream; see :class:`whisper_opt.runtime.device.executor.DeviceEvent`."""

    def __init__(self, cuda: Cuda, stream: Any) -> None:
        """Create an event without timing."""
        self._cuda, self._stream = cuda, stream
        self._event = cuda("cudaEventCreateWithFlags", cuda.runtime.cudaEventDisableTiming)
        self._destroy = cuda.owned(self, "cudaEventDestroy", self._event)

    def record(self) -> None:
        self._cuda("cudaEventRecord", self._event, self._stream)

    def wait(self) -> None:
        self._cuda("cudaEventSynchronize", self._event)

    def close(self) -> None:
        self._destroy()


class Copies:
    """A non-blocking stream and asynchronous copies in it, in order."""

    def __init__(self, cuda: Cuda) -> None:
        """Open the stream."""
        self.cuda = cuda
        self.handle: Any = cuda("cudaStreamCreateWithFlags", cuda.runtime.cudaStreamNonBlocking)
        self._destroy = cuda.owned(self, "cudaStreamDestroy", self.handle)

    def _copy(self, target: int, source: int, n_bytes: int, kind: str) -> None:
        if n_bytes:
            kinds = self.cuda.runtime.cudaMemcpyKind
            self.cuda("cudaMemcpyAsync", target, source, n_bytes, getattr(kinds, kind), self.handle)

    def upload(self, target: Buffer, source: NDArray) -> None:
        address = source.ctypes.data
        self._copy(target.address, address, target.n_bytes, "cudaMemcpyHostToDevice")

    def download(self, target: NDArray, source: Buffer) -> None:
        address = target.ctypes.data
        self._copy(address, source.address, source.n_bytes, "cudaMemcpyDeviceToHost")

    def copy(self, target: Buffer, source: Buffer) -> None:
        n_bytes = source.n_bytes
        self._copy(target.address, source.address, n_bytes, "cudaMemcpyDeviceToDevice")

    def zero(self, target: Buffer) -> None:
        self.cuda("cudaMemsetAsync", target.address, 0, target.n_bytes, self.handle)

    def create_event(self) -> Event:
        return Event(self.cuda, self.handle)

    def synchronize(self) -> None:
        self.cuda("cudaStreamSynchronize", self.handle)

    def close(self) -> None:
        stream, self.handle = self.handle, None
        if stream is not None:
            self.cuda.release("cudaStreamSynchronize", stream)
            self._release_resources()
            self._destroy()

    def _release_resources(self) -> None:
        """Release what the work in the stream used, after it has finished."""
