"""``Whisper``: the one object most programs need."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Union

from whisper_opt.answers import Suppression
from whisper_opt.audio import AudioSource, load_audio
from whisper_opt.backends.ort import OrtBackend
from whisper_opt.dims import SAMPLE_RATE, ModelDims
from whisper_opt.engine import Engine, read_engine
from whisper_opt.errors import EngineError, OptionError
from whisper_opt.features import log_mel
from whisper_opt.options import TranscribeOptions
from whisper_opt.protocol import Backend
from whisper_opt.results import Segment, Transcript
from whisper_opt.tokens import Vocab
from whisper_opt.transcribe import Progress, detect_language, transcribe

__all__ = ["Stream", "Whisper"]


class Whisper:
    """A loaded engine, ready to transcribe. Use as a context manager, or call :meth:`close`.

    One object transcribes one recording at a time; load one a thread to work in parallel.

    Example:
        >>> model = whisper_opt.Whisper.load("engines/tiny.en")  # doctest: +SKIP
        >>> print(model.transcribe("talk.mp3").text)  # doctest: +SKIP
    """

    def __init__(self, engine: Engine, backend: Backend) -> None:
        """Join an opened engine and a backend that computes it; most callers want :meth:`load`.

        Raises:
            EngineError: the engine's tokenizer does not fit its model.
        """
        manifest = engine.manifest
        self.engine = engine
        self._backend: Backend | None = backend
        self._vocab = Vocab(engine.tokenizer_json(), manifest.dims)
        listed, begin = manifest.suppress_tokens, manifest.begin_suppress_tokens
        self._suppression = Suppression(
            self._vocab.non_speech_tokens() if listed is None else listed,
            self._vocab.blank_tokens() if begin is None else begin,
        )

    @classmethod
    def load(
        cls,
        path: Union[str, Path],
        *,
        threads: int | None = None,
        verify: bool = False,
    ) -> Whisper:
        """Open an engine directory.

        Args:
            path: what ``whisper-opt export`` wrote.
            threads: CPU threads; None leaves the choice to ONNX Runtime (one a physical core).
            verify: also compare every file's sha256 with the manifest.

        Raises:
            EngineError: no usable engine there.
            BackendUnavailable: ONNX Runtime is not installed, or too old for this engine.
        """
        engine = read_engine(path, verify=verify)
        return cls(engine, OrtBackend(engine, threads=threads))

    @property
    def dims(self) -> ModelDims:
        """Model dimensions."""
        return self.engine.manifest.dims

    @property
    def is_multilingual(self) -> bool:
        """Whether the model knows languages other than English."""
        return self.dims.is_multilingual

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
        stream = self.stream(
            audio, sample_rate=sample_rate, options=options, on_progress=on_progress, **overrides
        )
        segments = tuple(stream)
        return Transcript(
            segments=segments,
            language=stream.language,
            language_probability=stream.language_probability,
            duration=stream.duration,
            text=self._vocab.decode([t for segment in segments for t in segment.tokens]),
        )

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
        options = _merge(options, overrides)
        language = self._vocab.check_language(options.language, options.task)
        samples = load_audio(audio, sample_rate=sample_rate)
        mel = log_mel(samples, self.dims.n_mels)
        backend = self._open_backend()
        probability = None
        if language is None:
            probs = detect_language(backend, self._vocab, mel.head())
            language, probability = next(iter(probs.items()))
        segments = transcribe(
            backend,
            self._vocab,
            mel,
            options=options,
            language=language,
            suppression=self._suppression,
            on_progress=on_progress,
        )
        return Stream(segments, language, probability, len(samples) / SAMPLE_RATE)

    def detect_language(
        self, audio: AudioSource, *, sample_rate: int | None = None
    ) -> dict[str, float]:
        """Probability of every language in the first 30 s, the likeliest first.

        Raises:
            AudioError: the recording cannot be read or used.
            OptionError: the model knows English only.
        """
        mel = log_mel(load_audio(audio, sample_rate=sample_rate), self.dims.n_mels)
        return detect_language(self._open_backend(), self._vocab, mel.head())

    def _open_backend(self) -> Backend:
        if self._backend is None:
            raise EngineError("this model was closed; load it again")
        return self._backend

    def close(self) -> None:
        """Release the engine; using the model afterwards raises EngineError."""
        self._backend = None

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


@dataclasses.dataclass(frozen=True)
class Stream:
    """Segments on their way; iterate once.

    Attributes:
        segments: yields :class:`~whisper_opt.results.Segment`.
        language: code of the language transcribed.
        language_probability: its probability when it was detected, else None.
        duration: length of the recording in seconds.
    """

    segments: Iterator[Segment]
    language: str
    language_probability: float | None
    duration: float

    def __iter__(self) -> Iterator[Segment]:
        """The segments, as they are decoded."""
        return self.segments


def _merge(options: TranscribeOptions | None, overrides: dict[str, Any]) -> TranscribeOptions:
    known = [field.name for field in dataclasses.fields(TranscribeOptions)]
    for name in overrides:
        if name not in known:
            raise OptionError(f"unknown option {name!r}; expected one of {', '.join(known)}")
    return dataclasses.replace(options or TranscribeOptions(), **overrides)
