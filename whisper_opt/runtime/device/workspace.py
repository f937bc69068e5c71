"""Device memory of one session: caches, inputs and outputs, and the graphs bound to them.

A workspace is reused by later sessions, with its device memory, its pinned memory and its captured
CUDA graphs. Blocks only grow, until the workspace is closed.
"""

from __future__ import annotations

import collections
import math
from collections.abc import Mapping, Sequence
from typing import Any, Callable

import numpy as np

from whisper_opt.core.arrays import Int, NDArray
from whisper_opt.runtime.device.executor import (
    ALIGNMENT,
    Block,
    Buffer,
    CapturedGraph,
    DeviceEvent,
    Executor,
    GraphSequence,
    HostBlock,
    Tensor,
    aligned,
)

__all__ = ["Arena", "StagingBuffer", "Workspace"]

MAX_GRAPHS = 64
"""Captured graphs kept per workspace; a session of 16 windows with 5 beams uses about 64."""

Fields = Mapping[str, tuple[Any, tuple[int, ...]]]


class Arena:
    """Tensors in one block with a common first axis; only some of its entries are in use."""

    def __init__(self, block: Block, tensors: Mapping[str, Tensor], capacity: int) -> None:
        """``capacity``: size of the first axis of every tensor."""
        self.block, self.capacity = block, capacity
        self._whole: dict[str, Buffer] = {}
        offset = 0
        for name, tensor in tensors.items():
            shape = (capacity, *tensor.shape[1:])
            self._whole[name] = Buffer(block, tensor.dtype, shape, offset)
            offset += aligned(self._whole[name].n_bytes)

    @staticmethod
    def size(tensors: Mapping[str, Tensor], capacity: int) -> int:
        """Bytes needed for ``capacity`` entries."""
        entries = (
            math.prod(tensor.shape[1:]) * tensor.dtype.itemsize for tensor in tensors.values()
        )
        return sum(aligned(capacity * n_bytes) for n_bytes in entries)

    def entries(self, first: int, n: int) -> dict[str, Buffer]:
        """``n`` entries of every tensor by name."""
        return {name: whole.entries(first, n) for name, whole in self._whole.items()}

    @property
    def bytes(self) -> Buffer:
        """The whole block as bytes."""
        return Buffer(self.block, np.dtype(np.uint8), (self.block.n_bytes,))


def lay_out(block: Block, fields: Fields) -> dict[str, Buffer]:
    """Arrays laid out one after another in a block."""
    placed: dict[str, Buffer] = {}
    offset = 0
    for name, (dtype, shape) in fields.items():
        placed[name] = Buffer(block, np.dtype(dtype), shape, offset)
        offset += aligned(placed[name].n_bytes)
    return placed


def size_of(fields: Fields) -> int:
    """Bytes that :func:`lay_out` needs; never 0, so that every array has an address."""
    sizes = (math.prod(shape) * np.dtype(dtype).itemsize for dtype, shape in fields.values())
    return max(sum(map(aligned, sizes)), ALIGNMENT)


class StagingBuffer:
    """Arrays with the same layout in device memory and in pinned host memory, copied together."""

    def __init__(self, name: str, device: Block, host: HostBlock, fields: Fields) -> None:
        """``fields``: dtype and shape by name."""
        self.name = name
        self.device = lay_out(device, fields)
        self.host = {
            field: host.array[buffer.offset : buffer.offset + buffer.n_bytes]
            .view(buffer.dtype)
            .reshape(buffer.shape)
            for field, buffer in self.device.items()
        }
        n_bytes = size_of(fields)
        self.device_bytes = Buffer(device, np.dtype(np.uint8), (n_bytes,))
        self.host_bytes = host.array[:n_bytes]


class Workspace:
    """Device memory, pinned memory and captured graphs of a session, by name."""

    def __init__(self, executor: Executor, graphs: Sequence[str]) -> None:
        """Open a stream for ``graphs``."""
        self._executor = executor
        self.stream = executor.open_stream(graphs)
        self._blocks: dict[str, Block] = {}
        self._pinned: dict[str, HostBlock] = {}
        self._arenas: dict[str, Arena] = {}
        self._events: dict[int, DeviceEvent] = {}
        self._graphs: collections.OrderedDict[tuple[Any, ...], CapturedGraph] = (
            collections.OrderedDict()
        )
        self._kept_alive: list[object] = []
        self._uploads: set[str] = set()
        self._busy = False

    # --- memory -----------------------------------------------------------------------------------

    def growth(self, sizes: Mapping[str, int], kept: Sequence[str] = ()) -> int:
        """Additional bytes for these blocks; old ones are freed first, except ``kept``."""
        grown = ((name, size) for name, size in sizes.items() if size > self._allocated(name))
        return sum(size - (0 if name in kept else self._allocated(name)) for name, size in grown)

    def _allocated(self, name: str) -> int:
        block = self._blocks.get(name)
        return 0 if block is None else block.n_bytes

    def _block(self, name: str, n_bytes: int) -> Block:
        if self._allocated(name) < n_bytes:
            self._drop(name)
            self._blocks[name] = self._executor.allocate(n_bytes)
        return self._blocks[name]

    def _drop(self, name: str) -> None:
        old = self._blocks.pop(name, None)
        if old is not None:
            self._close_graphs()
            old.free()

    def arrays(self, name: str, fields: Fields) -> dict[str, Buffer]:
        """Arrays in device memory only; they replace earlier arrays of this name."""
        return lay_out(self._block(name, size_of(fields)), fields)

    def staging(self, name: str, fields: Fields) -> StagingBuffer:
        """Arrays that the host writes or reads; they replace earlier arrays of this name."""
        if name in self._uploads:
            self.synchronize()
        size = size_of(fields)
        return StagingBuffer(name, self._block(name, size), self._pin(name, size), fields)

    def _pin(self, name: str, n_bytes: int) -> HostBlock:
        held = self._pinned.get(name)
        if held is None or len(held.array) < n_bytes:
            self.synchronize()
            if held is not None:
                self._pinned.pop(name).free()
            held = self._pinned[name] = self._executor.pin(n_bytes)
        return held

    def arena(self, name: str) -> Arena:
        """The arena of this name; :meth:`grow` must have created it."""
        return self._arenas[name]

    def capacity(self, name: str) -> int:
        """Capacity of the arena of this name; 0 if there is none."""
        return self._arenas[name].capacity if name in self._arenas else 0

    def grow(self, name: str, tensors: Mapping[str, Tensor], capacity: int, keep: int = 0) -> Arena:
        """An arena with at least this capacity; entries that were never written are zero.

        Args:
            name: name of the arena.
            tensors: tensors of the arena.
            capacity: number of entries.
            keep: number of old entries to keep.
        """
        old = self._arenas.get(name)
        if old is not None and old.capacity >= capacity and self._same(old, tensors):
            return old
        if old is None or not keep:
            self._arenas.pop(name, None)
            self._drop(name)
        block = self._executor.allocate(Arena.size(tensors, capacity))
        arena = Arena(block, tensors, capacity)
        self._busy = True
        self.stream.zero(arena.bytes)
        if old is not None and keep:
            self.copy(arena.entries(0, keep), old.entries(0, keep))
            self._drop(name)
        self._blocks[name], self._arenas[name] = block, arena
        return arena

    @staticmethod
    def _same(arena: Arena, tensors: Mapping[str, Tensor]) -> bool:
        found = {name: buffer.shape[1:] for name, buffer in arena.entries(0, 1).items()}
        return found == {name: tensor.shape[1:] for name, tensor in tensors.items()}

    # --- work -------------------------------------------------------------------------------------

    def upload(self, staging: StagingBuffer) -> None:
        """Copy the host arrays of a staging buffer to the device."""
        self._busy = True
        self._uploads.add(staging.name)
        self.stream.upload(staging.device_bytes, staging.host_bytes)

    def fetch(self, staging: StagingBuffer) -> Mapping[str, NDArray]:
        """Synchronize and read a staging buffer; valid until it is requested again."""
        self._busy = True
        self.stream.download(staging.host_bytes, staging.device_bytes)
        self.synchronize()
        return staging.host

    def read(self, buffer: Buffer) -> NDArray:
        """Synchronize and read an array; valid until the next array is read."""
        host = self._pin("read", max(buffer.n_bytes, 1)).array[: buffer.n_bytes]
        array = host.view(buffer.dtype).reshape(buffer.shape)
        self._busy = True
        self.stream.download(array, buffer)
        self.synchronize()
        return array

    def run_captured(
        self, key: tuple[Any, ...], graph: str, buffers: Callable[[], Mapping[str, Buffer]]
    ) -> None:
        """Run one graph on buffers that are used repeatedly; see :meth:`run_sequence`."""
        self.run_sequence(key, lambda: GraphSequence(((graph, buffers()),)))

    def run_sequence(self, key: tuple[Any, ...], sequence: Callable[[], GraphSequence]) -> None:
        """Run graphs on buffers that are used repeatedly.

        ``sequence`` is called once per ``key``, and again after a block has grown.
        """
        graph = self._graphs.get(key)
        if graph is None:
            if len(self._graphs) >= MAX_GRAPHS:
                self.synchronize()
                self._graphs.popitem(last=False)[1].close()
            graph = self._graphs[key] = self.stream.bind(sequence())
        self._graphs.move_to_end(key)
        self._busy = True
        graph.run()

    def run(self, graph: str, buffers: Mapping[str, Buffer]) -> None:
        """Run a graph once on these buffers."""
        self._busy = True
        self.stream.run(graph, buffers)

    def copy(self, target: Mapping[str, Buffer], source: Mapping[str, Buffer]) -> None:
        """Copy tensors on the device, by name."""
        self._busy = True
        for name, buffer in source.items():
            self.stream.copy(target[name], buffer)

    def copy_entries(self, target: Arena, source: Arena, to: Int, of: Int) -> None:
        """Copy entries ``of`` of one arena to entries ``to`` of another; runs in one copy."""
        begin = 0
        for end in range(1, len(to) + 1):
            goes_on = end < len(to) and to[end] == to[end - 1] + 1 and of[end] == of[end - 1] + 1
            if not goes_on:
                n = end - begin
                first, old = int(to[begin]), int(of[begin])
                self.copy(target.entries(first, n), source.entries(old, n))
                begin = end

    def record_event(self, number: int) -> None:
        """Record an event after the work enqueued so far."""
        if number not in self._events:
            self._events[number] = self.stream.create_event()
        self._events[number].record()

    def wait_event(self, number: int) -> None:
        """Wait until the work before an event is done; later work may continue."""
        self._events[number].wait()

    def keep_alive(self, used: object) -> None:
        """Keep an object alive until the work that uses it is done."""
        self._busy = True
        self._kept_alive.append(used)

    def synchronize(self) -> None:
        """Wait until all work is done."""
        if self._busy:
            self.stream.synchronize()
            self._busy = False
            self._kept_alive.clear()
            self._uploads.clear()

    def _close_graphs(self) -> None:
        try:
            self.synchronize()
        finally:
            while self._graphs:
                self._graphs.popitem()[1].close()

    def close(self) -> None:
        """Release everything, even if the device has failed."""
        try:
            self._close_graphs()
        finally:
            self._kept_alive.clear()
            for block in self._blocks.values():
                block.free()
            for host in self._pinned.values():
                host.free()
            for event in self._events.values():
                event.close()
            self._events.clear()
            self._blocks.clear()
            self._arenas.clear()
            self._pinned.clear()
            self.stream.close()
