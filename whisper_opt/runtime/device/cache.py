"""The slots of one session on a device: what the graphs read and write there, and how it moves.

Self caches have the model's whole context as their capacity and are written in place. There are two
sides of them: a reordering that cannot be done by a few copies gathers one side into the other, and
the second side takes no memory before that.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Callable, NamedTuple, Protocol

import numpy as np

from whisper_opt.core.arrays import F32, Bool, Int, NDArray
from whisper_opt.core.backend import GreedyRows, MultiStepResult
from whisper_opt.core.dims import ModelDims
from whisper_opt.runtime.device.executor import Buffer, Executor, GraphSequence, Tensor
from whisper_opt.runtime.device.multistep import StepRing
from whisper_opt.runtime.device.workspace import Arena, Fields, Workspace, size_of
from whisper_opt.runtime.rows import AppendPlan, SlotMap

__all__ = ["CrossKV", "DeviceCache", "DeviceModel"]

_SIDES = ("self_a", "self_b")


class CrossKV:
    """Cross-attention keys and values of some audios on the device."""

    def __init__(self, arena: Arena, tensors: Mapping[str, Tensor]) -> None:
        """``tensors``: what the arena holds, with every size but the first."""
        self.arena, self.tensors = arena, tensors


class DeviceModel(Protocol):
    """What sessions share: the model on its device, and the memory that others have left."""

    dims: ModelDims
    executor: Executor

    def require_memory(self, n_audio: int, growth: Callable[[int], int]) -> None:
        """See that ``growth(n_audio)`` bytes can be allocated.

        Raises:
            EngineError: they cannot; the message has the largest number of audios that could.
        """

    def tokens_per_call(
        self, n_audio: int, n_slots: int, n_new: int, n_at: int, *, aligned: bool
    ) -> int:
        """How many of ``n_new`` tokens a slot can be fed in one shape.

        Args:
            n_audio: audios.
            n_slots: rows of the graph.
            n_new: tokens a slot.
            n_at: positions wanted in each slot; in a shape of fewer tokens, as many as there are.
            aligned: whether cross-attention is wanted of all of them.

        Raises:
            EngineError: not even one: the graphs were built for fewer rows.
        """

    def release(self, workspace: Workspace) -> None:
        """Take back the workspace of a session that has ended."""


class _DecoderShape(NamedTuple):
    """How many of everything one shape of the decoder has."""

    n_audio: int
    n_slots: int
    n_new: int
    n_at: int
    n_aligned: int


class DeviceCache:
    """Keys and values of the slots of a session."""

    def __init__(
        self, model: DeviceModel, workspace: Workspace, cross: CrossKV, audios: tuple[int, ...]
    ) -> None:
        """One empty slot an audio of ``cross``, which is copied.

        Raises:
            EngineError: there is not enough memory.
        """
        self._model, self._workspace = model, workspace
        self._dims, self._fits = model.dims, model.executor.fits
        self.n_audio = self.n_slots = len(audios)
        self._side = _SIDES[0]
        self._fed = False  # until then there is no past to be moved
        self._checked_shapes: set[_DecoderShape] = set()
        decoder = model.executor.tensors("decoder")
        self.cross_tensors = cross.tensors
        self._tensors = {
            name: Tensor(
                tensor.dtype,
                (-1, tensor.shape[1], self._dims.n_text_ctx, tensor.shape[3]),
            )
            for name, tensor in decoder.items()
            if f"{name}_out" in decoder
        }
        self._alignment_heads = {
            name: tensor.shape[1] for name, tensor in decoder.items() if name[:5] == "atten"
        }
        self.n_choices = model.executor.tensors("choose")["tokens"].shape[1]
        self._has_advance = "advance" in model.executor.graphs
        self._require_memory(self.n_slots, n_at=2)
        arena = workspace.grow("cross", cross.tensors, self.n_audio)
        order = np.arange(self.n_audio)
        workspace.copy_entries(arena, cross.arena, order, np.array(audios, np.int64))
        workspace.keep_alive(cross)

    # --- memory -----------------------------------------------------------------------------------

    def _require_memory(
        self, n_slots: int, *, n_audio: int = 0, n_at: int = 1, side: str = "", kept: bool = False
    ) -> None:
        """See that there is memory for so many slots; ``kept``: beside what is there."""
        workspace = self._workspace
        n_audio = n_audio or self.n_audio
        side, group = side or self._side, n_slots // n_audio

        def growth(n: int) -> int:
            shape = _DecoderShape(n, n * group, 1, n_at, 0)
            sizes = {
                "cross": Arena.size(self.cross_tensors, n),
                side: Arena.size(self._tensors, n * group),
                "outputs": size_of(self._outputs(shape)),
                "last": size_of(self._last_fields(n * group)) if n_at > 1 else 0,
                "masks": size_of(self._masks(n * group)),
            }
            return workspace.growth(sizes, ("cross", side) if kept else ())

        self._model.require_memory(n_audio, growth)

    def _outputs(self, shape: _DecoderShape) -> Fields:
        n_ctx = self.cross_tensors["cross_k_0"].shape[3]
        return {
            "logits": (np.float32, (shape.n_slots, shape.n_at, self._dims.n_vocab)),
            **{
                name: (np.float32, (shape.n_audio, n_heads, shape.n_aligned, n_ctx))
                for name, n_heads in self._alignment_heads.items()
            },
        }

    def _masks(self, n_slots: int) -> Fields:
        return {
            "ban": (np.bool_, (n_slots, self._dims.n_vocab)),
            "timestamp_begin": (np.int64, (n_slots,)),
        }

    def _last_fields(self, n_slots: int) -> Fields:
        return {"logits": (np.float32, (n_slots, self._dims.n_vocab))}

    def _grow_kept(self, name: str, tensors: Mapping[str, Tensor], n: int, keep: int) -> Arena:
        """Room for n entries; twice what it was where there is memory, as more may come."""
        room = self._workspace.capacity(name)
        if room >= n:
            return self._workspace.arena(name)
        doubled = max(n, 2 * room)
        plenty = Arena.size(tensors, doubled) <= self._model.executor.available() // 2
        return self._workspace.grow(name, tensors, doubled if plenty else n, keep)

    # --- the decoder ------------------------------------------------------------------------------

    def run(self, tokens: Int, start: Int, at: Int, aligned: Int) -> dict[str, Buffer]:
        """Enqueue one shape of the decoder; all arguments have an entry a slot, but for ``aligned``.

        Returns:
            ``logits`` and ``attention_i``, to be overwritten by the next shape.
        """
        workspace = self._workspace
        n_slots, n_new = tokens.shape
        shape = _DecoderShape(self.n_audio, n_slots, n_new, at.shape[1], len(aligned))
        self._prepare(shape)
        fields = {"tokens": tokens, "start": start, "at": at, "aligned": aligned}
        inputs = workspace.staging("inputs", {k: (np.int64, v.shape) for k, v in fields.items()})
        outputs = workspace.arrays("outputs", self._outputs(shape))
        for name, values in fields.items():
            inputs.host[name][...] = values
        workspace.upload(inputs)

        def buffers() -> dict[str, Buffer]:
            return self._decoder_buffers(shape, {**inputs.device, **outputs})

        if n_new == 1 and not shape.n_aligned:
            workspace.run_captured(("decoder", shape, self._side), "decoder", buffers)
        else:
            workspace.run("decoder", buffers())
        return outputs

    def _prepare(self, shape: _DecoderShape) -> None:
        """See that there is memory for a shape, and a cache to be written."""
        workspace = self._workspace
        if shape not in self._checked_shapes:
            sizes = {"outputs": size_of(self._outputs(shape))}
            self._model.require_memory(1, lambda _: workspace.growth(sizes))
            self._checked_shapes.add(shape)
        if not self._fed:
            workspace.grow(self._side, self._tensors, shape.n_slots)
            self._fed = True

    def _decoder_buffers(
        self, shape: _DecoderShape, others: Mapping[str, Buffer]
    ) -> dict[str, Buffer]:
        """All that a shape of the decoder reads and writes: ``others``, and what is kept."""
        held = self._workspace.arena(self._side).entries(0, shape.n_slots)
        return {
            **self._workspace.arena("cross").entries(0, shape.n_audio),
            **held,
            **{f"{name}_out": buffer for name, buffer in held.items()},
            **others,
        }

    @property
    def supports_multistep(self) -> bool:
        """Whether these slots can go on by themselves (:meth:`decode_steps`).

        The little memory that it takes must be there too: who lacks it goes step by step.
        """
        if not (self._has_advance and self._fits("advance", {"tokens": (self.n_slots, 1)})):
            return False
        growth = self._workspace.growth(StepRing.size(self.n_slots, self._dims.n_vocab))
        return growth <= 0 or growth <= self._model.executor.available()

    def decode_steps(
        self, tokens: Int, start: Int, rows: GreedyRows, steps: int, slots: SlotMap
    ) -> MultiStepResult:
        """Feed and sample until a row has ended; see :class:`whisper_opt.core.backend.MultiStepSession`.

        Args:
            tokens: int64 [n_seq] that are fed first.
            start: int64 [n_seq] their positions.
            rows: how each row goes on.
            steps: tokens that there is room for, at most.
            slots: where the rows sit.
        """
        workspace, shape = self._workspace, _DecoderShape(self.n_audio, self.n_slots, 1, 1, 0)
        self._prepare(shape)
        outputs = workspace.arrays("outputs", self._outputs(shape))
        ring = StepRing(workspace, shape.n_slots, self._dims.n_vocab)
        ring.feed(tokens, start, rows, slots.row_of_slot)

        def launch(entry: int) -> None:
            workspace.run_sequence(
                ("step", shape, self._side, entry),
                lambda: GraphSequence(
                    (
                        (
                            "decoder",
                            self._decoder_buffers(shape, {**ring.decoder_inputs(entry), **outputs}),
                        ),
                        ("advance", ring.advance_buffers(entry, outputs["logits"])),
                    ),
                    (ring.download(entry),),
                ),
            )

        return ring.run(launch, steps, rows.eot, slots.slot_of_row)

    def read(self, buffer: Buffer) -> NDArray:
        """Wait for an array, and read it; valid until the next one is read."""
        return self._workspace.read(buffer)

    def attention(self, outputs: Mapping[str, Buffer]) -> F32:
        """Scores of all alignment heads, in the order of layers, [A, n_heads, n_aligned, T]."""
        heads = [self.read(outputs[name]).copy() for name in self._alignment_heads]
        return np.concatenate(heads, axis=1)

    def choose(self, logits: Buffer, ban: Bool, timestamp_begin: Int, owner: Int) -> list[NDArray]:
        """Wait for the best tokens after the last position of every slot.

        Args:
            logits: float32 [n_slots, n_at, n_vocab].
            ban: bool [n_seq, n_vocab].
            timestamp_begin: int64 [n_seq].
            owner: the row of each slot.

        Returns:
            Tokens and log-probabilities [n_slots, n_choices], valid until the next choice.
        """
        workspace = self._workspace
        n_slots, n_at, n_vocab = logits.shape
        masks = workspace.staging("masks", self._masks(n_slots))
        np.take(ban, owner, axis=0, out=masks.host["ban"], mode="clip")
        masks.host["timestamp_begin"][...] = timestamp_begin[owner]
        workspace.upload(masks)
        shape = (n_slots, self.n_choices)
        best = workspace.staging(
            "best", {"tokens": (np.int64, shape), "logprobs": (np.float32, shape)}
        )
        every = Buffer(logits.block, logits.dtype, (n_slots * n_at, n_vocab), logits.offset)
        last = every
        if n_at > 1:
            last = workspace.arrays("last", self._last_fields(n_slots))["logits"]
            for slot in range(n_slots):
                source = every.entries(slot * n_at + n_at - 1, 1)
                workspace.copy({"": last.entries(slot, 1)}, {"": source})
        workspace.run_captured(
            ("choose", n_slots, n_at == 1),
            "choose",
            lambda: {"logits": last, **masks.device, **best.device},
        )
        found = workspace.fetch(best)
        return [found["tokens"], found["logprobs"]]

    # --- slots ------------------------------------------------------------------------------------

    def rearrange(self, source: Int) -> None:
        """Slot i takes the past of old slot ``source[i]``; either all of it is done or nothing.

        Raises:
            EngineError: there is not enough memory.
        """
        n, n_before = len(source), self.n_slots
        moved = np.flatnonzero(source != np.arange(n))
        apart = not np.isin(source[moved], moved).any()
        if not self._fed:
            self._require_memory(n)
        elif apart and 2 * len(moved) <= max(n, n_before):
            self._require_memory(n, kept=True)
            cache = self._grow_kept(self._side, self._tensors, n, n_before)
            self._workspace.copy_entries(cache, cache, moved, source[moved])
        else:
            self._reorder(source)
        self.n_slots = n

    def _reorder(self, source: Int) -> None:
        workspace, n, n_before = self._workspace, len(source), self.n_slots
        side, other = self._side, _SIDES[1 - _SIDES.index(self._side)]
        self._require_memory(n, side=other)
        held = workspace.arena(side)
        taken = workspace.grow(other, self._tensors, n)
        shape = held.entries(0, n_before)["self_k_0"].shape
        if not self._fits("reorder", {"rows": (n,), "self_k_0": shape}):
            workspace.copy_entries(taken, held, np.arange(n), source)
        else:
            rows = workspace.staging("rows", {"rows": (np.int64, (n,))})
            rows.host["rows"][...] = source
            workspace.upload(rows)

            def buffers() -> dict[str, Buffer]:
                out = taken.entries(0, n).items()
                written = {f"{name}_out": buffer for name, buffer in out}
                return {**rows.device, **held.entries(0, n_before), **written}

            workspace.run_captured(("reorder", n_before, n, side), "reorder", buffers)
        self._side = other

    def keep_audios(self, source: Int) -> None:
        """Audio i becomes old audio ``source[i]``, none of which is overwritten before it moves."""
        moved = np.flatnonzero(source != np.arange(len(source)))
        cross = self._workspace.arena("cross")
        self._workspace.copy_entries(cross, cross, moved, source[moved])
        self.n_audio = len(source)

    def append(self, other: DeviceCache, n_audio: int, plan: AppendPlan) -> None:
        """Copy another cache in; either all of it is done or nothing, and the other one stays.

        Raises:
            EngineError: there is not enough memory.
        """
        workspace, theirs = self._workspace, other._workspace
        theirs.synchronize()
        self._require_memory(len(plan.slots), n_audio=n_audio, kept=True)
        cross = self._grow_kept("cross", self.cross_tensors, n_audio, self.n_audio)
        if other._fed and not self._fed:
            workspace.grow(self._side, self._tensors, self.n_slots)
            self._fed = True
        n_before, self.n_audio = self.n_audio, n_audio
        try:
            self.rearrange(plan.slots)
        except BaseException:
            self.n_audio = n_before
            raise
        order = np.arange(len(plan.audios))
        workspace.copy_entries(cross, theirs.arena("cross"), plan.audios, order)
        if other._fed:
            cache, past = workspace.arena(self._side), theirs.arena(other._side)
            workspace.copy_entries(cache, past, plan.new_slots, plan.source_slots)
        workspace.synchronize()

    def close(self) -> None:
        """Give the memory back; nothing may be called afterwards."""
        self._model.release(self._workspace)
