"""A real model: whatever the load, each request gets what the library gives alone."""

from __future__ import annotations

import json
import os
import random
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT, Engines
from tests.support.http_server import Reply, get, post, served, wait_until
from whisper_opt import SubtitleOptions, TranscribeOptions, Transcript, Whisper, render
from whisper_opt.serving.http.server import Server

pytestmark = pytest.mark.slow

N_REQUESTS = int(os.environ.get("WHISPER_OPT_SERVED_REQUESTS", "40"))
N_CLIENTS = 8
SPEECH = ROOT / "tests" / "data" / "speech"
CLIPS = (
    ROOT / "examples" / "jfk.flac",
    *sorted((SPEECH / "en").iterdir())[:6],
    *sorted((SPEECH / "formats").iterdir())[:6],
    *sorted((SPEECH / "nonspeech").glob("*silence*"))[:1],
)
FORMATS = ("json", "text", "srt", "vtt", "verbose_json")
CHOICES: dict[str, tuple[Any, ...]] = {
    "beam_size": (None, None, None, 2),
    "vad": (None, "cut", "off"),
    "word_timestamps": (None, True),
    "initial_prompt": (None, "Mister President."),
    "temperature": (None, (0.0,)),
    "strategy": (None, None, "batched"),
    "max_new_tokens": (None, None, 20),
}


@pytest.fixture(scope="module")
def alone(engines: Engines) -> Whisper:
    return engines.model("tiny.en", precision="int8")


@pytest.fixture(scope="module")
def real(engines: Engines) -> Iterator[Server]:
    path = engines.engine("tiny.en", precision="int8").path

    def load(source: str) -> Whisper:
        return Whisper.load(source, device="cpu", threads=2)

    with served(f"tiny.en={path}", load=load) as server:
        yield server


def chosen(chance: random.Random) -> tuple[Path, str, dict[str, Any]]:
    """A clip, a format and options."""
    options = {name: chance.choice(values) for name, values in CHOICES.items()}
    if options["strategy"] == "batched":
        options["vad"] = None
    given = {name: value for name, value in options.items() if value is not None}
    return chance.choice(CLIPS), chance.choice(FORMATS), given


def sent(server: Server, clip: Path, form: str, options: dict[str, Any]) -> Reply:
    fields = [("response_format", form)]
    for name, value in options.items():
        text = json.dumps(value) if not isinstance(value, str) else value
        fields.append((name, text))
    return post(server, clip.read_bytes(), *fields)


def expected(transcript: Transcript, form: str) -> Any:
    if form in ("srt", "vtt"):
        return render(transcript, form, SubtitleOptions())
    if form == "text":
        return transcript.text.strip() + "\n"
    if form == "json":
        return transcript.text.strip()
    segments = [segment.to_dict() for segment in transcript]
    words = [segment.pop("words") for segment in segments if "words" in segment]
    return segments, [{**word, "word": word["word"].strip()} for some in words for word in some]


def found(reply: Reply, form: str) -> Any:
    assert reply.status == 200, reply.text
    if form == "vtt":
        return reply.text.replace("\n00:", "\n").replace("--> 00:", "--> ")
    if form in ("srt", "text"):
        return reply.text
    if form == "json":
        return reply.json["text"]
    return reply.json["segments"], reply.json.get("words", [])


def test_every_request_equals_the_library(real: Server, alone: Whisper) -> None:
    chance = random.Random(1)
    asked = [chosen(chance) for _ in range(N_REQUESTS)]
    replies: dict[int, Reply] = {}
    left = list(enumerate(asked))

    def client() -> None:
        while left:
            try:
                i, (clip, form, options) = left.pop()
            except IndexError:
                return
            replies[i] = sent(real, clip, form, options)

    threads = [threading.Thread(target=client) for _ in range(N_CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    known: dict[str, Transcript] = {}
    for i, (clip, form, options) in enumerate(asked):
        key = repr((clip, options))
        if key not in known:
            known[key] = alone.transcribe(clip, options=TranscribeOptions(**options))
        assert found(replies[i], form) == expected(known[key], form), (clip.name, form, options)


def test_a_stream_equals_the_library(real: Server, alone: Whisper) -> None:
    clip = max((SPEECH / "long").iterdir(), key=lambda path: path.stat().st_size)
    *deltas, done = post(real, clip.read_bytes(), ("stream", "true")).events
    assert len(deltas) > 3
    text = alone.transcribe(clip).text.strip()
    assert "".join(event["delta"] for event in deltas) == done["text"] == text


def test_nothing_is_left_after_the_requests(real: Server) -> None:
    """Rows and places of the queue are free; no counter of losses has moved."""
    post(real, CLIPS[0].read_bytes())
    (model,) = real.models
    wait_until(lambda: model.engine.stats().rows == 0, "all rows are free")
    stats = model.engine.stats()
    assert (stats.queued, stats.running, stats.failed) == (0, 0, 0)
    assert real.service._admission.n_now == 0
    assert "in_progress 1.0" in get(real, "/metrics").text  # this request itself
