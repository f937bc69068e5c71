"""The part of a tokenizer that callers of the pipeline use: prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

__all__ = ["Tokenizer"]


class Tokenizer:
    """Ids of texts and prompts."""

    def __init__(self, vocab: Any) -> None:
        self._vocab = vocab

    def get_prompt_ids(self, text: str, return_tensors: str = "np") -> Any:
        """Ids of a prompt, int64 [n], for ``prompt_ids``; an array whatever ``return_tensors``.

        Raises:
            OptionError: ``text`` contains the spelling of a special token.
        """
        ids = [self._vocab.sot_prev, *self._vocab.encode(" " + text.strip())]
        return np.array(ids, np.int64)

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = False) -> str:
        """Text of ids; special tokens by name unless they are skipped, timestamps are left out."""
        text: str = self._vocab.decode(list(token_ids), specials=not skip_special_tokens)
        return text

    def __getattr__(self, name: str) -> Any:
        """Refuse what belongs to transformers."""
        raise AttributeError(
            f"this tokenizer has no {name!r}; use get_prompt_ids or decode, or the tokenizer of"
            " transformers itself"
        )
