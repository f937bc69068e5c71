"""What live transcription is known to get wrong, with real speech and models, in virtual time."""

from __future__ import annotations

import re

import numpy as np
import pytest

from tests.conftest import Engines
from tests.support.golden import clip_pcm
from whisper_opt import (
    Committed,
    LiveOptions,
    SpeechStarted,
    TranscribeOptions,
    Utterance,
    Whisper,
)
from whisper_opt.core.arrays import F32
from whisper_opt.serving.live.session import final_options
from whisper_opt.serving.live.simulation import Player, Simulation
from whisper_opt.transcription.live.words import units

pytestmark = pytest.mark.slow

RATE = 16_000
JFK = (
    "and so my fellow americans ask not what your country can do for you ask what you can do for"
    " your country"
)


@pytest.fixture(scope="module")
def tiny(engines: Engines) -> Whisper:
    return engines.model("tiny.en", precision="int8")


def cost(n_encoded: int, n_rows: int) -> float:
    return 0.05 * n_encoded + 0.003


def played(
    model: Whisper,
    sound: F32,
    live: LiveOptions | None = None,
    options: TranscribeOptions | None = None,
) -> Player:
    with Simulation(model, cost=cost) as simulation:
        player = Player(simulation, sound, options, live)
        simulation.run()
    return player


def committed(player: Player) -> str:
    return "".join(event.text for _, event in player.log if isinstance(event, Committed))


def plain(text: str) -> str:
    return " ".join(unit for word in text.split() for unit in units(word))


def silence(seconds: float) -> F32:
    return np.zeros(round(seconds * RATE), np.float32)


def repeated(sound: F32, seconds: float) -> F32:
    return np.resize(sound, round(seconds * RATE))


@pytest.mark.parametrize("name", ["ns-silence-10s", "ns-dither-35s", "ns-white-12s", "ns-pink-40s"])
def test_ten_minutes_of_noise_have_no_words(tiny: Whisper, name: str) -> None:
    player = played(tiny, repeated(clip_pcm(name), 600.0))
    assert committed(player) == ""
    assert not any(event.text for _, event in player.log if isinstance(event, Utterance))


def test_ten_minutes_of_music_have_no_words(tiny: Whisper) -> None:
    player = played(tiny, repeated(clip_pcm("ns-music-brahms-32s"), 600.0))
    assert committed(player) == ""


def test_silence_between_utterances_repeats_nothing(tiny: Whisper) -> None:
    speech = clip_pcm("en-jfk")
    player = played(tiny, np.concatenate([speech, silence(60.0), speech, silence(60.0)]))
    assert committed(player).lower().count("fellow") == 2
    last = [at for at, event in player.log if isinstance(event, Committed)]
    assert not [at for at in last if 12.5 < at < 70.0]


@pytest.mark.parametrize("policy", ["agreement", "align_att", "both"])
def test_first_and_last_word(tiny: Whisper, policy: str) -> None:
    sound = np.concatenate([silence(3.0), clip_pcm("en-jfk"), silence(3.0)])
    found = plain(committed(played(tiny, sound, LiveOptions(policy=policy))))
    assert re.match(r"and so", found)
    assert found.endswith("your country")


def test_no_word_is_lost_or_doubled_where_the_buffer_is_trimmed(tiny: Whisper) -> None:
    """Without pauses: what is said once more or not at all would be seen in the counts."""
    line = clip_pcm("en-jfk")[round(7.9 * RATE) : round(10.5 * RATE)]
    player = played(
        tiny, np.concatenate([line] * 12), LiveOptions(vad=False, buffer_s=4.0, update_s=0.4)
    )
    found = plain(committed(player))
    assert abs(found.count("you can do for your country") - 12) <= 1


def test_the_text_of_an_utterance_is_the_offline_transcript(tiny: Whisper) -> None:
    sound, options = clip_pcm("en-jfk"), TranscribeOptions()
    player = played(tiny, sound)
    ends = [event for _, event in player.log if isinstance(event, Utterance)]
    assert ends
    for each in ends:
        cut = sound[round(each.start * RATE) : round(each.end * RATE)]
        assert each.text == tiny.transcribe(cut, options=final_options(options, "en")).text
    assert plain("".join(each.text for each in ends)).endswith("do for your country")


def pushed(model: Whisper, sound: F32, breaks: set[int]) -> str:
    """The committed text if the connection breaks before these tenths of a second."""
    live, rng = LiveOptions(final="none"), np.random.default_rng(3)
    found, sent = list[str](), 0
    with Simulation(model, cost=cost) as simulation:
        session = simulation.sessions.begin(None, live, RATE, 1)
        for i in range(len(sound) * 10 // RATE):
            if i in breaks:
                session.detach()
                sent = max(0, session.received - int(rng.integers(RATE)))
                simulation.sessions.resume(session.id, sent)
            simulation.run(until=(i + 1) / 10)
            end = (i + 1) * RATE // 10
            session.push(sound[sent:end])
            sent = end
            found += [e.text for e in session.take() if isinstance(e, Committed)]
        session.finish()
        simulation.run()
        found += [e.text for e in session.take() if isinstance(e, Committed)]
    return "".join(found)


def test_twenty_lost_connections_change_nothing(tiny: Whisper) -> None:
    sound = clip_pcm("en-long-ls-367")[: 30 * RATE]
    breaks = np.random.default_rng(3).choice(range(5, 295), 20, replace=False)
    assert pushed(tiny, sound, set(breaks.tolist())) == pushed(tiny, sound, set())


def test_the_language_stays_at_a_short_sound(engines: Engines) -> None:
    """A German speech, then half a second of English."""
    german, english = clip_pcm("de-fleurs-000"), clip_pcm("en-jfk")
    short = english[round(0.3 * RATE) : round(0.9 * RATE)]
    sound = np.concatenate([german, silence(2.0), short, silence(2.0), german, silence(1.0)])
    player = played(engines.model("base", precision="int8"), sound)
    languages = [event.language for _, event in player.log if isinstance(event, Utterance)]
    assert set(languages) == {"de"}


def test_characters_are_whole(engines: Engines) -> None:
    player = played(engines.model("base", precision="int8"), clip_pcm("ja-leopard-test-ja"))
    found = committed(player)
    assert "�" not in found
    assert len(found) > 10
    assert any(isinstance(event, SpeechStarted) for _, event in player.log)
