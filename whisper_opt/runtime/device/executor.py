"""What a session needs of a device, and nothing else: memory, copies, and a few graphs to run.

Everything above (slots, caches, reordering, choice, limits) is the same code on every device, in
``device_backend.py`` and below. An executor is the only part that a test on the CPU leaves out; so
it decides nothing.
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
"""What every executor has loaded."""
OPTIONAL = ("advance",)
"""What engines have that were exported since: without it, a session goes step by step."""

ALIGNMENT = 256
"""Bytes: where a tensor may begin in device memory (CUDA and TensorRT)."""


def aligned(n_bytes: int) -> int:
    """``n_bytes`` rounded up to the alignment."""
    return -(-n_bytes // ALIGNMENT) * ALIGNMENT


@dataclasses.dataclass(frozen=True)
class Tensor:
    """An input or output of a graph; its shape holds -1 where a size varies."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]


class Block(Protocol):
    """Memory on the device; ``free`` may be called twice."""

    @property
    def address(self) -> int:
        """Of its first byte."""

    @property
    def n_bytes(self) -> int:
        """Its size."""

    def free(self) -> None:
        """Give it back; the work that uses it must be done."""


class HostBlock(Protocol):
    """Host memory that the device copies from and to without the processor (pinned)."""

    @property
    def array(self) -> NDArray:
        """Its bytes, uint8 [n_bytes]."""

    def free(self) -> None:
        """Give it back; the work that uses it must be done."""


@dataclasses.dataclass(frozen=True)
class Buffer:
    """An array in a block."""

    block: Block
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    offset: int = 0

    @property
    def address(self) -> int:
        """Of its first byte."""
        return self.block.address + self.offset

    @property
    def n_bytes(self) -> int:
        """Its size."""
        return math.prod(self.shape) * self.dtype.itemsize

    def entries(self, first: int, n: int) -> Buffer:
        """``n`` entries of the first axis."""
        step = math.prod(self.shape[1:]) * self.dtype.itemsize
        return Buffer(self.block, self.dtype, (n, *self.shape[1:]), self.offset + first * step)


@dataclasses.dataclass(frozen=True)
class GraphSequence:
    """Graphs run one after another, and what then comes to the host.

    Attributes:
        runs: graphs, each at most once, and the buffers of all their inputs and outputs by name.
        downloads: pinned host memory, and what is copied there.
    """

    runs: tuple[tuple[str, Mapping[str, Buffer]], ...]
    downloads: tuple[tuple[NDArray, Buffer], ...] = ()


class CapturedGraph(Protocol):
    """A sequence bound to its buffers, to be run again and again (a CUDA graph after two runs)."""

    def run(self) -> None:
        """Enqueue it."""

    def close(self) -> None:
        """Forget it; its runs must be done."""


class DeviceEvent(Protocol):
    """A place in a stream's queue, to be waited for while what comes after it goes on."""

    def record(self) -> None:
        """Place it after everything asked so far."""

    def wait(self) -> None:
        """Wait until what was asked before it is done."""

    def close(self) -> None:
        """Forget it."""


class DeviceStream(Protocol):
    """A queue of work: everything asked of one stream happens in order, after the call returns.

    One thread at a time uses a stream; streams do not wait for one another.
    """

    def upload(self, target: Buffer, source: NDArray) -> None:
        """Copy pinned host memory, which must not change before :meth:`synchronize`."""

    def download(self, target: NDArray, source: Buffer) -> None:
        """Copy to pinned host memory, to be read after :meth:`synchronize` or a mark."""

    def copy(self, target: Buffer, source: Buffer) -> None:
        """Copy on the device; the two do not overlap."""

    def zero(self, target: Buffer) -> None:
        """Fill with zero bytes."""

    def run(self, graph: str, buffers: Mapping[str, Buffer]) -> None:
        """Run a graph once, on every input and output by name."""

    def bind(self, sequence: GraphSequence) -> CapturedGraph:
        """Prepare runs of graphs on the same buffers."""

    def create_event(self) -> DeviceEvent:
        """A new mark, not yet set."""

    def synchronize(self) -> None:
        """Wait until everything asked so far is done."""

    def close(self) -> None:
        """Wait, and release what the stream holds."""


class Executor(Protocol):
    """A device that has loaded ``GRAPHS``, and those of ``OPTIONAL`` that the engine has.

    Safe to use from several threads, each in a stream of its own.
    """

    @property
    def graphs(self) -> tuple[str, ...]:
        """Names of the graphs that are loaded."""

    def tensors(self, graph: str) -> Mapping[str, Tensor]:
        """Inputs and outputs of a graph by name."""

    def fits(self, graph: str, shapes: Mapping[str, Sequence[int]]) -> bool:
        """Whether a graph runs on inputs of these shapes."""

    def allocate(self, n_bytes: int) -> Block:
        """Device memory, contents undefined.

        Raises:
            EngineError: there is not enough.
        """

    def pin(self, n_bytes: int) -> HostBlock:
        """Pinned host memory."""

    def available(self) -> int:
        """Bytes of device memory that are free."""

    def stream_memory(self, graphs: Sequence[str]) -> int:
        """Bytes that a stream for these graphs takes."""

    def open_stream(self, graphs: Sequence[str]) -> DeviceStream:
        """A new stream, on which these graphs can be run."""

    def close(self) -> None:
        """Release the graphs; the streams must be closed."""
