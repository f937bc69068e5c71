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

__all__ = ["Assistant", "ChunkDraft", "assistant_of"]

_SETTLED = 0.1
"""Seconds; a segment of the draft that ends so soon after the start of a window is before it."""


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


class ChunkDraft:
    """Proposals for the windows of one chunk.

    With times, each window gets the segments that overlap it. Without, the draft is followed from
    window to window, through the text that was kept.
    """

    def __init__(
        self,
        options: TranscribeOptions,
        vocab: Vocab,
        dims: ModelDims,
        start: float = 0.0,
        duration: float = 0.0,
    ) -> None:
        """Begin a chunk.

        Args:
            options: with the draft.
            vocab: vocabulary of the model.
            dims: its dimensions.
            start: start of the chunk in seconds from the start of the recording.
            duration: seconds of the recording; 0 if they are not known.
        """
        self._segments = draft_segments(options.draft)
        self._most_lookup = options.prompt_lookup_num_tokens
        self._timestamps = not options.without_timestamps
        self._vocab = vocab
        self._precision = dims.time_precision
        self._last_time = vocab.timestamp_begin + dims.n_audio_ctx
        self._start = start
        self._part = start / duration if duration else 0.0
        self._timed = bool(self._segments) and all(
            segment.start is not None and segment.end is not None for segment in self._segments
        )
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
        if self._timed:
            begin = self._start + seek / FRAMES_PER_SECOND
            tokens = self._between(begin, begin + size / FRAMES_PER_SECOND, language)
            if tokens:
                drafters.append(functools.partial(TextDrafter, KnownText(tokens, self._times)))
        elif self._segments:
            drafters.append(self._following(language))
        if self._most_lookup is not None:
            text, most = self._vocab.text, self._most_lookup
            drafters.append(lambda: LookupDrafter(prompt, text, most))
        if len(drafters) < 2:
            return drafters[0] if drafters else None
        return lambda: FirstOf(*(make() for make in drafters))

    @property
    def _times(self) -> range:
        return range(self._vocab.timestamp_begin, self._last_time + 1)

    def _between(self, begin: float, end: float, language: str) -> list[int]:
        """Tokens of the segments between two times."""
        tokens: list[int] = []
        for segment in self._segments:
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
        first = self._vocab.timestamp_begin
        return min(max(first + round(seconds / self._precision), first), self._last_time)

    def _following(self, language: str) -> Callable[[], Drafter]:
        """Makes a drafter at the present place of a draft without times."""
        if self._known is None or self._follower is None:
            text = " ".join(segment.text for segment in self._segments)
            self._known = KnownText(self._vocab.encode_sentence(text, language), self._times)
            near = round(self._part * len(self._known.tokens))
            self._follower = TextDrafter(self._known, None if self._start else 0, near=near)
        known, place, near = self._known, self._follower.place, self._follower.near
        return lambda: TextDrafter(known, place, near=near)

    def accept(self, segments: Sequence[Segment]) -> None:
        """Follow the text that was kept of a window."""
        if self._follower is not None:
            for segment in segments:
                for token in segment.tokens:
                    self._follower.follow(token)
