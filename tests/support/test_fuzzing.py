"""The harness finds crashes, hangs, allocations and foreign errors, and says which input it was."""

from __future__ import annotations

import os
import signal
import sys
import time

import pytest

from tests.support.fuzzing import fuzz, mutated, mutations, n_inputs
from whisper_opt.core.errors import AudioError

CORPUS = {"a": b"RIFF" + bytes(range(256)) * 4, "b": b"fLaC" + bytes(500)}


def harmless(data: bytes) -> None:
    """Refuses half of what it is given, as a reader should."""
    if len(data) % 2:
        raise AudioError("odd")


def harmful(data: bytes) -> None:
    """Goes wrong for inputs cut off to certain lengths."""
    kind = data[-1:] if data[:4] == b"KIND" else b""
    if kind == b"s":
        os.kill(os.getpid(), signal.SIGSEGV)
    elif kind == b"h":
        time.sleep(30)
    elif kind == b"m":
        bytearray(1 << 32)
    elif kind == b"k":
        raise KeyError("missing")


@pytest.fixture
def unchanged(monkeypatch: pytest.MonkeyPatch) -> None:
    """Children take the corpus as it is."""
    monkeypatch.setenv("WHISPER_OPT_FUZZ_UNCHANGED", "1")


def test_the_same_seed_gives_the_same_inputs() -> None:
    corpus = list(CORPUS.values())
    first = list(mutations(3, corpus, 300))
    assert first == list(mutations(3, corpus, 300))
    assert first[17] == mutated(3, 17, corpus)
    assert first != list(mutations(4, corpus, 300))
    assert sum(data in corpus for data in first) < 10
    assert len(set(first)) > 280


def test_changes_reach_empty_inputs() -> None:
    assert len(list(mutations(1, [b"", b"x"], 200))) == 200


def test_the_number_of_inputs_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WHISPER_OPT_FUZZ", raising=False)
    assert n_inputs(7) == 7
    monkeypatch.setenv("WHISPER_OPT_FUZZ", "1000")
    assert n_inputs(7) == 1000


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_errors_of_the_library_are_no_failures() -> None:
    assert fuzz(f"{__name__}:harmless", CORPUS, 300) == []


@pytest.mark.skipif(sys.platform != "linux", reason="limits on memory")
@pytest.mark.usefixtures("unchanged")
def test_everything_else_is_reported_with_its_input() -> None:
    corpus = {letter: b"KIND" + letter.encode() for letter in "ahkms"}
    failures = fuzz(f"{__name__}:harmful", corpus, 5, seconds=1)
    assert [failure.number for failure in failures] == [1, 2, 3, 4]
    reasons = [failure.reason for failure in failures]
    assert "longer than 1 s" in reasons[0]
    assert "KeyError: 'missing'" in reasons[1]
    assert "MemoryError" in reasons[2]
    assert "SIGSEGV" in reasons[3]
    assert "number=4" in str(failures[3])
