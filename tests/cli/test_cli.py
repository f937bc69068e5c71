"""The command: output, files, exit status, and one clear line per error."""

from __future__ import annotations

import io
import json
import math
import re
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from tests.support.golden import SPEECH
from tests.support.models import random_checkpoint, random_dims
from tests.support.models_write import write_ctranslate2, write_huggingface
from whisper_opt.cli import doctor
from whisper_opt.cli import transcribe as cli_transcribe
from whisper_opt.cli.main import _parser, main
from whisper_opt.cli.options import expanded, join_negative
from whisper_opt.cli.transcribe import Output
from whisper_opt.core.errors import AudioError, OptionError
from whisper_opt.core.options import SubtitleOptions, TranscribeOptions
from whisper_opt.export import export
from whisper_opt.export.checkpoints import Checkpoint
from whisper_opt.runtime.engine import FORMAT_VERSION
from whisper_opt.runtime.engine_cache import EngineCache
from whisper_opt.text.results import Dropped, Segment, Transcript, Word
from whisper_opt.text.writers import FORMATS, SUBTITLE_FORMATS, TEXT_FORMATS

ROOT = Path(__file__).parents[2]
JFK = str(ROOT / "examples" / "jfk.flac")


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A multilingual engine with random weights."""
    target = tmp_path_factory.mktemp("cli") / "random"
    return export(random_checkpoint(), target).path


@pytest.fixture(scope="module")
def english(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An English-only engine with random weights."""
    target = tmp_path_factory.mktemp("cli") / "random.en"
    return export(random_checkpoint(random_dims(n_vocab=51864)), target).path


@pytest.fixture
def short(tmp_path: Path) -> str:
    """One second of quiet noise."""
    path = tmp_path / "short.wav"
    noise = np.random.default_rng(0).standard_normal(16000) * 0.01
    soundfile.write(path, noise, 16000)
    return str(path)


def run(*argv: object) -> int:
    return main([str(arg) for arg in argv])


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    """The error the command printed, which must be a single line."""
    lines = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    assert len(lines) == 1, lines
    assert lines[0].startswith("whisper-opt: error: ")
    return lines[0]


# commands


def test_export_inspect_transcribe(
    tmp_path: Path, short: str, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_huggingface(random_checkpoint(), tmp_path / "hf")
    target = tmp_path / "engines" / "mine"
    assert run("export", source, target) == 0
    assert "verified: largest error of logits" in capsys.readouterr().out
    assert run("inspect", target) == 0
    listing = capsys.readouterr().out
    assert "decoder.data" in listing
    assert "parity" in listing
    assert run("inspect", target, "--json") == 0
    assert json.loads(capsys.readouterr().out)["dialect"] == "contrib"
    out = tmp_path / "out"
    words = ("--format", "json", "--output-dir", out, "--max-new-tokens", 5, "--language", "German")
    assert run("transcribe", target, short, *words) == 0
    assert json.loads((out / "short.json").read_text(encoding="utf-8"))["language"] == "de"
    assert "real-time factor" in capsys.readouterr().err


@pytest.mark.parametrize("form", sorted(TEXT_FORMATS))
def test_a_format_goes_to_standard_output(
    form: str, engine: Path, short: str, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--max-new-tokens", 4, "--language", "en", "--no-speech-threshold", "none")
    assert run("transcribe", engine, short, "--format", form, *options) == 0
    printed = capsys.readouterr().out
    folder = Path(short).parent
    assert run("transcribe", engine, short, "--format", form, "--output-dir", folder, *options) == 0
    assert (folder / f"short.{form}").read_text(encoding="utf-8") == printed
    assert capsys.readouterr().out == ""


def test_every_option_has_an_argument(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        run("transcribe", "--help")
    assert stop.value.code == 0
    text = capsys.readouterr().out
    for name in (*TranscribeOptions.__dataclass_fields__, *SubtitleOptions.__dataclass_fields__):
        assert f"\n  --{name.replace('_', '-')}" in text


def test_a_draft_is_read_from_a_file(
    english: Path, short: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    draft = tmp_path / "draft.srt"
    draft.write_text("1\n00:00:00,000 --> 00:00:01,000\nSo it is\n", encoding="utf-8")
    args = _parser().parse_args(["transcribe", str(english), short, "--draft", str(draft)])
    assert args.draft == [{"start": 0.0, "end": 1.0, "text": "So it is"}]
    assert run("transcribe", english, short, "--format", "txt", "--draft", draft) == 0
    assert run("transcribe", english, short, short, "--draft", draft) == 2
    assert "draft is given, but there are 2 recordings" in one_line(capsys)
    with pytest.raises(SystemExit):
        run("transcribe", english, short, "--draft", tmp_path / "none.srt")
    assert "argument --draft: cannot read" in capsys.readouterr().err


def test_help_states_the_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run("transcribe", "--help")
    _, *arguments = re.split(r"\n  --", capsys.readouterr().out)
    text = {part.split(",")[0].split()[0]: " ".join(part.split()) for part in arguments}
    assert "None" not in " ".join(text.values())
    assert "(default:" not in text["condition-on-previous-text"]
    assert "in batched mode within the same" in text["condition-on-previous-text"]
    assert text["word-timestamps"].endswith("(default: no)")
    assert text["suppress-blank"].endswith("(default: yes)")
    assert text["no-speech-threshold"].endswith("(default: 0.6; none turns it off)")
    assert text["repetition-penalty"].endswith("(default: 1.0)")
    assert text["batch-size"].endswith("(default: 8)")
    assert "(default: 0.0,0.2,0.4,0.6,0.8,1.0)" in text["temperature"]


# several formats


@pytest.mark.parametrize(
    ("given", "expected"),
    [("srt,json", ["json", "srt"]), (" vtt, vtt ", ["vtt"]), ("all", sorted(TEXT_FORMATS))],
)
def test_several_formats(
    given: str,
    expected: list[str],
    engine: Path,
    short: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    options = ("--output-dir", out, "--max-new-tokens", 3, "--language", "en")
    assert run("transcribe", engine, short, "--format", given, *options) == 0
    assert sorted(path.name for path in out.iterdir()) == [f"short.{form}" for form in expected]
    printed = capsys.readouterr()
    assert printed.out == ""
    assert all(str(path) in printed.err for path in out.iterdir())


def test_subtitle_options_go_to_the_formats_that_have_subtitles(tmp_path: Path) -> None:
    words = (Word(0.0, 1.0, " one", 1.0), Word(1.0, 2.0, " two", 1.0))
    segment = Segment(0, 0.0, 2.0, " one two", (), -0.1, 0.0, 1.0, 0.0, 0, words)
    transcript = Transcript((segment,), "en", 2.0, " one two")
    options = SubtitleOptions(max_words_per_line=1)
    files = tuple(tmp_path / f"a.{form}" for form in TEXT_FORMATS)
    Output(TEXT_FORMATS, files, options).save(transcript)
    for form, path in zip(TEXT_FORMATS, files):
        laid_out = options if form in SUBTITLE_FORMATS else SubtitleOptions()
        assert path.read_text(encoding="utf-8") == FORMATS[form](transcript, laid_out)
    assert (tmp_path / "a.lrc").read_text() == "[00:00.00]one\n[00:01.00]two\n"


WORDS = "--word-timestamps"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--format", "srt,json"], "2 formats --output-dir"),
        (["--format", "all"], "7 formats --output-dir"),
        (["--highlight-words", "--format", "srt"], "highlight_words --word-timestamps"),
        (["--max-line-width", "40", "--format", "srt"], "max_line_width --word-timestamps"),
        (["--max-line-width", "40", "--format", "txt", WORDS], "max_line_width --format srt"),
        (["--max-words-per-line", "4", "--format", "tsv", WORDS], "max_words_per_line --format"),
        (["--highlight-words", WORDS], "highlight_words --format srt"),
        (["--highlight-words", WORDS, "--output-dir", "out"], "highlight_words --format srt"),
        (["--max-line-count", "2", "--format", "srt", WORDS], "max_line_count max_line_width"),
        (["--max-line-width", "0", "--format", "srt", WORDS], "max_line_width 0 positive"),
        (
            ["--max-line-width", "9", "--max-words-per-line", "2", "--format", "srt", WORDS],
            "max_words_per_line max_line_width",
        ),
        (["--prepend-punctuations", "("], "prepend_punctuations word_timestamps"),
        (["--strategy", "batched", "--condition-on-previous-text"], "condition_on_previous_text"),
    ],
)
def test_contradictions_are_found_before_any_work(
    arguments: list[str],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("transcribe", "no-engine", "no-audio.wav", *arguments) == 2
    line = one_line(capsys)
    assert all(word in line for word in words.split()), line
    assert list(tmp_path.iterdir()) == []


def test_subtitle_options_with_one_format_that_takes_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Only the engine is missing."""
    options = ("--format", "txt,srt", "--highlight-words", WORDS, "--output-dir", tmp_path)
    assert run("transcribe", tmp_path / "no-engine", "no-audio.wav", *options) == 1
    assert "no-engine" in one_line(capsys)


@pytest.mark.parametrize("given", ["doc", "srt,doc", "srt,", "", "SRT"])
def test_unknown_formats(given: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        run("transcribe", "engine", "audio", "--format", given)
    assert stop.value.code == 2
    wrong = given.split(",")[-1]
    assert f"unknown format '{wrong}'; expected all, or one or more of txt,srt" in (
        capsys.readouterr().err
    )


def test_doctor_finds_no_problem(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("doctor") == 0
    text = capsys.readouterr().out
    assert "onnxruntime" in text
    assert text.endswith("ready\n")


def test_doctor_says_what_is_exported_and_where_to(
    engine: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("WHISPER_OPT_CACHE", str(tmp_path / "cache"))
    assert run("doctor") == 0
    assert f"{tmp_path / 'cache'} (0 engines, 0.0 MB" in capsys.readouterr().out
    shutil.copytree(engine, EngineCache().engine("mine", 1, "int8", "contrib"))
    assert run("doctor") == 0
    lines = capsys.readouterr().out.splitlines()
    (cache,) = (line for line in lines if line.startswith("cache "))
    size = sum(file.stat().st_size for file in engine.iterdir()) / 1e6
    assert f"{tmp_path / 'cache'} (1 engine, {size:,.1f} MB; whisper-opt engines list)" in cache
    (precision,) = (line for line in lines if line.startswith("precision "))
    assert "auto: int8 when a name or checkpoint is loaded, the fastest on CPUs" in precision


def test_doctor_names_what_is_missing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert run("doctor") == 1
    assert "pip install '.[cpu]'" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("sizes", "line"),
    [
        ({"MemTotal": 8 << 30, "MemAvailable": 3 << 30}, "memory       8.0 GiB, 3.0 GiB available"),
        ({"MemTotal": 8 << 30}, "memory       8.0 GiB"),
        ({}, "memory       unknown"),
    ],
)
def test_doctor_reports_the_memory_that_is_known(
    sizes: dict[str, int],
    line: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(doctor, "memory_bytes", lambda: sizes)
    assert run("doctor") == 0
    assert line in capsys.readouterr().out.splitlines()


def test_wrong_usage_is_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        run("transcribe")
    assert stop.value.code == 2
    assert "usage:" in capsys.readouterr().err


def test_one_bad_recording_does_not_stop_the_others(
    engine: Path, short: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--output-dir", tmp_path / "out", "--max-new-tokens", 3, "--language", "en")
    assert run("transcribe", engine, tmp_path / "none.wav", short, *options) == 1
    assert (tmp_path / "out" / "short.txt").is_file()
    assert "1 of 2 recordings failed" in capsys.readouterr().err


# errors of recordings


def _bad_recording(kind: str, folder: Path) -> Path:
    path = folder / f"{kind}.wav"
    if kind == "missing":
        return path
    if kind == "empty":
        path.touch()
    elif kind == "text":
        path.write_text("this is not a recording\n" * 50, encoding="utf-8")
    elif kind == "zero-samples":
        shutil.copy(SPEECH / "nonspeech" / "edge-empty.wav", path)
    elif kind in {"nan", "inf"}:
        samples = np.zeros(16000, np.float32)
        samples[100] = float(kind)
        soundfile.write(path, samples, 16000, subtype="FLOAT")
    elif kind == "rate":
        soundfile.write(path, np.zeros(100), 7)
    elif kind == "truncated-flac":
        path = folder / "cut.flac"
        data = (SPEECH / "formats" / "jfk-48k-mono-s24.flac").read_bytes()
        path.write_bytes(data[: len(data) // 2])
    elif kind == "truncated-mp3":
        path = folder / "cut.mp3"
        data = (SPEECH / "formats" / "jfk-44k-stereo-128k.mp3").read_bytes()
        path.write_bytes(data[: len(data) // 2])
    return path


_BAD_RECORDINGS = (
    "missing",
    "empty",
    "text",
    "zero-samples",
    "nan",
    "inf",
    "rate",
    "truncated-flac",
    "truncated-mp3",
)


@pytest.mark.parametrize("kind", _BAD_RECORDINGS)
def test_bad_recording(
    kind: str, engine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = _bad_recording(kind, tmp_path)
    out = tmp_path / "out"
    strict = ["--strict-audio"] * kind.startswith("truncated")
    assert run("transcribe", engine, path, "--output-dir", out, *strict) == 1
    assert path.name in one_line(capsys)
    assert list(out.iterdir()) == []


# errors of options


def test_unknown_language_offers_near_matches(
    engine: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("transcribe", engine, JFK, "--language", "germn") == 2
    assert "german" in one_line(capsys)


def test_english_only_engine_refuses_other_languages(
    english: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("transcribe", english, JFK, "--language", "fr") == 2
    assert "English" in one_line(capsys)
    assert run("transcribe", english, JFK, "--task", "translate") == 2
    assert "transcribe" in one_line(capsys)


@pytest.mark.parametrize(("system", "same"), [("linux", False), ("darwin", True), ("win32", True)])
def test_names_that_differ_in_case(
    system: str, same: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are one file on most disks of macOS and Windows."""
    monkeypatch.setattr(sys, "platform", system)
    sources = ["Talk.mp3", "talk.wav"]
    if same:
        with pytest.raises(OptionError, match=r"Talk\.mp3 and talk\.wav would both be written"):
            cli_transcribe._targets(sources, tmp_path, ("txt",))
    else:
        first, second = cli_transcribe._targets(sources, tmp_path, ("txt",))
        assert first != second


def test_patterns_are_expanded_where_the_shell_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("b.wav", "a.wav", "c [1].wav", "d.mp3"):
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    given = ["x.wav", "*.wav", "c [1].*", "*.flac", "?.mp3"]
    monkeypatch.setattr(sys, "platform", "linux")
    assert expanded(given) == given
    monkeypatch.setattr(sys, "platform", "win32")
    waves = ["a.wav", "b.wav", "c [1].wav"]
    assert expanded(given) == ["x.wav", *waves, "c [1].wav", "*.flac", "d.mp3"]


def test_two_recordings_must_not_share_a_file(
    engine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("transcribe", engine, "a/talk.mp3", "b/talk.mp3", "--output-dir", tmp_path) == 2
    assert "talk.txt" in one_line(capsys)


# values that begin with a minus


def test_negative_values_are_values() -> None:
    given = [
        "transcribe",
        "e",
        "a.wav",
        "--suppress-tokens",
        "-1,220",
        "--logprob-threshold",
        "-inf",
        "--seed=-1",
    ]
    args = _parser().parse_args(join_negative(given))
    assert args.suppress_tokens == (-1, 220)
    assert args.logprob_threshold == -math.inf
    assert args.seed == -1
    assert args.audio == ["a.wav"]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["--x", "-1"], ["--x=-1"]),
        (["--x", "-.5"], ["--x=-.5"]),
        (["--x", "-1e3"], ["--x=-1e3"]),
        (["--x", "-Infinity"], ["--x=-Infinity"]),
        (["--x", "-h"], ["--x", "-h"]),
        (["--x=1", "-1"], ["--x=1", "-1"]),
        (["--x", "1", "-1"], ["--x", "1", "-1"]),
        (["-1"], ["-1"]),
        (["--", "--x", "-1"], ["--", "--x", "-1"]),
        (["--x", "-", "-"], ["--x", "-", "-"]),
    ],
)
def test_only_values_of_options_are_joined(given: list[str], expected: list[str]) -> None:
    assert join_negative(given) == expected


def test_a_negative_value_out_of_range(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("transcribe", "e", "a.wav", "--temperature", "-1") == 2
    assert "temperature is (-1.0,); expected numbers from 0 to 10" in one_line(capsys)


# consoles and pipes that are not UTF-8


ENCODINGS = ("cp1252", "ascii", "cp437", "gbk")
JAPANESE = "こんにちは 世界"


class Console:
    """Standard output and error with an encoding, as strict as Python makes a pipe."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, encoding: str) -> None:
        self.out, self.err = io.BytesIO(), io.BytesIO()
        for name, binary in (("stdout", self.out), ("stderr", self.err)):
            stream = io.TextIOWrapper(binary, encoding, "strict", write_through=True)
            monkeypatch.setattr(sys, name, stream)


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("command", ["transcribe", "export", "bench", "build"])
def test_help_is_printed_anywhere(
    command: str, encoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    console = Console(monkeypatch, encoding)
    with pytest.raises(SystemExit) as stop:
        run(command, "--help")
    assert stop.value.code == 0
    assert b"usage: whisper-opt" in console.out.getvalue()


class Speaking:
    """A model with the same result for every recording, except those named ``bad``."""

    def __enter__(self) -> Speaking:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def transcribe_many(self, sources: list[str], **_: object) -> Iterator[tuple[int, object]]:
        for i, source in enumerate(sources):
            yield i, AudioError(f"{source} is no sound") if "bad" in source else _said(JAPANESE)

    def stream(self, source: str, **_: object) -> Any:
        result = _said(JAPANESE)

        class Stream(list):  # type: ignore[type-arg]
            def transcript(self) -> Transcript:
                return result

        return Stream(result)


def _said(text: str) -> Transcript:
    segment = Segment(0, 0.0, 2.0, text, (), -0.1, 0.0, 1.0, 0.0, 0)
    return Transcript((segment,), "ja", 2.0, text)


@pytest.fixture
def speaking(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli_transcribe, "load", lambda args: Speaking())


@pytest.mark.usefixtures("speaking")
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_listing_is_printed_anywhere(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    console = Console(monkeypatch, encoding)
    assert run("transcribe", "e", "ß.wav") == 0
    printed = console.out.getvalue().decode(encoding)
    expected = JAPANESE.encode(encoding, "backslashreplace").decode(encoding)
    assert printed.split() == ["[00:00.000", "-->", "00:02.000]", *expected.split()]


@pytest.mark.usefixtures("speaking")
@pytest.mark.parametrize("encoding", [*ENCODINGS, "utf-16"])
@pytest.mark.parametrize("form", TEXT_FORMATS)
def test_a_format_is_utf_8_anywhere(
    form: str, encoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    console = Console(monkeypatch, encoding)
    assert run("transcribe", "e", "a.wav", "--format", form) == 0
    assert console.out.getvalue() == FORMATS[form](_said(JAPANESE)).encode("utf-8")


@pytest.mark.usefixtures("speaking")
@pytest.mark.parametrize("more", [(), ("--format", "srt")])
def test_unprintable_text_does_not_stop_other_recordings(
    more: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    console = Console(monkeypatch, "ascii")
    assert run("transcribe", "e", "1.wav", "bad\udcff.wav", "3.wav", *more) == 1
    assert console.out.getvalue().count(b"00:02") == 2
    errors = console.err.getvalue().decode("ascii")
    assert "3.wav: 2.0 s of audio" in errors
    assert r"bad\udcff.wav is no sound" in errors
    assert "1 of 3 recordings failed" in errors


# errors of checkpoints


def _without(checkpoint: Checkpoint, folder: Path) -> Path:
    """The checkpoint as a CTranslate2 directory whose model.bin lacks its last 1,000 bytes."""
    source = write_ctranslate2(checkpoint, folder / "cut", dtype="float16")
    data = (source / "model.bin").read_bytes()
    (source / "model.bin").write_bytes(data[:-1000])
    return source


def test_truncated_checkpoint_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = _without(random_checkpoint(), tmp_path)
    target = tmp_path / "engines" / "e"
    assert run("export", source, target) == 1
    assert "model.bin" in one_line(capsys)
    assert list(target.parent.iterdir()) == []


def test_no_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("export", tmp_path / "nothing", tmp_path / "e") == 1
    assert "nothing" in one_line(capsys)
    assert not (tmp_path / "e").exists()


# errors of engines


def _copy(engine: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(engine, tmp_path / "copy"))


def test_a_flipped_byte_is_found(
    engine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = _copy(engine, tmp_path)
    with (copy / "decoder.data").open("r+b") as stream:
        stream.seek(1000)
        byte = stream.read(1)
        stream.seek(1000)
        stream.write(bytes([byte[0] ^ 1]))
    assert run("inspect", copy) == 1
    assert "decoder.data" in one_line(capsys)


def test_a_missing_file_is_named(
    engine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = _copy(engine, tmp_path)
    (copy / "encoder.data").unlink()
    assert run("transcribe", copy, JFK) == 1
    assert "encoder.data" in one_line(capsys)


@pytest.mark.parametrize("name", ["n_mels", "n_vocab", "n_text_layer"])
def test_a_manifest_of_another_model(
    name: str, engine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = _copy(engine, tmp_path)
    values = json.loads((copy / "manifest.json").read_text(encoding="utf-8"))
    values["dims"][name] += 1
    values["tensors"] = {}
    (copy / "manifest.json").write_text(json.dumps(values), encoding="utf-8")
    assert run("transcribe", copy, JFK) == 1
    found = values["dims"][name] - 1
    assert f"has {name} {found}; the manifest says {found + 1}" in one_line(capsys)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("parity", {"cross_error": "much"}),
        ("source", {"sha256": "00ff"}),
        ("calibration", {"groups": 7}),
    ],
)
def test_a_manifest_that_cannot_be_described(
    name: str, value: object, engine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = _copy(engine, tmp_path)
    values = json.loads((copy / "manifest.json").read_text(encoding="utf-8"))
    (copy / "manifest.json").write_text(json.dumps({**values, name: value}), encoding="utf-8")
    status = run("inspect", copy)
    assert status == 1
    assert "malformed entries" in one_line(capsys)


def test_a_newer_format_is_refused(
    engine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = _copy(engine, tmp_path)
    manifest = copy / "manifest.json"
    text = manifest.read_text(encoding="utf-8")
    newer = text.replace(
        f'"format_version": {FORMAT_VERSION}', f'"format_version": {FORMAT_VERSION + 1}'
    )
    manifest.write_text(newer)
    assert run("transcribe", copy, JFK) == 1
    assert "upgrade whisper-opt" in one_line(capsys)


# disk errors and Ctrl-C, in separate processes


def python(code: str, *argv: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, argv)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def _assert_clean_failure(done: subprocess.CompletedProcess[str], *words: str) -> None:
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    line = next(line for line in done.stderr.splitlines() if "error:" in line)
    assert all(word in line for word in words), line


def test_a_full_disk_leaves_nothing(tmp_path: Path) -> None:
    source = write_huggingface(random_checkpoint(), tmp_path / "hf")
    code = """
        import resource, sys
        from whisper_opt.cli.main import main
        resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, 2_000_000))  # writes past it fail
        sys.exit(main(["export", *sys.argv[1:]]))
    """
    target = tmp_path / "engines" / "e"
    _assert_clean_failure(python(code, source, target), "cannot write", str(target))
    assert list(target.parent.iterdir()) == []


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    source = write_huggingface(random_checkpoint(), tmp_path / "hf")
    code = (
        "import sys; from whisper_opt.cli.main import main\n"
        "sys.exit(main(['export', *sys.argv[1:]]))"
    )
    _assert_clean_failure(python(code, source, "/proc/no/engine"), "cannot write")


def test_interrupted_export_leaves_nothing(tmp_path: Path) -> None:
    source = write_huggingface(random_checkpoint(), tmp_path / "hf")
    code = """
        import os, signal, sys
        from whisper_opt.export import writer
        from whisper_opt.cli.main import main
        signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in background jobs
        write = writer._HashingFile.write
        def interrupted(self, data):
            if self.size > 1_000_000:
                os.kill(os.getpid(), signal.SIGINT)
            write(self, data)
        writer._HashingFile.write = interrupted
        sys.exit(main(["export", *sys.argv[1:]]))
    """
    target = tmp_path / "engines" / "e"
    _assert_clean_failure(python(code, source, target), "interrupted")
    assert list(target.parent.iterdir()) == []


def test_a_terminal_shows_progress(
    engine: Path, short: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ("transcribe", engine, short, "--language", "en", "--max-new-tokens", "8")
    assert run(*command) == 0
    assert "s of audio\r" not in capsys.readouterr().err
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert run(*command) == 0
    shown = capsys.readouterr().err
    assert "short.wav" in shown
    assert "100%" in shown
    assert "1/1 s of audio" in shown


def test_interrupted_transcription_leaves_nothing(engine: Path, short: str, tmp_path: Path) -> None:
    code = """
        import os, signal, sys
        from whisper_opt.runtime.onnxruntime.backend import OrtSession
        from whisper_opt.cli.main import main
        signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in background jobs
        extend = OrtSession.extend
        def interrupted(self, *args):
            os.kill(os.getpid(), signal.SIGINT)
            return extend(self, *args)
        OrtSession.extend = interrupted
        sys.exit(main(["transcribe", *sys.argv[1:]]))
    """
    out = tmp_path / "out"
    done = python(code, engine, short, "--output-dir", out, "--language", "en")
    _assert_clean_failure(done, "interrupted")
    assert list(out.iterdir()) == []


# text that is missing


def _transcript(*dropped: Dropped, truncated: bool = False) -> Transcript:
    segment = Segment(0, 12.0, 14.0, " one", (), -0.1, 0.0, 1.0, 0.0, 0, truncated=truncated)
    return Transcript((segment,), "en", 60.0, " one", dropped=dropped)


def test_dropped_text_is_reported() -> None:
    parts = [Dropped(0.0, 2.0, "no speech", " Thanks."), Dropped(20.0, 22.5, "no speech", " you")]
    (line,) = cli_transcribe._missing_text(_transcript(*parts, Dropped(40.0, 48.0, "loud sound")))
    assert line == (
        "  no text for 3 parts of the recording, 12.5 s: no speech (2), loud sound (1); format json"
        " lists them as 'dropped'"
    )
    assert list(cli_transcribe._missing_text(_transcript())) == []


def test_truncated_segments_are_reported(
    engine: Path, short: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (line,) = cli_transcribe._missing_text(_transcript(truncated=True))
    assert "after 1 segment that reached the token limit, the first at 12.0 s" in line
    options = ("--language", "en", "--no-speech-threshold", "none", "--vad", "off")
    assert run("transcribe", engine, short, "--max-new-tokens", 3, *options) == 0
    assert "reached the token limit" in capsys.readouterr().err


def test_one_recording_is_singular(
    engine: Path, short: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run("transcribe", engine, tmp_path / "none.wav", short, "--max-new-tokens", 3)
    assert "\n1 recording, 1.0 s of audio" in capsys.readouterr().err


def test_help_names_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run("build", "--help")
    text = capsys.readouterr().out
    assert "--max-batch N" in text
    assert "--profile RANGES" in text
    assert text.isascii()
