"""Words of live results, and their comparison."""

from __future__ import annotations

import dataclasses
import functools
import unicodedata
from collections.abc import Sequence
from typing import Callable

from whisper_opt.text.results import Word

__all__ = ["LiveWord", "agreed", "cut_loop", "parted", "text_of", "units"]

_LONGEST_PERIOD = 12
"""Words of the longest phrase whose repetition is a loop."""
_LOOP = 3
"""Repetitions of a phrase from which on a result that repeats itself is a loop."""


@dataclasses.dataclass(frozen=True)
class LiveWord:
    """A word of an update.

    Attributes:
        text: with its leading space and its punctuation.
        tokens: its token ids.
        start: in seconds from the start of the session.
        end: likewise.
        probability: mean probability of its tokens, 0 to 1.
        margin: positions (20 ms) between the audio that the model attends to when it writes the
            word and the end of the audio.
        jumps_back: whether the model then attends to audio long before that of an earlier word.
    """

    text: str
    tokens: tuple[int, ...]
    start: float
    end: float
    probability: float
    margin: int = 0
    jumps_back: bool = False

    @property
    def word(self) -> Word:
        """The word as it is reported."""
        return Word(round(self.start, 2), round(self.end, 2), self.text, self.probability)


def text_of(words: Sequence[LiveWord]) -> str:
    """The text of words, joined."""
    return "".join(word.text for word in words)


_UNSPACED = (
    (0x0E00, 0x0EFF),  # Thai, Lao
    (0x1000, 0x109F),  # Myanmar
    (0x1780, 0x17FF),  # Khmer
    (0x3040, 0x30FF),  # Hiragana, Katakana
    (0x3400, 0x4DBF),  # Chinese characters
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0x20000, 0x3FFFF),
)
"""Blocks of Unicode with scripts that are written without spaces between words."""


@functools.lru_cache(maxsize=4096)
def units(text: str) -> tuple[str, ...]:
    """What words are compared by, without case, width and punctuation.

    A word is one unit; in scripts without spaces each character is one. Punctuation alone is none.
    """
    plain = unicodedata.normalize("NFKC", text).casefold()
    letters = "".join(c for c in plain if unicodedata.category(c)[0] in "LMN")
    if any(low <= ord(c) <= high for c in letters for low, high in _UNSPACED):
        return tuple(letters)
    return (letters,) if letters else ()


def agreed(results: Sequence[Sequence[LiveWord]]) -> int:
    """How many of the first words of the last result all results have.

    Punctuation alone after the last of these words is not counted.
    """
    newest = [units(word.text) for word in results[-1]]
    parts = [unit for word in newest for unit in word]
    same = len(parts)
    for other in results[:-1]:
        others = [unit for word in other for unit in units(word.text)]
        pairs = zip(parts[:same], others)
        same = next((i for i, (a, b) in enumerate(pairs) if a != b), min(same, len(others)))
    count = seen = 0
    for i, word in enumerate(newest):
        seen += len(word)
        if seen > same:
            break
        count = i + 1 if word else count
    return count


def parted(
    word: LiveWord, decode: Callable[[Sequence[int]], str]
) -> tuple[LiveWord] | tuple[LiveWord, LiveWord]:
    """A word without the punctuation at its end, and that punctuation; ``decode``: ids to text."""
    n = len(word.tokens)
    while n > 1 and not units(decode(word.tokens[n - 1 :])):
        n -= 1
    mark = decode(word.tokens[n:])
    if not mark or not word.text.endswith(mark):
        return (word,)
    text = word.text[: -len(mark)]
    return (
        dataclasses.replace(word, text=text, tokens=word.tokens[:n]),
        dataclasses.replace(word, text=mark, tokens=word.tokens[n:], start=word.end),
    )


def cut_loop(words: Sequence[LiveWord]) -> tuple[LiveWord, ...]:
    """The words without the repetitions of a phrase at their end, of which the first is kept.

    Only for results that seem to repeat themselves: people repeat words too.
    """
    keys = [units(word.text) for word in words]
    best = len(words)
    for period in range(1, min(_LONGEST_PERIOD, len(words) // _LOOP) + 1):
        n = period
        while n < len(words) and keys[-n - 1] == keys[-n - 1 + period]:
            n += 1
        if n >= _LOOP * period:
            best = min(best, len(words) - n + period)
    return tuple(words[:best])
