"""Steps that a device takes by itself: it feeds what it sampled, and the host looks at it late.

A step is one call, the decoder and then ``advance``, from one entry of a small ring into the next
one, and a copy of that to pinned memory. The host launches steps ahead of the one it looks at, so
that the device never waits for it; when a row ends, as many steps have been taken too many. They
change nothing: a row that has ended stays where it is.
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
"""Steps launched beyond the one that the host looks at."""
RING_SIZE = max(AHEAD + 1, 3)
"""Of the ring: those not looked at yet; and a step reads two and writes a third."""


class StepRing:
    """What steps hand on to one another: last token, latest timestamp, position, likelihood."""

    def __init__(self, workspace: Workspace, n_slots: int, n_vocab: int) -> None:
        """Take the memory; whatever the device still does with it has to end first."""
        workspace.synchronize()
        self._workspace = workspace
        self._entries = [
            workspace.staging(f"entry {i}", self._fields(n_slots)) for i in range(RING_SIZE)
        ]
        self._rules = workspace.staging("rules", self._rule_fields(n_slots, n_vocab))

    @staticmethod
    def size(n_slots: int, n_vocab: int) -> dict[str, int]:
        """Bytes of device memory, by block."""
        entry = size_of(StepRing._fields(n_slots))
        rules = size_of(StepRing._rule_fields(n_slots, n_vocab))
        return {**{f"entry {i}": entry for i in range(RING_SIZE)}, "rules": rules}

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

    def feed(self, tokens: Int, start: Int, rows: GreedyRows, owner: Int) -> None:
        """Send how rows stand before the first step.

        Args:
            tokens: int64 [n_seq] that are fed first.
            start: int64 [n_seq] their positions.
            rows: how each goes on.
            owner: the row of each slot.
        """
        rules, now, before = self._rules, self._entries[0], self._entries[-1]
        np.take(rows.ban, owner, axis=0, out=rules.host["ban"], mode="clip")
        rules.host["timestamp_begin"][...] = rows.timestamp_begin[owner]
        rules.host["eot"][...] = rows.eot[owner]
        rules.host["at"][...] = 0
        now.host["tokens"][:, 0] = tokens[owner]
        now.host["latest"][...] = rows.latest[owner]
        now.host["start"][...] = start[owner]
        before.host["tokens"][:, 0] = rows.previous[owner]
        for pack in (rules, now, before):
            self._workspace.upload(pack)

    def decoder_inputs(self, entry: int) -> dict[str, Buffer]:
        """What the decoder is fed in a step from one entry to the next."""
        fixed = {name: self._rules.device[name] for name in ("at", "aligned")}
        now = self._entries[entry].device
        return {"tokens": now["tokens"], "start": now["start"], **fixed}

    def advance_buffers(self, entry: int, logits: Buffer) -> dict[str, Buffer]:
        """Everything ``advance`` reads and writes in that step."""
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
        """Where to, and what comes to the host after that step."""
        then = self._next(entry)
        return then.host_bytes, then.device_bytes

    def _next(self, entry: int) -> StagingBuffer:
        return self._entries[(entry + 1) % RING_SIZE]

    def run(
        self, launch: Callable[[int], None], steps: int, eot: Int, slot_of_row: Int
    ) -> MultiStepResult:
        """Take steps until a row is seen to have ended, ``steps`` at most.

        Args:
            launch: enqueues a step from the entry of this number.
            steps: at least 1.
            eot: int64 [n_seq] what ends each row.
            slot_of_row: the slot of each row.
        """
        tokens: list[Int] = []
        logprobs: list[F32] = []

        def look() -> None:
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
                look()
                if (tokens[-1] == eot).any():
                    break
        while len(tokens) <= step and not (tokens and (tokens[-1] == eot).all()):
            look()
        return MultiStepResult(np.stack(tokens), np.stack(logprobs))
