"""The sequential method: which window comes next, what it is told, and segments out of its answer.

The method is openai-whisper's (whisper/transcribe.py): decode 30 s, cut the answer into segments at
its timestamps, continue where the last finished segment ended.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Callable

from whisper_opt.core.dims import FRAMES_PER_SECOND, HOP_LENGTH, N_FRAMES, SAMPLE_RATE, ModelDims
from whisper_opt.core.options import TranscribeOptions
from whisper_opt.text.results import Dropped, Segment
from whisper_opt.text.vocabulary import Vocab
from whisper_opt.transcription.alignment import Aligner, align_words
from whisper_opt.transcription.fallback import FallbackDecoder, Window, WindowResult
from whisper_opt.transcription.hallucinations import SpeechCheck
from whisper_opt.transcription.repetition import (
    Attempt,
    Times,
    covers,
    is_spoken_repetition,
    likeliest,
)
from whisper_opt.transcription.words import Bounds, add_words, end_of_speech, skip_silence

__all__ = ["Aligner", "WindowCursor"]


@dataclasses.dataclass(frozen=True)
class _Cut:
    """A window's answer in segments.

    Attributes:
        segments: in order, ids from 0; what says nothing is still in them.
        done: frames of the window that they finish.
        closed: whether the answer ends with one timestamp: nothing is said after it.
    """

    segments: list[Segment]
    done: int
    closed: bool


class WindowCursor:
    """The state of one recording between windows: where to look next and what was said.

    ``next_window`` and ``accept`` alternate; nothing here computes the model, so that the windows
    of several recordings can share a batch.

    Attributes:
        language: code of the language that the next window is told; may be set before
            ``next_window``, which can be asked again with another.
        dropped: text left out so far, in order of windows.
    """

    def __init__(
        self,
        n_frames: int,
        vocab: Vocab,
        dims: ModelDims,
        options: TranscribeOptions,
        language: str,
        is_spoken: Callable[[Segment], bool] | None = None,
        sound: SpeechCheck | None = None,
    ) -> None:
        """Start at the first frame to transcribe.

        Args:
            n_frames: mel frames of the recording (10 ms each).
            vocab: vocabulary of the model.
            dims: its dimensions.
            options: how to transcribe.
            language: language code of the first window.
            is_spoken: segments for which it says False are dropped, and so is the text of windows
                in which ``sound`` has no speech.
            sound: finds speech in the recording; judges answers that repeat themselves.
        """
        self._is_spoken = is_spoken
        self._sound = sound
        self.dropped: list[Dropped] = []
        self.language = language
        self._n_frames = n_frames
        self._vocab = vocab
        self._dims = dims
        self._options = options
        self._prefix = _text_tokens(vocab, options.prefix or None)
        self._initial = _text_tokens(vocab, options.initial_prompt)
        self._hotwords = _text_tokens(vocab, (options.hotwords or "").strip() or None)
        self._said = list(self._initial)
        self._forget = 0
        self._n_segments = 0
        self._last_speech = 0.0
        self._clips = _clips(options.clip_timestamps, n_frames)
        self._clip = 0
        self._seek = self._clips[0][0]

    @property
    def seek(self) -> int:
        """The mel frame up to which the recording is done."""
        return min(self._seek, self._n_frames)

    def next_window(self) -> Window | None:
        """The next window to decode, or None at the end."""
        while self._clip < len(self._clips):
            begin, end = self._clips[self._clip]
            self._seek = max(self._seek, begin)
            if self._seek < end:
                size = min(N_FRAMES, self._n_frames - self._seek, end - self._seek)
                prompt = (*self._previous(), *self._start(), *self._prefix)
                return Window(self._seek, size, prompt, prompt.index(self._vocab.sot))
            self._clip += 1
            if self._clip < len(self._clips):
                self._seek = self._clips[self._clip][0]
        return None

    def _start(self) -> list[int]:
        options = self._options
        return self._vocab.start(
            self.language, options.task, timestamps=not options.without_timestamps
        )

    def _previous(self) -> list[int]:
        """What comes before the start: hotwords, then what was said; at most half the context.

        Hotwords come first when room is short, then a carried initial prompt, then the newest text.
        """
        room = self._dims.n_text_ctx // 2 - 1
        first, text = list(self._hotwords[:room]), self._said[self._forget :]
        if self._options.carry_initial_prompt:
            first += _newest(self._initial, room - len(first))
            text = self._said[max(len(self._initial), self._forget) :]
        prompt = [*first, *_newest(text, room - len(first))]
        return [self._vocab.sot_prev, *prompt] if prompt else []

    def choose(
        self, window: Window, attempts: Sequence[WindowResult], answers: FallbackDecoder
    ) -> WindowResult | None:
        """The answer to ``window`` to keep; None to try the next temperature.

        The thresholds decide, as in openai-whisper, unless it is known where speech is:

        - A window without speech is not decoded again.
        - An answer whose only fault is to repeat itself is kept if that is what was said.
          Otherwise the first answer is kept that passes and has text for most of the speech; if
          none does, the likeliest that has.

        Args:
            window: what ``next_window`` returned last.
            attempts: answers so far, one for each temperature.
            answers: the thresholds.
        """
        result, attempt = attempts[-1], len(attempts) - 1
        kept = result if answers.is_final(result, attempt) else None
        repeats = answers.only_repeats(attempts[0])
        if self._sound is None or (kept is not None and not repeats):
            return kept
        start, end = _seconds(window.seek), _seconds(window.seek + window.size)
        speech = self._sound.speech(start, end)
        if not speech and self._is_spoken is not None:
            return dataclasses.replace(attempts[0], has_speech=False)
        if not speech or not repeats:
            return kept
        return self._choose_repeated(window, attempts, answers, speech)

    def _choose_repeated(
        self,
        window: Window,
        attempts: Sequence[WindowResult],
        answers: FallbackDecoder,
        speech: Times,
    ) -> WindowResult | None:
        """The same where the first answer repeats itself and there is speech."""
        assert self._sound is not None
        result, attempt = attempts[-1], len(attempts) - 1
        tried = [self._attempt(window, attempt) for attempt in attempts]
        threshold = self._options.compression_ratio_threshold or 0.0
        if attempt == 0:
            end = _seconds(window.seek + window.size)
            phrases = self._sound.phrases(_seconds(window.seek), end)
            if is_spoken_repetition(tried[0], phrases, threshold):
                return result
        if answers.passes(result) and covers(tried[-1], speech):
            return result
        if not answers.is_last(attempt):
            return None
        passing = [each for each in attempts if answers.passes(each)]
        return likeliest(tried, speech) or (passing or [result])[0]

    def _attempt(self, window: Window, result: WindowResult) -> Attempt:
        cut = self._cut(window, result)
        segments = [segment for segment in cut.segments if segment.text.strip()]
        return Attempt(result, segments, _seconds(window.seek + cut.done))

    def accept(
        self, window: Window, result: WindowResult, aligner: Aligner | None = None
    ) -> list[Segment]:
        """Take the answer to ``window``; returns its segments and moves on.

        Args:
            window: what ``next_window`` returned last.
            result: its answer.
            aligner: for ``word_timestamps``: called with the text tokens of the window, if it has
                any.

        Raises:
            ValueError: ``word_timestamps`` is on, and there is no ``aligner``.
        """
        cut = self._cut(window, result)
        reason = self._reason_to_skip(result)
        if reason is not None:
            self._seek = window.seek + window.size
            self._drop(cut.segments, reason)
            return []
        segments, seek = cut.segments, window.seek + cut.done
        if self._options.word_timestamps:
            if aligner is None:
                raise ValueError("word_timestamps is on, but accept was given no aligner")
            kept, seek = self._with_words(window, cut, aligner)
            # what lies behind the new place is decoded again
            left_out = cut.segments[len(kept or ()) :]
            self._drop([each for each in left_out if each.end <= _seconds(seek)], "silence")
            if kept is None:
                self._seek = seek
                return []
            segments = kept
        # An answer whose last pair is <|0.00|><|0.00|> finishes nothing: the reference would decode
        # the same sound again, without end. Only sampling without timestamp rules can give one.
        self._seek = seek if seek > window.seek else window.seek + window.size
        if self._is_spoken is not None:
            spoken = [self._is_spoken(segment) for segment in segments]
            self._drop([s for s, kept in zip(segments, spoken) if not kept], "no speech")
            segments = [segment for segment, kept in zip(segments, spoken) if kept]
        return self._remember(segments, result.temperature)

    def _drop(self, segments: Sequence[Segment], reason: str) -> None:
        """Note text left out; neighbouring segments make one entry."""
        segments = [segment for segment in segments if segment.text.strip()]
        if segments:
            text = "".join(segment.text for segment in segments)
            self.dropped.append(Dropped(segments[0].start, segments[-1].end, reason, text))

    def _reason_to_skip(self, result: WindowResult) -> str | None:
        if not result.has_speech:
            return "no speech"
        return "no-speech probability" if self._is_silence(result) else None

    def _remember(self, segments: Sequence[Segment], temperature: float) -> list[Segment]:
        """The segments with their ids, emptied where they say nothing; their text is passed on."""
        language = self.language if self._options.multilingual else None
        said = []
        for i, segment in enumerate(segments, self._n_segments):
            segment = dataclasses.replace(segment, id=i, language=language)
            if segment.start == segment.end or not segment.text.strip():
                none = None if segment.words is None else ()
                segment = dataclasses.replace(segment, text="", tokens=(), words=none)
            self._said.extend(segment.tokens)
            said.append(segment)
        self._n_segments += len(said)
        if not self._options.conditions or temperature > 0.5:
            self._forget = len(self._said)
        return said

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

    def _cut(self, window: Window, result: WindowResult) -> _Cut:
        begin = self._vocab.timestamp_begin
        tokens = result.tokens
        times = [token in self._vocab.times for token in tokens]
        closed = times[-2:] == [False, True]
        cuts = [i for i in range(1, len(tokens)) if times[i] and times[i - 1]]
        offset = _seconds(window.seek)
        precision = _seconds(self._dims.frames_per_position)
        if not cuts:
            marks = [token for token, is_time in zip(tokens, times) if is_time]
            length = _seconds(window.size)
            if marks and marks[-1] != begin:
                length = (marks[-1] - begin) * precision
            segments = self._segments(window, result, [(offset, offset + length, tokens)])
            segments = [dataclasses.replace(segments[0], truncated=result.truncated)]
            return _Cut(segments, window.size, closed)
        if closed:
            cuts.append(len(tokens))
        spans = []
        for first, last in zip([0, *cuts], cuts):
            piece = tokens[first:last]
            start, end = (piece[0] - begin) * precision, (piece[-1] - begin) * precision
            spans.append((offset + start, offset + end, piece))
        done = (tokens[cuts[-1] - 1] - begin) * self._dims.frames_per_position
        segments = self._segments(window, result, spans)
        return _Cut(segments, window.size if closed else done, closed)

    def _segments(
        self,
        window: Window,
        result: WindowResult,
        spans: list[tuple[float, float, tuple[int, ...]]],
    ) -> list[Segment]:
        return [
            Segment(
                id=i,
                start=start,
                end=end,
                text=self._vocab.decode(tokens),
                tokens=tokens,
                avg_logprob=result.avg_logprob,
                no_speech_prob=result.no_speech_prob,
                compression_ratio=result.compression_ratio,
                temperature=result.temperature,
                seek=window.seek,
            )
            for i, (start, end, tokens) in enumerate(spans)
        ]

    # --- word times -----------------------------------------------------------------------------

    def _with_words(
        self, window: Window, cut: _Cut, aligner: Aligner
    ) -> tuple[list[Segment] | None, int]:
        """Segments with words, and where the window after this one begins.

        None for segments: the window is only to be moved there.
        """
        segments = self._align(window, cut.segments, aligner)
        kept: list[Segment] | None = segments
        seek = self._seek_after_words(window, cut, end_of_speech(segments))
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
            offset=_seconds(window.seek),
            last_speech=self._last_speech,
            prepended=options.prepend_punctuations,
            appended=options.append_punctuations,
        )

    def _seek_after_words(self, window: Window, cut: _Cut, end: float | None) -> int:
        """Where to go on when the last word ends at ``end``, in seconds."""
        bounds = _bounds(window, self._n_frames)
        if cut.closed or end is None or end <= bounds.start:
            return window.seek + cut.done
        threshold = self._options.hallucination_silence_threshold
        if threshold is not None and bounds.end - end <= threshold:
            return window.seek + window.size
        return round(end * FRAMES_PER_SECOND)


def _seconds(n_frames: int) -> float:
    return n_frames * HOP_LENGTH / SAMPLE_RATE


def _bounds(window: Window, n_frames: int) -> Bounds:
    start = _seconds(window.seek)
    return Bounds(
        start=start,
        sound_end=start + _seconds(window.size),
        end=_seconds(window.seek + N_FRAMES),
        recording_end=_seconds(n_frames),
    )


def _newest(tokens: Sequence[int], n: int) -> Sequence[int]:
    return tokens[-n:] if n > 0 else ()


def _text_tokens(vocab: Vocab, text: str | None) -> tuple[int, ...]:
    return () if text is None else tuple(vocab.encode(" " + text.strip()))


def _clips(seconds: Sequence[float], n_frames: int) -> list[tuple[int, int]]:
    points = [round(second * FRAMES_PER_SECOND) for second in seconds]
    if not points:
        points.append(0)
    if len(points) % 2:
        points.append(n_frames)
    return [(begin, min(end, n_frames)) for begin, end in zip(points[::2], points[1::2])]
