"""Streams of segments, and transcripts of finished jobs."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterator
from typing import Callable

from whisper_opt.core.closing import Closing
from whisper_opt.core.errors import StreamError, WhisperOptError
from whisper_opt.text.results import Segment, Transcript
from whisper_opt.text.vocabulary import Vocab
from whisper_opt.transcription.job import TranscriptionJob
from whisper_opt.transcription.scheduler import Progress, Steps

__all__ = ["ManyProgress", "Stream", "as_they_finish", "transcript_of"]

ManyProgress = Callable[[int, float, float], None]
"""Called with (index of the recording, seconds done, total seconds) after every window."""


class Stream(Closing):
    """Segments of one recording, yielded as they are decoded; can be iterated once.

    Use as a context manager, or call :meth:`close`, to stop decoding early; so does garbage
    collection. Use a stream from one thread at a time.
    """

    def __init__(
        self,
        steps: Steps,
        job: TranscriptionJob,
        vocab: Vocab,
        on_progress: Progress | None,
    ) -> None:
        """Created by :meth:`Whisper.stream`."""
        self._job = job
        self._vocab = vocab
        self._steps = steps
        self._found: list[Segment] = []
        self._ended = False
        self._error: BaseException | None = None
        self.segments = self._run(on_progress)
        """Generator of :class:`~whisper_opt.text.results.Segment`."""

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
            self._job.close()

    def _decode(self, on_progress: Progress | None) -> Generator[Segment, None, None]:
        job = self._job
        done = -1.0
        with contextlib.closing(self._steps):
            for _, segments in self._steps:
                for segment in segments:
                    self._found.append(segment)
                    yield segment
                if job.error is not None:
                    raise job.error
                if on_progress is not None and job.done > done:
                    done = job.done
                    on_progress(done, job.duration)

    @property
    def language(self) -> str:
        """Code of the language transcribed."""
        return self._job.language or self._vocab.default_language

    @property
    def language_probability(self) -> float | None:
        """Probability of the language if it was detected, else None."""
        return self._job.language_probability

    @property
    def duration(self) -> float:
        """Length of the recording in seconds, as far as it is known."""
        return self._job.duration

    def __iter__(self) -> Iterator[Segment]:
        """Yield the segments as they are decoded."""
        return self.segments

    def transcript(self) -> Transcript:
        """Decode the remaining segments and return the whole transcript.

        Raises:
            StreamError: the stream was closed, or failed, before its last segment. The segments
                that it yielded are valid.
            WhisperOptError: decoding fails now.
        """
        for _ in self:
            pass
        if not self._ended:
            raise StreamError(
                f"this stream {self._reason()} after {len(self._found)} segment(s), so there is no"
                " whole transcript; transcribe the recording again, or use the segments that the"
                " stream yielded"
            ) from self._error
        return transcript_of(self._job, tuple(self._found), self._vocab)

    def _reason(self) -> str:
        if self._error is None:
            return "was closed"
        return f"failed ({type(self._error).__name__}: {self._error})"

    def close(self) -> None:
        """Stop decoding and release the recording."""
        self.segments.close()
        self._steps.close()
        self._job.close()


def transcript_of(job: TranscriptionJob, segments: tuple[Segment, ...], vocab: Vocab) -> Transcript:
    """The transcript of a finished job; ``segments`` are all that it gave."""
    return Transcript(
        segments=segments,
        language=job.language or vocab.default_language,
        language_probability=job.language_probability,
        duration=job.duration,
        dropped=tuple(sorted(job.dropped, key=lambda part: part.start)),
        text=vocab.decode([token for segment in segments for token in segment.tokens]),
        turns=job.turns,
    )


def as_they_finish(
    steps: Steps,
    numbers: dict[TranscriptionJob, int],
    vocab: Vocab,
    return_exceptions: bool,
    on_progress: ManyProgress | None,
) -> Iterator[tuple[int, Transcript | WhisperOptError]]:
    """Yield the transcript, or the error, of each job when it is finished.

    Args:
        steps: updates of the jobs.
        numbers: the number of each job; finished jobs are removed.
        vocab: vocabulary of the model.
        return_exceptions: yield the error of a job that fails instead of raising it.
        on_progress: called after every window.
    """
    segments: dict[TranscriptionJob, list[Segment]] = {}
    with contextlib.closing(steps):
        for job, new in steps:
            segments.setdefault(job, []).extend(new)
            if on_progress is not None:
                on_progress(numbers[job], job.done, job.duration)
            if job.error is not None and not return_exceptions:
                raise job.error
            if job.finished:
                number, decoded = numbers.pop(job), tuple(segments.pop(job))
                yield number, job.error or transcript_of(job, decoded, vocab)
