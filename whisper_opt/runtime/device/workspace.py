"""The device memory of one session: caches, what goes in and out, and the calls bound to them.

A workspace outlives its session and serves the next one: what was allocated, pinned and captured as
a CUDA graph is used again. Memory grows, and is given back when the workspace is closed.
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
    Call,
    Chain,
    Executor,
    HostBlock,
    Mark,
    Tensor,
    aligned,
)

__all__ = ["Arena", "Pack", "Workspace"]

MAX_CALLS = 64
"""Calls kept by a workspace: a session of 16 windows with 5 beams uses about as many."""

Fields = Mapping[str, tuple[Any, tuple[int, ...]]]


class Arena:
    """Tensors in one block that share their first axis, of which some entries are in use."""

    def __init__(self, block: Block, tensors: Mapping[str, Tensor], room: int) -> None:
        """``room``: entries there is memory for; the first axis of every tensor varies."""
        self.block, self.room = block, room
        self._whole: dict[str, Buffer] = {}
        offset = 0
        for name, tensor in tensors.items():
            shape = (room, *tensor.shape[1:])
            self._whole[name] = Buffer(block, tensor.dtype, shape, offset)
            offset += aligned(self._whole[name].n_bytes)

    @staticmethod
    def size(tensors: Mapping[str, Tensor], room: int) -> int:
        """Bytes that ``room`` entries take."""
        entries = (
            math.prod(tensor.shape[1:]) * tensor.dtype.itemsize for tensor in tensors.values()
        )
        return sum(aligned(room * n_bytes) for n_bytes in entries)

    def entries(self, first: int, n: int) -> dict[str, Buffer]:
        """``n`` entries of every tensor by name."""
        return {name: whole.entries(first, n) for name, whole in self._whole.items()}

    @property
    def bytes(self) -> Buffer:
        """All of it."""
        return Buffer(self.block, np.dtype(np.uint8), (self.block.n_bytes,))


def place(block: Block, fields: Fields) -> dict[str, Buffer]:
    """Arrays laid one after another into a block."""
    placed: dict[str, Buffer] = {}
    offset = 0
    for name, (dtype, shape) in fields.items():
        placed[name] = Buffer(block, np.dtype(dtype), shape, offset)
        offset += aligned(placed[name].n_bytes)
    return placed


def size_of(fields: Fields) -> int:
    """Bytes that :func:`place` takes; never none, so that there is an address."""
    sizes = (math.prod(shape) * np.dtype(dtype).itemsize for dtype, shape in fields.values())
    return max(sum(map(aligned, sizes)), ALIGNMENT)


class Pack:
    """Arrays that travel together: the same places in a device block and in pinned memory."""

    def __init__(self, name: str, device: Block, host: HostBlock, fields: Fields) -> None:
        """``fields``: dtype and shape by name."""
        self.name = name
        self.device = place(device, fields)
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
    """What a session holds on the device, by name."""

    def __init__(self, executor: Executor, graphs: Sequence[str]) -> None:
        """Open a lane for ``graphs``."""
        self._executor = executor
        self.lane = executor.lane(graphs)
        self._blocks: dict[str, Block] = {}
        self._pinned: dict[str, HostBlock] = {}
        self._arenas: dict[str, Arena] = {}
        self._marks: dict[int, Mark] = {}
        self._calls: collections.OrderedDict[tuple[Any, ...], Call] = collections.OrderedDict()
        self._pending: list[object] = []
        self._sent: set[str] = set()
        self._busy = False

    # --- memory -----------------------------------------------------------------------------------

    def growth(self, sizes: Mapping[str, int], kept: Sequence[str] = ()) -> int:
        """Bytes that these blocks take; old ones are freed first, but for ``kept``."""
        grown = ((name, size) for name, size in sizes.items() if size > self._held(name))
        return sum(size - (0 if name in kept else self._held(name)) for name, size in grown)

    def _held(self, name: str) -> int:
        block = self._blocks.get(name)
        return 0 if block is None else block.n_bytes

    def _block(self, name: str, n_bytes: int) -> Block:
        if self._held(name) < n_bytes:
            self._drop(name)
            self._blocks[name] = self._executor.allocate(n_bytes)
        return self._blocks[name]

    def _drop(self, name: str) -> None:
        old = self._blocks.pop(name, None)
        if old is not None:
            self._forget_calls()
            old.free()

    def arrays(self, name: str, fields: Fields) -> dict[str, Buffer]:
        """Arrays on the device alone; the last ones of this name are gone."""
        return place(self._block(name, size_of(fields)), fields)

    def pack(self, name: str, fields: Fields) -> Pack:
        """Arrays to be written or read by the host; the last ones of this name are gone."""
        if name in self._sent:
            self.settle()
        size = size_of(fields)
        return Pack(name, self._block(name, size), self._pin(name, size), fields)

    def _pin(self, name: str, n_bytes: int) -> HostBlock:
        held = self._pinned.get(name)
        if held is None or len(held.array) < n_bytes:
            self.settle()
            if held is not None:
                self._pinned.pop(name).free()
            held = self._pinned[name] = self._executor.pin(n_bytes)
        return held

    def arena(self, name: str) -> Arena:
        """The arena of this name, which must have been grown."""
        return self._arenas[name]

    def room(self, name: str) -> int:
        """Entries that the arena of this name has memory for."""
        return self._arenas[name].room if name in self._arenas else 0

    def grow(self, name: str, tensors: Mapping[str, Tensor], room: int, keep: int = 0) -> Arena:
        """An arena with room for so many entries, zero where nothing was written.

        Args:
            name: of the arena.
            tensors: what it holds.
            room: entries wanted.
            keep: how many of the old entries must stay as they are.
        """
        old = self._arenas.get(name)
        if old is not None and old.room >= room and self._same(old, tensors):
            return old
        if old is None or not keep:
            self._arenas.pop(name, None)
            self._drop(name)
        block = self._executor.allocate(Arena.size(tensors, room))
        arena = Arena(block, tensors, room)
        self._busy = True
        self.lane.zero(arena.bytes)
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

    def upload(self, pack: Pack) -> None:
        """Send a pack's host arrays."""
        self._busy = True
        self._sent.add(pack.name)
        self.lane.upload(pack.device_bytes, pack.host_bytes)

    def fetch(self, pack: Pack) -> Mapping[str, NDArray]:
        """Wait for everything and read a pack, until it is asked for again."""
        self._busy = True
        self.lane.download(pack.host_bytes, pack.device_bytes)
        self.settle()
        return pack.host

    def read(self, buffer: Buffer) -> NDArray:
        """Wait for everything and read an array, until the next one is read."""
        host = self._pin("read", max(buffer.n_bytes, 1)).array[: buffer.n_bytes]
        array = host.view(buffer.dtype).reshape(buffer.shape)
        self._busy = True
        self.lane.download(array, buffer)
        self.settle()
        return array

    def call(
        self, key: tuple[Any, ...], graph: str, buffers: Callable[[], Mapping[str, Buffer]]
    ) -> None:
        """Run a graph that will be run on the same buffers again; see :meth:`chain`."""
        self.chain(key, lambda: Chain(((graph, buffers()),)))

    def chain(self, key: tuple[Any, ...], chain: Callable[[], Chain]) -> None:
        """Run graphs that will be run on the same buffers again.

        The ``chain`` is asked for once a ``key``: it may be another one for the same key only after
        a block has grown.
        """
        call = self._calls.get(key)
        if call is None:
            if len(self._calls) >= MAX_CALLS:
                self.settle()
                self._calls.popitem(last=False)[1].close()
            call = self._calls[key] = self.lane.bind(chain())
        self._calls.move_to_end(key)
        self._busy = True
        call.run()

    def once(self, graph: str, buffers: Mapping[str, Buffer]) -> None:
        """Run a graph on buffers of no lasting shape."""
        self._busy = True
        self.lane.run(graph, buffers)

    def copy(self, target: Mapping[str, Buffer], source: Mapping[str, Buffer]) -> None:
        """Copy tensors of the same name on the device."""
        self._busy = True
        for name, buffer in source.items():
            self.lane.copy(target[name], buffer)

    def copy_entries(self, target: Arena, source: Arena, to: Int, of: Int) -> None:
        """Entries ``of`` of one arena become entries ``to`` of another; runs of them at once."""
        begin = 0
        for end in range(1, len(to) + 1):
            goes_on = end < len(to) and to[end] == to[end - 1] + 1 and of[end] == of[end - 1] + 1
            if not goes_on:
                n = end - begin
                first, old = int(to[begin]), int(of[begin])
                self.copy(target.entries(first, n), source.entries(old, n))
                begin = end

    def mark(self, number: int) -> None:
        """Set a mark after everything asked so far."""
        if number not in self._marks:
            self._marks[number] = self.lane.mark()
        self._marks[number].set()

    def wait(self, number: int) -> None:
        """Wait until everything asked before a mark is done; what came after may go on."""
        self._marks[number].wait()

    def hold(self, used: object) -> None:
        """Keep an object alive until the work that uses it is done."""
        self._busy = True
        self._pending.append(used)

    def settle(self) -> None:
        """Wait until everything asked is done."""
        if self._busy:
            self.lane.synchronize()
            self._busy = False
            self._pending.clear()
            self._sent.clear()

    def _forget_calls(self) -> None:
        try:
            self.settle()
        finally:
            while self._calls:
                self._calls.popitem()[1].close()

    def close(self) -> None:
        """Release everything, whatever state the device is in."""
        try:
            self._forget_calls()
        finally:
            self._pending.clear()
            for block in self._blocks.values():
                block.free()
            for host in self._pinned.values():
                host.free()
            for mark in self._marks.values():
                mark.close()
            self._marks.clear()
            self._blocks.clear()
            self._arenas.clear()
            self._pinned.clear()
            self.lane.close()
