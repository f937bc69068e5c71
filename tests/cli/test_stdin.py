"""``whisper-opt transcribe ENGINE -``: a recording on standard input."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from tests.support.exports import SMALL
from tests.support.models import random_checkpoint
from whisper_opt.cli.main import main
from whisper_opt.export import export

ROOT = Path(__file__).parents[2]
OPTIONS = [*("--language", "en"), *("--max-new-tokens", "4"), *("--temperature", "0")]
OPTIONS += [*("--vad", "off"), *("--no-speech-threshold", "none")]


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(export(random_checkpoint(SMALL), tmp_path_factory.mktemp("e") / "small").path)


@pytest.fixture
def sound(tmp_path: Path) -> Path:
    """One second of noise."""
    path = tmp_path / "sound.flac"
    soundfile.write(path, np.random.default_rng(0).standard_normal(16000) * 0.1, 16000)
    return path


@pytest.fixture
def stdin(monkeypatch: pytest.MonkeyPatch) -> Callable[[bytes], None]:
    """Replaces standard input."""

    def replace(data: bytes) -> None:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data), encoding="utf-8"))

    return replace


def run(*argv: object) -> int:
    return main(["transcribe", *map(str, argv)])


def test_a_pipe_gives_what_the_file_gives(engine: str, sound: Path) -> None:
    def printed(audio: str, data: bytes) -> tuple[bytes, bytes]:
        command = [sys.executable, "-m", "whisper_opt", "transcribe", engine, audio]
        command += ["--format", "srt", *OPTIONS]
        done = subprocess.run(command, input=data, capture_output=True, cwd=ROOT, check=True)
        return done.stdout, done.stderr

    out, report = printed("-", sound.read_bytes())
    assert out == printed(str(sound), b"")[0]
    assert out.startswith(b"1\n00:00:0")
    assert report.startswith(b"stdin: 1.0 s of audio in ")


def test_files_have_a_name(
    engine: str, sound: Path, tmp_path: Path, stdin: Callable[[bytes], None]
) -> None:
    """Also beside other recordings."""
    stdin(sound.read_bytes())
    output = ("--format", "json", "--output-dir", tmp_path / "out")
    assert run(engine, "-", sound, *output, *OPTIONS) == 0
    texts = [
        json.loads((tmp_path / "out" / f"{name}.json").read_text()) for name in ("stdin", "sound")
    ]
    assert texts[0] == texts[1]


def test_what_is_no_recording(
    engine: str, stdin: Callable[[bytes], None], capsys: pytest.CaptureFixture[str]
) -> None:
    stdin(b"")
    assert run(engine, "-", *OPTIONS) == 1
    assert capsys.readouterr().err.endswith(" is empty; expected an audio file\n")
    stdin(b"not audio")
    assert run(engine, "-", *OPTIONS) == 1
    error = capsys.readouterr().err
    assert error.startswith("whisper-opt: error: stdin: ")
    assert "cannot be decoded as audio" in error


def test_twice_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("no-engine", "-", "a.wav", "-") == 2
    assert "- is given 2 times" in capsys.readouterr().err


def test_a_terminal_is_refused(
    stdin: Callable[[bytes], None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    stdin(b"")
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    assert run("no-engine", "-") == 2
    assert "which is a terminal; pipe one into it" in capsys.readouterr().err


def test_no_standard_input(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    assert run("no-engine", "-") == 2
    assert "there is no standard input" in capsys.readouterr().err


def test_a_file_of_this_name_is_no_standard_input(
    engine: str, sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sound.rename(tmp_path / "-")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "stdin", None)
    assert run(engine, "./-", *OPTIONS) == 0
