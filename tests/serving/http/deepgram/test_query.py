"""The query of /v1/listen."""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qsl

import pytest

from whisper_opt.core.options import LiveOptions, ServeOptions
from whisper_opt.serving.http.deepgram.query import Asked, read_query
from whisper_opt.serving.http.errors import ApiError

MODELS = ("tiny.en", "whisper-1")
AUDIO = "encoding=linear16&sample_rate=16000"


def asked(query: str) -> Asked:
    return read_query(parse_qsl(query), MODELS, ServeOptions())


def test_defaults() -> None:
    found = asked(AUDIO)
    assert (found.model, found.rate, found.n_channels, found.apart) == ("tiny.en", 16000, 1, False)
    assert found.live == LiveOptions(silence_ms=500)
    assert (found.endpoints, found.interim, found.utterance_end) == (True, False, None)


def test_everything() -> None:
    found = asked(
        "model=nova-3&encoding=mulaw&channels=2&multichannel=true&interim_results=True"
        "&endpointing=300&utterance_end_ms=1500&vad_events=true&language=en-US&keyterm=Ada"
        "&keyterm=Alan%20Turing&punctuate=true&smart_format=true&diarize=false&version=latest"
    )
    assert (found.model, found.rate, found.n_channels, found.apart) == ("tiny.en", 8000, 2, True)
    assert found.live.silence_ms == 300
    assert (found.interim, found.vad_events, found.utterance_end) == (True, True, 1.5)
    assert (found.options.language, found.options.hotwords) == ("en", "Ada, Alan Turing")


@pytest.mark.parametrize(
    ("value", "silence", "ends"),
    [("false", 500, False), ("true", 500, True), ("10", 100, True), ("700", 700, True)],
)
def test_endpointing(value: str, silence: int, ends: bool) -> None:
    found = asked(f"{AUDIO}&endpointing={value}")
    assert (found.live.silence_ms, found.endpoints) == (silence, ends)


def test_a_language_is_detected() -> None:
    assert asked(f"{AUDIO}&language=multi").options.language is None


@pytest.mark.parametrize(
    ("query", "name"),
    [
        ("", "encoding"),
        ("encoding=opus", "encoding"),
        ("encoding=x&sample_rate=8000", "encoding"),
        ("encoding=linear16", "sample_rate"),
        ("encoding=linear16&sample_rate=x", "sample_rate"),
        (f"{AUDIO}&diarize=true", "diarize"),
        (f"{AUDIO}&redact=pci", "redact"),
        (f"{AUDIO}&keywords=Ada:2", "keywords"),
        (f"{AUDIO}&callback=https://example.com", "callback"),
        (f"{AUDIO}&tag=x", "tag"),
        (f"{AUDIO}&numerals=true", "numerals"),
        (f"{AUDIO}&channels=99", "channels"),
        (f"{AUDIO}&channels=00000000199", "channels"),
        (f"{AUDIO}&channels={'1' * 5000}", "channels"),
        (f"{AUDIO}&channels=1&channels=2", "channels"),
        (f"{AUDIO}&interim_results=1", "interim_results"),
        (f"{AUDIO}&utterance_end_ms=1000", "utterance_end_ms"),
        (f"{AUDIO}&endpointing=99999999999999999999", "endpointing"),
        (f"{AUDIO}&version=2021", "version"),
        (f"{AUDIO}&model=none", "model"),
        (f"{AUDIO}&punctuate=maybe", "punctuate"),
        (f"{AUDIO}&unknown=1", "unknown"),
    ],
)
def test_what_is_refused(query: str, name: Any) -> None:
    with pytest.raises(ApiError) as caught:
        asked(query)
    assert caught.value.param == name
    assert caught.value.message.startswith((name, f"the {name}"))
