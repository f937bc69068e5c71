"""Windows of a chunk: position and prompt of the next window, and segments of its result.

The method is openai-whisper's (whisper/transcribe.py): decode 30 s, split the result into segments
at timestamps, continue at the end of the last finished segment.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Callable

from whisper_opt.core.dims import FRAMES_PER_SECOND, N_FRAMES, ModelDims
from whisper_opt.core.options import TranscribeOptions
from whisper_opt.text.results import Dropped, Segment
from whisper_opt.text.vocabulary import Vocab
from whisper_opt.transcription.alignment import Aligner, align_words
from whisper_opt.transcription.drafts import ChunkDraft
from whisper_opt.transcription.fallback import (
    FallbackDecoder,
    Window,
    WindowResult,
    last_that_fit,
)
from whisper_opt.transcription.hallucinations import SpeechCheck
from whisper_opt.transcription.repetition import (
    Attempt,
    Times,
    covers,
    is_spoken_repetition,
    most_probable,
)
from whisper_opt.transcription.segmentation import (
    WindowSegments,
    seconds_of,
    split_at_timestamps,
)
from whisper_opt.transcription.words import Bounds, add_words, end_of_speech, skip_silence

__all__ = ["Aligner", "WindowCursor", "text_tokens"]


class WindowCursor:
    """The state of one chunk between windows: position and previous text.

    ``next_window`` and ``accept`` are called in turns. The cursor does not compute the model, so
    that windows of several recordings can share a batch.

    Attributes:
        language: language code in the prompt of the next window. After :meth:`heard`,
            ``next_window`` may be called again.
        dropped: text dropped so far, in order of windows.
    """

    def __init__(
        self,
        n_frames: int,
        vocab: Vocab,
        dims: ModelDims,
        options: TranscribeOptions,
        language: str,
        is_spoken: Callable[[Segment], bool] | None = None,
        speech_check: SpeechCheck | None = None,
        draft: ChunkDraft | None = None,
    ) -> None:
        """Start at the first frame to transcribe.

        Args:
            n_frames: mel frames of the chunk (10 ms each).
            vocab: vocabulary of the model.
            dims: its dimensions.
            options: how to transcribe.
            language: language code of the first window.
            is_spoken: segments for which it returns False are dropped, and so is the text of
                windows in which ``speech_check`` finds no speech.
            speech_check: finds speech in the chunk, used for results that repeat themselves.
            draft: proposes tokens.
        """
        self._draft = draft
        self._is_spoken = is_spoken
        self._speech_check = speech_check
        self.dropped: list[Dropped] = []
        self.language = language
        self._n_frames = n_frames
        self._vocab = vocab
        self._dims = dims
        self._options = options
        self._prefix = last_that_fit(text_tokens(vocab, options.prefix or None), dims, options)
        self._begin = _beginning(vocab, options)
        self._initial = text_tokens(vocab, options.initial_prompt)
        self._hotwords = text_tokens(vocab, (options.hotwords or "").strip() or None)
        self._all_tokens = list(self._initial)
        self._prompt_reset_since = 0
        self._n_segments = 0
        self._last_speech = 0.0
        self._clips = _clips(options.clip_timestamps, n_frames)
        self._clip = 0
        self._seek = self._clips[0][0]

    @property
    def seek(self) -> int:
        """The mel frame up to which the chunk is decoded."""
        return min(self._seek, self._n_frames)

    def next_window(self) -> Window | None:
        """The next window to decode, or None at the end."""
        while self._clip < len(self._clips):
            begin, end = self._clips[self._clip]
            self._seek = max(self._seek, begin)
            if self._seek < end:
                size = min(N_FRAMES, self._n_frames - self._seek, end - self._seek)
                prompt = (*self._previous(), *self._start(), *self._prefix)
                sot = prompt.index(self._vocab.sot)
                drafter = self._draft and self._draft.drafter(
                    self._seek, size, prompt, self.language
                )
                return Window(
                    self._seek, size, prompt, sot, begin=self._begin, drafter=drafter or None
                )
            self._clip += 1
            if self._clip < len(self._clips):
                self._seek = self._clips[self._clip][0]
        return None

    def heard(self, languages: Mapping[str, float]) -> None:
        """Take the probability of each language in the window, the most probable first."""
        self.language = next(iter(languages))

    def _start(self) -> list[int]:
        options = self._options
        return self._vocab.start(
            self.language, options.task, timestamps=not options.without_timestamps
        )

    def _previous(self) -> list[int]:
        """Prompt before the start sequence: hotwords and previous text, at most half the context.

        If there is not enough room, hotwords have priority, then a carried initial prompt, then the
        newest text.
        """
        room = self._dims.n_text_ctx // 2 - 1
        first, text = list(self._hotwords[:room]), self._all_tokens[self._prompt_reset_since :]
        if self._options.carry_initial_prompt:
            first += _newest(self._initial, room - len(first))
            text = self._all_tokens[max(len(self._initial), self._prompt_reset_since) :]
        prompt = [*first, *_newest(text, room - len(first))]
        return [self._vocab.sot_prev, *prompt] if prompt else []

    def choose(
        self, window: Window, attempts: Sequence[WindowResult], fallback: FallbackDecoder
    ) -> WindowResult | None:
        """The result of ``window`` to keep; None to try the next temperature.

        The thresholds decide, as in openai-whisper. With voice activity detection:

        - A window without speech is not decoded again.
        - A result that only repeats itself is kept if the repetition was spoken. Otherwise the
          first result is kept that passes the thresholds and has text for most of the speech; if
          there is none, the most probable result that has text for most of the speech.

        Args:
            window: the last one returned by ``next_window``.
            attempts: the results so far, one per temperature.
            fallback: the thresholds.
        """
        result, attempt = attempts[-1], len(attempts) - 1
        kept = result if fallback.is_final(result, attempt) else None
        repeats = fallback.only_repeats(attempts[0])
        if self._speech_check is None or (kept is not None and not repeats):
            return kept
        start, end = seconds_of(window.seek), seconds_of(window.seek + window.size)
        speech = self._speech_check.speech(start, end)
        if not speech and self._is_spoken is not None:
            return dataclasses.replace(attempts[0], has_speech=False)
        if not speech or not repeats:
            return kept
        return self._choose_repeated(window, attempts, fallback, speech)

    def takes_long(
        self, window: Window, attempts: Sequence[WindowResult], fallback: FallbackDecoder
    ) -> bool:
        """Whether :meth:`choose` and :meth:`accept` probably take as long as a decode step or more.

        They do if they find the times of words, or detect speech in the audio. Arguments as for
        :meth:`choose`.
        """
        check, result = self._speech_check, attempts[-1]
        is_final = fallback.is_final(result, len(attempts) - 1)
        if self._options.word_timestamps and is_final:
            return True
        if check is None:
            return False
        if not is_final or fallback.only_repeats(attempts[0]):
            return True
        segments = self._split(window, result).segments
        return self._is_spoken is not None and any(map(check.doubts, segments))

    def _choose_repeated(
        self,
        window: Window,
        attempts: Sequence[WindowResult],
        fallback: FallbackDecoder,
        speech: Times,
    ) -> WindowResult | None:
        """As :meth:`choose`, if the first result repeats itself and the window has speech."""
        assert self._speech_check is not None
        result, attempt = attempts[-1], len(attempts) - 1
        tried = [self._attempt(window, attempt) for attempt in attempts]
        threshold = self._options.compression_ratio_threshold or 0.0
        if attempt == 0:
            end = seconds_of(window.seek + window.size)
            phrases = self._speech_check.phrases(seconds_of(window.seek), end)
            if is_spoken_repetition(tried[0], phrases, threshold):
                return result
        if fallback.passes(result) and covers(tried[-1], speech):
            return result
        if not fallback.is_last(attempt):
            return None
        passing = [each for each in attempts if fallback.passes(each)]
        return most_probable(tried, speech) or (passing or [result])[0]

    def _attempt(self, window: Window, result: WindowResult) -> Attempt:
        split = self._split(window, result)
        segments = [segment for segment in split.segments if segment.text.strip()]
        return Attempt(result, segments, seconds_of(window.seek + split.n_done))

    def accept(
        self, window: Window, result: WindowResult, aligner: Aligner | None = None
    ) -> list[Segment]:
        """Process the result of ``window`` and move on; returns its segments.

        Args:
            window: the last one returned by ``next_window``.
            result: its result.
            aligner: needed for ``word_timestamps``; called with the text tokens of the window if
                there are any.

        Raises:
            ValueError: ``word_timestamps`` is on, but there is no ``aligner``.
        """
        self._begin = ()
        split = self._split(window, result)
        reason = self._reason_to_skip(result)
        if reason is not None:
            self._seek = window.seek + window.size
            self._drop(split.segments, reason)
            return []
        segments, seek = split.segments, window.seek + split.n_done
        if self._options.word_timestamps:
            if aligner is None:
                raise ValueError("word_timestamps is on, but accept was given no aligner")
            kept, seek = self._with_words(window, split, aligner)
            # segments after the new position are decoded again
            dropped = split.segments[len(kept or ()) :]
            self._drop([each for each in dropped if each.end <= seconds_of(seek)], "silence")
            if kept is None:
                self._seek = seek
                return []
            segments = kept
        # A result whose last pair is <|0.00|><|0.00|> finishes no frames: the reference decodes the
        # same audio again, endlessly. Only sampling without timestamp rules can produce one.
        self._seek = seek if seek > window.seek else window.seek + window.size
        if self._is_spoken is not None:
            spoken = [self._is_spoken(segment) for segment in segments]
            self._drop([s for s, kept in zip(segments, spoken) if not kept], "no speech")
            segments = [segment for segment, kept in zip(segments, spoken) if kept]
        if self._draft is not None:
            self._draft.accept(segments)
        return self._remember(segments, result.temperature)

    def _drop(self, segments: Sequence[Segment], reason: str) -> None:
        """Record dropped text; neighbouring segments make one entry."""
        segments = [segment for segment in segments if segment.text.strip()]
        if segments:
            text = "".join(segment.text for segment in segments)
            self.dropped.append(Dropped(segments[0].start, segments[-1].end, reason, text))

    def _reason_to_skip(self, result: WindowResult) -> str | None:
        if not result.has_speech:
            return "no speech"
        return "no-speech probability" if self._is_silence(result) else None

    def _remember(self, segments: Sequence[Segment], temperature: float) -> list[Segment]:
        """Number the segments, clear empty ones, and add their tokens to the previous text."""
        language = self.language if self._options.multilingual else None
        numbered = []
        for i, segment in enumerate(segments, self._n_segments):
            segment = dataclasses.replace(segment, id=i, language=language)
            if segment.start == segment.end or not segment.text.strip():
                words = None if segment.words is None else ()
                logprobs = None if segment.token_logprobs is None else ()
                segment = dataclasses.replace(
                    segment, text="", tokens=(), words=words, token_logprobs=logprobs
                )
            self._all_tokens.extend(segment.tokens)
            numbered.append(segment)
        self._n_segments += len(numbered)
        if not self._options.conditions or temperature > 0.5:
            self._prompt_reset_since = len(self._all_tokens)
        return numbered

    def _is_silence(self, result: WindowResult) -> bool:
        options = self._options
        if options.no_speech_threshold is None:
            return False
        if result.no_speech_prob <= options.no_speech_threshold:
            return False
        likely = (
            options.logprob_threshold is not None and result.avg_logprob > options.logprob_threshold
        )
        return not likely

    def _split(self, window: Window, result: WindowResult) -> WindowSegments:
        return split_at_timestamps(window, result, self._vocab, self._dims)

    # --- word times -----------------------------------------------------------------------------

    def _with_words(
        self, window: Window, split: WindowSegments, aligner: Aligner
    ) -> tuple[list[Segment] | None, int]:
        """Segments with words, and the first frame of the next window.

        The segments are None if the window must only be moved there.
        """
        segments = self._align(window, split.segments, aligner)
        kept: list[Segment] | None = segments
        seek = self._seek_after_words(window, split, end_of_speech(segments))
        threshold = self._options.hallucination_silence_threshold
        if threshold is not None:
            bounds = _bounds(window, self._n_frames)
            kept, moved = skip_silence(segments, bounds, threshold, self._last_speech)
            seek = seek if moved is None else moved
        end = end_of_speech(kept or ())
        if end is not None:
            self._last_speech = end
        return kept, seek

    def _align(
        self, window: Window, segments: Sequence[Segment], aligner: Aligner
    ) -> list[Segment]:
        options, vocab = self._options, self._vocab
        text = [token for segment in segments for token in segment.tokens if token in vocab.text]
        timings = []
        if text:
            words, word_tokens = vocab.split_words(text, self.language)
            timings = align_words(aligner(text), words, word_tokens, window.size)
        return add_words(
            segments,
            timings,
            text=vocab.text,
            offset=seconds_of(window.seek),
            last_speech=self._last_speech,
            prepended=options.prepend_punctuations,
            appended=options.append_punctuations,
        )

    def _seek_after_words(self, window: Window, split: WindowSegments, end: float | None) -> int:
        """First frame of the next window if the last word ends at ``end``, in seconds."""
        bounds = _bounds(window, self._n_frames)
        if split.single_timestamp_ending or end is None or end <= bounds.start:
            return window.seek + split.n_done
        threshold = self._options.hallucination_silence_threshold
        if threshold is not None and bounds.end - end <= threshold:
            return window.seek + window.size
        return round(end * FRAMES_PER_SECOND)


def _bounds(window: Window, n_frames: int) -> Bounds:
    start = seconds_of(window.seek)
    return Bounds(
        start=start,
        audio_end=start + seconds_of(window.size),
        end=seconds_of(window.seek + N_FRAMES),
        recording_end=seconds_of(n_frames),
    )


def _newest(tokens: Sequence[int], n: int) -> Sequence[int]:
    return tokens[-n:] if n > 0 else ()


def text_tokens(vocab: Vocab, text: str | None) -> tuple[int, ...]:
    """Ids of text that a prompt begins with; none for None."""
    return () if text is None else tuple(vocab.encode(" " + text.strip()))


def _beginning(vocab: Vocab, options: TranscribeOptions) -> tuple[int, ...]:
    """Ids of ``transcript_prefix``, after the timestamp 0.00 as in faster-whisper's get_prompt."""
    text = text_tokens(vocab, (options.transcript_prefix or "").strip() or None)
    return (vocab.timestamp_begin, *text) if text and not options.without_timestamps else text


def _clips(seconds: Sequence[float], n_frames: int) -> list[tuple[int, int]]:
    points = [round(second * FRAMES_PER_SECOND) for second in seconds]
    if not points:
        points.append(0)
    if len(points) % 2:
        points.append(n_frames)
    return [(begin, min(end, n_frames)) for begin, end in zip(points[::2], points[1::2])]
