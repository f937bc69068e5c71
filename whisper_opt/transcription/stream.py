"""Segments on their way, and transcripts when all are there."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterator
from types import TracebackType
from typing import Callable

from whisper_opt.core.errors import StreamError, WhisperOptError
from whisper_opt.text.results import Segment, Transcript
from whisper_opt.text.vocabulary import Vocab
from whisper_opt.transcription.job import TranscriptionJob
from whisper_opt.transcription.scheduler import Progress, Steps

__all__ = ["ManyProgress", "Stream", "as_they_finish"]

ManyProgress = Callable[[int, float, float], None]
"""Called with (index of a recording, seconds done, seconds in all) after every window."""


class Stream:
    """Segments of one recording on their way; iterate once.

    Use as a context manager, or call :meth:`close`: that gives up what is being decoded, and so
    does the garbage collector. One thread at a time may use a stream.
    """

    def __init__(
        self,
        steps: Steps,
        recording: TranscriptionJob,
        vocab: Vocab,
        on_progress: Progress | None,
    ) -> None:
        """Made by :meth:`Whisper.stream`."""
        self._recording = recording
        self._vocab = vocab
        self._steps = steps
        self._found: list[Segment] = []
        self._ended = False
        self._error: BaseException | None = None
        self.segments = self._run(on_progress)
        """What iterating yields, :class:`~whisper_opt.text.results.Segment`."""

    def _run(self, on_progress: Progress | None) -> Generator[Segment, None, None]:
        try:
            yield from self._decode(on_progress)
            self._ended = True
        except GeneratorExit:
            raise
        except BaseException as error:
            self._error = error
            raise
        finally:
            self._recording.close()

    def _decode(self, on_progress: Progress | None) -> Generator[Segment, None, None]:
        recording = self._recording
        done = -1.0
        with contextlib.closing(self._steps):
            for _, segments in self._steps:
                for segment in segments:
                    self._found.append(segment)
                    yield segment
                if recording.error is not None:
                    raise recording.error
                if on_progress is not None and recording.done > done:
                    done = recording.done
                    on_progress(done, recording.duration)

    @property
    def language(self) -> str:
        """Code of the language transcribed."""
        return self._recording.language or self._vocab.default_language

    @property
    def language_probability(self) -> float | None:
        """Its probability when it was detected, else None."""
        return self._recording.language_probability

    @property
    def duration(self) -> float:
        """Length of the recording in seconds, as far as it is known yet."""
        return self._recording.duration

    def __iter__(self) -> Iterator[Segment]:
        """The segments, as they are decoded."""
        return self.segments

    def transcript(self) -> Transcript:
        """The whole transcript, once all segments are decoded; those iterated over are in it.

        Raises:
            StreamError: the stream was closed, or failed, before its last segment. What was decoded
                until then are the segments that it yielded.
            WhisperOptError: it fails now.
        """
        for _ in self:
            pass
        if not self._ended:
            raise StreamError(
                f"this stream {self._reason()} after {len(self._found)} segment(s), so there is no"
                " whole transcript; transcribe the recording again, or use the segments that the"
                " stream yielded"
            ) from self._error
        return _transcript(self._recording, tuple(self._found), self._vocab)

    def _reason(self) -> str:
        if self._error is None:
            return "was closed"
        return f"failed ({type(self._error).__name__}: {self._error})"

    def close(self) -> None:
        """Give up."""
        self.segments.close()
        self._steps.close()
        self._recording.close()

    def __enter__(self) -> Stream:
        """Return the stream itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close."""
        self.close()


def _transcript(
    recording: TranscriptionJob, segments: tuple[Segment, ...], vocab: Vocab
) -> Transcript:
    return Transcript(
        segments=segments,
        language=recording.language or vocab.default_language,
        language_probability=recording.language_probability,
        duration=recording.duration,
        dropped=tuple(sorted(recording.dropped, key=lambda part: part.start)),
        text=vocab.decode([token for segment in segments for token in segment.tokens]),
    )


def as_they_finish(
    steps: Steps,
    numbers: dict[TranscriptionJob, int],
    vocab: Vocab,
    return_exceptions: bool,
    on_progress: ManyProgress | None,
) -> Iterator[tuple[int, Transcript | WhisperOptError]]:
    """The transcript, or the error, of every recording when it is finished.

    Args:
        steps: segments of recordings on their way.
        numbers: the number of each recording; those that are finished are taken out.
        vocab: of the model.
        return_exceptions: yield the error of a recording that fails instead of raising it.
        on_progress: called after every window.
    """
    segments: dict[TranscriptionJob, list[Segment]] = {}
    with contextlib.closing(steps):
        for recording, found in steps:
            segments.setdefault(recording, []).extend(found)
            if on_progress is not None:
                on_progress(numbers[recording], recording.done, recording.duration)
            if recording.error is not None and not return_exceptions:
                raise recording.error
            if recording.finished:
                number, whole = numbers.pop(recording), tuple(segments.pop(recording))
                yield number, recording.error or _transcript(recording, whole, vocab)
