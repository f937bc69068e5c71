"""Continuous batching on a fake model that records its calls."""

from __future__ import annotations

import collections
import dataclasses
import gc
import queue
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.fake_backend import FakeBackend
from tests.support.reference_windows import DIMS, VOCAB
from tests.support.watched_backend import (
    ENDLESS,
    PLAIN,
    WatchedBackend,
    many,
    noise,
    noises,
    quiet_model,
    talkative,
    windows_of,
)
from whisper_opt import OptionError, TranscribeOptions, Whisper
from whisper_opt.core.arrays import F32
from whisper_opt.text.results import Segment
from whisper_opt.transcription.job import TranscriptionJob
from whisper_opt.transcription.scheduler import Scheduler


def test_windows_join_while_others_are_decoded(model: Whisper, watched: WatchedBackend) -> None:
    slow, fast = noises(20.4, 95.0)
    lengths = (20, 3)
    options = [TranscribeOptions(max_new_tokens=n, **ENDLESS) for n in lengths]
    (first,) = windows_of(slow, **ENDLESS, max_new_tokens=20)
    others = windows_of(fast, **ENDLESS, max_new_tokens=3)
    assert len(others) == 4
    found = many(model, [slow, fast], options=options, batch_size=2)
    # the slow window is decoded next to every window of the other recording, one after another
    beside = [seeds - {first} for seeds in watched.of("extend") if first in seeds]
    assert [list(seeds) for seeds in beside if seeds] == [
        [window] for window in others for _ in range(lengths[1] - 1)
    ]
    assert set(watched.of("join")) == {frozenset([window]) for window in others[1:]}
    for i, sound in enumerate((slow, fast)):
        assert found[i] == quiet_model().transcribe(sound, options=options[i])


@pytest.mark.parametrize("batch_size", [1, 2, 3, 7])
def test_the_batch_is_full_and_never_fuller(
    model: Whisper, watched: WatchedBackend, batch_size: int
) -> None:
    sizes = (31.0, 5.0, 64.0, 95.0, 0.5, 12.0, 40.0, 33.0)
    options = [TranscribeOptions(max_new_tokens=2 + 3 * i % 11, **ENDLESS) for i in range(8)]

    class Audios(list[F32]):
        def __iter__(self) -> Iterator[F32]:
            yield from super().__iter__()
            watched.note("no more", set())

    found = many(model, Audios(noises(*sizes)), options=options, batch_size=batch_size)
    assert sorted(found) == list(range(8))
    assert watched.most == batch_size
    assert watched.sessions == []
    # the batch is full as long as there are enough windows
    until = watched.diary.index(("no more", frozenset()))
    running = [len(seeds) for what, seeds in watched.diary[:until] if what == "extend"]
    assert set(running) == {batch_size}


@pytest.mark.parametrize("batch_size", [1, 3, 5])
def test_windows_are_encoded_once_and_together(
    model: Whisper, watched: WatchedBackend, batch_size: int
) -> None:
    audios = noises(31.0, 5.0, 64.0, 12.0)
    many(model, audios, batch_size=batch_size, max_new_tokens=6, **ENDLESS)
    alone = [windows_of(sound, max_new_tokens=6, **ENDLESS) for sound in audios]
    expected = collections.Counter(window for windows in alone for window in windows)
    assert collections.Counter(watched.windows) == expected
    assert max(expected.values()) == 1
    first = watched.of("encode")[0]
    assert first == {windows[0] for windows in alone[:batch_size]}


def test_one_recording_takes_one_window_at_a_time(model: Whisper, watched: WatchedBackend) -> None:
    """In the sequential strategy a window depends on the one before it."""
    model.transcribe(noises(95.0)[0], **PLAIN)
    assert watched.most == 1
    assert {len(seeds) for seeds in watched.of("encode")} == {1}


def test_recordings_are_opened_when_there_is_room(model: Whisper, watched: WatchedBackend) -> None:
    opened = 0
    finished = 0
    ahead: list[int] = []

    def audios() -> Iterator[F32]:
        nonlocal opened
        for i in range(12):
            opened += 1
            ahead.append(opened - finished)
            yield noise(3.0 + 4 * (i % 3), i)

    results = model.transcribe_many(audios(), batch_size=2, max_new_tokens=5, **PLAIN)
    assert opened == 0
    for _ in results:
        finished += 1
    assert (opened, finished) == (12, 12)
    # recordings in the batch, recordings that have just left it, and one ahead
    assert max(ahead) <= 5
    assert watched.sessions == []


@pytest.mark.parametrize("kind", ["broken", "too short"])
def test_recordings_without_segments_are_opened_one_after_another_too(
    model: Whisper, kind: str
) -> None:
    """Results are yielded although there is always room for another recording."""
    opened = 0

    def audios() -> Iterator[Any]:
        nonlocal opened
        for _ in range(50):
            opened += 1
            yield "no such file.wav" if kind == "broken" else noise(0.005)

    results = model.transcribe_many(audios(), batch_size=2, return_exceptions=True, **PLAIN)
    next(results)
    assert opened <= 4
    assert len(list(results)) == 49


def test_results_come_as_they_finish(model: Whisper) -> None:
    audios = noises(95.0, 3.0, 4.0)
    order = [i for i, _ in model.transcribe_many(audios, batch_size=2, **ENDLESS)]
    assert order == [1, 2, 0]


def test_nothing_to_do(model: Whisper, watched: WatchedBackend) -> None:
    assert list(model.transcribe_many([])) == []
    assert watched.diary == []


def test_recordings_without_windows(model: Whisper) -> None:
    audios = [noise(0.005), noise(4.0), noise(0.001), noise(0.009)]
    found = many(model, audios, batch_size=2, **PLAIN)
    assert [len(found[i]) > 0 for i in range(4)] == [False, True, False, False]
    assert found[0].duration == 0.005
    assert found[1] == quiet_model().transcribe(audios[1], **PLAIN)


def test_options_of_each(model: Whisper) -> None:
    audios = noises(31.0, 31.0, 31.0)
    each = [
        TranscribeOptions(**PLAIN),
        TranscribeOptions(**PLAIN, without_timestamps=True, max_new_tokens=4),
        TranscribeOptions(**PLAIN, beam_size=3, prefix="so"),
    ]
    found = many(model, audios, options=iter(each), batch_size=3)
    shared = many(model, audios, options=each[1], batch_size=3)
    overridden = many(model, audios, options=each, batch_size=2, initial_prompt="Ann")
    for i, sound in enumerate(audios):
        assert found[i] == quiet_model().transcribe(sound, options=each[i])
        assert shared[i] == quiet_model().transcribe(sound, options=each[1])
        own = dataclasses.replace(each[i], initial_prompt="Ann")
        assert overridden[i] == quiet_model().transcribe(sound, options=own)


def test_recordings_share_one_batch_size(model: Whisper) -> None:
    each = [TranscribeOptions(**PLAIN), TranscribeOptions(**PLAIN, batch_size=3)]
    with pytest.raises(OptionError, match=r"recording 1 have batch_size 3, .* of 8 windows"):
        many(model, noises(1.0, 1.0), options=each)
    assert len(many(model, noises(1.0, 1.0), options=each, batch_size=3)) == 2


def test_one_recording_alone_is_no_batch(model: Whisper) -> None:
    (sound,) = noises(1.0)
    with pytest.raises(OptionError, match="batch_size is 3, but the sequential strategy"):
        model.transcribe(sound, **PLAIN, batch_size=3)


@pytest.mark.parametrize("n", [0, 1])
def test_as_many_options_as_recordings(model: Whisper, n: int) -> None:
    """A recording without options is an error."""
    options = [TranscribeOptions(**PLAIN)] * n
    with pytest.raises(OptionError, match="options"):
        list(model.transcribe_many(noises(1.0, 2.0), options=options))


def test_no_options_for_no_recordings(model: Whisper) -> None:
    assert list(model.transcribe_many([], options=[])) == []


@pytest.mark.parametrize("batch_size", [0, -1, 2.5, True])
def test_a_batch_has_at_least_one_window(model: Whisper, batch_size: Any) -> None:
    with pytest.raises(OptionError, match="batch_size"):
        list(model.transcribe_many(noises(1.0), batch_size=batch_size))


def test_segments_are_numbered_in_order_of_time(model: Whisper) -> None:
    for transcript in many(model, noises(64.0, 95.0, 31.0), batch_size=3, **PLAIN).values():
        assert [segment.id for segment in transcript] == list(range(len(transcript)))
        assert [s.start for s in transcript] == sorted(s.start for s in transcript)
        assert len({segment.seek for segment in transcript}) > 1


def test_progress_of_many(model: Whisper) -> None:
    audios = noises(64.0, 95.0, 5.0)
    steps: list[tuple[int, float, float]] = []
    many(model, audios, batch_size=2, on_progress=lambda *step: steps.append(step), **PLAIN)
    for i, sound in enumerate(audios):
        own = [(done, total) for number, done, total in steps if number == i]
        assert own == sorted(own)
        assert own[-1] == (len(sound) / 16000, len(sound) / 16000)
        assert {total for _, total in own} == {len(sound) / 16000}
    assert len({done for number, done, _ in steps if number == 1}) >= 4


# --- single steps, and slow sources --------------------------------------------------------------


def jobs(*seconds: float, **options: Any) -> list[TranscriptionJob]:
    factory = quiet_model()._job_factory(FakeBackend(DIMS, talkative))
    chosen = TranscribeOptions(**{**PLAIN, **options})
    return [factory.job(sound, None, chosen) for sound in noises(*seconds)]


def finish(scheduler: Scheduler) -> dict[TranscriptionJob, list[Segment]]:
    found: dict[TranscriptionJob, list[Segment]] = collections.defaultdict(list)
    while scheduler.busy:
        for recording, segments in scheduler.step():
            found[recording] += segments
    return found


def test_recordings_are_submitted_while_others_are_decoded(watched: WatchedBackend) -> None:
    scheduler = Scheduler(watched, VOCAB, 3)
    assert scheduler.step() == []
    first, second, third = jobs(31.0, 5.0, 40.0)
    scheduler.submit(first)
    assert scheduler.step() == []
    scheduler.submit(second)
    scheduler.submit(third)
    found = finish(scheduler)
    for recording, sound in zip((first, second, third), noises(31.0, 5.0, 40.0)):
        assert recording.finished
        assert tuple(found[recording]) == quiet_model().transcribe(sound, **PLAIN).segments
    assert watched.most == 3
    scheduler.close()
    assert watched.sessions == []


@pytest.mark.parametrize("beam_size", [None, 3])
def test_a_cancelled_recording_makes_room_at_once(
    watched: WatchedBackend, beam_size: int | None
) -> None:
    scheduler = Scheduler(watched, VOCAB, 2)
    first, second, third, fourth = jobs(31.0, 5.0, 40.0, 3.0, beam_size=beam_size)
    for recording in (first, second, third, fourth):
        scheduler.submit(recording)
    for _ in range(2):
        assert scheduler.step() == []
    scheduler.cancel(first)
    scheduler.cancel(fourth)
    scheduler.step()
    running = watched.of("extend")[-1]
    assert len(running) == 2
    assert not running & set(windows_of(noises(31.0)[0], **PLAIN, beam_size=beam_size))
    found = finish(scheduler)
    assert set(found) == {second, third}
    for recording, sound in zip((second, third), noises(31.0, 5.0, 40.0)[1:]):
        alone = quiet_model().transcribe(sound, **PLAIN, beam_size=beam_size)
        assert tuple(found[recording]) == alone.segments
    assert watched.sessions == []


def test_cancelling_the_last_recording_closes_everything(watched: WatchedBackend) -> None:
    scheduler = Scheduler(watched, VOCAB, 2)
    (recording,) = jobs(31.0)
    scheduler.submit(recording)
    scheduler.step()
    assert watched.sessions
    scheduler.cancel(recording)
    assert not scheduler.busy
    assert watched.sessions == []


def test_a_slow_source_does_not_delay_results(model: Whisper) -> None:
    """Each transcript comes before the next recording does."""
    wanted: queue.Queue[int] = queue.Queue()

    def slow() -> Iterator[F32]:
        for i, sound in enumerate(noises(5.0, 31.0, 3.0)):
            if i:
                assert wanted.get(timeout=60) == i - 1
            yield sound

    order = []
    for i, transcript in model.transcribe_many(slow(), batch_size=8, **PLAIN):
        order.append(i)
        assert transcript == quiet_model().transcribe(noises(5.0, 31.0, 3.0)[i], **PLAIN)
        wanted.put(i)
    assert order == [0, 1, 2]


def test_errors_of_the_source_are_raised(model: Whisper, watched: WatchedBackend) -> None:
    def audios() -> Iterator[F32]:
        yield noise(31.0)
        raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        many(model, audios(), **PLAIN)
    assert watched.sessions == []


def test_dropping_the_results_ends_the_reading(model: Whisper) -> None:
    closed = threading.Event()

    def audios() -> Iterator[F32]:
        try:
            while True:
                yield noise(3.0)
        finally:
            closed.set()

    results = model.transcribe_many(audios(), batch_size=1, **PLAIN)
    next(results)
    del results
    gc.collect()
    assert closed.wait(30)
