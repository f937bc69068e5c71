"""Ids of a vocabulary that are text, including tokens added by fine-tuning."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from whisper_opt.core.arrays import F32

__all__ = ["TextIds", "is_special"]


def is_special(token: Mapping[str, Any]) -> bool:
    """Whether an entry of ``added_tokens`` is a special token rather than text.

    Names in ``<|...|>`` are special whatever their flag says: the files of the released models mark
    timestamps as not special.
    """
    return (
        bool(token.get("special", False)) or re.fullmatch(r"<\|.*\|>", token["content"]) is not None
    )


class TextIds:
    """The ids that are text: all below the end of text, and added tokens above it."""

    def __init__(self, eot: int, added: Iterable[int] = ()) -> None:
        """``added``: ids above ``eot`` that are text too."""
        self.eot = eot
        self.added = tuple(sorted(added))
        self._column = {token: eot + i for i, token in enumerate(self.added)}

    def __contains__(self, token: object) -> bool:
        """Whether ``token`` is text."""
        return isinstance(token, int) and (token < self.eot or token in self._column)

    def scores(self, scores: F32) -> F32:
        """The text columns of scores [n, n_vocab]."""
        text = scores[:, : self.eot]
        if not self.added:
            return text
        return np.concatenate([text, scores[:, list(self.added)]], axis=1)

    def columns(self, tokens: Sequence[int]) -> list[int]:
        """The column of each text token in :meth:`scores`."""
        return [self._column.get(token, token) for token in tokens]
