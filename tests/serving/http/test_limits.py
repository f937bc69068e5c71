"""Requests per minute, and the queue."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.gated_model import GatedBackend, gated_model
from tests.support.http_server import Reply, post, served, wait_until, wav
from tests.support.in_threads import Started
from whisper_opt.serving.http.errors import ApiError
from whisper_opt.serving.http.limits import Rate

QUICK = (("temperature", "[0]"), ("vad", "off"))


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def refused(rate: Rate, client: str) -> str | None:
    """Retry-After of a refused request; None if it is accepted."""
    try:
        rate.take(client)
    except ApiError as error:
        return error.headers["retry-after"]
    return None


def test_a_minute_s_requests_may_come_at_once() -> None:
    rate = Rate(3, Clock())
    assert [refused(rate, "a") for _ in range(4)] == [None, None, None, "20"]


def test_clients_are_counted_apart() -> None:
    rate = Rate(1, Clock())
    assert [refused(rate, client) for client in "aba"] == [None, None, "60"]


def test_time_gives_requests_back() -> None:
    clock = Clock()
    rate = Rate(2, clock)
    assert [refused(rate, "a") for _ in range(3)] == [None, None, "30"]
    clock.now = 29.0
    assert refused(rate, "a") == "1"
    clock.now = 30.0
    assert [refused(rate, "a") for _ in range(2)] == [None, "30"]
    clock.now = 1000.0
    assert [refused(rate, "a") for _ in range(3)] == [None, None, "30"]


def test_no_limit() -> None:
    rate = Rate(0, Clock())
    assert [refused(rate, "a") for _ in range(1000)] == [None] * 1000


@pytest.fixture
def backend() -> Iterator[GatedBackend]:
    made = GatedBackend()
    yield made
    made.gate.set()


def test_too_many_requests_of_a_key(backend: GatedBackend) -> None:
    backend.gate.set()
    with served("gated", load=lambda _: gated_model(backend), requests_per_minute=1) as server:
        assert post(server, wav(0.2), *QUICK).status == 200
        reply = post(server, wav(0.2), *QUICK)
        assert reply.error == (429, "rate_limit_error", "rate_limit_exceeded", None)
        assert 1 <= int(reply.headers["retry-after"]) <= 60


def test_a_full_queue(backend: GatedBackend) -> None:
    options: dict[str, Any] = {"max_queued": 1, "max_batch": 1}
    with served("gated", load=lambda _: gated_model(backend), **options) as server:
        first = Started(lambda: post(server, wav(0.2), *QUICK))
        wait_until(backend.waiting.is_set, "the first request is decoded")
        second = Started(lambda: post(server, wav(0.2), *QUICK))
        wait_until(lambda: server.service.metrics.in_progress._value.get() == 2, "the second")
        wait_until(lambda: server.service._admission.n_now == 2, "the second is admitted")
        third: Reply = post(server, wav(0.2), *QUICK)
        assert third.error == (429, "rate_limit_error", "queue_full", None)
        assert int(third.headers["retry-after"]) >= 1
        backend.gate.set()
        assert [first.result().status, second.result().status] == [200, 200]
        assert post(server, wav(0.2), *QUICK).status == 200
