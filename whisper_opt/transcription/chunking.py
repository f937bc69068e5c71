"""Sequential and batched: how a recording becomes chunks to decode."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

from whisper_opt.audio.decode import AudioSource, load_audio, open_audio
from whisper_opt.audio.features import LogMel, log_mel
from whisper_opt.audio.vad import SpeechDetector, cut, merge, require_model
from whisper_opt.core.arrays import F32
from whisper_opt.core.backend import Backend
from whisper_opt.core.dims import N_SAMPLES, SAMPLE_RATE
from whisper_opt.core.options import TranscribeOptions
from whisper_opt.text.results import Dropped
from whisper_opt.text.vocabulary import Vocab
from whisper_opt.transcription.fallback import FallbackDecoder, Suppression
from whisper_opt.transcription.hallucinations import LoudGaps, SpeechCheck
from whisper_opt.transcription.job import Chunk, TranscriptionJob
from whisper_opt.transcription.language import detect_language, language_of_recording
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
            BackendUnavailable: the model that detects speech is missing.
            OptionError: the model cannot honour the options.
        """
        language = self._vocab.check_language(options.language, options.task)
        options.check_model(
            is_multilingual=self._vocab.is_multilingual,
            n_audio_ctx=self._backend.dims.n_audio_ctx,
        )
        if options.vad_mode != "off":
            require_model()
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
        sound = _sound(samples, options)
        if recording.language is None:
            probs = language_of_recording(self._backend, self._vocab, samples, mel, options)
            recording.language, recording.language_probability = next(iter(probs.items()))
        is_spoken = sound if options.vad_mode == "check" else None
        if options.vad_mode == "cut":
            clips, recording.dropped = _spoken_clips(samples, options)
            options = options.for_speech(clips)
        return Chunk(
            mel,
            WindowCursor(
                mel.n_frames, self._vocab, dims, options, recording.language, is_spoken, sound
            ),
        )

    def _pieces(
        self, recording: TranscriptionJob, pieces: Iterator[tuple[float, F32]]
    ) -> Iterator[Chunk]:
        """The batched strategy: every piece of sound is a chunk of its own."""
        options = recording.answers.options
        first: list[tuple[float, F32]] = []
        if recording.language is None:
            self._detect(recording, self._heads(pieces, first, options))
        assert recording.language is not None
        for start, samples in itertools.chain(first, pieces):
            sound, mel = _sound(samples, options), self._mel(samples)
            state = WindowCursor(
                mel.n_frames,
                self._vocab,
                self._backend.dims,
                options.for_speech(),
                recording.language,
                sound if options.vad_mode == "check" else None,
                sound,
            )
            yield Chunk(mel, state, start)

    def _detect(self, recording: TranscriptionJob, heads: Iterator[F32]) -> None:
        """Find the language in windows with speech; the default if there are none."""
        options = recording.answers.options
        probs = detect_language(
            self._backend,
            self._vocab,
            heads,
            options.language_detection_threshold,
            windows=options.detection_windows,
            no_speech_threshold=options.no_speech_threshold if options.vad_mode == "off" else None,
        )
        recording.language, recording.language_probability = next(
            iter(probs.items()), (self._vocab.default_language, None)
        )

    def _heads(
        self,
        pieces: Iterator[tuple[float, F32]],
        taken: list[tuple[float, F32]],
        options: TranscribeOptions,
    ) -> Iterator[F32]:
        """The beginnings of pieces with speech; ``taken`` gets all pieces read."""
        detector = SpeechDetector(options.vad_options)
        for piece in pieces:
            taken.append(piece)
            if options.vad_mode != "check" or detector.first_speech(piece[1]) is not None:
                yield self._mel(piece[1]).head()

    def _mel(self, samples: F32) -> LogMel:
        return log_mel(samples, self._backend.dims.n_mels)


def _sound(samples: F32, options: TranscribeOptions) -> SpeechCheck | None:
    return None if options.vad_mode == "off" else SpeechCheck(samples, options.vad_options)


def _spoken_clips(
    samples: F32, options: TranscribeOptions
) -> tuple[tuple[float, ...], list[Dropped]]:
    """Where speech is, as clip timestamps, and the loud sounds left out."""
    spans = SpeechDetector(options.vad_options).spans(samples)
    gaps, clips = LoudGaps(), list[float]()
    gaps.feed(samples)
    for span in merge(spans, round(_SKIPPED * SAMPLE_RATE)):
        gaps.transcribed(*span.seconds)
        clips += span.seconds
    # without speech, a clip that holds nothing
    return tuple(clips) or (0.0, 0.001), gaps.finish()


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
    n_read, gaps = 0, LoudGaps()

    def counted() -> Iterator[F32]:
        nonlocal n_read
        for block in blocks:
            n_read += len(block)
            recording.duration = max(recording.duration, n_read / SAMPLE_RATE)
            gaps.feed(block)
            yield block
        recording.duration = n_read / SAMPLE_RATE

    for span, samples in cut(counted(), detector, N_SAMPLES):
        gaps.transcribed(*span.seconds)
        yield span.start / SAMPLE_RATE, samples
    recording.dropped += gaps.finish()
