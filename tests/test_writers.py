"""Results and the text formats they are written in."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import sys

import pytest

from whisper_opt import writers
from whisper_opt.errors import OptionError, WhisperOptError
from whisper_opt.results import Segment, Transcript, Word

DATA = pathlib.Path(__file__).parent / "data" / "writers"


def read(name: str) -> Transcript:
    result = json.loads((DATA / f"{name}.json").read_text(encoding="utf-8"))
    segments = []
    for entry in result["segments"]:
        words = entry.pop("words", None)
        if words is not None:
            words = tuple(Word(**word) for word in words)
        tokens = tuple(entry.pop("tokens"))
        segments.append(Segment(**entry, tokens=tokens, words=words))
    return Transcript(tuple(segments), result["language"], 11.0, result["text"])


def segment(text: str = " hello", start: float = 0.0, end: float = 1.0) -> Segment:
    return Segment(0, start, end, text, (), -0.1, 0.0, 1.0, 0.0, 0)


def transcript(*segments: Segment) -> Transcript:
    return Transcript(segments, "en", 1.0, "".join(each.text for each in segments), 0.5)


@pytest.mark.parametrize("name", ["transcript", "words"])
@pytest.mark.parametrize("format", ["txt", "srt", "vtt", "tsv", "json"])
def test_formats_equal_the_reference_byte_for_byte(name: str, format: str) -> None:
    expected = (DATA / f"{name}.expected.{format}").read_bytes()
    assert writers.FORMATS[format](read(name)).encode("utf-8") == expected


def test_formats_are_the_five_of_the_reference() -> None:
    assert sorted(writers.FORMATS) == ["json", "srt", "tsv", "txt", "vtt"]


@pytest.mark.parametrize("format", ["srt", "vtt"])
def test_an_arrow_made_of_words_does_not_reach_a_subtitle(format: str) -> None:
    words = (Word(0.0, 0.4, " a", 1.0), Word(0.4, 0.5, " --", 1.0), Word(0.5, 1.0, "> b", 1.0))
    text = writers.FORMATS[format](transcript(dataclasses.replace(segment(), words=words)))
    assert "a -> b\n" in text
    assert text.count("-->") == 1


@pytest.mark.parametrize(
    ("format", "expected"),
    [
        ("txt", ""),
        ("srt", ""),
        ("vtt", "WEBVTT\n\n"),
        ("tsv", "start\tend\ttext\n"),
        ("json", '{"text": "", "segments": [], "language": "en"}'),
    ],
)
def test_silence(format: str, expected: str) -> None:
    assert writers.FORMATS[format](transcript()) == expected


@pytest.mark.parametrize("seconds", [-0.001, float("nan")])
def test_impossible_times_are_refused(seconds: float) -> None:
    with pytest.raises(WhisperOptError, match="0 s or later"):
        writers.to_srt(transcript(segment(start=seconds)))


def test_transcript_is_a_sequence_of_its_segments() -> None:
    first, second = segment(" a"), segment(" b")
    result = transcript(first, second)
    assert len(result) == 2
    assert list(result) == [first, second]
    assert result[-1] is second
    assert result[:1] == (first,)
    assert second in result
    assert not transcript()
    assert hash(result) == hash(transcript(first, second))


def test_results_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        segment().text = "other"  # type: ignore[misc]


def test_dict_has_the_keys_of_the_reference_in_order() -> None:
    word = Word(0.0, 0.5, " hello", 0.9)
    result = transcript(segment(), dataclasses.replace(segment(), words=(word,))).to_dict()
    assert list(result) == ["text", "segments", "language"]
    keys = ["id", "seek", "start", "end", "text", "tokens", "temperature", "avg_logprob"]
    keys += ["compression_ratio", "no_speech_prob"]
    assert list(result["segments"][0]) == keys
    assert list(result["segments"][1]) == [*keys, "words"]
    assert list(result["segments"][1]["words"][0]) == ["word", "start", "end", "probability"]


# Files


def test_write_replaces_an_older_file_and_leaves_nothing_else(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "talk.srt"
    path.write_text("older")
    writers.write(read("transcript"), path, "srt")
    assert path.read_bytes() == (DATA / "transcript.expected.srt").read_bytes()
    assert os.listdir(tmp_path) == ["talk.srt"]


def test_write_takes_names_as_long_as_the_file_system_does(tmp_path: pathlib.Path) -> None:
    path = tmp_path / ("n" * 251 + ".txt")
    writers.write(transcript(segment()), str(path), "txt")
    assert path.read_text() == "hello\n"


def test_unknown_format_is_refused_before_anything_is_written(tmp_path: pathlib.Path) -> None:
    with pytest.raises(OptionError, match="txt, srt, vtt, tsv, json"):
        writers.write(transcript(), tmp_path / "a.doc", "doc")
    assert os.listdir(tmp_path) == []


def test_missing_directory(tmp_path: pathlib.Path) -> None:
    with pytest.raises(WhisperOptError, match="No such file"):
        writers.write(transcript(), tmp_path / "missing" / "a.txt", "txt")


def test_a_directory_in_the_way(tmp_path: pathlib.Path) -> None:
    (tmp_path / "a.txt").mkdir()
    with pytest.raises(WhisperOptError, match="cannot write"):
        writers.write(transcript(), tmp_path / "a.txt", "txt")
    assert os.listdir(tmp_path) == ["a.txt"]


def test_a_failed_write_keeps_the_older_file(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.txt"
    path.write_text("older")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(WhisperOptError, match="No space left"):
        writers.write(transcript(segment()), path, "txt")
    assert path.read_text() == "older"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_text_that_is_not_unicode(tmp_path: pathlib.Path) -> None:
    with pytest.raises(WhisperOptError, match="surrogates"):
        writers.write(transcript(segment("\ud800")), tmp_path / "a.txt", "txt")
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(sys.platform == "win32", reason="links and modes of POSIX")
def test_links_are_followed_and_modes_are_the_users(tmp_path: pathlib.Path) -> None:
    (tmp_path / "target.txt").write_text("older")
    (tmp_path / "link.txt").symlink_to("target.txt")
    writers.write(transcript(segment()), tmp_path / "link.txt", "txt")
    assert (tmp_path / "link.txt").is_symlink()
    assert (tmp_path / "target.txt").read_text() == "hello\n"
    (tmp_path / "plain").write_text("")
    assert (tmp_path / "target.txt").stat().st_mode == (tmp_path / "plain").stat().st_mode
