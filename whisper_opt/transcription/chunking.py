"""Transcription jobs: reading a recording and dividing it into chunks, per strategy."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Iterator
from typing import Any, Callable, Union

from whisper_opt.audio.decode import AudioSource, load_audio, open_audio
from whisper_opt.audio.features import LogMel, log_mel
from whisper_opt.audio.speakers.networks import SpeakerNetworks
from whisper_opt.audio.vad import SpeechDetector, cut, merge, require_model
from whisper_opt.core.arrays import F32
from whisper_opt.core.backend import Backend
from whisper_opt.core.dims import N_SAMPLES, SAMPLE_RATE
from whisper_opt.core.errors import OptionError
from whisper_opt.core.options import TranscribeOptions
from whisper_opt.decoding import Drafter
from whisper_opt.text.results import Dropped
from whisper_opt.text.vocabulary import Vocab
from whisper_opt.transcription.channels import ChannelSplit, Recording
from whisper_opt.transcription.diarization import Diarization, needed_networks
from whisper_opt.transcription.drafts import Assistant, ChunkDraft, Draft
from whisper_opt.transcription.fallback import FallbackDecoder, Suppression, Window
from whisper_opt.transcription.hallucinations import LoudGaps, SpeechCheck
from whisper_opt.transcription.job import (
    Chunk,
    ChunksOnDemand,
    ChunkSource,
    TranscriptionJob,
)
from whisper_opt.transcription.language import detect_language, language_of_recording
from whisper_opt.transcription.live.window import Hypothesis, Update, UpdateCursor
from whisper_opt.transcription.windows import WindowCursor

__all__ = ["JobFactory"]

_SKIPPED = 2.0
"""Seconds; the sequential strategy with vad=cut skips silences longer than this."""


class JobFactory:
    """Creates transcription jobs for one model."""

    def __init__(
        self,
        backend: Backend,
        vocab: Vocab,
        suppression: Suppression,
        speakers: SpeakerNetworks | None = None,
        assistant: Assistant | None = None,
    ) -> None:
        """Make jobs for one model.

        Args:
            backend: the model.
            vocab: its vocabulary.
            suppression: token lists of the checkpoint.
            speakers: networks for ``diarize``.
            assistant: the draft model.
        """
        self._assistant = assistant
        self._backend = backend
        self._speakers = speakers
        self._vocab = vocab
        self._suppression = suppression

    def job(
        self,
        source: AudioSource,
        sample_rate: int | None,
        options: TranscribeOptions,
        read: Callable[[Iterator[Chunk]], ChunkSource] = ChunksOnDemand,
    ) -> TranscriptionJob:
        """The job of one recording; nothing is read until the job is opened.

        Args:
            source: the recording.
            sample_rate: rate of an array in Hz.
            options: how to transcribe.
            read: how its chunks are read: when they are needed, or ahead in another thread.

        Raises:
            BackendUnavailable: the model for voice activity detection is missing.
            OptionError: the model, or its engine, does not support the options.
        """
        language = self._vocab.check_language(options.language, options.task)
        options.check_model(
            is_multilingual=self._vocab.is_multilingual,
            n_audio_ctx=self._backend.dims.n_audio_ctx,
        )
        if self._assistant is not None:
            options.check_greedy("draft_model")
        self._check_words(options)
        if options.vad_mode != "off":
            require_model()
        decoded = _with_words(options)
        fallback = FallbackDecoder(self._backend.dims, self._vocab, decoded, self._suppression)
        reading: dict[str, Any] = {"sample_rate": sample_rate, **options.reading}
        apart: Union[ChannelSplit, Diarization, None] = None
        if options.channels == "split":
            apart = ChannelSplit(options, reading, language)
        elif options.diarize:
            apart = Diarization(needed_networks(self._speakers), options, reading)

        def chunks(job: TranscriptionJob) -> Iterator[Chunk]:
            job.language = language
            if apart is None:
                return self._chunks(job, source, reading)
            return apart.chunks(job, source, self._chunks)

        job = TranscriptionJob(fallback, chunks, read)
        if apart is not None:
            job.complete = functools.partial(apart.complete, job, self._tokens)
        return job

    def update_job(
        self,
        update: Update,
        found: Callable[[Hypothesis], None],
        read: Callable[[Iterator[Chunk]], ChunkSource] = ChunksOnDemand,
    ) -> TranscriptionJob:
        """The job of an update of a live session: one window.

        Args:
            update: the update.
            found: called with its result.
            read: as for :meth:`job`.
        """
        dims = self._backend.dims
        fallback = FallbackDecoder(dims, self._vocab, update.options, self._suppression)

        def chunks(job: TranscriptionJob) -> Iterator[Chunk]:
            job.duration = len(update.samples) / SAMPLE_RATE
            mel = self._mel(update.samples)
            yield Chunk(mel, UpdateCursor(update, mel.n_frames, self._vocab, dims, found))

        return TranscriptionJob(fallback, chunks, read)

    def _check_words(self, options: TranscribeOptions) -> None:
        missing = getattr(self._backend, "no_word_times", "")  # only some backends lack them
        if missing and options.word_timestamps:
            raise OptionError(f"word_timestamps is on, but {missing}")
        speakers = options.speaker_options
        if missing and speakers.needs_words:
            raise OptionError(f"{speakers.why_words}, which needs word times, but {missing}")

    def _tokens(self, text: str) -> list[int]:
        """Tokens of text that the model has written."""
        return self._vocab.encode(text.replace("<|", "< |"))  # not the name of a special token

    def _chunks(
        self, job: Recording, source: AudioSource, reading: dict[str, Any]
    ) -> Iterator[Chunk]:
        """The chunks of a recording, or of one channel of it."""
        options = job.fallback.options
        if options.strategy == "sequential":
            samples = load_audio(source, **reading)
            yield self._sequential(job, samples)
            job.hear(samples)  # decoding has begun
        elif options.clip_timestamps:
            samples = load_audio(source, **reading)
            job.duration = len(samples) / SAMPLE_RATE
            yield from self._batched(job, _clips(samples, options), job.duration)
            job.hear(samples)
        else:
            with open_audio(source, **reading) as stream:
                job.duration = stream.duration or 0.0
                detector = SpeechDetector(options.vad_options)
                yield from self._batched(job, _speech(job, stream, detector), stream.duration)

    def _sequential(self, job: Recording, samples: F32) -> Chunk:
        """The sequential strategy: one chunk, the whole recording."""
        options, dims = job.fallback.options, self._backend.dims
        job.duration = len(samples) / SAMPLE_RATE
        mel = self._mel(samples)
        speech_check = _speech_check(samples, options)
        if job.language is None:
            probs = language_of_recording(self._backend, self._vocab, samples, mel, options)
            job.language, job.language_probability = next(iter(probs.items()))
        is_spoken = speech_check if options.vad_mode == "check" else None
        if options.vad_mode == "cut":
            clips, job.dropped = _spoken_clips(samples, options)
            options = options.for_speech(clips)
        return Chunk(
            mel,
            WindowCursor(
                mel.n_frames,
                self._vocab,
                dims,
                options,
                job.language,
                is_spoken,
                speech_check,
                self._chunk_draft(self._draft(job, job.duration), job),
            ),
            assist=self._assist(job.fallback),
        )

    def _batched(
        self, job: Recording, parts: Iterator[tuple[float, F32]], duration: float | None
    ) -> Iterator[Chunk]:
        """The batched strategy: each part of the recording is a chunk.

        ``duration``: seconds of the recording; None if they are not known yet.
        """
        options = job.fallback.options
        taken: list[tuple[float, F32]] = []
        if job.language is None:
            self._detect_language(job, self._first_windows(parts, taken, options))
        assert job.language is not None
        windowed, draft = options.for_speech(), self._draft(job, duration)
        for start, samples in itertools.chain(taken, parts):
            speech_check, mel = _speech_check(samples, options), self._mel(samples)
            cursor = WindowCursor(
                mel.n_frames,
                self._vocab,
                self._backend.dims,
                windowed,
                job.language,
                speech_check if options.vad_mode == "check" else None,
                speech_check,
                self._chunk_draft(draft, job, start),
            )
            windowed = dataclasses.replace(windowed, transcript_prefix=None)
            yield Chunk(mel, cursor, start, self._assist(job.fallback))

    def _draft(self, job: Recording, duration: float | None) -> Draft | None:
        """The draft of a recording of so many seconds, if any text may be proposed."""
        options = job.fallback.options
        if options.draft is None and options.prompt_lookup_num_tokens is None:
            return None
        return Draft(options, self._vocab, duration)

    def _chunk_draft(
        self, draft: Draft | None, job: Recording, start: float = 0.0
    ) -> ChunkDraft | None:
        """Proposals for the chunk that starts at so many seconds."""
        if draft is None:
            return None
        return ChunkDraft(draft, job.fallback.options, self._vocab, self._backend.dims, start)

    def _assist(
        self, fallback: FallbackDecoder
    ) -> Callable[[Window, LogMel], Callable[[], Drafter]] | None:
        """Proposals of the draft model, if there is one."""
        if self._assistant is None:
            return None
        return functools.partial(self._assistant.drafter, fallback=fallback)

    def _detect_language(self, job: Recording, mels: Iterator[F32]) -> None:
        """Detect the language in windows with speech; the default language if there are none."""
        options = job.fallback.options
        probs = detect_language(
            self._backend,
            self._vocab,
            mels,
            options.language_detection_threshold,
            windows=options.detection_windows,
            no_speech_threshold=options.no_speech_threshold if options.vad_mode == "off" else None,
        )
        job.language, job.language_probability = next(
            iter(probs.items()), (self._vocab.default_language, None)
        )

    def _first_windows(
        self,
        parts: Iterator[tuple[float, F32]],
        taken: list[tuple[float, F32]],
        options: TranscribeOptions,
    ) -> Iterator[F32]:
        """The first window of each part with speech; all parts read are appended to ``taken``."""
        detector = SpeechDetector(options.vad_options)
        for part in parts:
            taken.append(part)
            if options.vad_mode != "check" or detector.first_speech(part[1]) is not None:
                yield self._mel(part[1]).head()

    def _mel(self, samples: F32) -> LogMel:
        return log_mel(samples, self._backend.dims.n_mels)


def _with_words(options: TranscribeOptions) -> TranscribeOptions:
    """The options with word times if they are needed to tell who says what."""
    needed = options.speaker_options.needs_words and not options.word_timestamps
    return dataclasses.replace(options, word_timestamps=True) if needed else options


def _speech_check(samples: F32, options: TranscribeOptions) -> SpeechCheck | None:
    if options.vad_mode == "off":
        return None
    check = SpeechCheck(samples, options.vad_options)
    if options.vad_mode == "check":
        check.measure()
    return check


def _spoken_clips(
    samples: F32, options: TranscribeOptions
) -> tuple[tuple[float, ...], list[Dropped]]:
    """Clip timestamps of the speech, and the loud parts outside it."""
    spans = SpeechDetector(options.vad_options).spans(samples)
    gaps, clips = LoudGaps(), list[float]()
    gaps.feed(samples)
    for span in merge(spans, round(_SKIPPED * SAMPLE_RATE)):
        gaps.transcribed(*span.seconds)
        clips += span.seconds
    # without speech, one clip too short to have text
    return tuple(clips) or (0.0, 0.001), gaps.finish()


def _clips(samples: F32, options: TranscribeOptions) -> Iterator[tuple[float, F32]]:
    points = [*options.clip_timestamps]
    if len(points) % 2:
        points.append(len(samples) / SAMPLE_RATE)
    for start, end in zip(points[::2], points[1::2]):
        first = round(start * SAMPLE_RATE)
        clip = samples[first : round(end * SAMPLE_RATE)]
        if len(clip):
            yield start, clip


def _speech(
    job: Recording, blocks: Iterator[F32], detector: SpeechDetector
) -> Iterator[tuple[float, F32]]:
    """Start in seconds and samples of each span of speech."""
    n_read, gaps = 0, LoudGaps()

    def counted() -> Iterator[F32]:
        nonlocal n_read
        for block in blocks:
            n_read += len(block)
            job.duration = max(job.duration, n_read / SAMPLE_RATE)
            gaps.feed(block)
            job.hear(block)
            yield block
        job.duration = n_read / SAMPLE_RATE

    for span, samples in cut(counted(), detector, N_SAMPLES):
        gaps.transcribed(*span.seconds)
        yield span.start / SAMPLE_RATE, samples
    job.dropped += gaps.finish()
