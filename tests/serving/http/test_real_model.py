"""A real model: whatever the load, each request gets what the library gives alone."""

from __future__ import annotations

import functools
import io
import json
import os
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import soundfile

from tests.conftest import ROOT, Engines
from tests.support.http_server import Reply, get, post, served, wait_until
from whisper_opt import SubtitleOptions, TranscribeOptions, Transcript, Whisper, render
from whisper_opt.audio.decode import load_audio
from whisper_opt.serving.http.call import LOGPROBS
from whisper_opt.serving.http.server import Server

pytestmark = pytest.mark.slow

N_REQUESTS = int(os.environ.get("WHISPER_OPT_SERVED_REQUESTS", "40"))
N_CLIENTS = 16
LATEST = 1.0
"""Seconds by which requests arrive at most after their client is free."""
SPEECH = ROOT / "tests" / "data" / "speech"
CLIPS = (
    ROOT / "examples" / "jfk.flac",
    *sorted((SPEECH / "en").iterdir())[:6],
    *sorted((SPEECH / "formats").iterdir())[:6],
    *sorted((SPEECH / "nonspeech").glob("*silence*"))[:1],
)
FORMATS = ("json", "text", "srt", "vtt", "verbose_json", "stream")
CONTAINERS = (None, None, "WAV", "FLAC", "OGG", "MP3")
"""Formats of files; None: as it is."""
CHOICES: dict[str, tuple[Any, ...]] = {
    "beam_size": (None, None, None, None, 2, 5),
    "best_of": (None, None, None, None, 2),
    "hotwords": (None, None, None, "Quilter"),
    "without_timestamps": (None, None, None, True),
    "no_repeat_ngram_size": (None, None, None, 3),
    "repetition_penalty": (None, None, None, 1.1),
    "token_logprobs": (None, None, True),
    "condition_on_previous_text": (None, None, False),
    "seed": (None, 5),
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


class Asked(NamedTuple):
    """A request: its recording, the format of its response, options, and when it is sent."""

    clip: Path
    container: str | None
    form: str
    options: dict[str, Any]
    delay: float


@functools.cache
def contents(clip: Path, container: str | None) -> bytes:
    """The file of a clip, in another format unless that is None."""
    if container is None:
        return clip.read_bytes()
    file = io.BytesIO()
    soundfile.write(file, load_audio(clip), 16_000, format=container)
    return file.getvalue()


def chosen(chance: random.Random) -> Asked:
    """A request."""
    options = {name: chance.choice(values) for name, values in CHOICES.items()}
    if options["strategy"] == "batched":
        options["vad"] = None
        options["condition_on_previous_text"] = None
    form = chance.choice(FORMATS)
    if options["temperature"] == (0.0,):  # nothing is sampled
        options["best_of"] = options["seed"] = None
    if form not in LOGPROBS:
        options["token_logprobs"] = None
    given = {name: value for name, value in options.items() if value is not None}
    clip, container = chance.choice(CLIPS), chance.choice(CONTAINERS)
    return Asked(clip, container, form, given, chance.random() * LATEST)


def sent(server: Server, one: Asked) -> Reply:
    fields = [("stream", "true") if one.form == "stream" else ("response_format", one.form)]
    for name, value in one.options.items():
        text = json.dumps(value) if not isinstance(value, str) else value
        fields.append((name, text))
    return post(server, contents(one.clip, one.container), *fields)


def expected(transcript: Transcript, form: str) -> Any:
    if form in ("srt", "vtt"):
        return render(transcript, form, SubtitleOptions())
    if form == "text":
        return transcript.text.strip() + "\n"
    if form in ("json", "stream"):
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
    if form == "stream":
        *deltas, done = reply.events
        assert "".join(event["delta"] for event in deltas) == done["text"]
        return done["text"]
    return reply.json["segments"], reply.json.get("words", [])


def test_every_request_equals_the_library(real: Server, alone: Whisper) -> None:
    chance = random.Random(1)
    asked = [chosen(chance) for _ in range(N_REQUESTS)]
    replies: dict[int, Reply] = {}
    left = list(enumerate(asked))

    def client() -> None:
        while left:
            try:
                i, one = left.pop()
            except IndexError:
                return
            time.sleep(one.delay)
            replies[i] = sent(real, one)

    threads = [threading.Thread(target=client) for _ in range(N_CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    known: dict[str, Transcript] = {}
    for i, one in enumerate(asked):
        key = repr((one.clip, one.container, one.options))
        if key not in known:
            options = TranscribeOptions(**one.options)
            known[key] = alone.transcribe(contents(one.clip, one.container), options=options)
        assert found(replies[i], one.form) == expected(known[key], one.form), one


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
