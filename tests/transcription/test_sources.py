"""Recordings from lists, from generators, and from generators that are slow."""

from __future__ import annotations

import contextvars
import queue
import threading
from collections.abc import Iterator

import pytest

from whisper_opt.transcription.sources import (
    MappedSource,
    ReadySource,
    Source,
    ThreadedSource,
    source_of,
)


def everything(source: Source[int]) -> list[int]:
    found = []
    while not source.ended:
        item = source.take(wait=True)
        if item is not None:
            found.append(item[0])
    return found


def reader() -> threading.Thread | None:
    return next((t for t in threading.enumerate() if t.name == "whisper_opt recordings"), None)


def ends(thread: threading.Thread | None) -> bool:
    assert thread is not None
    thread.join(20)
    return not thread.is_alive()


@pytest.mark.parametrize("n", [0, 1, 5])
def test_lists_are_read_in_the_calling_thread(n: int) -> None:
    for items in (list(range(n)), tuple(range(n))):
        source = source_of(items)
        assert isinstance(source, ReadySource)
        assert not source.ended
        assert everything(source) == list(range(n))
        assert source.take(wait=True) is None
    assert reader() is None


@pytest.mark.parametrize("n", [0, 1, 5])
def test_other_iterables_are_read_in_a_thread(n: int) -> None:
    threads = []

    def items() -> Iterator[int]:
        for i in range(n):
            threads.append(threading.current_thread())
            yield i

    source = source_of(items())
    assert isinstance(source, ThreadedSource)
    assert everything(source) == list(range(n))
    assert source.take(wait=True) is None
    assert threading.current_thread() not in threads
    assert len(set(threads)) == min(n, 1)
    assert all(map(ends, threads))


def test_none_is_an_item_too() -> None:
    source = source_of(iter([None, 1]))
    assert source.take(wait=True) == (None,)
    assert source.take(wait=True) == (1,)
    assert source.take(wait=True) is None


def test_unavailable_items_are_not_waited_for() -> None:
    coming: queue.Queue[int] = queue.Queue()
    source = source_of(iter(coming.get, -1))
    assert source.take(wait=False) is None
    assert not source.ended
    coming.put(7)
    assert source.take(wait=True) == (7,)
    assert source.take(wait=False) is None
    coming.put(-1)
    assert source.take(wait=True) is None
    assert source.ended


def test_one_item_ahead() -> None:
    asked: queue.Queue[int] = queue.Queue()

    def items() -> Iterator[int]:
        for i in range(10):
            asked.put(i)
            yield i

    source = source_of(items())
    assert asked.empty()
    for i in range(3):
        assert source.take(wait=True) == (i,)
        assert asked.get(timeout=20) == i
    assert asked.get(timeout=20) == 3
    thread = reader()
    source.close()
    assert ends(thread)
    assert asked.empty()


def test_errors_come_after_what_came_before_them() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise LookupError("mine")

    source = source_of(items())
    assert source.take(wait=True) == (1,)
    with pytest.raises(LookupError, match="mine"):
        source.take(wait=True)
    assert source.ended
    assert source.take(wait=True) is None


def test_closing_ends_the_thread_and_the_generator() -> None:
    closed = threading.Event()

    def items() -> Iterator[int]:
        try:
            yield from range(100)
        finally:
            closed.set()

    source = source_of(items())
    source.take(wait=True)
    thread = reader()
    source.close()
    assert ends(thread)
    assert closed.wait(20)
    assert source.take(wait=True) is None


def test_closing_does_not_wait_for_a_source_that_waits() -> None:
    coming: queue.Queue[int] = queue.Queue()
    source = source_of(iter(coming.get, -1))
    source.take(wait=False)
    thread = reader()
    source.close()
    assert thread is not None
    assert thread.is_alive()
    coming.put(1)
    assert ends(thread)


def test_context_variables_are_those_of_the_caller() -> None:
    variable: contextvars.ContextVar[int] = contextvars.ContextVar("variable", default=0)
    variable.set(5)
    assert everything(source_of(variable.get() for _ in range(2))) == [5, 5]


@pytest.mark.parametrize("slow", [False, True])
def test_items_are_mapped_in_the_calling_thread(slow: bool) -> None:
    caller = threading.current_thread()

    def double(item: int) -> int:
        assert threading.current_thread() is caller
        return 2 * item

    items = [1, 2, 3]
    source = MappedSource(source_of(iter(items) if slow else items), double)
    assert everything(source) == [2, 4, 6]
    source.close()
    assert source.ended
