"""Speculative decoding: proposed tokens are verified in one call of the model.

After Leviathan et al. 2023 (arXiv:2211.17192), for greedy decoding: the model computes its scores
at all proposed positions at once. Every position gets the constraints that it would get step by
step, because they depend on the sampled tokens only. Proposed tokens are accepted up to the first
that the model would not have chosen; the model's own choice takes its place. Rows of a batch accept
different numbers of tokens, each as many as its own model run allows.

The tokens are those of decoding step by step. Backends whose calls with several tokens compute sums
in another order may differ where two scores are equal up to rounding (docs/how-it-decodes.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Callable, NamedTuple

import numpy as np

from whisper_opt.core.arrays import F32, Int
from whisper_opt.core.backend import Logits, Session, TokenMask, Top
from whisper_opt.core.logits import top_k
from whisper_opt.decoding.rows import Row, pad, token_mask

__all__ = ["Choose", "Fed", "advance", "feed", "feed_again", "is_worth_it", "proposals"]

_WORTH = 3
"""Feeding all tokens of a row again pays for at least one proposal per so many tokens: that takes
about a quarter of a decode step per token."""

Choose = Callable[[F32, "Sequence[Row]", TokenMask], Top]
"""Chooses tokens for decoders by the scores of all tokens, float32 [n_seq, n_vocab]."""


class Fed(NamedTuple):
    """What was fed to the rows of a session.

    Attributes:
        lengths: int64 [n_seq], tokens fed to each hypothesis.
        drafts: proposed tokens of each row, the last ones that were fed to it.
    """

    lengths: Int
    drafts: Sequence[Sequence[int]]


def proposals(rows: Sequence[Row], n_text_ctx: int) -> list[tuple[int, ...]]:
    """Proposed tokens of every row, which may be none."""
    return [row.propose(n_text_ctx) for row in rows]


def feed(
    session: Session, tokens: Int, rows: Sequence[Row], drafts: Sequence[Sequence[int]]
) -> tuple[Logits, Fed]:
    """Feed the last sampled tokens, [n_seq, 1], and the proposals of each row.

    Returns:
        Scores at all proposed positions and after the last one, and what was fed.
    """
    given = [draft for row, draft in zip(rows, drafts) for _ in range(row.live)]
    padded, lengths = pad([[*token, *draft] for token, draft in zip(tokens.tolist(), given)])
    order = np.arange(int(lengths.max()) - 1)
    at = np.minimum(order[None], lengths[:, None] - 1)
    return session.extend(padded, lengths, at), Fed(lengths, drafts)


def is_worth_it(row: Row, draft: Sequence[int]) -> bool:
    """Whether to verify proposals with :func:`feed_again`."""
    return _WORTH * len(draft) >= len(row.request.prompt) + row.n_sampled


def feed_again(session: Session, row: Row, draft: Sequence[int]) -> tuple[Logits, Fed]:
    """Feed the prompt, all sampled tokens and the proposals of one row to a new session.

    For sessions that cannot compute several tokens on top of others in one call; returns as
    :func:`feed`.
    """
    before = [*row.request.prompt, *row.decoder.rows[0][-row.n_sampled :]]
    tokens, lengths = pad([[*before, *draft]])
    at = len(before) - 1 + np.arange(len(draft))
    return session.extend(tokens, lengths, at[None]), Fed(lengths, [draft])


def _verified(scores: F32, draft: Sequence[int], row: Row) -> list[Top]:
    """The model's choices at proposed positions, up to the first that was not proposed.

    ``scores``: float32 [n, n_vocab] before each proposed token.
    """
    sampled = list(row.decoder.rows[0])
    chosen: list[Top] = []
    for each, proposed in zip(scores, draft):
        top = top_k(each[None], 1, token_mask([(row, sampled)], len(each)))
        chosen.append(top)
        if top.tokens[0, 0] != proposed:
            break
        sampled.append(proposed)
    return chosen


def _n_accepted(chosen: Sequence[Top], draft: Sequence[int]) -> int:
    return sum(int(top.tokens[0, 0]) == proposed for top, proposed in zip(chosen, draft))


def advance(
    session: Session, rows: Sequence[Row], logits: Logits, fed: Fed, choose: Choose
) -> tuple[Int, int]:
    """Step every decoder by all tokens that were accepted and one more.

    The session keeps the active hypotheses and their accepted tokens.

    Args:
        session: what was fed.
        rows: its rows.
        logits: the scores of :func:`feed`.
        fed: what it has fed.
        choose: chooses for rows that sample or have a penalty.

    Returns:
        The new last token of each hypothesis, int64 [n_seq, 1], and how many proposals were
        accepted.
    """
    # each is read once: devices copy the scores for every call
    scores = logits.numpy() if any(row.needs_scores for row in rows) else None
    requested = logits.requested() if scores is None else scores[:, :-1]
    firsts = np.cumsum([0, *(row.live for row in rows)]).tolist()
    chosen = [
        _verified(requested[first], draft, row) if draft else []
        for row, draft, first in zip(rows, fed.drafts, firsts)
    ]
    accepted = [_n_accepted(tops, draft) for tops, draft in zip(chosen, fed.drafts)]
    last: Top | None = None
    if any(n == len(draft) for n, draft in zip(accepted, fed.drafts)):
        mask = _last_mask(rows, fed.drafts, requested.shape[2])
        if scores is not None:
            last = choose(scores[:, -1], rows, mask)
        else:
            last = logits.top(max(row.decoder.width for row in rows), mask)
    keep: list[int] = []
    tokens: list[int] = []
    for i, (row, draft) in enumerate(zip(rows, fed.drafts)):
        tops, end = chosen[i], firsts[i] + row.live
        if last is not None and accepted[i] == len(draft):
            part, width = slice(firsts[i], end), row.decoder.width
            tops.append(Top(last.tokens[part, :width], last.logprobs[part, :width]))
        parents: list[int] = []
        for top in tops:
            parents = row.step(top)
        keep.extend(firsts[i] + parent for parent in parents)
        tokens.extend(sampled[-1] for sampled in row.decoder.rows[: len(parents)])
    if keep:
        refused = np.repeat(
            np.array([len(draft) - n for draft, n in zip(fed.drafts, accepted)], np.int64),
            np.diff(firsts),
        )
        session.gather(np.array(keep, np.int64))
        session.truncate(refused[keep])
    return np.array(tokens, np.int64).reshape(-1, 1), sum(accepted)


def _last_mask(rows: Sequence[Row], drafts: Sequence[Sequence[int]], n_vocab: int) -> TokenMask:
    """What may follow the last token fed; of use for rows whose proposals are all accepted."""
    live = [
        (row, [*sampled, *draft])
        for row, draft in zip(rows, drafts)
        for sampled in row.decoder.rows
    ]
    return token_mask(live, n_vocab)
