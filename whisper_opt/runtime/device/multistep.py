"""Steps that a device takes by itself: it feeds what it sampled, and the host looks at it late.

A step is one call, the decoder and then ``advance``, from one place of a small ring into the next
one, and a copy of that to pinned memory. The host launches steps ahead of the one it looks at, so
that the device never waits for it; when a row ends, as many steps have been taken too many. They
change nothing: a row that has ended stays where it is.
"""

from __future__ import annotations

from typing import Callable

import numpy as np

from whisper_opt.core.arrays import F32, Int
from whisper_opt.core.backend import GreedyRows, Run
from whisper_opt.runtime.device.executor import Buffer
from whisper_opt.runtime.device.workspace import Fields, Pack, Workspace, size_of

__all__ = ["AHEAD", "Ring"]

AHEAD = 2
"""Steps launched beyond the one that the host looks at."""
PLACES = max(AHEAD + 1, 3)
"""Of the ring: those not looked at yet; and a step reads two and writes a third."""


class Ring:
    """What steps hand on to one another: last token, latest timestamp, position, likelihood."""

    def __init__(self, workspace: Workspace, n_slots: int, n_vocab: int) -> None:
        """Take the memory; whatever the device still does with it has to end first."""
        workspace.settle()
        self._workspace = workspace
        self._places = [workspace.pack(f"place {i}", self._fields(n_slots)) for i in range(PLACES)]
        self._rules = workspace.pack("rules", self._rule_fields(n_slots, n_vocab))

    @staticmethod
    def size(n_slots: int, n_vocab: int) -> dict[str, int]:
        """Bytes of device memory, by block."""
        place = size_of(Ring._fields(n_slots))
        rules = size_of(Ring._rule_fields(n_slots, n_vocab))
        return {**{f"place {i}": place for i in range(PLACES)}, "rules": rules}

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
        rules, now, before = self._rules, self._places[0], self._places[-1]
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

    def decoder_inputs(self, place: int) -> dict[str, Buffer]:
        """What the decoder is fed in a step from one place to the next."""
        fixed = {name: self._rules.device[name] for name in ("at", "aligned")}
        now = self._places[place].device
        return {"tokens": now["tokens"], "start": now["start"], **fixed}

    def advance_buffers(self, place: int, logits: Buffer) -> dict[str, Buffer]:
        """Everything ``advance`` reads and writes in that step."""
        fixed = {name: self._rules.device[name] for name in ("ban", "timestamp_begin", "eot")}
        now = {name: self._places[place].device[name] for name in ("tokens", "latest", "start")}
        n_slots, _, n_vocab = logits.shape
        then = self._next(place).device
        return {
            **fixed,
            **now,
            "logits": Buffer(logits.block, logits.dtype, (n_slots, n_vocab), logits.offset),
            "previous": self._places[place - 1].device["tokens"],
            **{f"{name}_out": then[name] for name in now},
            "logprobs": then["logprobs"],
        }

    def download(self, place: int) -> tuple[Int, Buffer]:
        """Where to, and what comes to the host after that step."""
        then = self._next(place)
        return then.host_bytes, then.device_bytes

    def _next(self, place: int) -> Pack:
        return self._places[(place + 1) % PLACES]

    def run(self, launch: Callable[[int], None], steps: int, eot: Int, of_row: Int) -> Run:
        """Take steps until a row is seen to have ended, ``steps`` at most.

        Args:
            launch: enqueues a step from the place of this number.
            steps: at least 1.
            eot: int64 [n_seq] what ends each row.
            of_row: the slot of each row.
        """
        tokens: list[Int] = []
        logprobs: list[F32] = []

        def look() -> None:
            place = len(tokens) % PLACES
            self._workspace.wait(place)
            found = self._next(place).host
            tokens.append(found["tokens"][of_row, 0])
            logprobs.append(found["logprobs"][of_row])

        for step in range(steps):
            place = step % PLACES
            launch(place)
            self._workspace.mark(place)
            if step >= AHEAD:
                look()
                if (tokens[-1] == eot).any():
                    break
        while len(tokens) <= step and not (tokens and (tokens[-1] == eot).all()):
            look()
        return Run(np.stack(tokens), np.stack(logprobs))
