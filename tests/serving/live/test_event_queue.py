"""Events on their way to a reader, in threads and in asyncio."""

from __future__ import annotations

import asyncio
import threading

from whisper_opt import Committed, Lag, LiveEvent, Partial, SpeechStarted
from whisper_opt.serving.live.event_queue import EventQueue


def committed(text: str) -> Committed:
    return Committed(text, (), 0)


def partial(text: str, utterance: int = 0) -> Partial:
    return Partial(text, (), utterance)


def filled(*events: LiveEvent) -> EventQueue:
    queue = EventQueue()
    for event in events:
        queue.put(event)
    return queue


def test_partials_and_lags_are_replaced() -> None:
    queue = filled(partial("a"), Lag(1.0), partial("b"), Lag(2.0), partial("c"))
    assert queue.take() == [Lag(2.0), partial("c")]


def test_a_partial_before_committed_text_is_kept() -> None:
    events = [partial("a"), committed("a"), partial("b")]
    assert filled(*events).take() == events


def test_partials_of_other_utterances_are_kept() -> None:
    events = [partial("a", 0), partial("b", 1)]
    assert filled(*events).take() == events


def test_a_reader_waits_and_ends() -> None:
    queue, found = EventQueue(), list[LiveEvent]()
    reader = threading.Thread(target=lambda: found.extend(queue))
    reader.start()
    events = [SpeechStarted(0.0, 0), committed("a"), committed("b")]
    for event in events:
        queue.put(event)
    queue.end()
    queue.put(committed("late"))
    reader.join(60)
    assert found == events


def test_a_new_reader_takes_over() -> None:
    queue = filled(committed("a"), committed("b"), committed("c"))
    first = iter(queue)
    assert next(first) == committed("a")
    second = iter(queue)
    assert next(second) == committed("b")
    assert list(first) == []
    assert next(second) == committed("c")


def test_the_end_at_once_drops_what_was_not_read() -> None:
    queue = filled(committed("a"))
    queue.end(at_once=True)
    assert list(queue) == []


def test_asyncio() -> None:
    queue, n = EventQueue(), 200

    def fill() -> None:
        for i in range(n):
            queue.put(committed(str(i)))
        queue.end()

    async def read() -> list[LiveEvent]:
        return [event async for event in queue]

    async def both() -> list[LiveEvent]:
        reader = asyncio.create_task(read())
        await asyncio.sleep(0)  # the reader waits before there is an event
        threading.Thread(target=fill).start()
        return await asyncio.wait_for(reader, 60)

    assert asyncio.run(both()) == [committed(str(i)) for i in range(n)]
