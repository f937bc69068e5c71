"""Multi-step decoding: the device feeds the tokens it sampled, and the host reads them later.

A step is one graph sequence: the decoder, then ``advance``, then a copy to pinned memory. It reads
one entry of a small ring buffer and writes the next one. The host launches steps ahead of the one
it reads, so that the device never waits for it. When a row ends, up to ``AHEAD`` extra steps have
been launched. They change nothing, since a finished row does not advance.
"""

from __future__ import annotations

from typing import Callable

import numpy as np

from whisper_opt.core.arrays import F32, Int
from whisper_opt.core.backend import GreedyRows, MultiStepResult
from whisper_opt.runtime.device.executor import Buffer
from whisper_opt.runtime.device.workspace import Fields, StagingBuffer, Workspace, size_of

__all__ = ["AHEAD", "StepRing"]

AHEAD = 2
"""Steps launched beyond the one that the host reads."""
RING_SIZE = max(AHEAD + 1, 3)
"""Entries of the ring: those not read yet; and a step reads two and writes a third."""


class StepRing:
    """Ring buffer of the state between steps: token, latest timestamp, position, logprob."""

    def __init__(self, workspace: Workspace, n_slots: int, n_vocab: int) -> None:
        """Allocate the memory, after synchronizing with work that may still use it."""
        workspace.synchronize()
        self._workspace = workspace
        self._entries = [
            workspace.staging(f"ring {i}", self._fields(n_slots)) for i in range(RING_SIZE)
        ]
        self._rules = workspace.staging("rules", self._rule_fields(n_slots, n_vocab))

    @staticmethod
    def size(n_slots: int, n_vocab: int) -> dict[str, int]:
        """Device memory in bytes, by block."""
        entry = size_of(StepRing._fields(n_slots))
        rules = size_of(StepRing._rule_fields(n_slots, n_vocab))
        return {**{f"ring {i}": entry for i in range(RING_SIZE)}, "rules": rules}

    @staticmethod
    def _fields(n_slots: int) -> Fields:
        return {
            "tokens": (np.int64, (n_slots, 1)),
            "latest": (np.int64, (n_slots,)),
            "start": (np.int64, (n_slots,)),
            "logprobs": (np.float32, (n_slots,)),
        }

    @staticmethod
    def _rule_fields(n_slots: int, n_vocab: int) -> Fields:
        return {
            "ban": (np.bool_, (n_slots, n_vocab)),
            "aligned": (np.int64, (0,)),
            "timestamp_begin": (np.int64, (n_slots,)),
            "eot": (np.int64, (n_slots,)),
            "at": (np.int64, (n_slots, 1)),
        }

    def upload(self, tokens: Int, start: Int, rows: GreedyRows, row_of_slot: Int) -> None:
        """Upload the state of the rows before the first step.

        Args:
            tokens: int64 [n_seq] tokens that are fed first.
            start: int64 [n_seq] their positions.
            rows: state of each row.
            row_of_slot: row of each slot.
        """
        rules, now, before = self._rules, self._entries[0], self._entries[-1]
        np.take(rows.ban, row_of_slot, axis=0, out=rules.host["ban"], mode="clip")
        rules.host["timestamp_begin"][...] = rows.timestamp_begin[row_of_slot]
        rules.host["eot"][...] = rows.eot[row_of_slot]
        rules.host["at"][...] = 0
        now.host["tokens"][:, 0] = tokens[row_of_slot]
        now.host["latest"][...] = rows.latest[row_of_slot]
        now.host["start"][...] = start[row_of_slot]
        before.host["tokens"][:, 0] = rows.previous[row_of_slot]
        for staging in (rules, now, before):
            self._workspace.upload(staging)

    def decoder_inputs(self, entry: int) -> dict[str, Buffer]:
        """Inputs of the decoder in a step from one entry to the next."""
        fixed = {name: self._rules.device[name] for name in ("at", "aligned")}
        now = self._entries[entry].device
        return {"tokens": now["tokens"], "start": now["start"], **fixed}

    def advance_buffers(self, entry: int, logits: Buffer) -> dict[str, Buffer]:
        """Inputs and outputs of ``advance`` in that step."""
        fixed = {name: self._rules.device[name] for name in ("ban", "timestamp_begin", "eot")}
        now = {name: self._entries[entry].device[name] for name in ("tokens", "latest", "start")}
        n_slots, _, n_vocab = logits.shape
        then = self._next(entry).device
        return {
            **fixed,
            **now,
            "logits": Buffer(logits.block, logits.dtype, (n_slots, n_vocab), logits.offset),
            "previous": self._entries[entry - 1].device["tokens"],
            **{f"{name}_out": then[name] for name in now},
            "logprobs": then["logprobs"],
        }

    def download(self, entry: int) -> tuple[Int, Buffer]:
        """Pinned memory, and the buffer that is copied to it after that step."""
        then = self._next(entry)
        return then.host_bytes, then.device_bytes

    def _next(self, entry: int) -> StagingBuffer:
        return self._entries[(entry + 1) % RING_SIZE]

    def run_steps(
        self, launch: Callable[[int], None], steps: int, eot: Int, slot_of_row: Int
    ) -> MultiStepResult:
        """Run steps until the host reads that a row has ended, at most ``steps``.

        Args:
            launch: enqueues a step that reads the entry of this index.
            steps: maximum number of steps, at least 1.
            eot: int64 [n_seq] end-of-text token of each row.
            slot_of_row: slot of each row.
        """
        tokens: list[Int] = []
        logprobs: list[F32] = []

        def read_step() -> None:
            entry = len(tokens) % RING_SIZE
            self._workspace.wait_event(entry)
            found = self._next(entry).host
            tokens.append(found["tokens"][slot_of_row, 0])
            logprobs.append(found["logprobs"][slot_of_row])

        for step in range(steps):
            entry = step % RING_SIZE
            launch(entry)
            self._workspace.record_event(entry)
            if step >= AHEAD:
                read_step()
                if (tokens[-1] == eot).any():
                    break
        while len(tokens) <= step and not (tokens and (tokens[-1] == eot).all()):
            read_step()
        return MultiStepResult(np.stack(tokens), np.stack(logprobs))
