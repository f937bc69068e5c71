"""``whisper-opt live``, with fake sessions: what is heard, shown and written."""

from __future__ import annotations

import dataclasses
import io
import os
import signal
import sys
import threading
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from tests.support.fake_live import FakeLive, loud, quiet
from tests.support.http_server import wait_until
from tests.support.sockets import fake_sessions
from whisper_opt.cli.live import _Files, _shown
from whisper_opt.cli.live_view import Lines, Terminal, view_for
from whisper_opt.cli.main import main
from whisper_opt.core.options import SubtitleOptions
from whisper_opt.text.live_events import Committed, Lag, Partial, Speakers, Utterance
from whisper_opt.text.results import Segment, Word

LINES = ["[00:00.000 --> 00:00.180] w0.0", "[00:00.180 --> 00:00.380] w0.1"]


@pytest.fixture(scope="module")
def engine(tiny: Path) -> str:
    return str(tiny)


@pytest.fixture
def sessions() -> Iterator[list[FakeLive]]:
    with fake_sessions() as made:
        yield made


@pytest.fixture
def stdin(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], None]:
    def replace(samples: Any) -> None:
        file = io.TextIOWrapper(io.BytesIO(samples.tobytes()), encoding="utf-8")
        monkeypatch.setattr(sys, "stdin", file)

    return replace


def live(engine: str, *arguments: object) -> int:
    return main(["live", "--silence-ms", "500", engine, *map(str, arguments)])


def two_utterances(rate: int = 16_000, n_channels: int = 1) -> Any:
    one = [loud(0.5, rate, n_channels), quiet(0.7, rate, n_channels)]
    return np.concatenate(one * 2)


def test_a_file(
    engine: str, sessions: list[FakeLive], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    soundfile.write(tmp_path / "talk.wav", two_utterances(), 16_000)
    folder = tmp_path / "captions"
    options = ("--format", "srt,txt", "--output-dir", folder, "--silence-ms", "400")
    assert live(engine, tmp_path / "talk.wav", "--language", "en", *options) == 0
    assert capsys.readouterr().out.splitlines()[:2] == LINES
    assert (folder / "talk.txt").read_text() == "w0.0 w0.1.\nw1.0 w1.1.\n"
    assert (folder / "talk.srt").read_text().startswith("1\n00:00:00,000 --> ")
    assert sorted(path.name for path in folder.iterdir()) == ["talk.srt", "talk.txt"]
    (session,) = sessions
    assert (session.live.silence_ms, session.options.language) == (400, "en")


def test_samples_of_a_pipe(
    engine: str,
    sessions: list[FakeLive],
    stdin: Callable[[Any], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    stdin(two_utterances(8000, 2))
    assert live(engine, "-", "--rate", 8000, "--channels", 2) == 0
    assert len(capsys.readouterr().out.splitlines()) == 4
    (session,) = sessions
    assert (session.sample_rate, session.channels, session.received) == (8000, 2, 19_200)


def test_an_interrupt_ends_with_the_last_utterance(
    engine: str, sessions: list[FakeLive], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader, writer = os.pipe()
    with os.fdopen(reader, "rb") as source, os.fdopen(writer, "wb") as pipe:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BufferedReader(source.raw)))
        pipe.write(loud(0.5, 16_000).tobytes())
        pipe.flush()

        def interrupt() -> None:
            wait_until(lambda: sessions and sessions[0].received >= 8000, "it is heard")
            os.kill(os.getpid(), signal.SIGINT)

        thread = threading.Thread(target=interrupt)
        thread.start()
        assert live(engine, "-", "-o", tmp_path) == 0
        thread.join()
        pipe.write(b"\0\0")  # the reading thread ends
        pipe.flush()
    assert (tmp_path / "stdin.txt").read_text() == "w0.0 w0.1.\n"


def test_an_utterance_that_fails(
    engine: str,
    sessions: list[FakeLive],
    stdin: Callable[[Any], None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = FakeLive.__init__

    def failing(self: FakeLive, *arguments: Any, **options: Any) -> None:
        before(self, *arguments, **options)
        self.fails = True

    monkeypatch.setattr(FakeLive, "__init__", failing)
    stdin(two_utterances())
    assert live(engine, "-") == 1
    assert "whisper-opt: error: a secret" in capsys.readouterr().err


def test_a_file_that_is_none(engine: str, sessions: Any, tmp_path: Path) -> None:
    assert live(engine, tmp_path / "none.wav") == 1


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("x.wav", "--mic"),
        ("-", "--realtime"),
        ("x.wav", "--format", "srt"),
        ("-", "--rate", "0"),
        ("x.wav", "-o", ".", "--max-line-width", "40"),
    ],
)
def test_contradictions(
    engine: str, arguments: tuple[str, ...], stdin: Callable[[Any], None]
) -> None:
    stdin(quiet(0.1))
    assert live(engine, *arguments) == 2


# the microphone


class FakeDevices(types.ModuleType):
    """The package sounddevice with one device, which is heard until it is closed."""

    def __init__(self) -> None:
        super().__init__("sounddevice")

    def query_devices(self, device: Any, kind: str) -> dict[str, Any]:
        if device not in (None, "desk", 3):
            raise ValueError("No input device matching")
        return {"default_samplerate": 48_000.0}

    class RawInputStream:
        def __init__(self, *, callback: Any, samplerate: int, **_: Any) -> None:
            self._say, self._rate = callback, samplerate

        def __enter__(self) -> None:
            self._say(two_utterances(self._rate).tobytes(), 0, None, None)
            threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT)).start()

        def __exit__(self, *_: object) -> None:
            pass


@pytest.mark.parametrize("arguments", [("--mic",), ("--mic-device", "3"), ("--mic-device", "desk")])
def test_the_microphone(
    engine: str,
    sessions: list[FakeLive],
    arguments: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setitem(sys.modules, "sounddevice", FakeDevices())
    assert live(engine, *arguments, "-o", tmp_path) == 0
    assert sessions[0].sample_rate == 48_000
    assert (tmp_path / "microphone.txt").read_text() == "w0.0 w0.1.\nw1.0 w1.1.\n"


def test_a_device_that_is_none(
    engine: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "sounddevice", FakeDevices())
    assert live(engine, "--mic-device", "roof") == 2
    assert "python -m sounddevice" in capsys.readouterr().err


def test_without_sounddevice(
    engine: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    assert live(engine, "--mic") == 1
    assert "pip install '.[mic]'" in capsys.readouterr().err


# the terminal


def word(text: str) -> tuple[Word, ...]:
    return (Word(0.0, 1.0, text, 0.9),)


class Tty(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_what_is_certain_is_solid_and_the_rest_is_dim() -> None:
    out = Tty()
    view = Terminal(out, width=40)
    view.hear(loud(0.1))
    view.show(Lag(0.4))
    view.show(Committed(" Hello", word(" Hello"), 0))
    view.show(Partial(" word", word(" word"), 0))
    *_, last = out.getvalue().split("\r\x1b[K")
    assert last == "▅  0.4 s  Hello\x1b[2m word\x1b[22m"
    view.show(Committed(" Next", word(" Next"), 1))
    view.show(Utterance((), " Hello world.", 0.0, 1.0, 0, "en"))
    *_, line, last = out.getvalue().split("\r\x1b[K")
    assert line == "[00:00.000 --> 00:01.000] Hello world.\n"
    assert last == "▅  0.4 s  Next"
    view.close()
    assert out.getvalue().endswith("\r\x1b[K")


def test_speakers_are_shown_and_named_again_at_the_end(tmp_path: Path) -> None:
    segment = Segment(0, 0.0, 1.0, " Hello.", (), -0.3, 0.1, 1.2, 0.0, 0, speaker="A")
    other = dataclasses.replace(segment, speaker="B")
    found = [
        Utterance((part,), " Hello.", 0.0, 1.0, i, "en", speaker=part.speaker)
        for i, part in enumerate((segment, other))
    ]
    out = Tty()
    files = _Files(tmp_path, "talk", ("txt",), SubtitleOptions())
    for event in (*found, Speakers({0: "B", 1: "A"})):
        assert not _shown(event, Terminal(out, width=40), files)
    assert "[00:00.000 --> 00:01.000] A: Hello.\n" in out.getvalue()
    assert (tmp_path / "talk.txt").read_text(encoding="utf-8") == "B: Hello.\nA: Hello.\n"


def test_only_the_end_of_a_long_line_is_shown() -> None:
    out = Tty()
    view = Terminal(out, width=20)
    view.show(Committed(" one two three four", word(" x"), 0))
    view.show(Partial("日本語", word("日本語"), 0))
    *_, last = out.getvalue().split("\r\x1b[K")
    assert last == "▁  0.0 s four\x1b[2m日本語\x1b[22m"


def test_which_view(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    assert isinstance(view_for(Tty()), Terminal)
    assert isinstance(view_for(io.StringIO()), Lines)
    monkeypatch.setenv("TERM", "dumb")
    assert isinstance(view_for(Tty()), Lines)
