"""Multi-step decoding: rows for which a session can sample several tokens without the host.

These are greedy rows with fixed constraints and, perhaps, the timestamp rules. The allowed next
tokens then depend only on the last two tokens and the latest timestamp. Results are those of single
steps.
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
    """Fixed state of one row; see :class:`whisper_opt.core.backend.GreedyRows`."""

    ban: Bool
    timestamp_begin: int
    eot: int


def greedy_row(
    constraints: Sequence[TokenConstraint], timestamp_begin: int | None, eot: int, n_vocab: int
) -> GreedyRow | None:
    """State of a greedy row after its first token; None if it needs the host at every step.

    Args:
        constraints: of the row.
        timestamp_begin: id of ``<|0.00|>`` if timestamps are compared with text, else None.
        eot: id of the end of text.
        n_vocab: size of the vocabulary.
    """
    ban = np.zeros(n_vocab, np.bool_)
    timed: TimestampRules | None = None
    for constraint in constraints:
        if isinstance(constraint, SuppressTokens):
            ban[constraint.tokens] = True
        elif isinstance(constraint, TimestampRules) and timed is None:
            timed = constraint
            ban[constraint.no_timestamps] = True
        elif not isinstance(constraint, SuppressAtBegin):  # concerns the first token only
            return None
    if timed is not None and timed.end is not None:  # the graph treats all later ids as timestamps
        return None
    ids = None if timed is None else (timed.begin, timed.eot)
    if ids != (None if timestamp_begin is None else (timestamp_begin, eot)):
        return None
    return GreedyRow(ban, n_vocab if timestamp_begin is None else timestamp_begin, eot)


def greedy_rows(rows: Sequence[GreedyRow], sampled: Sequence[Sequence[int]]) -> GreedyRows:
    """The rows and their sampled tokens (at least one each) as input of a session."""
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
