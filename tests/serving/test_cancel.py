"""A cancelled recording frees its rows within one step, in whatever state it is."""

from __future__ import annotations

import asyncio
import io
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.engines_on_fakes import WAIT, options, options_of, stepped, steps
from tests.support.http_server import wait_until
from tests.support.stepped_backend import SteppedBackend
from tests.support.watched_backend import noise, quiet_model, windows_of
from whisper_opt import TranscriptionCancelled
from whisper_opt.serving import Engine


class SlowUpload(io.BytesIO):
    """A file whose first bytes arrive when they are told to."""

    def __init__(self) -> None:
        super().__init__()
        self.begun, self.arrived = threading.Event(), threading.Event()

    def read(self, size: int | None = -1) -> bytes:
        self.begun.set()
        assert self.arrived.wait(WAIT)
        return b""


@pytest.fixture
def backend() -> SteppedBackend:
    return SteppedBackend()


def seeds_in(backend: SteppedBackend) -> set[int]:
    """Windows that are being decoded."""
    return set().union(*(session.seeds for session in backend.sessions))


def refused(handle: Any) -> None:
    """It says that it was cancelled."""
    assert handle.state == "cancelled"
    with pytest.raises(TranscriptionCancelled, match="cancelled after"):
        handle.result(WAIT)
    with pytest.raises(TranscriptionCancelled):
        list(handle.segments())
    assert not handle.cancel()


def test_while_it_is_queued(backend: SteppedBackend) -> None:
    with stepped(backend) as served:
        first = served.submit(noise(5.0, 1), options())
        backend.wait()
        second = served.submit(noise(5.0, 2), options())
        assert (second.state, served.stats().queued) == ("queued", 1)
        assert second.cancel()
        assert (served.stats().queued, served.stats().cancelled) == (0, 1)
        refused(second)
        backend.release()
        assert first.result(WAIT)
    assert not set(windows_of(noise(5.0, 2), **options_of())) & set(backend.windows)


def test_while_it_is_read(backend: SteppedBackend) -> None:
    upload = SlowUpload()
    backend.release()
    with stepped(backend) as served:
        slow = served.submit(upload, options())
        assert upload.begun.wait(WAIT)
        wait_until(lambda: slow.state == "running", "the loop starts it")  # it is read before
        assert slow.cancel()
        refused(slow)
        assert served.submit(noise(5.0), options()).result(WAIT)
        assert served.drain(WAIT)
        upload.arrived.set()


def test_while_it_waits_for_a_row(backend: SteppedBackend) -> None:
    with stepped(backend, max_batch=1) as served:
        first = served.submit(noise(31.0, 1), options())
        backend.wait()
        second = served.submit(noise(5.0, 2), options())
        backend.step(2)
        assert (second.state, served.stats().rows) == ("running", 1)
        assert second.cancel()
        backend.release()
        assert first.result(WAIT) == quiet_model().transcribe(noise(31.0, 1), **options_of())
        refused(second)
    assert not set(windows_of(noise(5.0, 2), **options_of())) & set(backend.windows)


@pytest.mark.parametrize("given", [{}, {"beam_size": 3}], ids=["greedy", "beam"])
def test_while_it_is_decoded(backend: SteppedBackend, given: dict[str, Any]) -> None:
    with stepped(backend) as served:
        sounds = [noise(31.0, seed) for seed in range(3)]
        handles = [served.submit(sound, options(**given)) for sound in sounds]
        while len(seeds_in(backend)) < 3:
            steps(served, backend)
        cancelled = set(windows_of(sounds[1], **options_of(**given)))
        assert cancelled & seeds_in(backend)
        assert handles[1].cancel()
        refused(handles[1])
        backend.step()  # the one that was running
        assert not cancelled & seeds_in(backend)
        assert served.stats().rows == 2
        backend.release()
        for i in (0, 2):
            expected = quiet_model().transcribe(sounds[i], **options_of(**given))
            assert handles[i].result(WAIT) == expected
        assert served.stats().cancelled == 1
    assert backend.sessions == []


def test_the_rest_of_a_long_recording_is_not_read(backend: SteppedBackend) -> None:
    clips = tuple(float(t) for i in range(40) for t in (i, i + 1))
    with stepped(backend) as served:
        handle = served.submit(
            noise(40.0), options(strategy="batched", clip_timestamps=clips, max_new_tokens=4)
        )
        backend.wait()
        assert handle.cancel()
        other = served.submit(noise(5.0, 1), options())
        backend.release()
        assert other.result(WAIT)
        assert len(backend.windows) < 20


def test_a_task_that_is_cancelled_cancels(backend: SteppedBackend) -> None:
    with stepped(backend) as served:

        async def impatient() -> Any:
            handle = served.submit(noise(31.0), options())
            task = asyncio.ensure_future(handle)
            await asyncio.get_running_loop().run_in_executor(None, backend.wait)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            return handle

        refused(asyncio.run(impatient()))
        backend.release()
        assert served.drain(WAIT)
    assert backend.sessions == []


def test_what_has_ended_cannot_be_cancelled(backend: SteppedBackend) -> None:
    backend.release()
    with stepped(backend) as served:
        handle = served.submit(noise(5.0), options())
        found = handle.result(WAIT)
        assert not handle.cancel()
        assert (handle.state, handle.result(0)) == ("done", found)
        assert served.stats().cancelled == 0


def test_cancelled_by_its_own_callback(backend: SteppedBackend) -> None:
    backend.release()
    told: list[Any] = []
    submitted = threading.Event()
    with stepped(backend) as served:

        def once(segment: Any) -> None:
            told.append(segment)
            assert submitted.wait(WAIT)
            handle.cancel()

        handle = served.submit(noise(95.0), options(), on_segment=once)
        submitted.set()
        with pytest.raises(TranscriptionCancelled):
            handle.result(WAIT)
        assert served.drain(WAIT)
    assert len(told) == 1


def test_many_are_cancelled_at_random_times(served: Engine) -> None:
    """Whatever is cancelled, the others are answered as if alone."""
    sounds = [noise(3.0 + 9 * (seed % 4), seed) for seed in range(12)]
    expected = [quiet_model().transcribe(sound, **options_of()) for sound in sounds]
    handles = [served.submit(sound, options()) for sound in sounds]

    def cancel(indices: Iterator[int]) -> None:
        for i in indices:
            handles[i].cancel()

    threads = [threading.Thread(target=cancel, args=(iter(range(k, 12, 4)),)) for k in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT)
    for i, handle in enumerate(handles):
        if i % 4 in (0, 3):
            assert handle.result(WAIT) == expected[i]
        elif handle.state == "done":
            assert handle.result(0) == expected[i]
    assert served.drain(WAIT)
    assert served.stats().rows == 0
