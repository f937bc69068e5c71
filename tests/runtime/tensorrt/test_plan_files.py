"""Writing plans: complete directories only, one builder at a time."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from whisper_opt.core.errors import EngineError
from whisper_opt.runtime.tensorrt.plan_files import locked, replacing


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def _interrupted(target: Path, error: type[BaseException]) -> None:
    with replacing(target) as folder:
        (folder / "a.plan").write_text("three", encoding="utf-8")
        raise error(28, "No space left on device")


def test_replacing_is_all_or_nothing(tmp_path: Path) -> None:
    target = tmp_path / "plans"
    for text in ("one", "two"):
        with replacing(target) as folder:
            (folder / "a.plan").write_text(text, encoding="utf-8")
        assert names(tmp_path) == ["plans"]
        assert (target / "a.plan").read_text(encoding="utf-8") == text
    for error in (KeyboardInterrupt, RuntimeError):
        with pytest.raises(error):
            _interrupted(target, error)
        assert names(tmp_path) == ["plans"]
        assert (target / "a.plan").read_text(encoding="utf-8") == "two"


def test_leftovers_are_removed(tmp_path: Path) -> None:
    for name in (".plans.partial-123", ".plans.partial-123.old", ".others.partial-9"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x").write_text("", encoding="utf-8")
    with replacing(tmp_path / "plans"):
        pass
    assert names(tmp_path) == ["plans"]


def test_a_full_disk_is_reported(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="No space left on device; nothing was left there"):
        _interrupted(tmp_path / "plans", OSError)
    assert names(tmp_path) == []


def test_a_home_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "trt").write_text("a file", encoding="utf-8")
    with pytest.raises(EngineError, match="cannot write plans to"), locked(tmp_path / "trt"):
        pass


def test_threads_take_turns(tmp_path: Path) -> None:
    log: list[str] = []
    waited: list[bool] = []

    def work(name: str) -> None:
        with locked(tmp_path, lambda: waited.append(True)):
            log.append(f"{name} in")
            time.sleep(0.15)
            log.append(f"{name} out")

    threads = [threading.Thread(target=work, args=(name,)) for name in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [line[0] for line in log[::2]] == [line[0] for line in log[1::2]]
    assert waited


def _hold(home: Path, ready: Any) -> None:
    with locked(home):
        ready.set()
        time.sleep(60)


def test_a_killed_process_releases_the_lock(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    process = context.Process(target=_hold, args=(tmp_path, ready))
    process.start()
    assert ready.wait(30)
    busy = r"another process has been building plans in .* 0 s"
    with pytest.raises(EngineError, match=busy), locked(tmp_path, timeout=0):
        pass
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL if sys.platform != "win32" else signal.SIGTERM)
    process.join()
    with locked(tmp_path, timeout=10):
        pass


class Locks(ModuleType):
    """msvcrt of Windows: locks of bytes, by file; one is released by its name, not by closing."""

    LK_NBLCK, LK_UNLCK = 2, 0

    def __init__(self) -> None:
        super().__init__("msvcrt")
        self.held: set[tuple[int, int]] = set()
        self.log: list[tuple[int, int, int]] = []

    def locking(self, number: int, mode: int, n_bytes: int) -> None:
        info = os.fstat(number)
        key = (info.st_dev, info.st_ino)
        self.log.append((mode, os.lseek(number, 0, os.SEEK_CUR), n_bytes))
        if mode == self.LK_UNLCK:
            self.held.remove(key)
        elif key in self.held:
            raise PermissionError(13, "Permission denied")
        else:
            self.held.add(key)


def test_locks_of_windows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first byte is locked, and released when the block ends, with an error too."""
    locks = Locks()
    monkeypatch.setitem(sys.modules, "msvcrt", locks)
    monkeypatch.setattr(sys, "platform", "win32")
    busy = pytest.raises(EngineError, match="another process has been building plans")
    with locked(tmp_path), busy, locked(tmp_path, timeout=0):
        pass
    with pytest.raises(KeyboardInterrupt), locked(tmp_path):
        raise KeyboardInterrupt
    assert locks.held == set()
    assert {(at, n_bytes) for _, at, n_bytes in locks.log} == {(0, 1)}


def test_plans_in_use_on_windows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(EngineError, match="Close the programs that use it"):
        _interrupted(tmp_path / "plans", PermissionError)
