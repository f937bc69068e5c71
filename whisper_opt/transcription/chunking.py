"""Sequential and batched: how a recording becomes chunks to decode."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

from whisper_opt.audio.decode import AudioSource, load_audio, open_audio
from whisper_opt.audio.features import LogMel, log_mel
from whisper_opt.audio.vad import SpeechDetector, cut, merge
from whisper_opt.core.arrays import F32
from whisper_opt.core.backend import Backend
from whisper_opt.core.dims import N_FRAMES, N_SAMPLES, SAMPLE_RATE
from whisper_opt.core.errors import OptionError
from whisper_opt.core.options import TranscribeOptions
from whisper_opt.text.vocabulary import Vocab
from whisper_opt.transcription.fallback import FallbackDecoder, Suppression
from whisper_opt.transcription.hallucinations import SpeechCheck
from whisper_opt.transcription.job import Chunk, TranscriptionJob
from whisper_opt.transcription.language import detect_language
from whisper_opt.transcription.windows import WindowCursor

__all__ = ["Chunking"]

_SKIPPED = 2.0
"""Silences longer than this, in seconds, are left out by the sequential strategy with vad=cut."""


class Chunking:
    """Opens recordings for one model."""

    def __init__(self, backend: Backend, vocab: Vocab, suppression: Suppression) -> None:
        """Join what every recording needs."""
        self._backend = backend
        self._vocab = vocab
        self._suppression = suppression

    def job(
        self, source: AudioSource, sample_rate: int | None, options: TranscribeOptions
    ) -> TranscriptionJob:
        """A recording; nothing is read until it is opened.

        Raises:
            OptionError: the model cannot honour the options.
        """
        language = self._vocab.check_language(options.language, options.task)
        if options.multilingual and not self._vocab.is_multilingual:
            raise OptionError(
                "multilingual is on, but this model knows English only; use a multilingual model"
                " (one whose name does not end in .en)"
            )
        answers = FallbackDecoder(self._backend.dims, self._vocab, options, self._suppression)

        reading: dict[str, Any] = {"sample_rate": sample_rate, **options.reading}

        def chunks(recording: TranscriptionJob) -> Iterator[Chunk]:
            recording.language = language
            if options.strategy == "sequential":
                yield self._whole(recording, load_audio(source, **reading))
            elif options.clip_timestamps:
                samples = load_audio(source, **reading)
                recording.duration = len(samples) / SAMPLE_RATE
                yield from self._pieces(recording, _clips(samples, options))
            else:
                with open_audio(source, **reading) as stream:
                    recording.duration = stream.duration or 0.0
                    detector = SpeechDetector(options.vad_options)
                    yield from self._pieces(recording, _speech(recording, stream, detector))

        return TranscriptionJob(answers, chunks)

    def _whole(self, recording: TranscriptionJob, samples: F32) -> Chunk:
        """The sequential strategy: one chunk, the whole recording."""
        options, dims = recording.answers.options, self._backend.dims
        recording.duration = len(samples) / SAMPLE_RATE
        mel = self._mel(samples)
        is_spoken = None
        if options.vad_mode == "check":
            is_spoken = SpeechCheck(samples, options.vad_options)
        elif options.vad_mode == "cut":
            spans = SpeechDetector(options.vad_options).spans(samples)
            clips = [
                second
                for span in merge(spans, round(_SKIPPED * SAMPLE_RATE))
                for second in (span.start / SAMPLE_RATE, span.end / SAMPLE_RATE)
            ]
            # without speech, a clip that holds nothing
            options = options.for_speech(clips or (0.0, 0.001))
        if recording.language is None:
            heads = (mel.head(start) for start in range(0, max(mel.n_frames, 1), N_FRAMES))
            self._detect(recording, list(_first(heads, options.language_detection_segments)))
        assert recording.language is not None
        state = WindowCursor(
            mel.n_frames, self._vocab, dims, options, recording.language, is_spoken
        )
        return Chunk(mel, state)

    def _detect(self, recording: TranscriptionJob, heads: list[F32]) -> None:
        options = recording.answers.options
        probs = detect_language(
            self._backend, self._vocab, heads, options.language_detection_threshold
        )
        recording.language, recording.language_probability = next(iter(probs.items()))

    def _pieces(
        self, recording: TranscriptionJob, pieces: Iterator[tuple[float, F32]]
    ) -> Iterator[Chunk]:
        """The batched strategy: every piece of sound is a chunk of its own."""
        options = recording.answers.options
        first: list[tuple[float, F32]] = []
        if recording.language is None:
            first = list(_first(pieces, options.language_detection_segments))
            if first:
                self._detect(recording, [self._mel(samples).head() for _, samples in first])
            else:  # nobody speaks
                recording.language = self._vocab.default_language
        assert recording.language is not None
        for start, samples in itertools.chain(first, pieces):
            is_spoken = None
            if options.vad_mode == "check":
                is_spoken = SpeechCheck(samples, options.vad_options)
            mel = self._mel(samples)
            state = WindowCursor(
                mel.n_frames,
                self._vocab,
                self._backend.dims,
                options.for_speech(),
                recording.language,
                is_spoken,
            )
            yield Chunk(mel, state, start)

    def _mel(self, samples: F32) -> LogMel:
        return log_mel(samples, self._backend.dims.n_mels)


def _first(values: Iterator[Any], n: int) -> Iterator[Any]:
    for _, value in zip(range(n), values):
        yield value


def _clips(samples: F32, options: TranscribeOptions) -> Iterator[tuple[float, F32]]:
    points = [*options.clip_timestamps]
    if len(points) % 2:
        points.append(len(samples) / SAMPLE_RATE)
    for start, end in zip(points[::2], points[1::2]):
        first = round(start * SAMPLE_RATE)
        piece = samples[first : round(end * SAMPLE_RATE)]
        if len(piece):
            yield start, piece


def _speech(
    recording: TranscriptionJob, blocks: Iterator[F32], detector: SpeechDetector
) -> Iterator[tuple[float, F32]]:
    heard = 0

    def counted() -> Iterator[F32]:
        nonlocal heard
        for block in blocks:
            heard += len(block)
            recording.duration = max(recording.duration, heard / SAMPLE_RATE)
            yield block
        recording.duration = heard / SAMPLE_RATE

    for span, samples in cut(counted(), detector, N_SAMPLES):
        yield span.start / SAMPLE_RATE, samples
