"""Transcribe recordings of a corpus with an engine."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import math
import queue
from collections.abc import Callable, Generator, Iterable
from typing import Union

from whisper_opt.core.errors import AudioError, QueueFull, TranscriptionCancelled, WhisperOptError
from whisper_opt.runtime.engine_cache import Fingerprint, fingerprint
from whisper_opt.serving.corpus import Corpus, Outcome
from whisper_opt.serving.engine import Engine
from whisper_opt.serving.handle import Handle
from whisper_opt.serving.manifests import Recording

__all__ = ["transcribe_corpus", "transcribe_recording"]

_TICK = 0.5
"""Seconds between two looks at the progress."""


@dataclasses.dataclass(eq=False)
class _InWork:
    """A recording that was submitted, and its state before."""

    recording: Recording
    before: Union[Fingerprint, None]
    handle: Handle


def transcribe_corpus(
    engine: Engine,
    corpus: Corpus,
    recordings: Iterable[Recording],
    *,
    ahead: int = 32,
    on_progress: Callable[[float], None] | None = None,
) -> Generator[Outcome, None, None]:
    """Transcribe recordings, and write their files; all share the batch of an engine.

    A recording that fails stops no other. To stop, close the generator: what is in work is
    cancelled, and everything that was yielded is on disk.

    Args:
        engine: transcribes; others may use it too.
        corpus: where to write.
        recordings: any number of them; each is taken when there is room for it.
        ahead: maximum number of recordings that are queued or in work; more than the engine's
            ``max_batch``, so that it never waits.
        on_progress: called with the seconds of audio done of the recordings in work, when none has
            ended for half a second.

    Yields:
        The outcome of each recording when it has ended, in the order in which they do.

    Raises:
        OptionError: an option is not supported by the model.
        EngineClosed: the engine was closed.
        WhisperOptError: a file cannot be written, or the engine failed.
    """
    waiting = iter(recordings)
    following = next(waiting, None)
    ended: queue.SimpleQueue[Handle] = queue.SimpleQueue()
    in_work: dict[Handle, _InWork] = {}
    try:
        while following is not None or in_work:
            with contextlib.suppress(QueueFull):  # others use the engine too: later
                while following is not None and len(in_work) < ahead:
                    begun = _submitted(engine, following)
                    in_work[begun.handle] = begun
                    begun.handle.add_done_callback(ended.put)
                    following = next(waiting, None)
            try:
                handle = ended.get(timeout=_TICK)  # never for long: Windows would miss Ctrl-C
            except queue.Empty:
                if on_progress is not None:
                    on_progress(math.fsum(each.handle.done for each in in_work.values()))
                continue
            yield _outcome(engine, corpus, in_work.pop(handle))
    finally:
        for each in in_work.values():
            each.handle.cancel()


async def transcribe_recording(engine: Engine, corpus: Corpus, recording: Recording) -> Outcome:
    """Transcribe a recording and write its files, in an asyncio event loop.

    Many may be awaited at once, in one event loop: they share the batch of the engine. A task that
    is cancelled cancels the transcription.

    Args:
        engine: transcribes; others may use it too.
        corpus: where to write.
        recording: the recording.

    Returns:
        Its outcome; a recording that cannot be transcribed is no error.

    Raises:
        OptionError: an option is not supported by the model.
        EngineClosed: the engine was closed.
        WhisperOptError: a file cannot be written, or the engine failed.
    """
    while True:
        try:
            begun = _submitted(engine, recording)
            break
        except QueueFull:
            await asyncio.sleep(_TICK)
    with contextlib.suppress(Exception):
        await begun.handle
    return _outcome(engine, corpus, begun)


def _submitted(engine: Engine, recording: Recording) -> _InWork:
    before = fingerprint(recording.audio)
    options = recording.options
    if options.strategy == "sequential":  # the engine has a batch of its own
        options = dataclasses.replace(options, batch_size=1)
    return _InWork(recording, before, engine.submit(recording.audio, options))


def _outcome(engine: Engine, corpus: Corpus, ended: _InWork) -> Outcome:
    try:
        found = ended.handle.result()
    except TranscriptionCancelled:
        raise
    except Exception as error:
        if engine.closed:  # it failed, not the recording
            raise
        known = isinstance(error, WhisperOptError)
        reason = str(error) if known else f"{type(error).__name__}: {error}"
        lasting = isinstance(error, AudioError)
        return corpus.save_error(ended.recording, ended.before, reason, lasting=lasting)
    return corpus.save(ended.recording, ended.before, found)
