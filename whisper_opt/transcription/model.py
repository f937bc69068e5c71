"""``Whisper``: the one object most programs need."""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Union

from whisper_opt.audio.decode import AudioSource, load_audio
from whisper_opt.audio.features import log_mel
from whisper_opt.core.backend import Backend
from whisper_opt.core.background import Background
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
from whisper_opt.transcription.alignment_heads import HeadScore, rank_heads
from whisper_opt.transcription.arguments import ManyOptions, check_detection, merged
from whisper_opt.transcription.chunking import Chunking
from whisper_opt.transcription.fallback import Suppression
from whisper_opt.transcription.job import TranscriptionJob
from whisper_opt.transcription.language import language_of_recording
from whisper_opt.transcription.scheduler import Progress, Scheduler, Steps, aligner
from whisper_opt.transcription.sources import MappedSource, ReadySource, Source, source_of
from whisper_opt.transcription.stream import ManyProgress, Stream, as_they_finish

__all__ = ["Whisper"]


class Whisper:
    """A loaded engine, ready to transcribe. Use as a context manager, or call :meth:`close`.

    One object may be used from several threads at once, and every call gives what it would give
    alone. On the CPU calls run side by side, and share its cores: more than a few threads gain
    nothing, and :meth:`transcribe_many` decodes several recordings faster than several calls. On a
    GPU calls take turns, step by step. A :class:`Stream` belongs to one thread at a time.

    Example:
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
    ) -> None:
        """Join an opened engine and a backend that computes it; most callers want :meth:`load`.

        ``vocab``: the engine's, if it has been read already.

        Raises:
            EngineError: the engine's tokenizer does not fit its model.
        """
        manifest = engine.manifest
        self.engine = engine
        self.device = device
        """What computes: ``cpu``, ``cuda`` or ``tensorrt``."""
        self.encoder_precision = encoder_precision
        """What the encoder is computed in: ``engine`` (as exported), ``bf16`` or ``int8``."""
        self._shared = SharedBackend(backend)
        self._vocab = vocab or _vocab(engine)
        listed, begin = manifest.suppress_tokens, manifest.begin_suppress_tokens
        self._suppression = Suppression(
            # fine-tuning scripts leave empty lists, which says nothing about the model
            listed or self._vocab.non_speech_tokens(),
            begin or self._vocab.blank_tokens(),
        )

    @classmethod
    def load(
        cls,
        path: Union[str, Path],
        *,
        device: str = LoadOptions.device,
        device_index: int = LoadOptions.device_index,
        threads: int | None = LoadOptions.threads,
        encoder_precision: str = LoadOptions.encoder_precision,
        padding: str = LoadOptions.padding,
        kernels: str = LoadOptions.kernels,
        cuda_graphs: bool | None = LoadOptions.cuda_graphs,
        tensorrt_library: str | None = LoadOptions.tensorrt_library,
        build_plans: bool = LoadOptions.build_plans,
        tensorrt_provider: bool = LoadOptions.tensorrt_provider,
        verify: bool = False,
    ) -> Whisper:
        """Open an engine directory.

        Args:
            path: what ``whisper-opt export`` wrote.
            device: ``cpu``, ``cuda``, ``tensorrt``, or ``auto``: the best of them that this machine
                and this engine can use.
            device_index: which GPU.
            threads: CPU threads; None leaves the choice to ONNX Runtime (one a physical core).
            encoder_precision: ``engine``: the encoder is computed as it was exported; ``bf16`` or
                ``int8``: by OpenVINO on the CPU, from an fp32 engine (needs the ``openvino``
                extra); ``auto``: the most exact of them that is clearly faster on this CPU.
            padding: how engines of 8 and 4 bits hear the padding behind a short sound: ``auto``,
                by parts, which is faster; ``whole``, as every other engine does.
            kernels: what computes 8-bit operators on the CPU: ``native``, compiled kernels of this
                library; ``off``, ONNX Runtime; ``auto``, the kernels where they can be used.
            cuda_graphs: with ``tensorrt``, replay decoding steps as CUDA graphs (None: yes).
            tensorrt_library: with ``tensorrt``, that or ``tensorrt-rtx`` (None: the first that has
                plans).
            build_plans: with ``tensorrt``, build plans that are missing or stale (once; needs the
                ``export`` extra).
            tensorrt_provider: with ``cuda``, run the encoder with ONNX Runtime's TensorRT provider.
            verify: also compare every file's sha256 with the manifest.

        Raises:
            EngineError: no usable engine there, or one exported for another device.
            BackendUnavailable: ONNX Runtime, OpenVINO, TensorRT or the GPU is missing, or too old
                for this engine; or compiled kernels are missing, and were asked for.
            OptionError: an option is out of range, or contradicts the device.
        """
        options = LoadOptions(
            device=device,
            device_index=device_index,
            threads=threads,
            encoder_precision=encoder_precision,
            padding=padding,
            kernels=kernels,
            cuda_graphs=cuda_graphs,
            tensorrt_library=tensorrt_library,
            build_plans=build_plans,
            tensorrt_provider=tensorrt_provider,
        )
        engine = read_engine(path, verify=verify)
        # beside the graphs, most of whose loading is done outside of Python
        with Background(lambda: _vocab(engine)) as vocab:
            opened = open_backend(engine, options, build_plans=_build_plans)
            try:
                return cls(
                    engine,
                    opened.backend,
                    opened.device,
                    vocab.result(),
                    encoder_precision=opened.encoder_precision,
                )
            except BaseException:  # a bad tokenizer, for one: the device is given back
                SharedBackend(opened.backend).close()
                raise

    @property
    def dims(self) -> ModelDims:
        """Model dimensions."""
        return self.engine.manifest.dims

    @property
    def is_multilingual(self) -> bool:
        """Whether the model knows languages other than English."""
        return self._vocab.is_multilingual

    @property
    def languages(self) -> tuple[str, ...]:
        """Codes of the languages the model can be told to expect."""
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
            on_progress: called with (seconds done, seconds in all) after every window.
            **overrides: fields of :class:`TranscribeOptions` that replace those of ``options``.

        Raises:
            AudioError: the recording cannot be read or used.
            OptionError: an option is unknown or cannot be honoured by this model.
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
        """Like :meth:`transcribe`, but the segments come one by one as they are decoded."""
        chosen = merged(options, overrides)
        chosen.check_alone()
        with self._shared.use() as backend:
            recording = self._chunking(backend).job(audio, sample_rate, chosen)
            try:
                recording.open()
            except BaseException:
                recording.close()
                raise
        steps = self._steps(ReadySource([recording]), chosen.batch_size)
        return Stream(steps, recording, self._vocab, on_progress)

    def _steps(self, source: Source[TranscriptionJob], batch_size: int) -> Steps:
        """Transcribe what a source gives; the backend stays open until that ends."""
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
        """Transcribe several recordings side by side, ``batch_size`` windows at a time.

        Every recording gives what it would give alone. One is opened when there is room for it, so
        ``audios`` may be a generator of any length. It may be slow, too: anything but a list or a
        tuple is iterated in a thread of its own, one recording ahead, and what has come is decoded
        meanwhile.

        When the model has not enough memory for all windows at once, it decodes fewer; a recording
        whose window fails alone fails, and no other.

        Args:
            audios: recordings, as :meth:`transcribe` takes them, in a list or another iterable.
            sample_rate: rate of arrays in Hz (default 16,000).
            options: how to transcribe them all, or one for each.
            batch_size: windows decoded at once; default: that of the options.
            return_exceptions: yield the error of a recording that fails instead of raising it.
            on_progress: called with (index, seconds done, seconds in all) after every window.
            **overrides: fields that replace those of every ``options``.

        Yields:
            Index in ``audios`` and transcript of each recording, as they finish.

        Raises:
            AudioError: a recording cannot be read or used; the others are given up.
            OptionError: an option is unknown or cannot be honoured by this model; ``audios`` is one
                recording; or there are not as many options as recordings.
        """
        with self._shared.use() as backend:
            strategies = self._chunking(backend)
        each = ManyOptions(audios, options, overrides)
        size = TranscribeOptions(batch_size=each.batch_size if batch_size is None else batch_size)
        numbers: dict[TranscriptionJob, int] = {}

        def recording_of(audio: AudioSource) -> TranscriptionJob:
            chosen = each.next()
            _check_batch_size(chosen, size.batch_size)
            try:
                recording = strategies.job(audio, sample_rate, chosen)
            except WhisperOptError as error:
                recording = TranscriptionJob.failed(error)
            numbers[recording] = each.n_used - 1
            return recording

        steps = self._steps(MappedSource(source_of(audios), recording_of), size.batch_size)
        found = as_they_finish(steps, numbers, self._vocab, return_exceptions, on_progress)
        return each.checked_after(found)

    def detect_language(
        self,
        audio: AudioSource,
        *,
        sample_rate: int | None = None,
        windows: int = 4,
        threshold: float = 0.5,
    ) -> dict[str, float]:
        """Probability of every language, the likeliest first.

        Args:
            audio: as for :meth:`transcribe`.
            sample_rate: rate of an array in Hz.
            windows: how many windows of 30 s with speech to use at most, until the language is sure;
                their probabilities are averaged.
            threshold: probability from which a language is sure and no more windows are needed.

        Raises:
            AudioError: the recording cannot be read or used.
            OptionError: the model knows English only, or an argument is out of range.
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
        """How well each head in the engine follows the sound, the best first.

        For models whose alignment heads are not known: export with ``alignment_heads="all"``, rank
        on some speech, export again with the best ones.

        Args:
            audio: speech, as for :meth:`transcribe`; a minute is plenty.
            sample_rate: rate of an array in Hz.
            language: its language; default: detected.

        Raises:
            AudioError: the recording cannot be read or used, or holds no speech.
        """
        samples = load_audio(audio, sample_rate=sample_rate)
        transcript = self.transcribe(samples, language=language, temperature=0.0)
        mel, vocab = log_mel(samples, self.dims.n_mels), self._vocab
        start = vocab.start(transcript.language, "transcribe", timestamps=False)
        heard = []
        with self._shared.use() as backend:
            for seek, segments in itertools.groupby(transcript, lambda segment: segment.seek):
                text = [t for segment in segments for t in segment.tokens if t in vocab.text]
                size = min(N_FRAMES, mel.n_frames - seek)
                if text:
                    encoded = backend.encode(mel.window(seek, size)[None])
                    heard.append((aligner(backend, vocab, encoded, start)(text), size))
        if not heard:
            raise AudioError("no speech was found in the recording; expected some to rank heads by")
        return rank_heads(self.alignment_heads, heard)

    @property
    def alignment_heads(self) -> tuple[tuple[int, int], ...]:
        """(decoder layer, head) of the cross-attention heads that word times are read from."""
        known = self.engine.manifest.alignment_heads
        return tuple(sorted(known or self.dims.default_alignment_heads))

    def _chunking(self, backend: Backend) -> Chunking:
        return Chunking(backend, self._vocab, self._suppression)

    @property
    def _backend(self) -> Backend | None:
        """What computes the model, for tests and measurements; None once it is released."""
        return self._shared.backend

    def close(self) -> None:
        """Release the engine; using the model afterwards raises EngineError.

        Calls of other threads, and streams that have begun, go on to their end, and the last of
        them releases the engine.
        """
        self._shared.close()

    def __enter__(self) -> Whisper:
        """Return the model itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close."""
        self.close()


def _check_batch_size(chosen: TranscribeOptions, shared: int) -> None:
    if chosen.batch_size not in (TranscribeOptions.batch_size, shared):
        raise OptionError(
            f"the options of a recording have batch_size {chosen.batch_size}, but all recordings"
            f" share one batch, of {shared} windows; give batch_size to transcribe_many"
        )


def _build_plans(engine: Engine, gpu: Gpu, library: str | None) -> None:
    """Build plans with the export half: an extra, so it is imported by name and only when asked."""
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
