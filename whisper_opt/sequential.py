"""The sequential method: which window comes next, what it is told, and segments out of its answer.

The method is openai-whisper's (whisper/transcribe.py): decode 30 s, cut the answer into segments at
its timestamps, continue where the last finished segment ended.
"""

from __future__ import annotations

from collections.abc import Sequence

from whisper_opt.answers import Window, WindowResult
from whisper_opt.dims import FRAMES_PER_SECOND, HOP_LENGTH, N_FRAMES, SAMPLE_RATE, ModelDims
from whisper_opt.options import TranscribeOptions
from whisper_opt.results import Segment
from whisper_opt.tokens import Vocab

__all__ = ["Sequential"]


class Sequential:
    """The state of one recording between windows: where to look next and what was said.

    ``next_window`` and ``accept`` alternate; nothing here computes the model, so that the windows
    of several recordings can share a batch.
    """

    def __init__(
        self,
        n_frames: int,
        vocab: Vocab,
        dims: ModelDims,
        options: TranscribeOptions,
        language: str,
    ) -> None:
        """Start at the first frame to transcribe.

        Args:
            n_frames: mel frames of the recording (10 ms each).
            vocab: vocabulary of the model.
            dims: its dimensions.
            options: how to transcribe.
            language: language code.
        """
        self._n_frames = n_frames
        self._vocab = vocab
        self._dims = dims
        self._options = options
        self._start = tuple(
            vocab.start(language, options.task, timestamps=not options.without_timestamps)
        )
        self._prefix = _text_tokens(vocab, options.prefix or None)
        self._initial = _text_tokens(vocab, options.initial_prompt)
        self._said = list(self._initial)
        self._forget = 0
        self._n_segments = 0
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
                prompt = (*self._previous(), *self._start, *self._prefix)
                return Window(self._seek, size, prompt, prompt.index(self._vocab.sot))
            self._clip += 1
            if self._clip < len(self._clips):
                self._seek = self._clips[self._clip][0]
        return None

    def _previous(self) -> list[int]:
        """What was said before, as the model expects it: newest kept, at most half the context."""
        room = self._dims.n_text_ctx // 2 - 1
        if self._options.carry_initial_prompt:
            begin = max(len(self._initial), self._forget)
            left = room - len(self._initial)
            prompt = [*self._initial, *(self._said[begin:][-left:] if left > 0 else [])]
        else:
            prompt = self._said[self._forget :]
        return [self._vocab.sot_prev, *prompt[-room:]] if prompt else []

    def accept(self, window: Window, result: WindowResult) -> list[Segment]:
        """Take the answer to ``window``; returns its segments and moves on."""
        options = self._options
        if self._is_silence(result):
            self._seek = window.seek + window.size
            return []
        segments, advance = self._cut(window, result)
        # An answer whose last pair is <|0.00|><|0.00|> finishes nothing: the reference would decode
        # the same sound again, without end. Only sampling without timestamp rules can give one.
        self._seek = window.seek + (advance or window.size)
        for segment in segments:
            self._said.extend(segment.tokens)
        self._n_segments += len(segments)
        if not options.conditions or result.temperature > 0.5:
            self._forget = len(self._said)
        return segments

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

    def _cut(self, window: Window, result: WindowResult) -> tuple[list[Segment], int]:
        """Segments of a window, and how many frames of it they finish."""
        begin = self._vocab.timestamp_begin
        tokens = result.tokens
        times = [token >= begin for token in tokens]
        ends_with_one = times[-2:] == [False, True]
        cuts = [i for i in range(1, len(tokens)) if times[i] and times[i - 1]]
        offset = window.seek * HOP_LENGTH / SAMPLE_RATE
        precision = self._dims.frames_per_position * HOP_LENGTH / SAMPLE_RATE
        if not cuts:
            marks = [token for token in tokens if token >= begin]
            length = window.size * HOP_LENGTH / SAMPLE_RATE
            if marks and marks[-1] != begin:
                length = (marks[-1] - begin) * precision
            spans = [(offset, offset + length, tokens)]
            return self._segments(window, result, spans), window.size
        if ends_with_one:
            cuts.append(len(tokens))
        spans = []
        for first, last in zip([0, *cuts], cuts):
            piece = tokens[first:last]
            start, end = (piece[0] - begin) * precision, (piece[-1] - begin) * precision
            spans.append((offset + start, offset + end, piece))
        if ends_with_one:  # nothing is said after the last timestamp
            return self._segments(window, result, spans), window.size
        done = (tokens[cuts[-1] - 1] - begin) * self._dims.frames_per_position
        return self._segments(window, result, spans), done

    def _segments(
        self,
        window: Window,
        result: WindowResult,
        spans: list[tuple[float, float, tuple[int, ...]]],
    ) -> list[Segment]:
        segments = []
        for i, (start, end, tokens) in enumerate(spans, self._n_segments):
            text = self._vocab.decode(tokens)
            if start == end or not text.strip():  # instantaneous or empty: says nothing
                text, tokens = "", ()
            segments.append(
                Segment(
                    id=i,
                    start=start,
                    end=end,
                    text=text,
                    tokens=tokens,
                    avg_logprob=result.avg_logprob,
                    no_speech_prob=result.no_speech_prob,
                    compression_ratio=result.compression_ratio,
                    temperature=result.temperature,
                    seek=window.seek,
                )
            )
        return segments


def _text_tokens(vocab: Vocab, text: str | None) -> tuple[int, ...]:
    return () if text is None else tuple(vocab.encode(" " + text.strip()))


def _clips(seconds: Sequence[float], n_frames: int) -> list[tuple[int, int]]:
    points = [round(second * FRAMES_PER_SECOND) for second in seconds]
    if not points:
        points.append(0)
    if len(points) % 2:
        points.append(n_frames)
    return [(begin, min(end, n_frames)) for begin, end in zip(points[::2], points[1::2])]
