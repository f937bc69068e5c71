"""Many windows of many recordings through one model: continuous batching.

A recording gives a window whenever it can (:mod:`whisper_opt.transcription.windows` says which), windows of
any recordings and options share a batch, and a finished one makes room for the next at once.

When the model fails with several windows (most often for want of memory), they are decoded again
in groups of half the size, down to single windows. A window that fails alone fails its recording,
and nothing else.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
from collections.abc import Generator, Iterable, Sequence
from typing import Callable, Union

import numpy as np

from whisper_opt.core.arrays import Int
from whisper_opt.core.backend import Backend, Encoded
from whisper_opt.core.errors import EngineError, WhisperOptError
from whisper_opt.core.logits import log_softmax
from whisper_opt.decoding import Batch, Decoded
from whisper_opt.text.results import Segment
from whisper_opt.text.vocabulary import Vocab
from whisper_opt.transcription.alignment import Aligner, CrossAttention
from whisper_opt.transcription.fallback import Window, WindowResult
from whisper_opt.transcription.job import Chunk, TranscriptionJob
from whisper_opt.transcription.language import language_probabilities
from whisper_opt.transcription.sources import ReadySource, Source, source_of

__all__ = ["Progress", "Scheduler", "Steps", "Update", "aligner"]

Progress = Callable[[float, float], None]
"""Called with (seconds done, seconds in all) whenever a window is finished."""

Update = tuple[TranscriptionJob, list[Segment]]
"""A recording and its next segments."""

Steps = Generator[Update, None, None]

_FAILURES = (WhisperOptError, MemoryError)
"""What concerns the windows that were being computed; anything else ends everything."""


@dataclasses.dataclass(frozen=True, eq=False)
class _InFlight:
    """A window that is being decoded, or is about to be."""

    recording: TranscriptionJob
    chunk: Chunk
    window: Window
    attempts: tuple[WindowResult, ...] = ()  # at the temperatures so far
    audio: Encoded | None = None
    index: int = 0  # of the window in ``audio``

    def encoded(self) -> Encoded:
        """The window alone."""
        assert self.audio is not None, "it is encoded before it is decoded"
        return self.audio.take([self.index])


class Scheduler:
    """Keeps a batch of windows full, from as many recordings as it takes.

    :meth:`run` transcribes what a source gives. A program with a loop of its own calls
    :meth:`submit` and :meth:`step` instead, neither of which waits for anything but the model.

    Calls come from one thread at a time. No lock is held between them, so that several schedulers
    may take turns with one backend.
    """

    def __init__(self, backend: Backend, vocab: Vocab, batch_size: int) -> None:
        """``batch_size``: windows decoded at once at most."""
        self._backend = backend
        self._vocab = vocab
        self._batch_size = batch_size
        self._limit = batch_size  # lower after a failure, until its windows are decoded
        self._batch = Batch(backend)
        self._in_flight: dict[int, _InFlight] = {}
        self._again: collections.deque[_InFlight] = collections.deque()
        self._waiting: collections.deque[tuple[TranscriptionJob, Chunk]] = collections.deque()
        self._active: list[TranscriptionJob] = []
        self._submitted: collections.deque[TranscriptionJob] = collections.deque()
        self._source: Source[TranscriptionJob] = ReadySource(())

    # --- for a loop of one's own ------------------------------------------------------------------

    def submit(self, recording: TranscriptionJob) -> None:
        """Add a recording; it is opened when there is room for its first window."""
        self._submitted.append(recording)

    def cancel(self, recording: TranscriptionJob) -> None:
        """Give a recording up and make room for others; no more updates of it come."""
        with contextlib.suppress(ValueError):
            self._submitted.remove(recording)
        with contextlib.suppress(ValueError):
            self._active.remove(recording)
        try:
            self._drop(recording)
        finally:
            recording.close()

    @property
    def busy(self) -> bool:
        """Whether any recording that was submitted is not finished."""
        return bool(self._active or self._submitted)

    def step(self) -> list[Update]:
        """Report what is finished, or else decode: a token in every window, or more.

        Returns:
            Recordings and their next segments, in order of time. The last update of a recording is
            the one after which it is ``finished``, perhaps without segments, perhaps with an
            ``error``.
        """
        finished = self._finished()
        if finished:
            return finished
        self._admit()
        return [
            (recording, recording.take())
            for recording in self._decode()
            if recording.error is None  # those are reported once, when they are finished
        ]

    def close(self) -> None:
        """Give up everything that is not finished."""
        with contextlib.ExitStack() as stack:  # each is closed, whatever the others raise
            stack.callback(self._source.close)
            for recording in (*self._active, *self._submitted):
                stack.callback(recording.close)
            stack.callback(self._batch.close)
        self._in_flight.clear()
        for left in (self._again, self._waiting, self._active, self._submitted):
            left.clear()

    # --- for a source -----------------------------------------------------------------------------

    def run(self, recordings: Union[Iterable[TranscriptionJob], Source[TranscriptionJob]]) -> Steps:
        """Transcribe recordings; segments come as soon as they are known.

        A source is asked for the next recording when there is room for one. It is waited for only
        when there is nothing else to do.

        Yields:
            What :meth:`step` returns.

        Closing the generator gives up what is being decoded.
        """
        self._source = source_of(recordings) if isinstance(recordings, Iterable) else recordings
        try:
            while self.busy or not self._source.ended:
                yield from self.step()
        finally:
            self.close()

    # --- recordings -------------------------------------------------------------------------------

    def _finished(self) -> list[Update]:
        """Recordings that have come to their end."""
        updates: list[Update] = []
        for recording in [r for r in self._active if not self._is_pending(r)]:
            ready = recording.take()
            if recording.finished:
                self._active.remove(recording)
            if ready or recording.finished:
                updates.append((recording, ready))
        return updates

    def _is_pending(self, recording: TranscriptionJob) -> bool:
        """Whether windows of a recording are decoded or are about to be."""
        windows = (*self._in_flight.values(), *self._again)
        return any(each.recording is recording for each in windows) or any(
            owner is recording for owner, _ in self._waiting
        )

    def _fail(self, recording: TranscriptionJob, error: Exception) -> None:
        if isinstance(error, MemoryError):
            error = EngineError(
                "there is not enough memory to decode a window; lower beam_size or best_of, or free"
                " memory that other processes hold"
            )
        assert isinstance(error, WhisperOptError)
        recording.fail(error)
        self._drop(recording)

    def _drop(self, recording: TranscriptionJob) -> None:
        """Decode no more windows of a recording."""
        numbers = [n for n, each in self._in_flight.items() if each.recording is recording]
        for number in numbers:
            del self._in_flight[number]
        for each in [each for each in self._again if each.recording is recording]:
            self._again.remove(each)
        for pair in [pair for pair in self._waiting if pair[0] is recording]:
            self._waiting.remove(pair)
        try:
            self._batch.remove(numbers)
        except _FAILURES as error:
            self._retry([], error)

    # --- windows ----------------------------------------------------------------------------------

    def _admit(self) -> None:
        """Let windows join until the batch is full."""
        if not (self._again or self._in_flight):
            self._limit = self._batch_size
        if self._again or self._limit < self._batch_size:
            room = self._limit - len(self._in_flight)
            found = [self._again.popleft() for _ in range(min(room, len(self._again)))]
        else:
            found = self._new_windows()
        if found:
            self._launch(found)

    def _new_windows(self) -> list[_InFlight]:
        """Windows of recordings under way and of new ones, as many as there is room for."""
        found: list[_InFlight] = []
        n_begun = 0
        while len(self._in_flight) + len(found) < self._batch_size:
            if self._waiting:
                recording, chunk = self._waiting.popleft()
                window = self._next_window(recording, chunk)
                if window is not None:
                    found.append(_InFlight(recording, chunk, window))
            elif not self._begin_chunk():
                # recordings that give nothing never fill the batch: hand them out first
                if n_begun == self._batch_size or not self._begin_recording(idle=not found):
                    break
                n_begun += 1
        return [each for each in found if each.recording.error is None]

    def _begin_recording(self, *, idle: bool) -> bool:
        """Take a recording that was submitted, or one of the source, if there is any.

        ``idle``: whether nothing waits to be decoded.
        """
        if self._submitted:
            self._active.append(self._submitted.popleft())
            return True
        found = self._source.take(wait=idle and not (self._in_flight or self._active))
        if found is None:
            return False
        self._active.append(found[0])
        return True

    def _begin_chunk(self) -> bool:
        """Queue one more chunk of a recording under way."""
        for recording in self._active:
            if recording.error is None:
                chunk = None
                try:
                    chunk = recording.next_chunk()
                except _FAILURES as error:
                    self._fail(recording, error)
                if chunk is not None:
                    self._waiting.append((recording, chunk))
                    return True
        return False

    def _next_window(self, recording: TranscriptionJob, chunk: Chunk) -> Window | None:
        try:
            window = chunk.next_window()
            if window is not None:
                recording.answers.task(window, 0)  # refuses a prompt that does not fit
        except _FAILURES as error:
            self._fail(recording, error)
            return None
        return window

    def _launch(self, found: Sequence[_InFlight]) -> None:
        """Encode windows and begin to decode them."""
        try:
            mels = [each.chunk.mel.window(each.window.seek, each.window.size) for each in found]
            audio = self._backend.encode(np.stack(mels))
            encoded = [
                dataclasses.replace(each, audio=audio, index=i) for i, each in enumerate(found)
            ]
            self._begin(audio, self._in_their_languages(audio, encoded))
        except _FAILURES as error:
            self._retry(found, error)

    def _in_their_languages(self, audio: Encoded, found: list[_InFlight]) -> list[_InFlight]:
        """Detect the language of every window that asks for it."""
        asking = [each for each in found if each.recording.answers.options.multilingual]
        if not asking:
            return found
        audio = audio.take([each.index for each in asking])
        for each, probs in zip(asking, language_probabilities(self._backend, self._vocab, audio)):
            each.chunk.state.language = next(iter(probs))
        return [
            dataclasses.replace(each, window=each.chunk.next_window() or each.window)
            if each in asking
            else each
            for each in found
        ]

    def _begin(self, audio: Encoded, found: Sequence[_InFlight]) -> None:
        tasks = [each.recording.answers.task(each.window, len(each.attempts)) for each in found]
        self._in_flight.update(zip(self._batch.add(audio, tasks), found))

    def _retry(self, found: Sequence[_InFlight], error: Exception) -> None:
        """Decode windows again with half as many at once; one that failed alone has failed.

        Args:
            found: windows that could not join the batch. Those that the batch lost with them, or
                while it decoded, are added here.
            error: what happened.
        """
        lost = [*found, *(self._in_flight.pop(number) for number in self._batch.take_lost())]
        if len(lost) == 1 and not self._in_flight:
            self._fail(lost[0].recording, error)
            return
        self._limit = max(1, len(self._in_flight) + len(lost) // 2)
        # they are encoded again, so that their memory is free until then
        self._again.extendleft(
            dataclasses.replace(each, audio=None, index=0) for each in reversed(lost)
        )

    # --- decoding ---------------------------------------------------------------------------------

    def _decode(self) -> list[TranscriptionJob]:
        """A token everywhere, or more; returns the recordings whose windows were finished."""
        touched: dict[TranscriptionJob, None] = {}
        again: list[_InFlight] = []
        try:
            results = self._batch.step()
        except _FAILURES as error:
            self._retry([], error)
            return []
        for number, decoded in results.items():
            each = self._in_flight.pop(number, None)
            if each is None:  # its recording has failed meanwhile
                continue
            try:
                left = self._finish(each, decoded)
            except _FAILURES as error:
                self._fail(each.recording, error)
                continue
            if left is None:
                touched[each.recording] = None
                self._waiting.appendleft((each.recording, each.chunk))
            else:
                again.append(left)
        for each in again:
            if each.recording.error is None:
                self._try_again(each)
        return list(touched)

    def _try_again(self, each: _InFlight) -> None:
        """Decode a window at its next temperature."""
        try:
            audio = each.encoded()
            self._begin(audio, [dataclasses.replace(each, audio=audio, index=0)])
        except _FAILURES as error:
            self._retry([each], error)

    def _finish(self, each: _InFlight, decoded: Decoded) -> _InFlight | None:
        """Take a result; returns what is to be decoded at the next temperature, if anything."""
        answers, window = each.recording.answers, each.window
        result = answers.result(window, decoded, len(each.attempts))
        attempts = (*each.attempts, result)
        kept = each.chunk.state.choose(window, attempts, answers)
        if kept is None:
            return dataclasses.replace(each, attempts=attempts)
        aligner = self._aligner(each) if answers.options.word_timestamps else None
        each.chunk.accept(window, kept, aligner)
        return None

    def _aligner(self, each: _InFlight) -> Aligner:
        language = each.chunk.state.language
        task = each.recording.answers.options.task
        start = self._vocab.start(language, task, timestamps=False)
        return aligner(self._backend, self._vocab, each.encoded(), start)


def aligner(backend: Backend, vocab: Vocab, audio: Encoded, start: Sequence[int]) -> Aligner:
    """What feeds a text to the model and tells where it listened, for word times.

    Args:
        backend: the model.
        vocab: its vocabulary.
        audio: one window.
        start: ids before the text, up to and with no_timestamps.
    """

    def align(text: Sequence[int]) -> CrossAttention:
        tokens: Int = np.array([[*start, *text, vocab.eot]], np.int64)
        heard = backend.attention(audio, tokens, np.array([tokens.shape[1]]))
        # the token after the last one of ``start`` is the first of the text
        first = len(start) - 1
        logits = heard.logits[0, first : first + len(text)]
        logprobs = log_softmax(vocab.text.scores(logits))
        logprobs = logprobs[np.arange(len(text)), vocab.text.columns(text)]
        return CrossAttention(heard.scores[0], np.exp(logprobs))

    return align
