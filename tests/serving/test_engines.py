"""Several models in one process."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from tests.support.engines_on_fakes import WAIT, options, options_of
from tests.support.watched_backend import WatchedBackend, engine, noise, quiet_model
from whisper_opt import EngineClosed, EngineError, OptionError, Whisper
from whisper_opt.serving import Engines, Turns


class Models:
    """Counts how often each model is loaded."""

    def __init__(self) -> None:
        self.loaded: list[str] = []

    def of(self, *names: str) -> dict[str, Any]:
        def load(name: str) -> Whisper:
            self.loaded.append(name)
            return Whisper(engine(), WatchedBackend())

        return {name: lambda name=name: load(name) for name in names}


def test_models_are_loaded_when_they_are_wanted() -> None:
    models = Models()
    with Engines(models.of("a", "b", "c"), max_batch=2) as engines:
        assert (engines.names, engines.loaded, models.loaded) == (("a", "b", "c"), {}, [])
        handles = [
            engines.submit(name, noise(31.0, i), options(), priority=1)
            for i, name in enumerate("abab")
        ]
        for i, handle in enumerate(handles):
            expected = quiet_model().transcribe(noise(31.0, i), **options_of())
            assert handle.result(WAIT) == expected
        assert models.loaded == ["a", "b"]
        assert set(engines.loaded) == {"a", "b"}
        assert {name: each.completed for name, each in engines.stats().items()} == {"a": 2, "b": 2}
        assert engines.stats()["a"].max_batch == 2
        assert engines.engine("a") is engines.loaded["a"]
        a = engines.engine("a").model
    with pytest.raises(EngineError, match="closed"):
        a.transcribe(noise(1.0))
    with pytest.raises(EngineClosed, match="closed"):
        engines.submit("c", noise(1.0))


def test_an_idle_model_is_loaded_again() -> None:
    models = Models()
    with Engines(models.of("a"), idle_unload_s=0.02) as engines:
        first = engines.engine("a")
        first._loop.thread.join(WAIT)
        assert (first.unloaded, engines.loaded) == (True, {})
        assert engines.submit("a", noise(5.0), options()).result(WAIT)
        assert models.loaded[:2] == ["a", "a"]


def test_callers_wait_for_one_load() -> None:
    models, go = Models(), threading.Event()
    load = models.of("a")["a"]

    def slow() -> Whisper:
        assert go.wait(WAIT)
        model: Whisper = load()
        return model

    found: list[Any] = []
    with Engines({"a": slow}) as engines:
        threads = [
            threading.Thread(target=lambda: found.append(engines.engine("a"))) for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        go.set()
        for thread in threads:
            thread.join(WAIT)
        assert found == [engines.engine("a")] * 4
    assert models.loaded == ["a"]


def test_a_name_that_is_unknown() -> None:
    engines = Engines(Models().of("a", "b"))
    with pytest.raises(OptionError, match="no model 'c'; expected one of a, b"):
        engines.submit("c", noise(1.0))


def test_a_model_that_cannot_be_loaded_may_be_tried_again() -> None:
    tries: list[int] = []

    def load() -> Whisper:
        tries.append(1)
        if len(tries) == 1:
            raise EngineError("no such engine")
        return Whisper(engine(), WatchedBackend())

    with Engines({"a": load}) as engines:
        with pytest.raises(EngineError, match="no such engine"):
            engines.engine("a")
        assert engines.submit("a", noise(1.0), options()).result(WAIT)


def test_turns_are_taken_in_order() -> None:
    turns, order = Turns(), list[int]()
    threads = []
    with turns:
        for i in range(5):

            def enter(i: int = i) -> None:
                with turns:
                    order.append(i)

            threads.append(threading.Thread(target=enter))
            threads[-1].start()
            while len(turns._waiting) <= i:  # each waits before the next comes
                pass
        assert order == []
    for thread in threads:
        thread.join(WAIT)
    assert order == [0, 1, 2, 3, 4]
    with turns:  # and again
        pass


def test_only_one_engine_computes_at_a_time() -> None:
    inside: list[str] = []
    both: list[bool] = []

    class Exclusive(WatchedBackend):
        def note(self, what: str, seeds: set[int]) -> None:
            inside.append(what)
            both.append(len(inside) > 1)
            super().note(what, seeds)
            inside.pop()

    names = {name: lambda: Whisper(engine(), Exclusive()) for name in "ab"}
    with Engines(names) as engines:
        handles = [engines.submit("ab"[i % 2], noise(31.0, i), options()) for i in range(6)]
        for handle in handles:
            assert handle.result(WAIT)
    assert len(both) > 20
    assert not any(both)
