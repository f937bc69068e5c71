"""Many live sessions on one engine, in virtual time with given costs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.support.quick_backend import OPTIONS, quick_model
from tests.support.watched_backend import noise
from whisper_opt import Lag, LiveOptions, LiveSessionsFull, Utterance, Whisper
from whisper_opt.serving.live.simulation import Player, Simulation

LIVE = LiveOptions(vad=False, policy="agreement", max_utterance_s=10.0)

pytestmark = pytest.mark.usefixtures("hear_no_speech")


@pytest.fixture(scope="module")
def model() -> Whisper:
    return quick_model()


def cost(n_encoded: int, n_rows: int) -> float:
    """About that of a small model on a CPU core."""
    return 0.04 * n_encoded + 0.002 + 0.0004 * n_rows


SEED = 1600
"""Of noise whose updates take even times: they depend on what the random model answers."""


def played(model: Whisper, n: int, seconds: float = 10.0, **given: Any) -> list[Player]:
    with Simulation(model, cost=cost, max_live=n, **given) as simulation:
        players = [
            Player(simulation, noise(seconds, SEED + i), OPTIONS, LIVE, start=0.173 * i)
            for i in range(n)
        ]
        simulation.run()
    return players


def lags(player: Player) -> list[float]:
    return [event.seconds for _, event in player.log if isinstance(event, Lag)]


def test_the_same_costs_give_the_same_times(model: Whisper) -> None:
    first, second = played(model, 2), played(model, 2)
    assert [player.log for player in first] == [player.log for player in second]


def test_a_second_client_delays_the_first_by_less_than_a_tenth(model: Whisper) -> None:
    """From the time a sample is spoken to the result: update_s / 2 on average, and the lag."""
    alone = np.mean(lags(played(model, 1)[0])) + LIVE.update_s / 2
    shared = np.mean(lags(played(model, 2)[0])) + LIVE.update_s / 2
    assert shared < 1.1 * alone


def test_too_many_clients_get_fewer_updates_but_no_growing_lag(model: Whisper) -> None:
    """Updates are coalesced: each has all audio that has come."""
    players = played(model, 16)
    few = played(model, 1)
    for player in players:
        found = lags(player)
        third = len(found) // 3
        assert np.median(found[2 * third :]) < 1.5 * np.median(found[third : 2 * third])
        assert max(found) < 1.0
        assert len(found) < len(lags(few[0]))
        ends = [e.end for _, e in player.log if isinstance(e, Utterance)]
        assert ends[-1] == pytest.approx(10.0, abs=0.1)
    counts = [len(lags(player)) for player in players]
    assert min(counts) > 0.7 * max(counts)  # nobody is left behind


def test_past_the_measured_capacity_sessions_are_refused(model: Whisper) -> None:
    with Simulation(model, cost=cost) as simulation:
        Player(simulation, noise(10.0), OPTIONS, LIVE)
        simulation.run(until=8.0)
        capacity = simulation.sessions.capacity
        assert 2 < capacity < 12
        for i in range(capacity - 1):
            Player(simulation, noise(5.0, i), OPTIONS, LIVE, start=8.0)
        with pytest.raises(LiveSessionsFull, match="would delay"):
            Player(simulation, noise(5.0), OPTIONS, LIVE, start=8.0)
        simulation.run()
        assert len(simulation.sessions) == 0


def test_a_full_engine_still_serves_those_it_has_in_time(model: Whisper) -> None:
    with Simulation(model, cost=cost) as simulation:
        Player(simulation, noise(10.0), OPTIONS, LIVE)
        simulation.run()
        capacity = simulation.sessions.capacity
        begin = simulation.now()
        players = [
            Player(simulation, noise(10.0, i), OPTIONS, LIVE, start=begin + 0.1 * i)
            for i in range(capacity)
        ]
        simulation.run()
    assert np.percentile([lag for player in players for lag in lags(player)], 95) < 1.0


def test_what_is_kept_does_not_grow(model: Whisper) -> None:
    """Two minutes without a pause."""
    with Simulation(model, cost=cost) as simulation:
        player = Player(simulation, noise(120.0), OPTIONS, LIVE, block=0.5)
        kept = []
        for part in range(1, 6):
            simulation.run(until=20.0 * part)
            transcriber = player.session._transcriber
            kept.append(transcriber._audio._data.nbytes)
            assert len(player.session._arrivals) < 100
            assert len(transcriber._utterances) <= 2
        assert kept[-1] == kept[1]
