"""Locks by files: one holder at a time, also while the files come and go."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from whisper_opt.core import locks
from whisper_opt.core.locks import LockHeldError, file_lock


@pytest.fixture(autouse=True)
def _poll_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "POLL", 0.001)


def test_a_held_lock_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with file_lock(path):
        with pytest.raises(LockHeldError), file_lock(path, timeout=0):
            pass
        with file_lock(tmp_path / "other", timeout=0):
            pass
    with file_lock(path, timeout=0):
        pass
    assert path.read_bytes() == b""


def test_a_waiting_thread_is_told_once_and_then_gets_it(tmp_path: Path) -> None:
    path, waiting = tmp_path / "lock", threading.Event()
    events: list[str] = []

    def wait() -> None:
        with file_lock(path, waiting.set):
            events.append("got")

    with file_lock(path):
        thread = threading.Thread(target=wait)
        thread.start()
        assert waiting.wait(60)
        events.append("released")
    thread.join(60)
    assert events == ["released", "got"]


def test_an_error_releases_it(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with pytest.raises(ValueError, match="inside"), file_lock(path, remove=True):
        raise ValueError("inside")
    assert not path.exists()
    with file_lock(path, timeout=0):
        pass


def test_one_holder_at_a_time_although_each_removes_the_file(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    inside: list[int] = []
    most: list[int] = []

    def work() -> None:
        for _ in range(50):
            with file_lock(path, remove=True):
                inside.append(1)
                most.append(len(inside))
                inside.pop()

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert len(most) == 400
    assert max(most) == 1
    assert not path.exists()


def test_the_lock_of_a_removed_file_is_not_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file was opened, and then removed by the process that held its lock."""
    path = tmp_path / "lock"
    try_lock, removals = locks._try_lock, [True, True]

    def after_removal(stream: Any) -> bool:
        if removals:
            removals.pop()
            path.unlink()
        return try_lock(stream)

    monkeypatch.setattr(locks, "_try_lock", after_removal)
    with file_lock(path):
        assert removals == []
        assert path.exists()
        with pytest.raises(LockHeldError), file_lock(path, timeout=0):
            pass


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"), file_lock(tmp_path / "none" / "lock"):
        pass
