"""When a word of a live result is committed: small classes without state.

Each gets the results so far, without the words that are committed already, and says how many words
of the last one will not change.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Protocol

from whisper_opt.core.options import LiveOptions
from whisper_opt.transcription.live.words import LiveWord, agreed

__all__ = ["AlignAtt", "Both", "LocalAgreement", "Policy", "policy_of"]

Results = Sequence[Sequence[LiveWord]]
"""Words of the results of an utterance, the newest last, each without the committed words."""


class Policy(Protocol):
    """Decides which words are committed."""

    def stable(self, results: Results) -> int:
        """How many of the first words of the last result to commit."""


@dataclasses.dataclass(frozen=True)
class LocalAgreement:
    """Commits the words that the last ``n`` results begin with (Liu et al. 2020).

    Words are compared without case, width and punctuation; characters, in scripts without spaces.

    Attributes:
        n: number of results.
    """

    n: int

    def stable(self, results: Results) -> int:
        """See :class:`Policy`."""
        if len(results) < self.n:
            return 0
        return agreed(results[-self.n :])


@dataclasses.dataclass(frozen=True)
class AlignAtt:
    """Commits the words during which the model attended to audio well before the end.

    Attributes:
        frame_threshold: least distance to the end of the audio, in positions of 20 ms.
    """

    frame_threshold: int

    def stable(self, results: Results) -> int:
        """See :class:`Policy`."""
        words = results[-1] if results else ()
        for i, word in enumerate(words):
            if word.jumps_back or word.margin < self.frame_threshold:
                return i
        return len(words)


@dataclasses.dataclass(frozen=True)
class Both:
    """Commits what all of several policies commit."""

    policies: tuple[Policy, ...]

    def stable(self, results: Results) -> int:
        """See :class:`Policy`."""
        return min(policy.stable(results) for policy in self.policies)


def policy_of(options: LiveOptions) -> Policy:
    """The policy that options name."""
    agreement, attention = LocalAgreement(options.agreement), AlignAtt(options.frame_threshold)
    if options.policy == "both":
        return Both((agreement, attention))
    return agreement if options.policy == "agreement" else attention
