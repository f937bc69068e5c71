"""Drafts of a recording: which tokens are proposed in each window."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Callable

from whisper_opt.audio.features import LogMel
from whisper_opt.core.backend import Backend, Encoded
from whisper_opt.core.dims import FRAMES_PER_SECOND, ModelDims
from whisper_opt.core.errors import OptionError
from whisper_opt.core.options import TranscribeOptions, draft_segments
from whisper_opt.decoding import Drafter
from whisper_opt.decoding.drafters import FirstOf, KnownText, LookupDrafter, TextDrafter
from whisper_opt.text.results import Segment
from whisper_opt.text.vocabulary import Vocab
from whisper_opt.transcription.fallback import FallbackDecoder, Window

__all__ = ["Assistant", "ChunkDraft", "Draft", "assistant_of"]

_SETTLED = 0.1
"""Seconds; a segment of the draft that ends so soon after the start of a window is before it."""
_PACE = 3.5
"""Tokens per second of speech in English, as a first guess."""
_MOST_ASSISTED = 5
"""Tokens that a draft model proposes at most: as ``num_assistant_tokens`` of transformers was."""


class Assistant:
    """A small model that proposes tokens for the windows of a large one."""

    def __init__(self, backend: Backend) -> None:
        """``backend``: the small model; it has the vocabulary and mel bins of the large one."""
        self._backend = backend

    def drafter(
        self, window: Window, mel: LogMel, fallback: FallbackDecoder
    ) -> Callable[[], Drafter]:
        """Makes the drafter of a window; a known text is preferred where it fits."""

        def encode() -> Encoded:
            return self._backend.encode(mel.window(window.seek, window.size)[None])

        def make() -> Drafter:
            small = fallback.assisted(window, self._backend, encode, _MOST_ASSISTED)
            return small if window.drafter is None else FirstOf(window.drafter(), small)

        return make


def assistant_of(dims: ModelDims, vocab: Vocab, draft: Backend, draft_vocab: Vocab) -> Assistant:
    """A draft model for a model.

    Args:
        dims: dimensions of the model.
        vocab: its vocabulary.
        draft: the draft model.
        draft_vocab: its vocabulary.

    Raises:
        OptionError: its vocabulary or its mel bins differ.
    """
    found, expected = draft.dims, dims
    if found.n_mels != expected.n_mels:
        raise OptionError(
            f"draft_model hears {found.n_mels} mel bins, but the model {expected.n_mels}; choose"
            " a draft model with as many"
        )
    if not draft_vocab.equals(vocab):
        raise OptionError(
            f"draft_model has another vocabulary ({found.n_vocab} ids; the model has"
            f" {expected.n_vocab}); choose one of the same kind, English-only or multilingual"
        )
    return Assistant(draft)


class Draft:
    """The draft of a recording, with the tokens of its text.

    Attributes:
        segments: its segments that have text.
        timed: whether all of them have times.
    """

    def __init__(
        self, options: TranscribeOptions, vocab: Vocab, duration: float | None = None
    ) -> None:
        """Read a draft.

        Args:
            options: with the draft.
            vocab: vocabulary of the model.
            duration: seconds of the recording; None if they are not known.
        """
        self.segments = draft_segments(options.draft)
        self.timed = bool(self.segments) and all(
            segment.start is not None and segment.end is not None for segment in self.segments
        )
        self._vocab = vocab
        self._duration = duration
        self._texts: dict[str, KnownText] = {}
        self._heard: tuple[float, int] | None = None

    def text(self, language: str) -> KnownText:
        """All of its text, for a draft without times."""
        if language not in self._texts:
            text = " ".join(segment.text for segment in self.segments)
            tokens = self._vocab.encode_sentence(text, language)
            self._texts[language] = KnownText(tokens, self._vocab.times)
        return self._texts[language]

    def near(self, seconds: float, text: KnownText) -> int:
        """Where in the text a time of the recording probably is.

        In proportion to the recording; if its length is not known, to what was heard so far, and at
        the very beginning to what people usually say in that time.
        """
        n = len(text.tokens)
        if self._duration:
            return round(n * min(seconds / self._duration, 1.0))
        pace = self._heard[1] / self._heard[0] if self._heard else _PACE
        return min(round(pace * seconds), n)

    def heard(self, seconds: float, place: int) -> None:
        """Note that the recording is at a place of the text at a time."""
        if seconds > (self._heard[0] if self._heard else 0.0):
            self._heard = (seconds, place)


class ChunkDraft:
    """Proposals for the windows of one chunk.

    With times, each window gets the segments that overlap it. Without, the draft is followed from
    window to window, through the text that was kept.
    """

    def __init__(
        self,
        draft: Draft,
        options: TranscribeOptions,
        vocab: Vocab,
        dims: ModelDims,
        start: float = 0.0,
    ) -> None:
        """Begin a chunk.

        Args:
            draft: the draft of the recording.
            options: how to transcribe.
            vocab: vocabulary of the model.
            dims: its dimensions.
            start: start of the chunk in seconds from the start of the recording.
        """
        self._draft = draft
        self._most_lookup = options.prompt_lookup_num_tokens
        self._timestamps = not options.without_timestamps
        self._vocab = vocab
        self._precision = dims.time_precision
        self._start = start
        self._follower: TextDrafter | None = None
        self._known: KnownText | None = None

    def drafter(
        self, seek: int, size: int, prompt: Sequence[int], language: str
    ) -> Callable[[], Drafter] | None:
        """Makes the drafter of a window; None if nothing can be proposed.

        Args:
            seek: first mel frame of the window, from the start of the chunk.
            size: its mel frames.
            prompt: ids before its result.
            language: its language code.
        """
        drafters: list[Callable[[], Drafter]] = []
        if self._draft.timed:
            begin = self._start + seek / FRAMES_PER_SECOND
            tokens = self._between(begin, begin + size / FRAMES_PER_SECOND, language)
            if tokens:
                drafters.append(
                    functools.partial(TextDrafter, KnownText(tokens, self._vocab.times))
                )
        elif self._draft.segments:
            drafters.append(self._following(language))
        if self._most_lookup is not None:
            text, most = self._vocab.text, self._most_lookup
            drafters.append(lambda: LookupDrafter(prompt, text, most))
        if len(drafters) < 2:
            return drafters[0] if drafters else None
        return lambda: FirstOf(*(make() for make in drafters))

    def _between(self, begin: float, end: float, language: str) -> list[int]:
        """Tokens of the segments between two times."""
        tokens: list[int] = []
        for segment in self._draft.segments:
            assert segment.start is not None
            assert segment.end is not None
            if segment.end <= begin + _SETTLED or segment.start >= end:
                continue
            text = self._vocab.encode_sentence(segment.text, language)
            if self._timestamps:
                tokens += [self._time(segment.start - begin), *text]
                if segment.end <= end:
                    tokens.append(self._time(segment.end - begin))
            else:
                tokens += text
        return tokens

    def _time(self, seconds: float) -> int:
        times = self._vocab.times
        return times[min(max(round(seconds / self._precision), 0), len(times) - 1)]

    def _following(self, language: str) -> Callable[[], Drafter]:
        """Makes a drafter at the present place of a draft without times."""
        if self._known is None or self._follower is None:
            self._known = self._draft.text(language)
            near = self._draft.near(self._start, self._known)
            self._follower = TextDrafter(self._known, None if self._start else 0, near=near)
        known, place, near = self._known, self._follower.place, self._follower.near
        return lambda: TextDrafter(known, place, near=near)

    def accept(self, segments: Sequence[Segment]) -> None:
        """Follow the text that was kept of a window."""
        if self._follower is None or not segments:
            return
        for segment in segments:
            for token in segment.tokens:
                self._follower.follow(token)
        if self._follower.place is not None:
            self._draft.heard(self._start + segments[-1].end, self._follower.place)
