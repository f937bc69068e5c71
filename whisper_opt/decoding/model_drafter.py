"""A small model that proposes tokens for a large one (Leviathan et al. 2023, arXiv:2211.17192)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Callable

import numpy as np

from whisper_opt.core.arrays import Int
from whisper_opt.core.backend import Backend, Encoded, Session, TokenMask
from whisper_opt.decoding.constraints import TokenConstraint, banned_tokens

__all__ = ["ModelDrafter"]


class ModelDrafter:
    """Proposes what a small model would decode in a window.

    It has a session of its own, which forgets the tokens that were not accepted. The window is
    encoded when the first proposal is asked for.
    """

    def __init__(
        self,
        backend: Backend,
        encode: Callable[[], Encoded],
        prompt: Sequence[int],
        constraints: Sequence[TokenConstraint],
        begin: int,
        eot: int,
        most: int,
        end: int | None = None,
    ) -> None:
        """Nothing is computed yet.

        Args:
            backend: the small model.
            encode: encodes the window with it.
            prompt: ids before the result.
            constraints: which tokens are banned.
            begin: id of ``<|0.00|>`` under the timestamp rules, else n_vocab.
            eot: id of the end of text, which ends a proposal.
            most: maximum number of proposed tokens.
            end: id after the last timestamp; None if the timestamps are the last ids.
        """
        self._backend = backend
        self._encode = encode
        self._prompt = tuple(prompt)
        self._constraints = tuple(constraints)
        self._begin, self._end, self._eot, self._most = begin, end, eot, most
        self._session: Session | None = None
        self._held: list[int] = []

    def propose(self, sampled: Sequence[int], most: int) -> tuple[int, ...]:
        """See :class:`whisper_opt.decoding.rows.Drafter`."""
        room = self._backend.dims.n_text_ctx - len(self._prompt) - len(sampled)
        most = min(most, self._most, room)
        if most < 1:
            return ()
        given = [*self._prompt, *sampled]
        session = self._at(given)
        found: list[int] = []
        while len(found) < most:
            new = given[len(self._held) :]
            logits = session.extend(np.array([new], np.int64))
            self._held += new
            token = int(logits.top(1, self._mask([*sampled, *found])).tokens[0, 0])
            if token == self._eot:
                break
            found.append(token)
            given.append(token)
        return tuple(found)

    def _at(self, given: Sequence[int]) -> Session:
        """The session, which holds the longest part of the tokens that it can."""
        if self._session is None:
            self._session = self._backend.open(self._encode())
        same = 0
        for mine, other in zip(self._held, given[:-1]):
            if mine != other:
                break
            same += 1
        dropped: Int = np.array([len(self._held) - same], np.int64)
        if dropped[0]:
            self._session.truncate(dropped)
            self._held = self._held[:same]
        return self._session

    def _mask(self, sampled: Sequence[int]) -> TokenMask:
        banned = [banned_tokens(self._constraints, sampled)]
        begins = np.array([self._begin], np.int64)
        n_vocab = self._backend.dims.n_vocab
        return TokenMask(banned, begins, n_vocab=n_vocab, timestamp_end=self._end)
