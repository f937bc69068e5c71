"""``Whisper``: a loaded model."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from whisper_opt.audio.decode import AudioSource, load_audio
from whisper_opt.audio.features import log_mel
from whisper_opt.audio.speakers.networks import SpeakerNetworks, open_speakers
from whisper_opt.core.backend import Backend
from whisper_opt.core.background import Background
from whisper_opt.core.closing import Closing
from whisper_opt.core.dims import N_FRAMES, ModelDims
from whisper_opt.core.errors import (
    AudioError,
    BackendUnavailable,
    OptionError,
    WhisperOptError,
)
from whisper_opt.core.options import LoadOptions, TranscribeOptions
from whisper_opt.core.remedies import install_hint
from whisper_opt.runtime.devices import open_backend
from whisper_opt.runtime.engine import Engine, read_engine
from whisper_opt.runtime.gpus import Gpu
from whisper_opt.runtime.shared_backend import SharedBackend
from whisper_opt.text.results import Transcript
from whisper_opt.text.vocabulary import Vocab
from whisper_opt.transcription.alignment import aligner
from whisper_opt.transcription.alignment_heads import HeadScore, rank_heads
from whisper_opt.transcription.arguments import ManyOptions, check_detection, merged
from whisper_opt.transcription.chunking import JobFactory
from whisper_opt.transcription.drafts import Assistant, assistant_of
from whisper_opt.transcription.fallback import Suppression
from whisper_opt.transcription.job import TranscriptionJob
from whisper_opt.transcription.language import language_of_recording
from whisper_opt.transcription.model_source import Progress as ExportProgress
from whisper_opt.transcription.model_source import opened
from whisper_opt.transcription.scheduler import Progress, Scheduler, Steps
from whisper_opt.transcription.sources import MappedSource, ReadySource, Source, source_of
from whisper_opt.transcription.stream import ManyProgress, Stream, as_they_finish

__all__ = ["Whisper"]


class Whisper(Closing):
    """A loaded model. Use as a context manager, or call :meth:`close`.

    A model may be used from several threads at once; the result of a call does not depend on other
    calls. On the CPU, calls run in parallel and share the cores: more than a few threads gain
    nothing, and one call of :meth:`transcribe_many` is faster than several calls of
    :meth:`transcribe`. On a GPU, calls take turns, step by step. Use a :class:`Stream` from one
    thread at a time.

    Examples:
        >>> model = whisper_opt.Whisper.load("engines/tiny.en")  # doctest: +SKIP
        >>> print(model.transcribe("talk.mp3").text)  # doctest: +SKIP
    """

    def __init__(
        self,
        engine: Engine,
        backend: Backend,
        device: str = "cpu",
        vocab: Vocab | None = None,
        encoder_precision: str = "engine",
        speakers: SpeakerNetworks | None = None,
    ) -> None:
        """Create a model from an engine and a backend; most programs use :meth:`load`.

        ``vocab``: vocabulary of the engine if it was read already. ``speakers``: needed for
        ``diarize``.

        Raises:
            EngineError: the engine's tokenizer does not fit its model.
        """
        manifest = engine.manifest
        self.engine = engine
        self.device = device
        """``cpu``, ``cuda`` or ``tensorrt``."""
        self.encoder_precision = encoder_precision
        """Precision of the encoder: ``engine`` (as exported), ``bf16`` or ``int8``."""
        self._speakers = speakers
        self._shared = SharedBackend(backend)
        self._assistant: Assistant | None = None
        self._vocab = vocab or _vocab(engine)
        listed, begin = manifest.suppress_tokens, manifest.begin_suppress_tokens
        self._suppression = Suppression(
            # fine-tuning scripts write empty lists; the defaults are used then
            listed or self._vocab.non_speech_tokens(),
            begin or self._vocab.blank_tokens(),
        )

    @classmethod
    def load(
        cls,
        source: Any,
        *,
        options: LoadOptions | None = None,
        verify: bool = False,
        on_progress: ExportProgress | None = None,
        **overrides: Any,
    ) -> Whisper:
        """Open an engine; a model that is none is exported once, to the engine cache.

        Args:
            source: directory written by ``whisper-opt export``, or one that Optimum exported; a
                short name (:func:`whisper_opt.available_models`); a hub id, ``org/model`` or
                ``org/model@revision``; a local checkpoint; or a model in memory, of transformers or
                openai-whisper. An existing path takes precedence over a name.
            options: how to run the engine.
            verify: also compare the sha256 of every file with the manifest.
            on_progress: called with (stage, done, total) during an export.
            **overrides: fields of :class:`LoadOptions` that replace those of ``options``. They are
                described in docs/options.md:

                - ``device``: ``auto``, ``cpu``, ``cuda`` or ``tensorrt``;
                - ``device_index``: which GPU;
                - ``threads``: CPU threads;
                - ``precision``, ``revision``, ``cache_dir``, ``local_files_only``: for models that
                  are exported;
                - ``precision``: which graphs of a directory of Optimum;
                - ``encoder_precision``, ``padding``, ``kernels``: how the CPU computes;
                - ``speakers``: directory of the networks for ``diarize``;
                - ``draft_model``: a smaller model that proposes tokens;
                - ``cuda_graphs``, ``tensorrt_library``, ``build_plans``: for ``tensorrt``;
                - ``tensorrt_provider``: for ``cuda``.

        Raises:
            EngineError: there is no usable engine, or it was exported for another device.
            CheckpointError: the model cannot be fetched or read.
            VerificationError: the exported engine does not compute what the checkpoint computes.
            BackendUnavailable: ONNX Runtime, OpenVINO, TensorRT or the GPU is missing or too old
                for this engine; or ``kernels="native"``, and compiled kernels are missing.
            OptionError: an option is unknown, out of range, or contradicts the device.
        """
        chosen = merged(LoadOptions, options, overrides)
        model = opened(source, chosen, on_progress, lambda path: cls._open(path, chosen, verify))
        if chosen.draft_model is not None:
            with contextlib.ExitStack() as failing:
                failing.callback(model.close)
                model._assistant = _assistant(model, chosen, verify, on_progress)
                failing.pop_all()
        return model

    @classmethod
    def _open(cls, path: Path, options: LoadOptions, verify: bool) -> Whisper:
        speakers = None
        if options.speakers is not None:
            speakers = open_speakers(options.speakers, threads=options.threads, verify=verify)
        engine = read_engine(path, verify=verify)
        # in parallel with the graphs, which are mostly loaded outside of Python
        with Background(lambda: _vocab(engine)) as vocab:
            found = open_backend(engine, options, build_plans=_build_plans)
            try:
                return cls(
                    engine,
                    found.backend,
                    found.device,
                    vocab.result(),
                    encoder_precision=found.encoder_precision,
                    speakers=speakers,
                )
            except BaseException:  # for example a bad tokenizer: release the device
                SharedBackend(found.backend).close()
                raise

    @property
    def dims(self) -> ModelDims:
        """Model dimensions."""
        return self.engine.manifest.dims

    @property
    def vocab(self) -> Vocab:
        """Vocabulary: special ids by name, text to tokens and back."""
        return self._vocab

    @property
    def is_multilingual(self) -> bool:
        """Whether the model supports languages other than English."""
        return self._vocab.is_multilingual

    @property
    def languages(self) -> tuple[str, ...]:
        """Codes of the languages that the model supports."""
        return tuple(self._vocab.languages) if self.is_multilingual else ("en",)

    def transcribe(
        self,
        audio: AudioSource,
        *,
        sample_rate: int | None = None,
        options: TranscribeOptions | None = None,
        on_progress: Progress | None = None,
        **overrides: Any,
    ) -> Transcript:
        """Transcribe a recording of any length.

        Args:
            audio: path, bytes, binary file object, or numpy array [n] or [n, channels].
            sample_rate: rate of an array in Hz (default 16,000); not for files.
            options: how to transcribe.
            on_progress: called with (seconds done, total seconds) after every window.
            **overrides: fields of :class:`TranscribeOptions` that replace those of ``options``.

        Raises:
            AudioError: the recording cannot be read or used.
            OptionError: an option is unknown or not supported by this model.
        """
        return self.stream(
            audio, sample_rate=sample_rate, options=options, on_progress=on_progress, **overrides
        ).transcript()

    def stream(
        self,
        audio: AudioSource,
        *,
        sample_rate: int | None = None,
        options: TranscribeOptions | None = None,
        on_progress: Progress | None = None,
        **overrides: Any,
    ) -> Stream:
        """Like :meth:`transcribe`, but segments are yielded one by one as they are decoded."""
        chosen = merged(TranscribeOptions, options, overrides)
        chosen.check_alone()
        with self._shared.use() as backend:
            job = self._job_factory(backend).job(audio, sample_rate, chosen)
            try:
                job.open()
            except BaseException:
                job.close()
                raise
        steps = self._steps(ReadySource([job]), chosen.batch_size)
        return Stream(steps, job, self._vocab, on_progress)

    def _steps(self, source: Source[TranscriptionJob], batch_size: int) -> Steps:
        """Transcribe the jobs of a source; the backend stays open until its end."""
        with self._shared.use() as backend:
            yield from Scheduler(backend, self._vocab, batch_size).run(source)

    def transcribe_many(
        self,
        audios: Iterable[AudioSource],
        *,
        sample_rate: int | None = None,
        options: TranscribeOptions | Iterable[TranscribeOptions] | None = None,
        batch_size: int | None = None,
        return_exceptions: bool = False,
        on_progress: ManyProgress | None = None,
        **overrides: Any,
    ) -> Iterator[tuple[int, Transcript | WhisperOptError]]:
        """Transcribe several recordings together, with up to ``batch_size`` windows at a time.

        The transcript of a recording does not depend on the other recordings. Recordings are opened
        when there is room for them, so ``audios`` may be a generator of any length. It may be slow:
        any iterable other than a list or a tuple is read in a thread, one recording ahead, while
        other recordings are decoded.

        If there is not enough memory for all windows, fewer are decoded at once. If a window fails
        alone, its recording fails and no other.

        Args:
            audios: recordings as for :meth:`transcribe`, in a list or another iterable.
            sample_rate: rate of arrays in Hz (default 16,000).
            options: how to transcribe: for all recordings, or one per recording.
            batch_size: maximum number of windows decoded at once; default: that of the options.
            return_exceptions: yield the error of a recording that fails instead of raising it.
            on_progress: called with (index, seconds done, total seconds) after every window.
            **overrides: fields that replace those of every ``options``.

        Yields:
            Index in ``audios`` and transcript of each recording, in the order in which they finish.

        Raises:
            AudioError: a recording cannot be read or used; the others are cancelled.
            OptionError: an option is unknown or not supported by this model; ``audios`` is a single
                recording; or the numbers of options and recordings differ.
        """
        with self._shared.use() as backend:
            factory = self._job_factory(backend)
        each = ManyOptions(audios, options, overrides)
        size = TranscribeOptions(batch_size=each.batch_size if batch_size is None else batch_size)
        numbers: dict[TranscriptionJob, int] = {}

        def job_of(audio: AudioSource) -> TranscriptionJob:
            chosen = each.next()
            _check_batch_size(chosen, size.batch_size, each.n_used - 1)
            try:
                job = factory.job(audio, sample_rate, chosen)
            except WhisperOptError as error:
                job = TranscriptionJob.failed(error)
            numbers[job] = each.n_used - 1
            return job

        steps = self._steps(MappedSource(source_of(audios), job_of), size.batch_size)
        results = as_they_finish(steps, numbers, self._vocab, return_exceptions, on_progress)
        return each.checked_after(results)

    def detect_language(
        self,
        audio: AudioSource,
        *,
        sample_rate: int | None = None,
        windows: int = 4,
        threshold: float = 0.5,
    ) -> dict[str, float]:
        """Probability of each language, most probable first.

        Args:
            audio: as for :meth:`transcribe`.
            sample_rate: rate of an array in Hz.
            windows: maximum number of windows of 30 s with speech; the result is their mean.
            threshold: detection stops when the mean probability of a language reaches it.

        Raises:
            AudioError: the recording cannot be read or used.
            OptionError: the model is English-only, or an argument is out of range.
        """
        check_detection(windows, threshold)
        options = TranscribeOptions(
            language_detection_segments=windows, language_detection_threshold=threshold
        )
        with self._shared.use() as backend:
            samples = load_audio(audio, sample_rate=sample_rate)
            mel = log_mel(samples, self.dims.n_mels)
            return language_of_recording(backend, self._vocab, samples, mel, options)

    def rank_alignment_heads(
        self, audio: AudioSource, *, sample_rate: int | None = None, language: str | None = None
    ) -> list[HeadScore]:
        """Alignment scores of the cross-attention heads in the engine, the best first.

        For models whose alignment heads are not known: export with ``alignment_heads="all"``, rank
        them on some speech, export again with the best ones.

        Args:
            audio: speech, as for :meth:`transcribe`; one minute is enough.
            sample_rate: rate of an array in Hz.
            language: language of the speech; default: detected.

        Raises:
            AudioError: the recording cannot be read or used, or has no speech.
        """
        samples = load_audio(audio, sample_rate=sample_rate)
        transcript = self.transcribe(samples, language=language, temperature=0.0)
        mel, vocab = log_mel(samples, self.dims.n_mels), self._vocab
        start = vocab.start(transcript.language, "transcribe", timestamps=False)
        attentions = []
        with self._shared.use() as backend:
            for seek, segments in itertools.groupby(transcript, lambda segment: segment.seek):
                text = [t for segment in segments for t in segment.tokens if t in vocab.text]
                size = min(N_FRAMES, mel.n_frames - seek)
                if text:
                    encoded = backend.encode(mel.window(seek, size)[None])
                    attentions.append((aligner(backend, vocab, encoded, start)(text), size))
        if not attentions:
            raise AudioError("no speech was found in the recording; expected some to rank heads by")
        return rank_heads(self.alignment_heads, attentions)

    @property
    def alignment_heads(self) -> tuple[tuple[int, int], ...]:
        """(decoder layer, head) of the cross-attention heads used for word times."""
        known = self.engine.manifest.alignment_heads
        return tuple(sorted(known or self.dims.default_alignment_heads))

    def _job_factory(self, backend: Backend) -> JobFactory:
        return JobFactory(backend, self._vocab, self._suppression, self._speakers, self._assistant)

    @property
    def _backend(self) -> Backend | None:
        """The backend, for tests and measurements; None after its release."""
        return self._shared.backend

    def close(self) -> None:
        """Release the model; using it afterwards raises EngineError.

        Running calls of other threads and streams that have started continue to their end; the last
        one releases the model, and its draft model.
        """
        self._shared.close()
        self._assistant = None  # running calls have references of their own


def _check_batch_size(chosen: TranscribeOptions, shared: int, index: int) -> None:
    if chosen.batch_size not in (TranscribeOptions.batch_size, shared):
        raise OptionError(
            f"the options of recording {index} have batch_size {chosen.batch_size}, but all"
            f" recordings share one batch of {shared} windows; pass batch_size to transcribe_many"
        )


def _assistant(
    model: Whisper, options: LoadOptions, verify: bool, on_progress: ExportProgress | None
) -> Assistant:
    """The draft model that the options name, for a model."""
    if model.device != "cpu":
        raise OptionError(
            f"draft_model is given, but the model runs on {model.device!r}, and draft models run on"
            " the CPU; leave it out, or use device='cpu'"
        )
    chosen = dataclasses.replace(
        options,
        draft_model=None,
        speakers=None,
        device="cpu",
        revision=None,
        precision="auto",  # of a model by name: the fastest
        encoder_precision="engine",
    )
    small = Whisper.load(
        options.draft_model, options=chosen, verify=verify, on_progress=on_progress
    )
    with small._shared.use() as backend:
        return assistant_of(model.dims, model.vocab, backend, small.vocab)


def _build_plans(engine: Engine, gpu: Gpu, library: str | None) -> None:
    """Build TensorRT plans; needs the ``export`` extra, so the builder is imported only here."""
    try:
        builder = importlib.import_module("whisper_opt.export.tensorrt.plan_builder")
    except ImportError as error:
        raise BackendUnavailable(
            f"building plans needs packages that are missing ({error}); {install_hint('export')}"
        ) from error
    builder.build_plans_for_gpu(engine, gpu, library)


def _vocab(engine: Engine) -> Vocab:
    manifest = engine.manifest
    return Vocab(engine.tokenizer_json(), manifest.dims, manifest.is_multilingual)
