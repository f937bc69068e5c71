"""Fields of forms: what each means, and what is refused."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from whisper_opt.core.options import ServeOptions, SubtitleOptions, TranscribeOptions
from whisper_opt.serving.http.call import LIBRARY_FIELDS, SERVER_FIELDS, Call, read_call
from whisper_opt.serving.http.errors import ApiError

LIMITS = ServeOptions(max_audio_seconds=100.0, max_hypotheses=5)
DEFAULT = TranscribeOptions(max_duration=100.0)


def read(*fields: tuple[str, str], translate: bool = False) -> Call:
    return read_call([("model", "m"), *fields], LIMITS, translate=translate)


def changed(*fields: tuple[str, str]) -> dict[str, Any]:
    """Options that are not the default."""
    found = read(*fields).options
    return {
        field.name: getattr(found, field.name)
        for field in dataclasses.fields(found)
        if getattr(found, field.name) != getattr(DEFAULT, field.name)
    }


def refusal(*fields: tuple[str, str], translate: bool = False) -> ApiError:
    with pytest.raises(ApiError) as caught:
        read(*fields, translate=translate)
    assert caught.value.status == 400
    return caught.value


def test_the_default() -> None:
    call = read()
    assert call.options == DEFAULT
    assert call.subtitles == SubtitleOptions()
    assert (call.model, call.response_format, call.stream) == ("m", "json", False)
    assert call.granularities == {"segment"}
    assert call.languages == ()


@pytest.mark.parametrize(
    ("fields", "options"),
    [
        ([("prompt", "Names: Ada.")], {"initial_prompt": "Names: Ada."}),
        ([("language", "de")], {"language": "de"}),
        ([("language", "")], {}),
        ([("languages[]", "de")], {"language": "de"}),
        ([("keywords[]", "Ada"), ("keywords[]", "Bob")], {"hotwords": "Ada, Bob"}),
        ([("draft", "So it is.\nYes.")], {"draft": "So it is.\nYes."}),
        (
            [("draft", "1\n00:00:01,500 --> 00:00:02,000\nSo it is\n")],
            {"draft": [{"start": 1.5, "end": 2.0, "text": "So it is"}]},
        ),
        ([("keywords", "Ada"), ("keywords", "Bob")], {"hotwords": "Ada, Bob"}),
        ([("keywords", '["Ada", "Bob"]')], {"hotwords": "Ada, Bob"}),
        ([("temperature", "0")], {}),
        ([("temperature", "0.5")], {"temperature": (0.5,)}),
        ([("temperature", "[0]")], {"temperature": (0.0,)}),
        ([("temperature", "0,0.5")], {"temperature": (0.0, 0.5)}),
        ([("temperature[]", "0"), ("temperature[]", "0.5")], {"temperature": (0.0, 0.5)}),
        ([("chunking_strategy", "auto")], {"strategy": "batched"}),
        ([("beam_size", "3")], {"beam_size": 3}),
        ([("vad_threshold", "0.2")], {"vad_threshold": 0.2}),
        ([("suppress_blank", "false")], {"suppress_blank": False}),
        ([("suppress_tokens", "1,2")], {"suppress_tokens": (1, 2)}),
        ([("suppress_tokens", "[]")], {"suppress_tokens": ()}),
        ([("no_speech_threshold", "none")], {"no_speech_threshold": None}),
        ([("clip_timestamps[]", "0"), ("clip_timestamps[]", "2.5")], {"clip_timestamps": (0, 2.5)}),
        ([("task", "translate")], {"task": "translate"}),
        ([("condition_on_previous_text", "False")], {"condition_on_previous_text": False}),
    ],
)
def test_fields_become_options(fields: list[tuple[str, str]], options: dict[str, Any]) -> None:
    assert changed(*fields) == options


SERVER_VAD = {
    "strategy": "batched",
    "vad_threshold": 0.5,
    "vad_speech_pad": 0.1,
    "vad_min_silence_duration": 0.2,
}


@pytest.mark.parametrize(
    "fields",
    [
        [
            ("chunking_strategy[type]", "server_vad"),
            ("chunking_strategy[prefix_padding_ms]", "100"),
        ],
        [("chunking_strategy", '{"type": "server_vad", "prefix_padding_ms": 100}')],
        [
            (
                "chunking_strategy",
                ' {"type": "server_vad", "prefix_padding_ms": 100, "threshold": null}',
            )
        ],
    ],
)
def test_a_server_vad(fields: list[tuple[str, str]]) -> None:
    assert changed(*fields) == SERVER_VAD


@pytest.mark.parametrize("name", ["timestamp_granularities", "timestamp_granularities[]"])
def test_granularities(name: str) -> None:
    call = read((name, "word"), (name, "segment"), ("response_format", "verbose_json"))
    assert call.granularities == {"word", "segment"}
    assert call.options.word_timestamps


def test_several_languages_are_candidates() -> None:
    call = read(("languages[]", "de"), ("languages[]", "french"), ("languages[]", "de"))
    assert call.languages == ("de", "fr")
    assert call.options.language is None


CLIP_URL = "data:audio/wav;base64,UklGRg=="
DIARIZED = ("response_format", "diarized_json")


def known(name: str, url: str) -> list[tuple[str, str]]:
    return [("known_speaker_names[]", name), ("known_speaker_references[]", url)]


def test_speakers() -> None:
    call = read(
        DIARIZED, *known("agent", CLIP_URL), *known("Ann ", CLIP_URL), ("num_speakers", "3")
    )
    assert call.options.diarize
    assert call.options.known_speakers == (("agent", b"RIFF"), ("Ann", b"RIFF"))
    assert call.options.num_speakers == 3
    assert not read(DIARIZED, ("channels", "split")).options.diarize
    assert read(("diarize", "true"), ("response_format", "srt")).options.diarize


def test_a_translation() -> None:
    call = read(("prompt", "Names"), translate=True)
    assert call.options.task == "translate"
    assert call.options.initial_prompt == "Names"


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ([("nope", "1")], "nope", "unknown_parameter"),
        ([("nope[]", "1")], "nope", "unknown_parameter"),
        ([("model", "other")], "model", "invalid_value"),
        ([("response_format", "xml")], "response_format", "invalid_value"),
        (
            [("response_format", "diarized_json"), ("diarize", "false")],
            "diarize",
            "invalid_value",
        ),
        ([("diarize", "true"), ("channels", "split")], "diarize", "invalid_value"),
        ([("num_speakers", "2")], "num_speakers", "invalid_value"),
        ([("timestamp_granularities[]", "word")], "response_format", "invalid_value"),
        (
            [("timestamp_granularities[]", "x"), ("response_format", "verbose_json")],
            "timestamp_granularities",
            "invalid_value",
        ),
        ([("include[]", "logprobs"), ("response_format", "srt")], "include", "invalid_value"),
        ([("include", "logprobs"), ("token_logprobs", "false")], "include", "invalid_value"),
        (
            [("token_logprobs", "true"), ("response_format", "text")],
            "token_logprobs",
            "invalid_value",
        ),
        ([("include[]", "logprobs"), ("transcript_prefix", "a")], "include", "invalid_value"),
        ([("include[]", "x")], "include", "invalid_value"),
        ([("known_speaker_names[]", "x")], "known_speaker_names", "invalid_value"),
        ([*known("x", CLIP_URL)], "known_speaker_names", "invalid_value"),
        ([*known("x", "http://x/a.wav"), DIARIZED], "known_speaker_references", "invalid_value"),
        ([*known("x", CLIP_URL + "*"), DIARIZED], "known_speaker_references", "invalid_value"),
        (
            [*known("x", CLIP_URL), *known("x", CLIP_URL), DIARIZED],
            "known_speaker_names",
            "invalid_value",
        ),
        (17 * [*known("x", CLIP_URL)] + [DIARIZED], "known_speaker_names", "invalid_value"),
        ([("stream", "yes")], "stream", "invalid_value"),
        ([("stream", "true"), ("response_format", "srt")], "stream", "invalid_value"),
        ([("temperature", "2")], "temperature", "invalid_value"),
        ([("temperature", "nan")], "temperature", "invalid_value"),
        ([("temperature", "warm")], "temperature", "invalid_value"),
        ([("temperature", "[0,11]")], "temperature", "invalid_value"),
        ([("language", "klingon")], "language", "invalid_value"),
        ([("languages[]", "klingon")], "languages", "invalid_value"),
        ([("languages[]", "de"), ("language", "de")], "languages", "invalid_value"),
        ([("keywords[]", "a"), ("hotwords", "b")], "hotwords", "invalid_value"),
        ([("prompt", "a"), ("initial_prompt", "b")], "initial_prompt", "invalid_value"),
        ([("keywords", "[1]")], "keywords", "invalid_value"),
        ([("keywords", "[")], "keywords", "invalid_value"),
        ([("chunking_strategy", "x")], "chunking_strategy", "invalid_value"),
        ([("chunking_strategy", "{}")], "chunking_strategy", "invalid_value"),
        ([("chunking_strategy", "{")], "chunking_strategy", "invalid_value"),
        ([("chunking_strategy[type]", "semantic_vad")], "chunking_strategy", "invalid_value"),
        (
            [("chunking_strategy", '{"type": "server_vad", "x": 1}')],
            "chunking_strategy",
            "invalid_value",
        ),
        (
            [("chunking_strategy", '{"type": "server_vad", "threshold": 2}')],
            "chunking_strategy",
            "invalid_value",
        ),
        (
            [("chunking_strategy", "auto"), ("strategy", "sequential")],
            "strategy",
            "invalid_value",
        ),
        ([("beam_size", "0")], "beam_size", "invalid_value"),
        ([("beam_size", "6")], "beam_size", "invalid_value"),
        ([("beam_size", "many")], "beam_size", "invalid_value"),
        ([("beam_size", "2"), ("beam_size", "2")], "beam_size", "invalid_value"),
        ([("best_of", "6")], "best_of", "invalid_value"),
        ([("patience", "1")], "patience", "invalid_value"),
        ([("carry_initial_prompt", "true")], "carry_initial_prompt", "invalid_value"),
        ([("vad", "off"), ("vad_threshold", "0.5")], "vad_threshold", "invalid_value"),
        ([("suppress_tokens", "a")], "suppress_tokens", "invalid_value"),
        ([("max_line_width", "20")], "max_line_width", "invalid_value"),
        (
            [("max_line_width", "20"), ("response_format", "srt")],
            "max_line_width",
            "invalid_value",
        ),
        *[([(name, "1")], name, "unsupported_parameter") for name in SERVER_FIELDS],
    ],
)
def test_refusals(fields: list[tuple[str, str]], param: str, code: str) -> None:
    error = refusal(*fields)
    assert (error.param, error.code) == (param, code)


@pytest.mark.parametrize(
    "name",
    ["languages[]", "keywords", "include[]", "timestamp_granularities[]", "stream"],
)
def test_fields_that_translations_do_not_have(name: str) -> None:
    error = refusal((name, "x"), translate=True)
    assert error.code == "unsupported_parameter"
    assert error.param == name.replace("[]", "")


def test_a_translation_is_none_of_another_task() -> None:
    assert refusal(("task", "transcribe"), translate=True).param == "task"


def test_the_model_is_required() -> None:
    with pytest.raises(ApiError) as caught:
        read_call([], LIMITS, translate=False)
    assert (caught.value.param, caught.value.code) == ("model", "missing_required_parameter")


def test_every_option_of_the_library_is_a_field() -> None:
    """A value of the right kind is never unknown to the server."""
    names = {field.name for field in dataclasses.fields(TranscribeOptions)}
    names |= {field.name for field in dataclasses.fields(SubtitleOptions)}
    assert names == {*LIBRARY_FIELDS, *SERVER_FIELDS}


@pytest.mark.parametrize(
    "name",
    [n for n, f in LIBRARY_FIELDS.items() if f.metadata["kind"] not in ("text", "transcript")],
)
def test_a_value_of_another_kind_is_refused_by_name(name: str) -> None:
    error = refusal((name, "x"))
    assert (error.param, error.code) == (name, "invalid_value")
