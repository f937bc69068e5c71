"""``export-speakers``, and who speaks in ``transcribe``."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from tests.support.speaker_networks import ToneNetworks, tones, write_wheel
from whisper_opt.audio.speakers import open_speakers
from whisper_opt.cli.main import main
from whisper_opt.transcription import model as loading

SPOKEN = [(0.5, 6.0, 0), (6.5, 11.0, 1)]
PLAIN = ("--language", "en", "--vad", "off", "--no-speech-threshold", "none", "--temperature", "0")


@pytest.fixture(scope="module")
def engine(tiny: Path) -> str:
    return str(tiny)


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    path = tmp_path / "a talk.wav"
    soundfile.write(path, tones(SPOKEN, 12.0), 16000)
    return path


def test_export_speakers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, target = write_wheel(tmp_path / "source"), tmp_path / "speakers"
    assert main(["export-speakers", str(source), str(target)]) == 0
    assert f"wrote {target}" in capsys.readouterr().out
    assert open_speakers(target).path == target
    assert main(["export-speakers", str(source), str(target)]) == 1
    assert "already exists" in capsys.readouterr().err
    assert main(["export-speakers", str(source), str(target), "--overwrite"]) == 0


def test_transcribe_says_who_speaks(
    engine: str, recording: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(loading, "open_speakers", lambda *_, **__: ToneNetworks.networks())
    clip = tmp_path / "ann.wav"
    soundfile.write(clip, tones([(0.0, 3.0, 1)], 3.0), 16000)
    out = tmp_path / "out"
    given = ["transcribe", engine, str(recording), "--diarize", "--speakers", "somewhere"]
    given += ["--known-speakers", f"Ann={clip}", "--format", "all,rttm", "--output-dir", str(out)]
    assert main([*given, *PLAIN]) == 0
    lines = [line.split() for line in (out / "a talk.rttm").read_text("utf-8").splitlines()]
    assert [(line[1], line[7]) for line in lines] == [("a_talk", "A"), ("a_talk", "Ann")]
    assert len(list(out.iterdir())) == 8


def test_a_listing_names_the_channel(
    engine: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "call.wav"
    rng = np.random.default_rng(0)
    soundfile.write(path, rng.uniform(-0.3, 0.3, (16000 * 5, 2)), 16000)
    assert main(["transcribe", engine, str(path), "--channels", "split", *PLAIN]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed
    assert all("] channel " in line for line in printed if line.startswith("["))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("--known-speakers", "ann.wav"), "no NAME=FILE"),
        (("--num-speakers", "2"), "num_speakers is given, but it needs diarize"),
        (("--format", "rttm"), "add --diarize, or --channels split"),
        (("--diarize",), "loaded without the networks"),
    ],
)
def test_what_is_missing_is_said(
    given: tuple[str, ...],
    said: str,
    engine: str,
    recording: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    try:
        status = main(["transcribe", engine, str(recording), *given])
    except SystemExit as stop:
        status = int(stop.code or 0)
    assert status != 0
    assert said in capsys.readouterr().err
