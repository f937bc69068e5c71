"""Speakers in every output format, and RTTM."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from whisper_opt import OptionError, Segment, SubtitleOptions, Transcript, Word
from whisper_opt.text.results import Turn
from whisper_opt.text.writers import FORMATS, TEXT_FORMATS, render, write


def spoken(speaker: str | None, start: float, text: str, channel: int | None = None) -> Segment:
    words = tuple(
        Word(start + i, start + i + 0.5, f" {word}", 1.0, speaker)
        for i, word in enumerate(text.split())
    )
    return Segment(
        0, start, words[-1].end, f" {text}", (), -0.1, 0.0, 1.0, 0.0, 0, words, None, False,
        speaker, channel,
    )  # fmt: skip


def transcript(*segments: Segment, turns: tuple[Turn, ...] = ()) -> Transcript:
    text = "".join(segment.text for segment in segments)
    return Transcript(segments, "en", 9.0, text, turns=turns)


TWO = transcript(spoken("Ann, <b>", 0.0, "hello there"), spoken("B", 3.0, "hi"))


def without_words(found: Transcript) -> Transcript:
    segments = tuple(dataclasses.replace(segment, words=None) for segment in found)
    return dataclasses.replace(found, segments=segments)


@pytest.mark.parametrize("found", [TWO, without_words(TWO)], ids=["words", "segments"])
@pytest.mark.parametrize(
    ("form", "expected"),
    [
        ("txt", "Ann, <b>: hello there\nB: hi\n"),
        (
            "srt",
            "1\n00:00:00,000 --> 00:00:01,500\nAnn, <b>: hello there\n\n"
            "2\n00:00:03,000 --> 00:00:03,500\nB: hi\n\n",
        ),
        (
            "vtt",
            "WEBVTT\n\n00:00.000 --> 00:01.500\n<v Ann, &lt;b&gt;>hello there\n\n"
            "00:03.000 --> 00:03.500\n<v B>hi\n\n",
        ),
        (
            "tsv",
            "start\tend\ttext\tspeaker\n0\t1500\thello there\tAnn, <b>\n3000\t3500\thi\tB\n",
        ),
        ("lrc", "[00:00.00]Ann, <b>: hello there\n[00:03.00]B: hi\n"),
    ],
)
def test_formats_show_speakers(form: str, expected: str, found: Transcript) -> None:
    assert FORMATS[form](found) == expected


def test_ass_has_speakers_in_their_field_and_before_the_text() -> None:
    lines = FORMATS["ass"](TWO).splitlines()[-2:]
    assert lines == [
        "Dialogue: 0,0:00:00.00,0:00:01.50,Default,Ann; <b>,0,0,0,,Ann, <b>: hello there",
        "Dialogue: 0,0:00:03.00,0:00:03.50,Default,B,0,0,0,,B: hi",
    ]


def test_json_has_speakers_channels_and_turns() -> None:
    turns = (Turn(0.0, 1.5, "A"),)
    result = transcript(spoken("A", 0.0, "hello", 1), turns=turns).to_dict()
    (entry,) = result["segments"]
    assert (entry["speaker"], entry["channel"]) == ("A", 1)
    assert entry["words"][0]["speaker"] == "A"
    assert "overlap" not in entry["words"][0]
    assert Word(0, 1, "a", 1, "A", overlap=True).to_dict()["overlap"] is True
    assert result["turns"] == [{"start": 0.0, "end": 1.5, "speaker": "A"}]


@pytest.mark.parametrize("form", TEXT_FORMATS)
def test_without_speakers_nothing_is_shown(form: str) -> None:
    text = FORMATS[form](transcript(spoken(None, 0.0, "hello there")))
    assert "None" not in text
    assert "speaker" not in text
    assert ": hello" not in text


@pytest.mark.parametrize("form", ["srt", "vtt", "ass", "lrc"])
def test_a_cue_has_the_words_of_one_speaker(form: str) -> None:
    options = SubtitleOptions(max_line_width=40, max_line_count=2)
    found = transcript(spoken("A", 0.0, "hello"), spoken("B", 0.6, "hi"), spoken("B", 1.2, "you"))
    text = FORMATS[form](found, options)
    voices = ("<v A>hello\n", "<v B>hi you\n") if form == "vtt" else ("A: hello\n", "B: hi you\n")
    assert all(voice in text for voice in voices), text


def test_rttm_lists_turns(tmp_path: Path) -> None:
    turns = (Turn(0.0, 2.25, "Ann B"), Turn(1.5, 3.0, "B"))
    found = transcript(spoken("A", 0.0, "hello"), turns=turns)
    expected = (
        "SPEAKER recording 1 0.000 2.250 <NA> <NA> Ann_B <NA> <NA>\n"
        "SPEAKER recording 1 1.500 1.500 <NA> <NA> B <NA> <NA>\n"
    )
    assert FORMATS["rttm"](found) == expected
    assert render(found, "rttm", name="my talk") == expected.replace(" recording ", " my_talk ")
    write(found, tmp_path / "my talk.rttm", "rttm")
    written = (tmp_path / "my talk.rttm").read_text(encoding="utf-8")
    assert written == expected.replace("recording", "my_talk")


@pytest.mark.parametrize("words", [True, False])
def test_rttm_of_channels_is_made_from_words(words: bool) -> None:
    found = transcript(
        spoken("channel 0", 0.0, "one", 0),
        spoken("channel 1", 0.25, "two", 1),
        spoken("channel 0", 0.75, "three", 0),
        spoken("channel 0", 5.0, "four", 0),
    )
    assert FORMATS["rttm"](found if words else without_words(found)).splitlines() == [
        "SPEAKER recording 1 0.000 1.250 <NA> <NA> channel_0 <NA> <NA>",
        "SPEAKER recording 2 0.250 0.500 <NA> <NA> channel_1 <NA> <NA>",
        "SPEAKER recording 1 5.000 0.500 <NA> <NA> channel_0 <NA> <NA>",
    ]


def test_rttm_needs_speakers() -> None:
    with pytest.raises(OptionError, match="transcribe with diarize, or with channels='split'"):
        FORMATS["rttm"](transcript(spoken(None, 0.0, "hello")))
    assert FORMATS["rttm"](transcript()) == ""
