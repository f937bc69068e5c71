"""Merging the transcripts of the channels of a recording, without cross-talk.

**Cross-talk.** A microphone also picks up the speakers of other channels, more quietly. A word is
cross-talk if another channel is 6 dB louder meanwhile and the loudness of both goes up and down
together: then the word comes from there, whatever Whisper has heard in it. The same holds if the
other one is 12 dB louder, also relative to how loud both usually are. It is also cross-talk if
another channel has the same word at the same time and is louder by less, and if that is no
coincidence: the loudness of both goes together, or three consecutive words are the same. If two
channels are copies of each other, the first one is kept. Words beside cross-talk are judged less
strictly.
"""

from __future__ import annotations

import bisect
import dataclasses
import functools
import itertools
import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from whisper_opt.core.arrays import F32
from whisper_opt.core.dims import SAMPLE_RATE
from whisper_opt.text.results import Dropped, Segment, Word
from whisper_opt.transcription.attribution import Encode, divided

__all__ = ["Levels", "merge_channels", "speaker_of_channel"]

_FRAME = SAMPLE_RATE // 100
"""Samples per value of :class:`Levels`."""
_SLACK = 0.2
"""Two words are said at the same time if less than this, in seconds, is between them."""
_CLEARLY = 6.0
"""Decibels by which a channel is clearly louder."""
_FAR = 12.0
"""Decibels below another channel, measured and relative to what is usual on each, at which nobody
speaks into a channel."""
_SHORTEST = 0.1
"""Seconds around shorter words in which loudness is measured."""
_SAME = 0.1
"""Decibels within which two channels are the same signal."""
_LONGEST = 3.0
"""Seconds; words that are said at the same time begin less than this apart."""
_RUN = 3
"""Consecutive words that are the same by no coincidence."""
_BESIDE = 1.0
"""Seconds within which a word is beside another one."""
_AROUND = 0.4
"""Seconds before and after a word in which the loudness of two channels is compared."""
_COPY = 0.8
"""Correlation of the loudness of two channels (in decibels) from which one hears the other, if"""
_CHANGES = 0.5
"""its changes from one hundredth of a second to the next have this correlation too: two people who
begin to speak at the same time after a pause do not speak in the same rhythm."""
_PERHAPS = 0.5
"""The first of these for words beside cross-talk."""


def speaker_of_channel(channel: int) -> str:
    """The name of who speaks on a channel, numbered from 0."""
    return f"channel {channel}"


class Levels:
    """Loudness of a recording over time, which is read in blocks."""

    def __init__(self) -> None:
        """Nothing was read."""
        self._energies: list[F32] = []
        self._rest = np.empty(0, np.float32)

    def feed(self, samples: F32) -> None:
        """Add F32 [n] at 16 kHz, any n."""
        samples = np.concatenate([self._rest, samples]) if len(self._rest) else samples
        n = len(samples) // _FRAME
        frames = samples[: n * _FRAME].reshape(n, _FRAME)
        self._energies.append(np.einsum("ij,ij->i", frames, frames))
        self._rest = samples[n * _FRAME :].copy()

    def decibels(self, start: float, end: float) -> float:
        """Mean power between two times in seconds, relative to full scale."""
        frames = self._between(start, end)
        mean = float(frames.sum(dtype=np.float64)) / max(1, len(frames) * _FRAME)
        return 10 * math.log10(max(mean, 1e-12))

    @functools.cached_property
    def usual(self) -> float:
        """The level that a twentieth of the recording exceeds, in decibels, when all was read."""
        frames = self._between(0.0, math.inf)
        power = float(np.quantile(frames, 0.95)) / _FRAME if len(frames) else 0.0
        return 10 * math.log10(max(power, 1e-12))

    def similarity(self, other: Levels, start: float, end: float) -> tuple[float, float]:
        """Correlation of two channels around a time: of their loudness, and of its changes."""
        bounds = max(0.0, start - _AROUND), end + _AROUND
        mine, others = self._between(*bounds), other._between(*bounds)
        n = min(len(mine), len(others))
        if not n:  # Whisper may give times after the end
            return 0.0, 0.0
        pair = np.stack([mine[:n], others[:n]]).astype(np.float64)
        pair = np.log(pair + 1e-3 * pair.mean(axis=1, keepdims=True) + 1e-12)
        return _correlation(pair), _correlation(np.diff(pair, axis=1))

    def follows(self, other: Levels, start: float, end: float) -> bool:
        """Whether this channel is loud and quiet when the other one is."""
        level, changes = self.similarity(other, start, end)
        return level >= _COPY and changes >= _CHANGES

    def _between(self, start: float, end: float) -> F32:
        if len(self._energies) > 1:
            self._energies = [np.concatenate(self._energies)]
        known = self._energies[0] if self._energies else np.empty(0, np.float32)
        past = len(known) if end == math.inf else math.ceil(100 * end)
        return known[math.floor(100 * start) : past]


def _correlation(pair: npt.NDArray[np.float64]) -> float:
    if not pair.size:
        return 0.0
    pair = pair - pair.mean(axis=1, keepdims=True)
    scale = math.sqrt(float((pair[0] @ pair[0]) * (pair[1] @ pair[1])))
    return float(pair[0] @ pair[1]) / scale if scale else 0.0


@dataclasses.dataclass
class _Spoken:
    """A word of one channel."""

    word: Word
    text: str
    removed: bool = False
    same: bool = False
    """Whether a louder channel, or one before that is its copy, has the same word meanwhile."""
    copied: bool = False
    """Whether it comes from another channel for certain."""
    near: bool = False
    """Whether a channel that is clearly louder may be heard in this one."""


def merge_channels(
    segments: Sequence[Segment],
    levels: Sequence[Levels],
    encode: Encode,
) -> tuple[list[Segment], list[Dropped]]:
    """Segments of all channels in order of time, without cross-talk, and what was removed.

    A segment is divided where another channel speaks between two of its words.

    Args:
        segments: with words and channels; those of a channel in order of time.
        levels: loudness of every channel.
        encode: text to tokens.
    """
    named = [_named(segment) for segment in segments]
    words = [
        [
            _Spoken(word, _plain(word.word))
            for segment in named
            if segment.channel == channel
            for word in segment.words or ()
        ]
        for channel in range(len(levels))
    ]
    _find_cross_talk(words, levels)
    kept: list[Segment] = []
    dropped: list[Dropped] = []
    queues = [iter(channel) for channel in words]
    others = [
        sorted(_middle(each.word) for c in range(len(words)) if c != channel for each in words[c]
               if not each.removed)
        for channel in range(len(words))
    ]  # fmt: skip
    for segment in named:
        channel = segment.channel or 0
        own = list(itertools.islice(queues[channel], len(segment.words or ())))
        left = [each.word for each in own if not each.removed]
        dropped += _removed(own)
        if own:
            kept += divided(segment, list(_runs(left, others[channel])), encode)
        else:
            kept.append(segment)
    kept.sort(key=lambda segment: (segment.start, segment.channel))
    return kept, dropped


def _named(segment: Segment) -> Segment:
    speaker = speaker_of_channel(segment.channel or 0)
    words = tuple(dataclasses.replace(word, speaker=speaker) for word in segment.words or ())
    return dataclasses.replace(segment, words=words, speaker=speaker)


def _plain(word: str) -> str:
    return "".join(letter for letter in word.casefold() if letter.isalnum())


def _middle(word: Word) -> float:
    return (word.start + word.end) / 2


def _runs(words: Sequence[Word], others: Sequence[float]) -> list[list[Word]]:
    """Words between which no other channel speaks; ``others``: times of words of others."""
    runs: list[list[Word]] = [[]]
    for word in words:
        if runs[-1]:
            end = runs[-1][-1].end
            i = bisect.bisect_right(others, end)
            if i < len(others) and others[i] < word.start:
                runs.append([])
        runs[-1].append(word)
    return runs


def _removed(own: Sequence[_Spoken]) -> list[Dropped]:
    found = []
    for removed, each in itertools.groupby(own, key=lambda spoken: spoken.removed):
        words = [spoken.word for spoken in each] if removed else []
        if words:
            text = "".join(word.word for word in words)
            found.append(Dropped(words[0].start, words[-1].end, "cross-talk", text))
    return found


def _find_cross_talk(words: list[list[_Spoken]], levels: Sequence[Levels]) -> None:
    """Mark the words that are cross-talk."""
    starts = [[each.word.start for each in channel] for channel in words]
    for c, channel in enumerate(words):
        for each in channel:
            for other in range(len(words)):
                if other != c:
                    _listen(each, levels[c], levels[other])
                    _compare(each, words[other], starts[other], levels[c], levels[other], other < c)
    for channel in words:
        _mark_same(channel)
        _mark_beside(channel)
        _mark_beside(channel[::-1])


def _listen(each: _Spoken, own: Levels, level: Levels) -> None:
    """Note whether a louder channel can be heard during a word."""
    short = max(0.0, _SHORTEST - (each.word.end - each.word.start)) / 2
    bounds = max(0.0, each.word.start - short), each.word.end + short
    louder = level.decibels(*bounds) - own.decibels(*bounds)
    if louder >= _CLEARLY:
        around = max(0.0, bounds[0] - _AROUND), bounds[1] + _AROUND
        far = level.decibels(*around) - own.decibels(*around)
        silent = min(far, far - level.usual + own.usual) >= _FAR
        each.near = each.near or silent or own.similarity(level, *bounds)[0] >= _PERHAPS
        each.copied = each.copied or silent or own.follows(level, *bounds)


def _compare(
    each: _Spoken,
    others: list[_Spoken],
    starts: list[float],
    own: Levels,
    level: Levels,
    is_first: bool,
) -> None:
    """Compare a word with the same word of another channel that is louder, or before its copy."""
    word = each.word
    for i in range(bisect.bisect_left(starts, word.start - _LONGEST), len(others)):
        other = others[i].word
        if starts[i] >= word.end + _SLACK:
            break
        if other.end < word.start - _SLACK or not each.text or each.text != others[i].text:
            continue
        bounds = min(word.start, other.start), max(word.end, other.end)
        louder = level.decibels(*bounds) - own.decibels(*bounds)
        if is_first if abs(louder) < _SAME else louder > 0:
            each.same = True
            each.copied = each.copied or own.follows(level, *bounds)


def _mark_same(channel: list[_Spoken]) -> None:
    """Mark words that come from a louder channel for certain, and three that it has too."""
    for same, run in itertools.groupby(channel, key=lambda each: each.same):
        words = list(run)
        for each in words:
            each.removed = each.copied or (same and len(words) >= _RUN)


def _mark_beside(channel: Sequence[_Spoken]) -> None:
    """Mark words after a marked one (in this order) that may come from another channel."""
    before: _Spoken | None = None
    for each in channel:
        if before is not None and before.removed and each.near:
            gap = max(each.word.start - before.word.end, before.word.start - each.word.end)
            each.removed = each.removed or gap < _BESIDE
        before = each
