"""Interface of a device: memory, streams, copies and graphs.

Everything above it (slots, caches, reordering, token choice, limits) is the same code on every
device: see :mod:`whisper_opt.runtime.device.backend`. Tests on the CPU replace only the executor,
so it makes no decisions.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from whisper_opt.core.arrays import NDArray

__all__ = [
    "ALIGNMENT",
    "GRAPHS",
    "OPTIONAL",
    "Block",
    "Buffer",
    "CapturedGraph",
    "DeviceEvent",
    "DeviceStream",
    "Executor",
    "GraphSequence",
    "HostBlock",
    "Tensor",
    "aligned",
]

GRAPHS = ("encoder", "decoder", "choose", "reorder")
"""Graphs that every executor loads."""
OPTIONAL = ("advance",)
"""Graphs that older engines lack. Without ``advance``, decoding uses single steps."""

ALIGNMENT = 256
"""Alignment of tensors in device memory, in bytes (CUDA and TensorRT)."""


def aligned(n_bytes: int) -> int:
    """``n_bytes`` rounded up to the alignment."""
    return -(-n_bytes // ALIGNMENT) * ALIGNMENT


@dataclasses.dataclass(frozen=True)
class Tensor:
    """Type of a graph input or output; -1 in the shape stands for a variable size."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]


class Block(Protocol):
    """Device memory; ``free`` may be called twice."""

    @property
    def address(self) -> int:
        """Address of the first byte."""

    @property
    def n_bytes(self) -> int:
        """Size in bytes."""

    def free(self) -> None:
        """Free the memory; the work that uses it must be done."""


class HostBlock(Protocol):
    """Pinned host memory: the device copies to and from it without the CPU."""

    @property
    def array(self) -> NDArray:
        """The bytes, uint8 [n_bytes]."""

    def free(self) -> None:
        """Free the memory; the work that uses it must be done."""


@dataclasses.dataclass(frozen=True)
class Buffer:
    """An array in a block of device memory."""

    block: Block
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    offset: int = 0

    @property
    def address(self) -> int:
        """Address of the first byte."""
        return self.block.address + self.offset

    @property
    def n_bytes(self) -> int:
        """Size in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize

    def entries(self, first: int, n: int) -> Buffer:
        """``n`` entries along the first axis."""
        step = math.prod(self.shape[1:]) * self.dtype.itemsize
        return Buffer(self.block, self.dtype, (n, *self.shape[1:]), self.offset + first * step)


@dataclasses.dataclass(frozen=True)
class GraphSequence:
    """Graphs that run one after another, followed by copies to the host.

    Attributes:
        runs: graphs, each at most once, with the buffers of all inputs and outputs by name.
        downloads: pinned host arrays, each with the buffer that is copied to it.
    """

    runs: tuple[tuple[str, Mapping[str, Buffer]], ...]
    downloads: tuple[tuple[NDArray, Buffer], ...] = ()


class CapturedGraph(Protocol):
    """A graph sequence bound to its buffers, for repeated runs (a CUDA graph after two runs)."""

    def run(self) -> None:
        """Enqueue the sequence."""

    def close(self) -> None:
        """Release it; its runs must be done."""


class DeviceEvent(Protocol):
    """A point in a stream; the host can wait for it while later work continues."""

    def record(self) -> None:
        """Record the event after the work enqueued so far."""

    def wait(self) -> None:
        """Wait until the work before the event is done."""

    def close(self) -> None:
        """Release the event."""


class DeviceStream(Protocol):
    """A queue of asynchronous work; the work of one stream runs in order.

    A stream is used by one thread at a time. Streams do not wait for each other.
    """

    def upload(self, target: Buffer, source: NDArray) -> None:
        """Copy from pinned host memory, which must not change before :meth:`synchronize`."""

    def download(self, target: NDArray, source: Buffer) -> None:
        """Copy to pinned host memory; valid after :meth:`synchronize` or an event."""

    def copy(self, target: Buffer, source: Buffer) -> None:
        """Copy on the device; the buffers must not overlap."""

    def zero(self, target: Buffer) -> None:
        """Fill with zero bytes."""

    def run(self, graph: str, buffers: Mapping[str, Buffer]) -> None:
        """Run a graph once; ``buffers`` has every input and output by name."""

    def bind(self, sequence: GraphSequence) -> CapturedGraph:
        """Prepare repeated runs of graphs on the same buffers."""

    def create_event(self) -> DeviceEvent:
        """Create an event that is not yet recorded."""

    def synchronize(self) -> None:
        """Wait until all work enqueued so far is done."""

    def close(self) -> None:
        """Synchronize, and release the resources of the stream."""


class Executor(Protocol):
    """A device with the graphs of an engine: ``GRAPHS``, and those of ``OPTIONAL`` that it has.

    May be used from several threads, each with its own stream.
    """

    @property
    def graphs(self) -> tuple[str, ...]:
        """Names of the loaded graphs."""

    def tensors(self, graph: str) -> Mapping[str, Tensor]:
        """Inputs and outputs of a graph by name."""

    def fits(self, graph: str, shapes: Mapping[str, Sequence[int]]) -> bool:
        """Whether a graph accepts inputs of these shapes."""

    def allocate(self, n_bytes: int) -> Block:
        """Allocate device memory with undefined contents.

        Raises:
            EngineError: there is not enough memory.
        """

    def pin(self, n_bytes: int) -> HostBlock:
        """Allocate pinned host memory."""

    def available(self) -> int:
        """Free device memory in bytes."""

    def stream_memory(self, graphs: Sequence[str]) -> int:
        """Device memory that a stream for these graphs needs, in bytes."""

    def open_stream(self, graphs: Sequence[str]) -> DeviceStream:
        """Open a stream that can run these graphs."""

    def close(self) -> None:
        """Release the graphs; all streams must be closed."""
