"""Layout of subtitle cues: their words, times and line breaks.

The layout is openai-whisper's (``SubtitlesWriter.iterate_result`` in whisper/utils.py):

* A segment is a cue. ``max_words_per_line`` splits it into cues of that many words,
  ``max_line_width`` breaks it into lines; a word wider than a line gets its own line.
* With ``max_line_count`` too, words flow from segment to segment: a cue ends when its lines are
  full, or when a word begins more than 3 s after the beginning of the previous word.
* A cue has the words of one speaker (openai-whisper knows none).
* Width is counted in characters; the space before the first word of a line is dropped.

If the word times would show a cue for less than ``LEAST``, the cue takes the missing time from the
pauses beside it or from its neighbours.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

from whisper_opt.core.errors import OptionError
from whisper_opt.core.options import SubtitleOptions
from whisper_opt.text.results import Segment, Transcript, Word

__all__ = ["LEAST", "PLAIN", "Cue", "cues", "given"]

LEAST = 0.12
"""Minimum seconds for which a cue is shown: three frames of a film."""

PLAIN = SubtitleOptions()
"""No option set."""

_MANY = 1000
"""Maximum characters per line and words per cue without options."""

_EXACT = 1e-6
"""Tolerance for rounding in comparisons of times, in seconds."""

_PAUSE = 3.0
"""Two words that begin more seconds apart than this are not in the same cue."""


@dataclasses.dataclass(frozen=True)
class Cue:
    """Words shown together.

    Attributes:
        words: at least one, in order; the text of each begins with the space or line break
            before it. A segment without word times is a single word.
    """

    words: tuple[Word, ...]

    @property
    def start(self) -> float:
        """When the first word begins, in seconds."""
        return self.words[0].start

    @property
    def end(self) -> float:
        """When the last word ends, in seconds."""
        return self.words[-1].end

    @property
    def speaker(self) -> str | None:
        """Who says them."""
        return self.words[0].speaker

    @property
    def text(self) -> str:
        """The text of all words, with line breaks."""
        return "".join(word.word for word in self.words)

    def between(self, start: float, end: float) -> Cue:
        """The same words with their times clipped to ``start`` and ``end``."""
        words = [
            dataclasses.replace(
                word, start=min(max(word.start, start), end), end=min(max(word.end, start), end)
            )
            for word in self.words
        ]
        words[0] = dataclasses.replace(words[0], start=start)
        words[-1] = dataclasses.replace(words[-1], end=end)
        return Cue(tuple(words))


def cues(transcript: Transcript, options: SubtitleOptions = PLAIN) -> Iterator[Cue]:
    """The cues of a transcript in order, each shown for at least ``LEAST``.

    A segment without word times (``words`` is None) is one cue; a segment in which no word was
    found (``words`` is empty) has none.

    Raises:
        OptionError: an option is set and a segment has no word times.
    """
    if options.needs_words and any(segment.words is None for segment in transcript):
        raise OptionError(
            f"{given(options)}: set, but the transcript has no word times; transcribe with"
            " word_timestamps"
        )
    return _long_enough(list(_laid_out(transcript, options)), transcript.duration)


def _laid_out(transcript: Transcript, options: SubtitleOptions) -> Iterator[Cue]:
    layout = _Layout(options, _beginning(transcript))
    per_cue = options.max_words_per_line or _MANY
    for segment in transcript:
        if segment.words is None:
            yield from layout.take()
            text = segment.text.strip()
            yield Cue((Word(segment.start, segment.end, text, 1.0, segment.speaker),))
            continue
        for i, word in enumerate(segment.words):
            yield from layout.add(word, begins=i % per_cue == 0)
    yield from layout.take()


def _long_enough(found: list[Cue], duration: float) -> Iterator[Cue]:
    """The cues, those with text lengthened to ``LEAST`` without new overlaps."""
    spans = [[cue.start, cue.end] for cue in found]
    shown = [i for i, cue in enumerate(found) if cue.text.strip()]
    _lengthen([spans[i] for i in shown], duration)
    for cue, (start, end) in zip(found, spans):
        yield cue if (start, end) == (cue.start, cue.end) else cue.between(start, end)


def _lengthen(spans: list[list[float]], duration: float) -> None:
    """Lengthen every span (start, end) to ``LEAST``, and move others only if necessary."""
    last = max([duration, *(end for _, end in spans)])
    begins = [start for start, _ in spans]
    for i, span in enumerate(spans):
        start, end = span
        if start < 0 or not 0 <= end - start < LEAST - _EXACT:
            continue
        span[1] = start + LEAST
        if i + 1 == len(spans) or begins[i + 1] < begins[i] - _EXACT:
            continue  # no next span, or it is out of order
        after = spans[i + 1]
        if span[1] > after[0]:  # use the pause before it if there is one, else delay the next span
            free = spans[i - 1][1] if i and spans[i - 1][1] <= start else start if i else 0.0
            span[0] = max(free, after[0] - LEAST)
            span[1] = span[0] + LEAST
            after[0] = max(after[0], span[1])
            after[1] = max(after[1], after[0])
    _pull_back(spans, last)


def _pull_back(spans: list[list[float]], last: float) -> None:
    """Move spans that were pushed beyond the end back, if there is room."""
    moved = []
    for start, end in reversed(spans):
        if end <= last + _EXACT:
            break
        moved.append([min(start, last - LEAST), last])
        last = moved[-1][0]
    if last >= 0:
        for span, (start, end) in zip(reversed(spans), moved):
            span[:] = start, end


def given(options: SubtitleOptions) -> str:
    """The names of the options that are set, for a message."""
    names = [field.name for field in dataclasses.fields(options)]
    return ", ".join(name for name in names if getattr(options, name) != getattr(PLAIN, name))


def _beginning(transcript: Sequence[Segment]) -> float:
    words = (word.start for segment in transcript for word in segment.words or ())
    return next(words, 0.0)


class _Layout:
    """Collects words into lines and cues."""

    def __init__(self, options: SubtitleOptions, last: float) -> None:
        self._width = options.max_line_width or _MANY
        self._count = options.max_line_count
        self._last = last  # start of the previous word
        self._words: list[Word] = []
        self._used = 0  # characters in the line
        self._line = 1

    def add(self, word: Word, *, begins: bool) -> Iterator[Cue]:
        """Add a word; ``begins``: it is the first of a segment or of a part of one."""
        flows = self._count is not None
        pause = flows and word.start - self._last > _PAUSE
        other = bool(self._words) and word.speaker != self._words[-1].speaker
        apart = (begins and not flows and bool(self._words)) or other
        fits = self._used > 0 and self._used + len(word.word) <= self._width
        self._last = word.start
        if fits and not pause and not apart:
            self._used += len(word.word)
            self._words.append(word)
            return
        full = self._count is not None and self._line >= self._count
        opening = ""
        if self._words and (apart or pause or full):
            yield from self.take()
        elif self._used:
            self._line += 1
            opening = "\n"
        text = word.word.strip()
        self._used = len(text)
        self._words.append(dataclasses.replace(word, word=opening + text))

    def take(self) -> Iterator[Cue]:
        """The cue of the words collected so far, if any."""
        if self._words:
            yield Cue(tuple(self._words))
        self._words, self._used, self._line = [], 0, 1
