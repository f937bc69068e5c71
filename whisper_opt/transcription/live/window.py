"""One update of a live session as a window of the batch."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Callable, Union

import numpy as np

from whisper_opt.core.arrays import F32
from whisper_opt.core.dims import ModelDims
from whisper_opt.core.options import TranscribeOptions
from whisper_opt.decoding.drafters import KnownText, TextDrafter
from whisper_opt.text.results import Dropped, Segment
from whisper_opt.text.vocabulary import Vocab
from whisper_opt.transcription.alignment import (
    Aligner,
    CrossAttention,
    WordTiming,
    align_words,
)
from whisper_opt.transcription.fallback import FallbackDecoder, Window, WindowResult
from whisper_opt.transcription.live.attention import attended
from whisper_opt.transcription.live.words import LiveWord
from whisper_opt.transcription.words import merge_punctuations

__all__ = ["Hypothesis", "Update", "UpdateCursor"]

_REWIND = 200
"""Positions (20 ms) by which the attention may go back."""


@dataclasses.dataclass(frozen=True, eq=False)
class Update:
    """Audio of an utterance that is decoded, and what is known of its text.

    Attributes:
        samples: float32 [n] at 16 kHz.
        start: of the samples, in seconds from the start of the session.
        end: of the samples, as a sample of the session.
        prompt: ids of the text before the samples.
        prefix: ids of the committed text within the samples; the result begins with them.
        language: code of the language; None to detect it.
        options: how to decode.
        choose_language: the language if it is detected, given the probabilities of all, the most
            probable first.
        draft: ids that probably follow the prefix: the rest of the last result.
        goes_on: whether there is speech after that of the prefix.
    """

    samples: F32
    start: float
    end: int
    prompt: tuple[int, ...]
    prefix: tuple[int, ...]
    language: Union[str, None]
    options: TranscribeOptions
    choose_language: Callable[[Mapping[str, float]], str] = lambda found: next(iter(found))
    draft: tuple[int, ...] = ()
    goes_on: bool = False


@dataclasses.dataclass(frozen=True)
class Hypothesis:
    """The result of an update.

    Attributes:
        words: those after the committed ones.
        avg_logprob: mean log-probability of the tokens; that of committed ones is 0.
        no_speech_prob: probability that there is no speech.
        compression_ratio: bytes of the text over its compressed size.
        truncated: whether decoding stopped at the limit of tokens.
        languages: probability of each language, if it was detected.
    """

    words: tuple[LiveWord, ...]
    avg_logprob: float
    no_speech_prob: float
    compression_ratio: float
    truncated: bool = False
    languages: Union[Mapping[str, float], None] = None


class UpdateCursor:
    """The windows of an update: one. Has the interface of ``WindowCursor``.

    Attributes:
        language: code of the language in the prompt.
        dropped: nothing.
    """

    def __init__(
        self,
        update: Update,
        n_frames: int,
        vocab: Vocab,
        dims: ModelDims,
        found: Callable[[Hypothesis], None],
    ) -> None:
        """Nothing is decoded yet.

        Args:
            update: the update.
            n_frames: its mel frames.
            vocab: vocabulary of the model.
            dims: its dimensions.
            found: called with the result.
        """
        self.language = update.language or vocab.default_language
        self.dropped: list[Dropped] = []
        self._found = found
        self._done = False
        self._languages: Mapping[str, float] | None = None
        self._update = update
        self._n_frames = n_frames
        self._vocab = vocab
        self._dims = dims

    @property
    def seek(self) -> int:
        """The mel frame up to which the update is decoded."""
        return self._n_frames if self._done else 0

    def next_window(self) -> Window | None:
        """The window; None when it is decoded."""
        if self._done:
            return None
        vocab, update = self._vocab, self._update
        previous = (vocab.sot_prev, *update.prompt) if update.prompt else ()
        start = vocab.start(self.language, update.options.task, timestamps=False)
        prompt = (*previous, *start)
        drafter = None
        if update.draft:
            drafter = functools.partial(TextDrafter, KnownText(update.draft))
        return Window(
            *(0, self._n_frames, prompt, len(previous)),
            begin=update.prefix,
            begin_counts=True,
            drafter=drafter,
            goes_on=update.goes_on,
            optimal=True,
        )

    def heard(self, languages: Mapping[str, float]) -> None:
        """Take the probability of each language, the most probable first."""
        self._languages = languages
        self.language = self._update.choose_language(languages)

    def choose(
        self, window: Window, attempts: Sequence[WindowResult], fallback: FallbackDecoder
    ) -> WindowResult | None:
        """The result: there is one temperature."""
        return attempts[-1]

    def takes_long(
        self, window: Window, attempts: Sequence[WindowResult], fallback: FallbackDecoder
    ) -> bool:
        """Whether :meth:`accept` takes long: it finds the times of words."""
        return True

    def accept(
        self, window: Window, result: WindowResult, aligner: Aligner | None = None
    ) -> list[Segment]:
        """Process the result; it has no segments."""
        assert aligner is not None, "updates are decoded with word times"
        self._done = True
        hypothesis = Hypothesis(
            words=self._words(result, aligner),
            avg_logprob=result.avg_logprob,
            no_speech_prob=result.no_speech_prob,
            compression_ratio=result.compression_ratio,
            truncated=result.truncated,
            languages=self._languages,
        )
        self._found(hypothesis)
        return []

    def _words(self, result: WindowResult, aligner: Aligner) -> tuple[LiveWord, ...]:
        """The words after the committed ones, with times and attention."""
        vocab, n_prefix = self._vocab, len(self._update.prefix)
        tokens = [token for token in result.tokens if token in vocab.text]
        new = _complete(vocab, tokens[n_prefix:])
        if not new:
            return ()
        # apart from the committed ones, which must stay as they are
        before, before_tokens = vocab.split_words(tokens[:n_prefix], self.language)
        words, word_tokens = vocab.split_words(new, self.language)
        attention = aligner([*tokens[:n_prefix], *new])
        timings = align_words(
            attention, [*before, *words], [*before_tokens, *word_tokens], self._n_frames
        )[len(before) :]
        options = self._update.options
        merged = merge_punctuations(
            timings, options.prepend_punctuations, options.append_punctuations
        )
        return self._placed(merged, attention, n_prefix)

    def _placed(
        self, timings: Sequence[WordTiming], attention: CrossAttention, n_prefix: int
    ) -> tuple[LiveWord, ...]:
        """Words with times of the session, and how far from the end the model attended."""
        n_positions = max(1, self._n_frames // self._dims.frames_per_position)
        places = attended(attention, n_positions)
        furthest = np.maximum.accumulate(places)
        found, first = [], n_prefix
        for timing in timings:
            last = first + len(timing.tokens)
            reach = int(places[first:last].max())
            found.append(
                LiveWord(
                    text=timing.word,
                    tokens=timing.tokens,
                    start=self._update.start + timing.start,
                    end=self._update.start + timing.end,
                    probability=timing.probability,
                    margin=n_positions - reach,
                    jumps_back=bool((furthest - places)[first:last].max() > _REWIND),
                )
            )
            first = last
        return tuple(found)


def _complete(vocab: Vocab, tokens: Sequence[int]) -> list[int]:
    """Tokens without those at the end that are the beginning of a character."""
    kept = list(tokens)
    while kept and _is_cut(vocab.spelling(kept)):
        kept.pop()
    return kept


def _is_cut(text: bytes) -> bool:
    """Whether bytes end within a character."""
    try:
        text.decode("utf-8")
    except UnicodeDecodeError as error:
        return error.reason == "unexpected end of data"
    return False
