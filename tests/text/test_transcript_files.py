"""Transcripts as other programs write them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from whisper_opt.text.transcript_files import read_transcript

WRITERS = Path(__file__).parents[1] / "data" / "writers"
CUES = [
    {"start": 1.5, "end": 3.25, "text": "So it is"},
    {"start": 3725.0, "end": 3726.001, "text": "<3 & two lines"},
]


@pytest.mark.parametrize(
    "text",
    [
        "1\n00:00:01,500 --> 00:00:03,250\nSo it is\n\n"
        "2\n01:02:05,000 --> 01:02:06,001\n<i>&lt;3</i> &amp;\ntwo lines\n",
        "WEBVTT\n\nNOTE nothing\n\n00:01.500 --> 00:03.250 align:start\n<v Ann>So it is</v>\n\n"
        "named\n01:02:05.000 --> 01:02:06.001\n&lt;3 &amp; two lines",
        "\ufeff1\r\n00:00:01,500 --> 00:00:03,250\r\nSo it is\r\n\r\n"
        "2\r\n01:02:05,000 --> 01:02:06,001\r\n<3 & two\r\nlines\r\n",
    ],
)
def test_subtitles(text: str) -> None:
    assert read_transcript(text) == CUES


def test_files_of_this_library_are_read_back() -> None:
    segments = json.loads((WRITERS / "transcript.json").read_text(encoding="utf-8"))["segments"]
    for suffix in ("srt", "vtt"):
        text = (WRITERS / f"transcript.expected.{suffix}").read_text(encoding="utf-8")
        found = read_transcript(text)
        assert isinstance(found, list)
        found = [each for each in found if each["text"]]
        spoken = [each for each in segments if each["text"].strip()]
        assert [each["text"] for each in found] == [
            " ".join(re.sub("</?i>", "", each["text"].replace("-->", "->")).split())
            for each in spoken
        ]
        assert [each["start"] for each in found] == pytest.approx(
            [each["start"] for each in spoken], abs=0.001
        )


def test_json() -> None:
    whole = {"text": "So", "segments": [{"start": 0, "end": 1, "text": "So"}]}
    assert read_transcript(json.dumps(whole)) == whole
    assert read_transcript(json.dumps(whole["segments"])) == whole["segments"]
    assert read_transcript('{"text": "So it is"}') == "So it is"


@pytest.mark.parametrize("text", ["", "So it is.\nYes --> no", "[Music] and so on", "{", "1\n2\n"])
def test_anything_else_is_text(text: str) -> None:
    assert read_transcript(text) == text


def test_hours_of_many_digits_are_text() -> None:
    line = f"{'9' * 5000}:00:01.500 --> 00:03.250\nSo it is"
    assert read_transcript(line) == line


@pytest.mark.parametrize(
    "text",
    ["\n" * 1_000_000, "\n \t" * 500_000, "1" * 1_000_000, "00:01.500" + " " * 1_000_000],
    ids=["lines", "blanks", "digits", "no_end"],
)
def test_hostile_text_is_read_once(text: str) -> None:
    """Looking from every line or digit to the end would take hours."""
    assert read_transcript(text) == text


def test_hostile_tags_are_read_once() -> None:
    text = f"00:01.500 --> 00:03.250\n{'<a' * 1_000_000}"
    assert read_transcript(text) == [{"start": 1.5, "end": 3.25, "text": "<a" * 1_000_000}]
