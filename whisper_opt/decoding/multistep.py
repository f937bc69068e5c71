"""Rows that a session can decode by itself, several tokens in a row, and what it then answers.

Greedy rows under no rules but those that are fixed and those of the timestamps: what may come next
then follows from the last two tokens and the latest timestamp. The host's rules would say the same.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from whisper_opt.core.arrays import Bool
from whisper_opt.core.backend import GreedyRows
from whisper_opt.decoding.constraints import (
    SuppressAtBegin,
    SuppressTokens,
    TimestampRules,
    TokenConstraint,
)

__all__ = ["GreedyRow", "greedy_row", "greedy_rows"]


@dataclasses.dataclass(frozen=True)
class GreedyRow:
    """How one row goes on; see :class:`whisper_opt.core.backend.GreedyRows`."""

    ban: Bool
    timestamp_begin: int
    eot: int


def greedy_row(
    rules: Sequence[TokenConstraint], timestamp_begin: int | None, eot: int, n_vocab: int
) -> GreedyRow | None:
    """How a greedy row goes on after its first token; None where that needs the host.

    Args:
        rules: of the row.
        timestamp_begin: id of ``<|0.00|>`` if timestamps are compared with text, else None.
        eot: what ends the row.
        n_vocab: ids of the model.
    """
    ban = np.zeros(n_vocab, np.bool_)
    timed: TimestampRules | None = None
    for rule in rules:
        if isinstance(rule, SuppressTokens):
            ban[rule.tokens] = True
        elif isinstance(rule, TimestampRules) and timed is None:
            timed = rule
            ban[rule.no_timestamps] = True
        elif not isinstance(rule, SuppressAtBegin):  # which bears on the first token alone
            return None
    if timed is not None and timed.end is not None:  # the graph takes all ids after it for times
        return None
    ruled = None if timed is None else (timed.begin, timed.eot)
    if ruled != (None if timestamp_begin is None else (timestamp_begin, eot)):
        return None
    return GreedyRow(ban, n_vocab if timestamp_begin is None else timestamp_begin, eot)


def greedy_rows(rows: Sequence[GreedyRow], sampled: Sequence[Sequence[int]]) -> GreedyRows:
    """Rows and what each has sampled so far, a token at least, as a session takes them."""
    begins = [row.timestamp_begin for row in rows]
    latest = [
        next((token for token in reversed(tokens) if token >= begin), begin - 1)
        for tokens, begin in zip(sampled, begins)
    ]
    previous = [tokens[-2] if len(tokens) > 1 else begin for tokens, begin in zip(sampled, begins)]
    return GreedyRows(
        ban=np.stack([row.ban for row in rows]),
        timestamp_begin=np.array(begins, np.int64),
        eot=np.array([row.eot for row in rows], np.int64),
        previous=np.array(previous, np.int64),
        latest=np.array(latest, np.int64),
    )
