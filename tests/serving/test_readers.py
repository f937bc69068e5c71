"""Recordings are read ahead, in threads, and never waited for."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any, Callable

import pytest

from whisper_opt import AudioError
from whisper_opt.serving.readers import Readers

WAIT = 60.0
FOR_EVER = 1e9


class Woken:
    """Waits for events of the readers."""

    def __init__(self) -> None:
        self._changed = threading.Condition()

    def __call__(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def until(self, ready: Callable[[], Any]) -> None:
        """Wait until something is true after an event."""
        with self._changed:
            assert self._changed.wait_for(ready, WAIT)


@pytest.fixture
def woken() -> Woken:
    return Woken()


def chunks_of(n: int, read: list[int] | None = None) -> Iterator[Any]:
    """``n`` numbers in place of chunks; those that were read are added to ``read``."""
    for i in range(n):
        if read is not None:
            read.append(i)
        yield f"chunk {i}"


def taken(reading: Any, woken: Woken) -> list[Any]:
    """All chunks, in order."""
    found: list[Any] = []

    def take() -> bool:
        while (chunk := reading.take()) is not None:
            found.append(chunk)
        return bool(reading.ended)

    woken.until(take)
    return found


def test_all_chunks_in_order(woken: Woken) -> None:
    readers = Readers(2, woken)
    reading = readers.open(chunks_of(9))
    assert reading.polled
    assert reading.take() is None
    assert not reading.ended
    reading.begin()
    assert taken(reading, woken) == [f"chunk {i}" for i in range(9)]
    assert reading.take() is None
    readers.close()


def test_only_a_few_chunks_are_read_ahead(woken: Woken) -> None:
    readers, read = Readers(1, woken, ahead=3), list[int]()
    reading: Any = readers.open(chunks_of(9, read))
    assert read == []
    reading.begin()
    other = readers.open(chunks_of(1))
    woken.until(lambda: len(read) == 3)
    other.begin()  # the only thread is free for it
    woken.until(lambda: other.take() is not None)
    assert read == [0, 1, 2]
    assert reading.take() == "chunk 0"
    woken.until(lambda: len(read) == 4)
    readers.close()


def test_an_error_is_raised_once_after_the_chunks_before_it(woken: Woken) -> None:
    def damaged() -> Iterator[Any]:
        yield "chunk"
        raise AudioError("damaged")

    readers = Readers(1, woken)
    reading: Any = readers.open(damaged())
    reading.begin()
    woken.until(lambda: reading._error is not None)
    assert not reading.ended
    assert reading.take() == "chunk"
    assert not reading.ended
    with pytest.raises(AudioError, match="damaged"):
        reading.take()
    assert reading.ended
    assert reading.take() is None
    readers.close()


def test_recordings_are_read_in_turns(woken: Woken) -> None:
    order: list[str] = []

    def noted(name: str) -> Iterator[Any]:
        for _ in range(3):
            order.append(name)
            yield name

    readers = Readers(1, woken)
    both = [readers.open(noted(name)) for name in "ab"]
    with readers.lock:  # no thread takes one before both have begun
        for reading in both:
            reading.begin()
    woken.until(lambda: all(reading._exhausted for reading in both))
    assert order == ["a", "b"] * 3
    readers.close()


class Slow:
    """A recording that arrives when it is told to."""

    def __init__(self) -> None:
        self.arrived, self.begun, self.closed = (threading.Event() for _ in range(3))

    def chunks(self) -> Iterator[Any]:
        try:
            self.begun.set()
            assert self.arrived.wait(WAIT)
            yield "late"
            yield "later"
        finally:
            self.closed.set()


@pytest.mark.parametrize("n", [1, 2])
def test_slow_recordings_delay_no_other(woken: Woken, n: int) -> None:
    readers = Readers(n, woken, patience=0.0)
    slow = [Slow() for _ in range(5)]
    late = [readers.open(each.chunks()) for each in slow]
    for reading in late:
        reading.begin()
    for each in slow:
        while not each.begun.wait(0.01):
            readers.tend()
    quick = readers.open(chunks_of(1))
    quick.begin()
    while readers.backlog:
        readers.tend()
    assert taken(quick, woken) == ["chunk 0"]
    for each in slow:
        each.arrived.set()
    for reading in late:
        assert taken(reading, woken) == ["late", "later"]
    readers.close()


def test_others_wait_while_patience_lasts(woken: Woken) -> None:
    readers, slow = Readers(1, woken, patience=FOR_EVER), Slow()
    late, quick = readers.open(slow.chunks()), readers.open(chunks_of(1))
    late.begin()
    assert slow.begun.wait(WAIT)
    quick.begin()
    readers.tend()
    assert readers.backlog == 1
    slow.arrived.set()
    assert taken(quick, woken) == ["chunk 0"]
    assert readers.backlog == 0
    readers.close()


def test_a_closed_recording_is_closed_by_a_reader(woken: Woken) -> None:
    readers, slow = Readers(1, woken), Slow()
    reading = readers.open(slow.chunks())
    reading.begin()
    assert slow.begun.wait(WAIT)
    reading.close()  # while it is being read
    assert reading.ended
    slow.arrived.set()
    assert slow.closed.wait(WAIT)
    assert reading.take() is None
    readers.close()


def test_a_recording_that_waits_to_be_continued_is_closed_too(woken: Woken) -> None:
    readers, slow = Readers(1, woken, ahead=1), Slow()
    slow.arrived.set()
    reading = readers.open(slow.chunks())
    reading.begin()
    woken.until(lambda: reading._ready)
    reading.close()
    readers.close()  # its thread ends after that
    assert slow.closed.wait(WAIT)


def test_a_recording_that_was_not_begun_needs_no_reader(woken: Woken) -> None:
    readers = Readers(1, woken)
    reading = readers.open(chunks_of(3))
    reading.close()
    assert reading.ended
    assert readers.backlog == 0
    readers.close()
