"""Key/value cache of one session on a device: the buffers of the graphs, and how slots move.

The self-attention cache has the capacity of the whole context and is written in place. It is double
buffered: if a reordering needs more than a few copies, one side is gathered into the other. The
second side is allocated when it is first needed.
"""

from __future__ import annotations

import threading
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
    """Cross-attention keys and values of some windows on the device."""

    def __init__(self, arena: Arena, tensors: Mapping[str, Tensor]) -> None:
        """``tensors``: types of the tensors in the arena; the first axis is variable."""
        self.arena, self.tensors = arena, tensors


class DeviceModel(Protocol):
    """What sessions share: the model on its device, and the free memory."""

    dims: ModelDims
    executor: Executor
    lock: threading.RLock
    """Held during each call, so that calls from several threads run one at a time."""

    def require_memory(self, n_audio: int, growth: Callable[[int], int]) -> None:
        """Check that ``growth(n_audio)`` bytes can be allocated.

        Raises:
            EngineError: they cannot; the message has the largest number of windows that would fit.
        """

    def tokens_per_call(
        self, n_audio: int, n_slots: int, n_new: int, n_at: int, *, aligned: bool
    ) -> int:
        """How many of ``n_new`` tokens per slot one call of the decoder can take.

        Args:
            n_audio: number of windows.
            n_slots: number of slots.
            n_new: tokens per slot.
            n_at: positions per slot whose scores are needed; at most the tokens of the call.
            aligned: whether cross-attention is needed at all of them.

        Raises:
            EngineError: not even one token: the graphs were built for fewer slots.
        """

    def release(self, workspace: Workspace) -> None:
        """Take back the workspace of a closed session."""


class _DecoderShape(NamedTuple):
    """Sizes of one call of the decoder."""

    n_audio: int
    n_slots: int
    n_new: int
    n_at: int
    n_aligned: int


class DeviceCache:
    """Cache of the slots of a session."""

    def __init__(
        self, model: DeviceModel, workspace: Workspace, cross: CrossKV, audios: tuple[int, ...]
    ) -> None:
        """Create one empty slot per window of ``cross``, which is copied.

        Raises:
            EngineError: there is not enough memory.
        """
        self._model, self._workspace = model, workspace
        self._dims, self._fits = model.dims, model.executor.fits
        self.n_audio = self.n_slots = len(audios)
        self._side = _SIDES[0]
        self._fed = False  # before the first tokens there is nothing to move
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
        """Check the memory for ``n_slots``; ``kept``: in addition to the present cache."""
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
        """Capacity for n entries; doubled if there is memory, since more may be added."""
        capacity = self._workspace.capacity(name)
        if capacity >= n:
            return self._workspace.arena(name)
        doubled = max(n, 2 * capacity)
        plenty = Arena.size(tensors, doubled) <= self._model.executor.available() // 2
        return self._workspace.grow(name, tensors, doubled if plenty else n, keep)

    # --- the decoder ------------------------------------------------------------------------------

    def run(self, tokens: Int, start: Int, at: Int, aligned: Int) -> dict[str, Buffer]:
        """Enqueue one decoder call; all arguments except ``aligned`` have one entry per slot.

        Returns:
            ``logits`` and ``attention_i``; the next call overwrites them.
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
        """Check the memory for a call, and allocate the cache before the first one."""
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
        """All buffers of a decoder call: ``others``, and the caches."""
        cache = self._workspace.arena(self._side).entries(0, shape.n_slots)
        return {
            **self._workspace.arena("cross").entries(0, shape.n_audio),
            **cache,
            **{f"{name}_out": buffer for name, buffer in cache.items()},
            **others,
        }

    @property
    def supports_multistep(self) -> bool:
        """Whether :meth:`decode_steps` can be used: there is a graph for it, and memory."""
        if not (self._has_advance and self._fits("advance", {"tokens": (self.n_slots, 1)})):
            return False
        growth = self._workspace.growth(StepRing.size(self.n_slots, self._dims.n_vocab))
        return growth <= 0 or growth <= self._model.executor.available()

    def decode_steps(
        self, tokens: Int, start: Int, rows: GreedyRows, steps: int, slots: SlotMap
    ) -> MultiStepResult:
        """Feed and sample until a row has ended.

        See :class:`whisper_opt.core.backend.MultiStepSession`.

        Args:
            tokens: int64 [n_seq] tokens that are fed first.
            start: int64 [n_seq] their positions.
            rows: state of each row.
            steps: maximum number of steps; the context must have space for them.
            slots: slots of the rows.
        """
        workspace, shape = self._workspace, _DecoderShape(self.n_audio, self.n_slots, 1, 1, 0)
        self._prepare(shape)
        outputs = workspace.arrays("outputs", self._outputs(shape))
        ring = StepRing(workspace, shape.n_slots, self._dims.n_vocab)
        ring.upload(tokens, start, rows, slots.row_of_slot)

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

        return ring.run_steps(launch, steps, rows.eot, slots.slot_of_row)

    def read(self, buffer: Buffer) -> NDArray:
        """Synchronize and read an array; valid until the next one is read."""
        return self._workspace.read(buffer)

    def attention(self, outputs: Mapping[str, Buffer]) -> F32:
        """Attention scores of all alignment heads, by layer, [A, n_heads, n_aligned, T]."""
        heads = [self.read(outputs[name]).copy() for name in self._alignment_heads]
        return np.concatenate(heads, axis=1)

    def choose(
        self, logits: Buffer, ban: Bool, timestamp_begin: Int, row_of_slot: Int
    ) -> list[NDArray]:
        """Choose the best tokens after the last position of every slot, and wait for them.

        Args:
            logits: float32 [n_slots, n_at, n_vocab].
            ban: bool [n_seq, n_vocab].
            timestamp_begin: int64 [n_seq].
            row_of_slot: row of each slot.

        Returns:
            Tokens and log-probabilities [n_slots, n_choices], valid until the next choice.
        """
        workspace = self._workspace
        n_slots, n_at, n_vocab = logits.shape
        masks = workspace.staging("masks", self._masks(n_slots))
        np.take(ban, row_of_slot, axis=0, out=masks.host["ban"], mode="clip")
        masks.host["timestamp_begin"][...] = timestamp_begin[row_of_slot]
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
        """Slot i becomes a copy of old slot ``source[i]``; does everything or nothing.

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
        old = workspace.arena(side)
        new = workspace.grow(other, self._tensors, n)
        shape = old.entries(0, n_before)["self_k_0"].shape
        if not self._fits("reorder", {"rows": (n,), "self_k_0": shape}):
            workspace.copy_entries(new, old, np.arange(n), source)
        else:
            rows = workspace.staging("rows", {"rows": (np.int64, (n,))})
            rows.host["rows"][...] = source
            workspace.upload(rows)

            def buffers() -> dict[str, Buffer]:
                out = new.entries(0, n).items()
                written = {f"{name}_out": buffer for name, buffer in out}
                return {**rows.device, **old.entries(0, n_before), **written}

            workspace.run_captured(("reorder", n_before, n, side), "reorder", buffers)
        self._side = other

    def keep_audios(self, source: Int) -> None:
        """Window i becomes old window ``source[i]``; no window is overwritten before it moves."""
        moved = np.flatnonzero(source != np.arange(len(source)))
        cross = self._workspace.arena("cross")
        self._workspace.copy_entries(cross, cross, moved, source[moved])
        self.n_audio = len(source)

    def append(self, other: DeviceCache, n_audio: int, plan: AppendPlan) -> None:
        """Append another cache, which is not changed; does everything or nothing.

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
            cache, source = workspace.arena(self._side), theirs.arena(other._side)
            workspace.copy_entries(cache, source, plan.new_slots, plan.source_slots)
        workspace.synchronize()

    def close(self) -> None:
        """Release the workspace; the cache cannot be used afterwards."""
        self._model.release(self._workspace)
