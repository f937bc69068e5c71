"""Decoding with temperature fallback: requests for the decode loop, and quality thresholds."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Sequence
from typing import Callable

import numpy as np

from whisper_opt.core.arrays import Int
from whisper_opt.core.backend import Backend, Encoded
from whisper_opt.core.dims import ModelDims
from whisper_opt.core.errors import OptionError
from whisper_opt.core.options import TranscribeOptions
from whisper_opt.decoding import (
    BeamSearchDecoder,
    Decoded,
    DecodeRequest,
    Drafter,
    GreedyDecoder,
    SamplingDecoder,
    TokenConstraint,
    TokenDecoder,
    rank,
)
from whisper_opt.decoding.constraints import (
    NoRepeatNGram,
    SuppressAtBegin,
    SuppressBeforeWord,
    SuppressTokens,
    TimestampRules,
)
from whisper_opt.decoding.model_drafter import ModelDrafter
from whisper_opt.text.vocabulary import Vocab

__all__ = [
    "FallbackDecoder",
    "Suppression",
    "Window",
    "WindowResult",
    "compression_ratio",
    "is_silent",
    "is_unlikely",
    "last_that_fit",
    "repeats",
]


@dataclasses.dataclass(frozen=True)
class Suppression:
    """Token lists of a checkpoint.

    Attributes:
        non_speech: ids that -1 stands for in ``suppress_tokens``.
        begin: ids that are not sampled first.
    """

    non_speech: tuple[int, ...]
    begin: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Window:
    """Up to 30 s of audio, decoded at once.

    Attributes:
        seek: first mel frame, counted from the start of the chunk.
        size: number of mel frames, at most 3,000.
        prompt: ids fed before the first sampled token.
        sot_index: index of the start-of-transcript token in ``prompt``.
        origin: first mel frame of the chunk in the recording.
        begin: ids that the result begins with; they are fed after the prompt.
        begin_counts: whether the mean log-probability is over ``begin`` too, which adds 0 to its
            sum: in the choice of the best hypothesis, and in the result.
        drafter: makes what proposes its tokens; None if nothing does.
        goes_on: whether the result has words after ``begin``: there is more speech.
        optimal: whether beam search ends only when no unfinished hypothesis is more probable.
    """

    seek: int
    size: int
    prompt: tuple[int, ...]
    sot_index: int
    origin: int = 0
    begin: tuple[int, ...] = ()
    begin_counts: bool = False
    drafter: Callable[[], Drafter] | None = None
    goes_on: bool = False
    optimal: bool = False


@dataclasses.dataclass(frozen=True)
class WindowResult:
    """The best candidate of one window; attributes as in :class:`whisper_opt.text.results.Segment`.

    Attributes:
        truncated: whether decoding stopped at the token limit.
        has_speech: False if voice activity detection found no speech in the window.
        token_logprobs: log-probability of each of ``tokens``; None without the option.
    """

    tokens: tuple[int, ...]
    avg_logprob: float
    no_speech_prob: float
    compression_ratio: float
    temperature: float
    truncated: bool = False
    has_speech: bool = True
    token_logprobs: tuple[float, ...] | None = None


def last_that_fit(
    prefix: Sequence[int], dims: ModelDims, options: TranscribeOptions
) -> tuple[int, ...]:
    """The ids of ``prefix`` that windows are prompted with.

    As in openai-whisper (whisper/decoding.py, DecodingTask): with ``max_new_tokens`` below half the
    context, the last ones for which that half then has room.
    """
    room = dims.n_text_ctx // 2 - (options.max_new_tokens or dims.n_text_ctx)
    return tuple(prefix[-room:] if room > 0 else prefix)


def compression_ratio(text: str) -> float:
    """UTF-8 bytes of ``text`` divided by their zlib-compressed size; high for repeated text."""
    data = text.encode("utf-8")
    return len(data) / len(zlib.compress(data))


def repeats(ratio: float, options: TranscribeOptions) -> bool:
    """Whether the compression ratio of a text is too high."""
    threshold = options.compression_ratio_threshold
    return threshold is not None and ratio > threshold


def is_unlikely(avg_logprob: float, options: TranscribeOptions) -> bool:
    """Whether the mean log-probability of a text is too low."""
    threshold = options.logprob_threshold
    return threshold is not None and avg_logprob < threshold


def is_silent(no_speech_prob: float, options: TranscribeOptions) -> bool:
    """Whether there is probably no speech; text that is likely counts as speech nevertheless."""
    threshold = options.no_speech_threshold
    return threshold is not None and no_speech_prob > threshold


class FallbackDecoder:
    """Decode requests and quality thresholds for one set of options.

    Temperature fallback is that of openai-whisper (whisper/transcribe.py, decode_with_fallback): a
    window whose result repeats itself or is improbable is decoded again at the next temperature,
    unless the window is silent.
    """

    def __init__(
        self, dims: ModelDims, vocab: Vocab, options: TranscribeOptions, suppression: Suppression
    ) -> None:
        """Create the token constraints.

        Raises:
            OptionError: ``suppress_tokens`` names an id that the model does not have.
        """
        self.options = options
        self._dims = dims
        self._vocab = vocab
        self._limit = options.max_new_tokens or dims.n_text_ctx // 2
        self._begin = None if options.without_timestamps else vocab.timestamp_begin
        self._constraints = _constraints(vocab, dims, options, suppression)

    def request(self, window: Window, attempt: int) -> DecodeRequest:
        """How to decode ``window`` at the temperature with index ``attempt``.

        Raises:
            OptionError: the prompt is too long for the model.
        """
        prompt = (*window.prompt, *window.begin)
        if self._max_new_tokens(window) < 1:
            raise OptionError(
                f"the prompt of a window has {len(prompt)} tokens; the model holds"
                f" {self._dims.n_text_ctx}: shorten"
                f" {'transcript_prefix' if window.begin else 'prefix'} or initial_prompt"
            )
        return DecodeRequest(
            prompt=prompt,
            no_speech_position=window.sot_index,
            no_speech_token=self._vocab.no_speech,
            constraints=self._constraints_of(window),
            timestamp_begin=self._begin,
            max_new_tokens=self._max_new_tokens(window),
            decoder=lambda: self._decoder(window, self.options.temperatures[attempt]),
            repetition_penalty=self.options.repetition_penalty,
            text=self._vocab.text,
            timestamp_end=self._vocab.timestamp_end,
            drafter=window.drafter if self.options.temperatures[attempt] == 0 else None,
        )

    def _constraints_of(self, window: Window) -> tuple[TokenConstraint, ...]:
        if not window.goes_on:
            return self._constraints
        end = np.array([self._vocab.eot], np.int64)
        marks = self._vocab.marks
        return (*self._constraints, SuppressBeforeWord(end, len(window.begin), marks))

    def assisted(
        self, window: Window, backend: Backend, encode: Callable[[], Encoded], most: int
    ) -> ModelDrafter:
        """Proposals of a small model for ``window``.

        Args:
            window: the window.
            backend: the small model.
            encode: encodes the window with it.
            most: maximum number of tokens of a proposal.
        """
        begin = self._dims.n_vocab if self._begin is None else self._begin
        return ModelDrafter(
            backend,
            encode,
            window.prompt,
            self._constraints,
            begin,
            self._vocab.eot,
            most,
            self._vocab.timestamp_end,
        )

    def _max_new_tokens(self, window: Window) -> int:
        room = self._dims.n_text_ctx + 1 - len(window.prompt)
        if self.options.word_timestamps:  # the text is aligned between these
            around = self._vocab.start(self._vocab.default_language, "transcribe", timestamps=False)
            room = min(room, self._dims.n_text_ctx - len(around) - 1)
        return min(self._limit, room - len(window.begin))

    def _decoder(self, window: Window, temperature: float) -> TokenDecoder:
        options, eot = self.options, self._vocab.eot
        if temperature > 0:
            # each window has its own generator, so that its result does not depend on the batch
            generator = np.random.default_rng(
                [options.seed, window.origin + window.seek, round(temperature * 1000)]
            )
            return SamplingDecoder(
                eot, temperature, options.best_of or 1, generator, begin=window.begin
            )
        if options.beam_size is not None:
            patience = options.patience or 1.0
            return BeamSearchDecoder(
                eot, options.beam_size, patience, window.begin, optimal=window.optimal
            )
        return GreedyDecoder(eot, begin=window.begin)

    def result(self, window: Window, decoded: Decoded, attempt: int) -> WindowResult:
        """The best candidate of ``window`` and the values that the thresholds apply to."""
        given = 0 if window.begin_counts else len(window.begin)
        best = rank(decoded.hypotheses, self.options.length_penalty, given)
        text = self._vocab.decode(best.tokens, specials=True).strip()
        return WindowResult(
            tokens=best.tokens,
            avg_logprob=best.sum_logprob / (len(best.tokens) - given + 1),
            no_speech_prob=decoded.no_speech_prob,
            compression_ratio=compression_ratio(text),
            temperature=self.options.temperatures[attempt],
            truncated=len(best.tokens) - len(window.begin) >= self._max_new_tokens(window),
            token_logprobs=best.logprobs if self.options.token_logprobs else None,
        )

    def is_final(self, result: WindowResult, attempt: int) -> bool:
        """Whether to keep the result and not to try the next temperature."""
        return self.is_last(attempt) or self.passes(result)

    def is_last(self, attempt: int) -> bool:
        """Whether this is the last temperature."""
        return attempt + 1 == len(self.options.temperatures)

    def passes(self, result: WindowResult) -> bool:
        """Whether the result passes the thresholds."""
        unlikely = is_unlikely(result.avg_logprob, self.options)
        if is_silent(result.no_speech_prob, self.options) and unlikely:
            return True
        return not (repeats(result.compression_ratio, self.options) or unlikely)

    def only_repeats(self, result: WindowResult) -> bool:
        """Whether the compression ratio is the only threshold that the result fails."""
        return repeats(result.compression_ratio, self.options) and not is_unlikely(
            result.avg_logprob, self.options
        )


def _constraints(
    vocab: Vocab, dims: ModelDims, options: TranscribeOptions, suppression: Suppression
) -> tuple[TokenConstraint, ...]:
    constraints: list[TokenConstraint] = []
    if options.suppress_blank:
        constraints.append(SuppressAtBegin(_ids(suppression.begin, dims)))
    if options.suppress_tokens:
        listed = [token for token in options.suppress_tokens if token >= 0]
        if -1 in options.suppress_tokens:
            listed.extend(suppression.non_speech)
        constraints.append(SuppressTokens(_ids((*listed, *vocab.never_sampled()), dims)))
    if options.no_repeat_ngram_size:
        constraints.append(NoRepeatNGram(options.no_repeat_ngram_size, vocab.text))
    if not options.without_timestamps:
        latest = None
        if options.max_initial_timestamp:
            latest = round(options.max_initial_timestamp / dims.time_precision)
        constraints.append(
            TimestampRules(
                vocab.timestamp_begin, vocab.eot, vocab.no_timestamps, latest, vocab.timestamp_end
            )
        )
    return tuple(constraints)


def _ids(tokens: tuple[int, ...], dims: ModelDims) -> Int:
    beyond = [token for token in tokens if token >= dims.n_vocab]
    if beyond:
        raise OptionError(
            f"suppress_tokens holds {beyond[0]}; this model's ids end at {dims.n_vocab - 1}"
        )
    return np.array(sorted(set(tokens)), np.int64)
