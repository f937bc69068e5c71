"""Word errors after Whisper's text normalization (``whisper-normalizer``), by ``jiwer``."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Callable

from whisper_opt.core.errors import BackendUnavailable
from whisper_opt.core.remedies import install_hint

if TYPE_CHECKING:
    import jiwer

__all__ = ["BY_CHARACTER", "Score", "check_scoring", "score", "unspoken", "whole"]

BY_CHARACTER = ("ja", "zh")
"""Languages written without spaces: their "words" are characters, as in the Whisper paper."""
_BRACKETS = re.compile(r"[\[\](){}<>♪♫*]")


@dataclasses.dataclass(frozen=True)
class Score:
    """Errors of one text, or of several."""

    words: int = 0
    substitutions: int = 0
    deletions: int = 0
    insertions: int = 0

    @property
    def errors(self) -> int:
        """All errors."""
        return self.substitutions + self.deletions + self.insertions

    @property
    def rate(self) -> float:
        """Errors per hundred reference words."""
        return 100 * self.errors / self.words if self.words else 0.0


def whole(scores: Iterable[Score]) -> Score:
    """The sum of scores, so that longer texts have more weight."""
    rows = [dataclasses.astuple(score) for score in scores]
    return Score(*map(sum, zip(*rows))) if rows else Score()


def check_scoring() -> None:
    """Check that errors can be counted.

    Raises:
        BackendUnavailable: a package is missing.
    """
    try:
        import jiwer  # noqa: F401
        import whisper_normalizer  # noqa: F401
    except ImportError as error:
        raise BackendUnavailable(
            f"counting word errors needs {error.name}, which is not installed;"
            f" {install_hint('bench')}"
        ) from error


@functools.cache
def _normalizer(language: str) -> Callable[[str], str]:
    if language == "en":
        from whisper_normalizer.english import EnglishTextNormalizer

        english: Callable[[str], str] = EnglishTextNormalizer()
        return english
    from whisper_normalizer.basic import BasicTextNormalizer

    basic: Callable[[str], str] = BasicTextNormalizer(split_letters=language in BY_CHARACTER)
    return basic


def _aligned(reference: str, hypothesis: str, language: str) -> jiwer.WordOutput:
    import jiwer

    normalize = _normalizer(language)
    return jiwer.process_words([normalize(reference).strip()], [normalize(hypothesis).strip()])


def score(reference: str, hypothesis: str, language: str) -> Score:
    """Compare one text with its reference after normalizing both."""
    found = _aligned(reference, hypothesis, language)
    words = found.hits + found.substitutions + found.deletions
    return Score(words, found.substitutions, found.deletions, found.insertions)


def unspoken(reference: str, hypothesis: str, language: str) -> int:
    """Hallucinated words of ``hypothesis``: insertions, or all words if there is no speech.

    Text that the normalizer drops counts: text in brackets, notes, lone punctuation. A compound
    written apart ("my self") does not count: its letters are the same.
    """
    if not reference:
        return len(hypothesis.split())
    found = _aligned(reference, _BRACKETS.sub(" ", hypothesis), language)
    expected, found_words = found.references[0], found.hypotheses[0]
    count = 0
    for equal, group in itertools.groupby(found.alignments[0], lambda c: c.type == "equal"):
        chunks = list(group)
        first, last = chunks[0], chunks[-1]
        ours = found_words[first.hyp_start_idx : last.hyp_end_idx]
        theirs = expected[first.ref_start_idx : last.ref_end_idx]
        if not equal and "".join(ours) != "".join(theirs):
            count += sum(c.hyp_end_idx - c.hyp_start_idx for c in chunks if c.type == "insert")
    return count
