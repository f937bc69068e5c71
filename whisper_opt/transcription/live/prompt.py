"""The text before an update, with which the model is prompted."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["Prompt"]

_FAILURES = 2
"""Results in a row that fail the thresholds, after which the text is forgotten."""


class Prompt:
    """Committed text of good results, as token ids: the newest, in one language."""

    def __init__(self, first: Sequence[int], longest: int) -> None:
        """Start a session.

        Args:
            first: ids that come before all text, always: hotwords and the initial prompt.
            longest: maximum number of ids.
        """
        self._first = tuple(first[:longest])
        self._room = longest - len(self._first)
        self._text: list[int] = []
        self._n_failed = 0

    @property
    def tokens(self) -> tuple[int, ...]:
        """The ids."""
        return (*self._first, *self._text)

    def add(self, tokens: Sequence[int]) -> None:
        """Add committed text of a good result."""
        self._text.extend(tokens)
        del self._text[: max(0, len(self._text) - self._room)]

    def result(self, *, good: bool) -> None:
        """Take notice of whether a result passes the thresholds."""
        self._n_failed = 0 if good else self._n_failed + 1
        if self._n_failed >= _FAILURES:
            self.forget()

    def forget(self) -> None:
        """Forget the text: the language has changed, or it may have led the model astray."""
        self._text.clear()
