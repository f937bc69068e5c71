"""Formats of responses equal the library's transcripts."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest

from tests.support.http_server import TRANSLATIONS, get, post, wav
from whisper_opt import LANGUAGES, Segment, SubtitleOptions, Transcript, Whisper, render
from whisper_opt.serving.http.responses import Deltas, _with_hours, logprobs_of
from whisper_opt.serving.http.server import Server

CLIP = wav(35.0)


@pytest.fixture(scope="module")
def expected(whisper: Whisper) -> Transcript:
    found = whisper.transcribe(CLIP, temperature=0.0, vad="off")
    assert len(found) > 1
    return found


PLAIN = (("temperature", "[0]"), ("vad", "off"))


def test_json(server: Server, expected: Transcript) -> None:
    reply = post(server, CLIP, *PLAIN)
    assert reply.status == 200
    assert reply.headers["content-type"] == "application/json"
    usage = {"type": "duration", "seconds": 35}
    assert reply.json == {"text": expected.text.strip(), "usage": usage}


def test_text(server: Server, expected: Transcript) -> None:
    reply = post(server, CLIP, *PLAIN, ("response_format", "text"))
    assert reply.headers["content-type"] == "text/plain; charset=utf-8"
    assert reply.text == expected.text.strip() + "\n"


def test_srt_is_that_of_the_library(server: Server, expected: Transcript) -> None:
    reply = post(server, CLIP, *PLAIN, ("response_format", "srt"))
    assert reply.headers["content-type"] == "text/plain; charset=utf-8"
    assert reply.text == render(expected, "srt")


def test_vtt_is_that_of_the_library_with_hours(server: Server, expected: Transcript) -> None:
    reply = post(server, CLIP, *PLAIN, ("response_format", "vtt"))
    assert reply.text.startswith("WEBVTT\n\n00:00:")
    assert reply.text.replace("\n00:", "\n").replace("--> 00:", "--> ") == render(expected, "vtt")


def test_hours_are_added_to_times_only() -> None:
    long = "59:59.000 --> 01:00:00.000\nat 12:34.567 --> see\n\n"
    assert _with_hours(long) == "00:59:59.000 --> 01:00:00.000\nat 12:34.567 --> see\n\n"


def test_verbose_json(server: Server, expected: Transcript) -> None:
    reply = post(server, CLIP, *PLAIN, ("response_format", "verbose_json"))
    assert reply.json == {
        "task": "transcribe",
        "language": LANGUAGES[expected.language],
        "duration": expected.duration,
        "text": expected.text.strip(),
        "segments": [segment.to_dict() for segment in expected],
        "usage": {"type": "duration", "seconds": math.ceil(expected.duration)},
    }


def with_words(server: Server, *names: str) -> dict[str, object]:
    fields = [("timestamp_granularities[]", name) for name in names]
    found: dict[str, object] = post(
        server, CLIP, *PLAIN, ("response_format", "verbose_json"), *fields
    ).json
    return found


@pytest.mark.parametrize(
    ("names", "keys"),
    [
        ((), {"segments"}),
        (("segment",), {"segments"}),
        (("word",), {"words"}),
        (("word", "segment"), {"words", "segments"}),
    ],
)
def test_granularities_choose_what_is_listed(
    server: Server, names: tuple[str, ...], keys: set[str]
) -> None:
    assert {"segments", "words"} & with_words(server, *names).keys() == keys


def test_words_are_those_of_the_library(server: Server, whisper: Whisper) -> None:
    alone = whisper.transcribe(CLIP, temperature=0.0, vad="off", word_timestamps=True)
    words = [word for segment in alone for word in segment.words or ()]
    assert words
    assert with_words(server, "word")["words"] == [
        {**word.to_dict(), "word": word.word.strip()} for word in words
    ]


def test_word_timestamps_by_its_own_name(server: Server) -> None:
    fields = (("response_format", "verbose_json"), ("word_timestamps", "true"))
    assert {"words", "segments"} <= post(server, CLIP, *PLAIN, *fields).json.keys()


def test_subtitle_options(server: Server, whisper: Whisper) -> None:
    fields = (
        *(("response_format", "srt"), ("word_timestamps", "true")),
        ("max_words_per_line", "2"),
    )
    alone = whisper.transcribe(CLIP, temperature=0.0, vad="off", word_timestamps=True)
    reply = post(server, CLIP, *PLAIN, *fields)
    assert reply.text == render(alone, "srt", SubtitleOptions(max_words_per_line=2))


def test_dropped_parts_are_listed(server: Server, whisper: Whisper) -> None:
    alone = whisper.transcribe(CLIP, temperature=0.0)
    assert alone.dropped
    fields = (("temperature", "[0]"), ("response_format", "verbose_json"))
    assert post(server, CLIP, *fields).json["dropped"] == [part.to_dict() for part in alone.dropped]


def test_translation(server: Server, whisper: Whisper) -> None:
    alone = whisper.transcribe(CLIP, temperature=0.0, vad="off", task="translate")
    found = post(server, CLIP, *PLAIN, ("response_format", "verbose_json"), path=TRANSLATIONS).json
    assert found["task"] == "translate"
    assert found["language"] == "english"
    assert found["text"] == alone.text.strip()
    assert "usage" not in found
    short = post(server, CLIP, *PLAIN, path=TRANSLATIONS).json
    assert short == {"text": alone.text.strip()}


def test_openai_temperature_of_zero_is_the_default(server: Server, whisper: Whisper) -> None:
    clip = wav(1.0)
    alone = whisper.transcribe(clip, vad="off")
    assert alone.segments[0].temperature > 0  # a random model fails the thresholds
    fields = (("vad", "off"), ("temperature", "0"), ("response_format", "verbose_json"))
    assert post(server, clip, *fields).json["segments"] == [s.to_dict() for s in alone]


# log-probabilities


@pytest.mark.parametrize("form", ["json", "verbose_json"])
@pytest.mark.parametrize("search", [("temperature", "[0]"), ("beam_size", "3"), ("best_of", "2")])
def test_logprobs(server: Server, whisper: Whisper, form: str, search: tuple[str, str]) -> None:
    options: dict[str, Any] = {"temperature": 0.0}
    if search[0] == "beam_size":
        options["beam_size"] = 3
    elif search[0] == "best_of":
        options = {"temperature": 0.7, "best_of": 2}
    alone = whisper.transcribe(CLIP, vad="off", token_logprobs=True, **options)
    given = [(name, str(value)) for name, value in options.items()]
    given = [("temperature", f"[{v}]") if n == "temperature" else (n, v) for n, v in given]
    fields = (*given, ("vad", "off"), ("include[]", "logprobs"), ("response_format", form))
    found = post(server, CLIP, *fields).json
    expected = [
        logprob
        for segment in alone
        for token, logprob in zip(segment.tokens, segment.token_logprobs or ())
        if token in whisper.vocab.text
    ]
    assert [each["logprob"] for each in found["logprobs"]] == expected
    spelled = b"".join(bytes(each["bytes"]) for each in found["logprobs"])
    assert spelled.decode("utf-8", "replace") == alone.text
    for each in found["logprobs"]:
        assert each["token"] == bytes(each["bytes"]).decode("utf-8", "replace")
    if form == "verbose_json":
        listed = [tuple(segment["token_logprobs"]) for segment in found["segments"]]
        assert listed == [segment.token_logprobs for segment in alone]


def test_events_have_the_logprobs_of_their_text(server: Server) -> None:
    fields = (*PLAIN, ("include[]", "logprobs"))
    plain = post(server, CLIP, *fields).json
    *deltas, done = post(server, CLIP, *fields, ("stream", "true")).events
    assert len(deltas) > 1
    assert done["logprobs"] == plain["logprobs"]
    assert [each for event in deltas for each in event["logprobs"]] == plain["logprobs"]
    for event in deltas:
        spelled = b"".join(bytes(each["bytes"]) for each in event["logprobs"])
        assert spelled.decode("utf-8", "replace").strip() == event["delta"].strip()


def test_a_token_that_cannot_occur() -> None:
    segment = Segment(0, 0.0, 1.0, "a", (97,), 0.0, 0.0, 1.0, 0.0, 0)
    segment = dataclasses.replace(segment, token_logprobs=(-math.inf,))
    (found,) = logprobs_of([segment], Bytes())  # type: ignore[arg-type] # as below
    assert found == {"token": "a", "logprob": -9999.0, "bytes": [97]}


# deltas


def segments(*texts: bytes) -> list[Segment]:
    return [
        Segment(i, 0.0, 1.0, "", tuple(text), 0.0, 0.0, 1.0, 0.0, 0) for i, text in enumerate(texts)
    ]


class Bytes:
    """A vocabulary whose tokens are bytes."""

    text = range(256)

    def spelling(self, tokens: tuple[int, ...]) -> bytes:
        return bytes(tokens)


@pytest.mark.parametrize(
    "texts",
    [
        (),
        (b"",),
        (b" ", b"\n"),
        (b" Hello", b" world. "),
        (b"  a ", b" ", b"  b  "),
        ("né".encode()[:2], "né".encode()[2:]),
        (b"\xe2\x82", b" x", b"\xff"),
        (b"a", b"\xf0\x9f"),
    ],
)
def test_joined_deltas_are_the_text(texts: tuple[bytes, ...]) -> None:
    deltas = Deltas(Bytes())  # type: ignore[arg-type] # only `spelling` is used
    pieces = [deltas.add(segment) for segment in segments(*texts)] + [deltas.end()]
    assert "".join(pieces) == b"".join(texts).decode("utf-8", "replace").strip()


def test_spelling_is_what_decode_decodes(whisper: Whisper) -> None:
    vocab = whisper.vocab
    tokens = [vocab.sot, *range(50), vocab.times.start + 3, *range(200, 400)]
    assert vocab.spelling(tokens).decode("utf-8", "replace") == vocab.decode(tokens)


# models


def test_models_are_listed(server: Server) -> None:
    listed = get(server, "/v1/models").json
    assert listed["object"] == "list"
    assert [model["id"] for model in listed["data"]][:2] == ["tiny", "whisper-1"]
    for model in listed["data"]:
        assert get(server, f"/v1/models/{model['id']}").json == model
        assert set(model) == {"id", "object", "created", "owned_by"}
