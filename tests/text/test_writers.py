"""Results and their output formats."""

from __future__ import annotations

import dataclasses
import gzip
import io
import json
import os
import pathlib
import re
import stat
import sys
from typing import Any

import av
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from whisper_opt.core.errors import OptionError, WhisperOptError
from whisper_opt.core.options import SubtitleOptions
from whisper_opt.text import subtitles, writers
from whisper_opt.text.results import Dropped, Segment, Transcript, Word

DATA = pathlib.Path(__file__).parents[1] / "data" / "writers"
SUBTITLES: list[dict[str, Any]] = json.loads(
    gzip.decompress((DATA / "subtitles.json.gz").read_bytes())
)
HIGHLIGHT = SubtitleOptions(highlight_words=True)


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


def said(*words: tuple[str, float, float], id: int = 0) -> Segment:
    """A segment of words, each with its start and end."""
    timed = tuple(Word(start, end, word, 1.0) for word, start, end in words)
    start, end = (timed[0].start, timed[-1].end) if timed else (0.0, 0.0)
    text = "".join(word for word, _, _ in words)
    return Segment(id, start, end, text, (), -0.1, 0.0, 1.0, 0.0, 0, timed)


def segment(text: str = " hello", start: float = 0.0, end: float = 1.0) -> Segment:
    return Segment(0, start, end, text, (), -0.1, 0.0, 1.0, 0.0, 0)


def transcript(*segments: Segment) -> Transcript:
    return Transcript(segments, "en", 1.0, "".join(each.text for each in segments), 0.5)


@pytest.fixture
def any_length(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cues as short as the reference writes them."""
    monkeypatch.setattr(subtitles, "LEAST", 0.0)


@pytest.mark.usefixtures("any_length")
@pytest.mark.parametrize("name", ["transcript", "words"])
@pytest.mark.parametrize("format", ["txt", "srt", "vtt", "tsv", "json"])
def test_formats_equal_the_reference_byte_for_byte(name: str, format: str) -> None:
    expected = (DATA / f"{name}.expected.{format}").read_bytes()
    assert writers.FORMATS[format](read(name)).encode("utf-8") == expected


@pytest.mark.usefixtures("any_length")
@pytest.mark.parametrize("case", SUBTITLES, ids=[case["name"] for case in SUBTITLES])
def test_subtitles_equal_the_reference_byte_for_byte(case: dict[str, Any]) -> None:
    segments = [said(*map(tuple, words), id=i) for i, words in enumerate(case["segments"])]
    result = transcript(*segments)
    for file in case["files"]:
        found = writers.FORMATS[file["format"]](result, SubtitleOptions(**file["options"]))
        expected = file["text"]
        if file["options"].get("highlight_words"):
            expected = without_moments(expected, file["format"])
        assert found == expected, (file["format"], file["options"])


def without_moments(text: str, format: str) -> str:
    """The reference's text without entries of no duration."""
    number = r"(?:\d+\n)?"
    entry = rf"{number}(\S+) --> (\S+)\n(.*?)\n\n(?={number}\S+ --> |\Z)"
    kept = [
        f"{start} --> {end}\n{shown}\n\n"
        for start, end, shown in re.findall(entry, text, re.DOTALL)
        if start != end
    ]
    if format == "vtt":
        return "".join(["WEBVTT\n\n", *kept])
    return "".join(f"{i}\n{each}" for i, each in enumerate(kept, 1))


def test_a_cue_of_no_duration_is_lengthened() -> None:
    alone = said((" a", 5.0, 5.0))
    options = SubtitleOptions(max_words_per_line=1)
    assert times(transcript(alone), options) == [(4.88, 5.0)]  # the end of the recording
    longer = dataclasses.replace(transcript(alone), duration=6.0)
    assert times(longer, options) == [(5.0, 5.12)]
    pause = said((" a", 1.0, 2.0), (" b", 2.0, 2.0), (" c", 3.0, 4.0))
    assert times(transcript(pause), options) == [(1.0, 2.0), (2.0, 2.12), (3.0, 4.0)]
    before = said((" a", 1.0, 1.5), (" b", 2.0, 2.0), (" c", 2.0, 4.0))
    assert times(transcript(before), options) == [(1.0, 1.5), (1.88, 2.0), (2.0, 4.0)]
    dense = said((" a", 1.0, 2.0), (" b", 2.0, 2.0), (" c", 2.0, 2.0), (" d", 2.0, 4.0))
    expected = [(1.0, 2.0), (2.0, 2.12), (2.12, 2.24), (2.24, 4.0)]
    assert times(transcript(dense), options) == expected
    end = said((" a", 0.0, 1.0), (" b", 1.0, 1.0))
    assert times(transcript(end), options) == [(0.0, 0.88), (0.88, 1.0)]


def times(result: Transcript, options: SubtitleOptions) -> list[tuple[float, float]]:
    found = subtitles.cues(result, options)
    return [(round(cue.start, 3), round(cue.end, 3)) for cue in found]


WORD_TIMES = st.lists(
    st.tuples(st.integers(0, 30), st.sampled_from([0, 0, 0, 1, 2, 5, 20, 60])),
    min_size=1,
    max_size=25,
)
"""Pauses before words and their lengths, in 20 ms."""


@settings(max_examples=100)
@given(
    WORD_TIMES,
    st.booleans(),
    st.sampled_from(
        [{"max_words_per_line": 1}, {"max_words_per_line": 3}]
        + [{"max_line_width": 8, "max_line_count": n} for n in (1, 2)]
    ),
)
def test_every_cue_has_a_minimum_duration(
    spans: list[tuple[int, int]], close: bool, layout: dict[str, Any]
) -> None:
    """Cues stay in order, without overlap, near their times, and contain their words."""
    words, clock = [], 0.0
    for i, (pause, length) in enumerate(spans):
        start = clock + (0 if close else pause * 0.02)
        clock = start + length * 0.02
        words.append((f" w{i}", start, clock))
    result = dataclasses.replace(transcript(said(*words)), duration=clock)
    options = SubtitleOptions(**layout)
    found = list(subtitles.cues(result, options))
    assert " ".join(cue.text for cue in found).split() == [text.strip() for text, *_ in words]
    for cue in found:
        assert cue.end - cue.start > subtitles.LEAST - 1e-5
        for word in cue.words:
            assert cue.start - 1e-9 <= word.start <= word.end <= cue.end + 1e-9
    for sooner, later in zip(found, found[1:]):
        assert sooner.end <= later.start + 1e-9
    if subtitles.LEAST * len(found) <= clock:
        assert found[-1].end <= clock + 1e-9
    for form in ("srt", "vtt"):
        for highlight in (False, True):
            chosen = dataclasses.replace(options, highlight_words=highlight)
            text = writers.FORMATS[form](result, chosen)
            for start, end in re.findall(r"(\S+) --> (\S+)", text):
                assert start < end


def test_a_long_cue_and_an_empty_one_stay_as_they_are() -> None:
    result = transcript(segment("", 1.0, 1.0), segment(" a", 1.0, 1.2), segment(" b", 1.2, 3.0))
    assert times(result, SubtitleOptions()) == [(1.0, 1.0), (1.0, 1.2), (1.2, 3.0)]


def test_goldens_cover_every_option() -> None:
    files = [file for case in SUBTITLES for file in case["files"]]
    assert len(files) > 3000
    for name in SubtitleOptions.__dataclass_fields__:
        asked = [file for file in files if name in file["options"]]
        assert len(asked) > 500, name
        assert {file["format"] for file in asked} == {"srt", "vtt"}
    texts = [file["text"] for file in files]
    assert sum("<u>" in text for text in texts) > 1000
    assert any(re.search(r"\n.+\n.+\n.+\n\n", text) for text in texts)


def test_formats_are_those_of_the_reference_and_two_more() -> None:
    assert list(writers.FORMATS) == ["txt", "srt", "vtt", "tsv", "json", "lrc", "ass", "rttm"]
    assert set(writers.SUBTITLE_FORMATS) < set(writers.FORMATS)


# Output of the reference that players misread


@pytest.mark.parametrize("format", ["srt", "vtt"])
@pytest.mark.parametrize("options", [SubtitleOptions(), HIGHLIGHT])
@pytest.mark.parametrize("arrow", ["-->", "--->", "----->"])
def test_an_arrow_made_of_words_is_not_written(
    format: str, options: SubtitleOptions, arrow: str
) -> None:
    words = [(" a", 0.0, 0.4), (f" {arrow[:2]}", 0.4, 0.5), (f"{arrow[2:]} b", 0.5, 1.0)]
    text = writers.FORMATS[format](transcript(said(*words)), options)
    assert "a -> b\n" in text.replace("<u>", "").replace("</u>", "")
    cues = 3 if options.highlight_words else 1
    assert text.count("-->") == cues


@pytest.mark.parametrize("arrow", ["-->", "--->", "-->-->"])
def test_an_arrow_in_a_text_is_not_written(arrow: str) -> None:
    text = writers.to_srt(transcript(segment(f" a {arrow} b")))
    assert text == f"1\n00:00:00,000 --> 00:00:01,000\na {'->' * (len(arrow) // 3)} b\n\n"


@pytest.mark.parametrize("gap", ["\n\n", "\n \n\t\n", "\r\n\r\n", "\r\r"])
def test_a_blank_line_does_not_end_a_cue(gap: str) -> None:
    cue = "1\n00:00:00,000 --> 00:00:01,000\na{}b\n\n"
    assert writers.to_srt(transcript(segment(f" a{gap}b"))) == cue.format(gap[-1])
    words = said((" x", 0.0, 0.3), (f" a{gap[0]}", 0.3, 0.5), (f"{gap[1:]}b", 0.5, 1.0))
    assert writers.to_srt(transcript(words)) == cue.format(gap[-1]).replace("a", "x a")


def test_a_cue_does_not_end_in_a_blank_line() -> None:
    words = said((" toolong", 0.0, 0.5), (" ", 0.5, 1.0))
    text = writers.to_srt(transcript(words), SubtitleOptions(max_line_width=5))
    assert text == "1\n00:00:00,000 --> 00:00:01,000\ntoolong\n\n"


def test_words_that_overlap_have_no_pause_between_them() -> None:
    words = said((" a", 0.0, 1.0), (" b", 0.5, 1.5), (" c", 2.0, 3.0))
    assert writers.to_vtt(transcript(words), HIGHLIGHT) == (
        "WEBVTT\n\n"
        "00:00.000 --> 00:01.000\n<u>a</u> b c\n\n"
        "00:00.500 --> 00:01.500\na <u>b</u> c\n\n"
        "00:01.500 --> 00:02.000\na b c\n\n"
        "00:02.000 --> 00:03.000\na b <u>c</u>\n\n"
    )


def test_a_word_of_two_lines_is_highlighted() -> None:
    words = said((" a", 0.0, 1.0), (" b\nc", 1.0, 2.0))
    assert "\na <u>b\nc</u>\n" in writers.to_srt(transcript(words), HIGHLIGHT)


def test_a_segment_without_words_is_a_cue_among_those_with() -> None:
    text = writers.to_vtt(
        transcript(said((" a", 0.0, 1.0)), segment(" between", 2.0, 3.0), said((" b", 4.0, 5.0)))
    )
    assert re.findall(r"(\d\d)\.000 --> .*\n(.+)", text) == [
        ("00", "a"),
        ("02", "between"),
        ("04", "b"),
    ]


# Options that cannot be honoured


ALL_OPTIONS: list[dict[str, Any]] = [
    {"highlight_words": True},
    {"max_line_width": 20},
    {"max_line_width": 20, "max_line_count": 2},
    {"max_words_per_line": 3},
]


@pytest.mark.parametrize("options", ALL_OPTIONS)
@pytest.mark.parametrize("format", writers.SUBTITLE_FORMATS)
def test_options_need_word_times(format: str, options: dict[str, Any]) -> None:
    given = SubtitleOptions(**options)
    mixed = transcript(said((" a", 0.0, 1.0)), segment(" b", 1.0, 2.0))
    with pytest.raises(OptionError, match=f"{', '.join(options)}: .*word_timestamps"):
        writers.FORMATS[format](mixed, given)
    assert writers.FORMATS[format](transcript(), given) == writers.FORMATS[format](transcript())


@pytest.mark.parametrize("options", ALL_OPTIONS)
@pytest.mark.parametrize("format", ["txt", "tsv", "json"])
def test_options_need_subtitles(
    format: str, options: dict[str, Any], tmp_path: pathlib.Path
) -> None:
    words = transcript(said((" a", 0.0, 1.0)))
    with pytest.raises(OptionError, match=f"{format} has no subtitles .* srt, vtt, lrc, ass"):
        writers.write(words, tmp_path / "a", format, SubtitleOptions(**options))
    assert os.listdir(tmp_path) == []


# lrc


def test_lrc() -> None:
    text = writers.to_lrc(
        transcript(
            segment(" one", 0.0, 1.0),
            segment("", 1.0, 1.0),
            segment(" [Music]", 59.996, 61.0),
            segment(" two\nlines", 61.254, 70.0),
            segment(" an hour --> later", 6000.0, 6001.0),
        )
    )
    assert text == (
        "[00:00.00]one\n[01:00.00]\u2060[Music]\n[01:01.25]two lines\n"
        "[100:00.00]an hour --> later\n"
    )


def test_lrc_of_words() -> None:
    first = said((" And", 0.5, 0.8), (" so,", 0.8, 1.0), (" my", 1.5, 1.8))
    second = said(("我", 2.0, 2.5), ("们", 2.5, 3.0))
    words = transcript(first, second, said())
    assert writers.to_lrc(words) == "[00:00.50]And so, my\n[00:02.00]我们\n"
    assert writers.to_lrc(words, HIGHLIGHT) == (
        "[00:00.50]<00:00.50>And <00:00.80>so, <00:01.50>my<00:01.80>\n"
        "[00:02.00]<00:02.00>我<00:02.50>们<00:03.00>\n"
    )
    lines = "[00:00.50]And\n[00:00.80]so, my\n[00:02.00]我们\n"
    assert writers.to_lrc(words, SubtitleOptions(max_line_width=6)) == lines
    flowing = SubtitleOptions(max_line_width=8, max_line_count=2)
    assert writers.to_lrc(words, flowing) == "[00:00.50]And so,\n[00:01.50]my我们\n"
    pairs = "[00:00.50]And so,\n[00:01.50]my\n[00:02.00]我们\n"
    assert writers.to_lrc(words, SubtitleOptions(max_words_per_line=2)) == pairs


# ass


def dialogues(text: str) -> list[str]:
    _, events = text.split("[Events]\n")
    lines = events.splitlines()
    assert lines[0].startswith("Format: Layer, Start, End, Style, ")
    assert lines[0].endswith(", Text")
    assert all(line.startswith("Dialogue: 0,") for line in lines[1:])
    return [line.partition(" 0,")[2] for line in lines[1:]]


def test_ass_header_has_a_value_for_every_field() -> None:
    text = writers.to_ass(transcript())
    assert text.startswith("[Script Info]\n")
    assert "\nScriptType: v4.00+\n" in text
    styles = text.split("[V4+ Styles]\n")[1].splitlines()
    assert styles[0].count(",") == styles[1].count(",") == 22
    assert styles[1].startswith("Style: Default,")
    assert dialogues(text) == []
    event = dialogues(writers.to_ass(transcript(segment())))[0]
    fields = next(line for line in text.splitlines() if line.startswith("Format: Layer"))
    assert event.count(",") + 1 == fields.count(",")


def test_ass() -> None:
    text = writers.to_ass(
        transcript(
            segment(" one, two", 0.0, 1.005),
            segment("", 1.0, 2.0),
            segment(" a {\\b1} C:\\New\nline --> end", 59.999, 36061.5),
        )
    )
    assert dialogues(text) == [
        "0:00:00.00,0:00:01.00,Default,,0,0,0,,one, two",
        "0:01:00.00,10:01:01.50,Default,,0,0,0,,a \\{\\\u2060b1\\} C:\\\u2060New\\Nline --> end",
    ]


def test_ass_karaoke() -> None:
    words = said((" And", 0.5, 0.8), (" {so},", 0.8, 1.0), (" my", 1.5, 1.8), (" my", 1.7, 2.0))
    options = SubtitleOptions(highlight_words=True, max_line_width=10)
    assert dialogues(writers.to_ass(transcript(words), options)) == [
        "0:00:00.50,0:00:02.00,Default,,0,0,0,,"
        "{\\k30}And {\\k20}\\{so\\},\\N{\\k50}{\\k30}my {\\k20}my"
    ]


def test_ass_karaoke_takes_as_long_as_its_line() -> None:
    for case in SUBTITLES:
        segments = [said(*map(tuple, words)) for words in case["segments"]]
        if case["name"] == "overlap":
            continue
        for line in dialogues(writers.to_ass(transcript(*segments), HIGHLIGHT)):
            start, end = (
                round(
                    100 * sum(float(part) * 60**i for i, part in enumerate(time.split(":")[::-1]))
                )
                for time in line.split(",")[:2]
            )
            assert sum(map(int, re.findall(r"\{\\k(\d+)\}", line))) == end - start


@pytest.mark.parametrize(
    ("format", "expected"),
    [
        ("txt", ""),
        ("srt", ""),
        ("vtt", "WEBVTT\n\n"),
        ("tsv", "start\tend\ttext\n"),
        ("json", '{"text": "", "segments": [], "language": "en"}'),
        ("lrc", ""),
    ],
)
def test_silence(format: str, expected: str) -> None:
    assert writers.FORMATS[format](transcript()) == expected


@pytest.mark.parametrize("seconds", [-0.001, float("nan"), float("inf")])
@pytest.mark.parametrize("format", writers.SUBTITLE_FORMATS)
def test_impossible_times_are_refused(format: str, seconds: float) -> None:
    with pytest.raises(WhisperOptError, match="0 s or later"):
        writers.FORMATS[format](transcript(segment(start=seconds)))


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


def test_dict_has_dropped_parts_if_there_are_any() -> None:
    part = Dropped(1.0, 2.5, "no speech", " Thank you.")
    result = dataclasses.replace(transcript(segment()), dropped=(part,)).to_dict()
    assert list(result) == ["text", "segments", "language", "dropped"]
    (entry,) = result["dropped"]
    assert entry == {"start": 1.0, "end": 2.5, "reason": "no speech", "text": " Thank you."}


def read_by_ffmpeg(text: str, format: str) -> list[tuple[float, float, str]]:
    """Start, duration and text of the packets that FFmpeg's demuxer finds."""
    with av.open(io.BytesIO(text.encode("utf-8")), format=format) as container:
        packets = [packet for packet in container.demux() if packet.size]
    return [
        (
            float((packet.pts or 0) * packet.time_base),
            float((packet.duration or 0) * packet.time_base),
            bytes(packet).decode("utf-8").rstrip("\n"),
        )
        for packet in packets
    ]


TEXTS = ["one, two", "[Music]", "a {\\b1} C:\\New", "我们", "1:00 <00:01.00> Dialogue: 0,"]


def test_ffmpeg_reads_lrc() -> None:
    segments = [segment(text, 50.5 * i, 50.5 * i + 1) for i, text in enumerate(TEXTS)]
    found = read_by_ffmpeg(writers.to_lrc(transcript(*segments)), "lrc")
    assert [(start, text.lstrip("\u2060")) for start, _, text in found] == [
        (50.5 * i, text) for i, text in enumerate(TEXTS)
    ]


def test_ffmpeg_reads_ass() -> None:
    segments = [segment(text, 5000.5 * i, 5000.5 * i + 1.25) for i, text in enumerate(TEXTS)]
    found = read_by_ffmpeg(writers.to_ass(transcript(*segments)), "ass")
    assert [(start, length) for start, length, _ in found] == [
        (5000.5 * i, 1.25) for i in range(len(TEXTS))
    ]
    texts = [text.split(",", maxsplit=8)[8] for _, _, text in found]  # after the style and margins
    assert [re.sub(r"\\([{}])|\u2060", r"\1", text) for text in texts] == TEXTS


# Files


@pytest.mark.usefixtures("any_length")
def test_write_replaces_an_older_file_and_leaves_nothing_else(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "talk.srt"
    path.write_text("older")
    writers.write(read("transcript"), path, "srt")
    assert path.read_bytes() == (DATA / "transcript.expected.srt").read_bytes()
    assert os.listdir(tmp_path) == ["talk.srt"]


@pytest.mark.skipif(sys.platform == "win32", reason="permissions of POSIX")
@pytest.mark.parametrize("mode", [0o600, 0o640, 0o664, 0o400, 0o666])
def test_a_replaced_file_keeps_its_permissions(mode: int, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "talk.txt"
    path.write_text("older")
    path.chmod(mode)
    (tmp_path / "link.txt").symlink_to(path)
    umask = os.umask(0o022)
    try:
        writers.write(transcript(segment()), tmp_path / "link.txt", "txt")
    finally:
        os.umask(umask)
    assert stat.S_IMODE(path.stat().st_mode) == mode
    assert path.read_text() == "hello\n"
    assert (tmp_path / "link.txt").is_symlink()


@pytest.mark.skipif(sys.platform == "win32", reason="permissions of POSIX")
@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_a_new_file_has_the_permissions_of_the_umask(
    umask: int, mode: int, tmp_path: pathlib.Path
) -> None:
    before = os.umask(umask)
    try:
        writers.write(transcript(segment()), tmp_path / "talk.txt", "txt")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "talk.txt").stat().st_mode) == mode


@pytest.mark.skipif(sys.platform == "win32", reason="permissions of POSIX")
def test_a_partial_file_is_not_readable_by_others(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "talk.txt"
    path.write_text("older")
    path.chmod(0o600)
    modes = []

    def fsync(number: int) -> None:
        modes.append(stat.S_IMODE(os.fstat(number).st_mode))

    monkeypatch.setattr(os, "fsync", fsync)
    writers.write(transcript(segment()), path, "txt")
    assert modes == [0o600]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes")
def test_a_pipe_is_written_to_and_stays_one(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        writers.write(transcript(segment()), path, "txt")
        assert os.read(reader, 100) == b"hello\n"
    finally:
        os.close(reader)
    assert stat.S_ISFIFO(path.stat().st_mode)


def test_write_accepts_the_longest_file_names(tmp_path: pathlib.Path) -> None:
    path = tmp_path / ("n" * 251 + ".txt")
    writers.write(transcript(segment()), str(path), "txt")
    assert path.read_text() == "hello\n"


def test_unknown_format_is_refused_before_anything_is_written(tmp_path: pathlib.Path) -> None:
    with pytest.raises(OptionError, match="txt, srt, vtt, tsv, json, lrc, ass"):
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
