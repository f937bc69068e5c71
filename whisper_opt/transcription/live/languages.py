"""The language of the utterances of a session."""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["UtteranceLanguage"]

_SURE = 0.5
"""Probability from which the language of the utterance before is kept."""
_CHANGED = 0.8
"""Probability from which another language is taken instead, or the first of a session."""
_LEAST = 1.0
"""Seconds of audio after which the language may be settled."""
_LEAST_CHANGED = 2.0
"""Likewise, if it is another language than before."""
_MOST = 5.0
"""Seconds of audio after which it is settled in any case."""


class UtteranceLanguage:
    """The language of each utterance, given or detected; a doubtful one is that of the one before.

    The first utterance has none before it. The language is detected in the updates of an utterance
    until it is settled; so a few sounds at its beginning do not change the language.

    Attributes:
        language: code of the language of the utterance; None if nothing is known.
        settled: whether it is not detected any more.
    """

    def __init__(self, given: str | None) -> None:
        """``given``: code of the language of the session; None to detect it."""
        self._given = given
        self._before = given
        self.language = given
        self.settled = given is not None

    def begin(self) -> None:
        """Begin an utterance."""
        if self._given is None:
            self.settled = False

    def choose(self, found: Mapping[str, float], seconds: float) -> str:
        """The language to decode so many seconds with, given the probability of each."""
        best = next(iter(found))
        changed = found[best] >= _CHANGED and seconds >= _LEAST_CHANGED
        return best if self._before is None or changed else self._before

    def heard(self, found: Mapping[str, float], seconds: float) -> None:
        """Take the probabilities of so many seconds of the utterance."""
        if self.settled:
            return
        self.language = chosen = self.choose(found, seconds)
        changed = self._before is not None and chosen != self._before
        least = _CHANGED if self._before is None else _SURE  # nothing speaks for it but this
        sure = found.get(chosen, 0.0) >= least and seconds >= _LEAST
        self.settled = changed or sure or seconds >= _MOST

    def end(self) -> bool:
        """End the utterance; whether its language is another than that of the one before."""
        if not self.settled and self._before is not None:
            self.language = self._before
        before, self._before = self._before, self.language
        return before is not None and before != self.language
