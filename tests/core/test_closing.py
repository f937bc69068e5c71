"""Things that are closed by a ``with`` block."""

from __future__ import annotations

import pytest

from whisper_opt import Stream, Whisper
from whisper_opt.audio.decode import AudioStream
from whisper_opt.cli.bench.workers import Worker
from whisper_opt.core.closing import Closing
from whisper_opt.serving import Engine, Engines
from whisper_opt.serving.live.live import Live
from whisper_opt.serving.live.simulation import Simulation


class Counted(Closing):
    def __init__(self) -> None:
        self.n_closed = 0

    def close(self) -> None:
        self.n_closed += 1


def test_the_end_of_the_block_closes_once() -> None:
    with Counted() as held:
        assert held.n_closed == 0
    assert held.n_closed == 1


def test_an_error_closes_and_goes_on() -> None:
    held = Counted()
    with pytest.raises(KeyError), held:
        raise KeyError
    assert held.n_closed == 1


@pytest.mark.parametrize(
    "kind", [AudioStream, Engine, Engines, Live, Simulation, Stream, Whisper, Worker]
)
def test_one_rule_for_all_that_is_closed(kind: type) -> None:
    assert issubclass(kind, Closing)
    assert kind.__enter__ is Closing.__enter__
    assert kind.__exit__ is Closing.__exit__
