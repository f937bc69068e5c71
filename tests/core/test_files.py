from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from whisper_opt.core.files import replace_directory, replace_file, write_remedy


def test_a_file_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "file"
    replace_file(path, b"one")
    replace_file(path, memoryview(b"two"))
    assert path.read_bytes() == b"two"
    assert os.listdir(tmp_path) == ["file"]


def test_a_failure_keeps_the_older_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    replace_file(path, b"one")

    def refuse(number: int) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(OSError, match="No space"):
        replace_file(path, b"two")
    assert path.read_bytes() == b"one"
    assert os.listdir(tmp_path) == ["file"]


def test_a_partial_file_of_a_given_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that was left there is no obstacle, and not a byte of it remains."""
    partial, target = tmp_path / "partial", tmp_path / "target"
    partial.write_bytes(b"left by a process that was killed")
    seen = []

    def sync(number: int) -> None:
        seen.append(partial.read_bytes())

    monkeypatch.setattr(os, "fsync", sync)
    replace_file(target, b"new", partial=partial)
    assert seen == [b"new"]
    assert target.read_bytes() == b"new"
    assert not partial.exists()


def test_a_directory_is_replaced(tmp_path: Path) -> None:
    for name in ("new", "old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name, encoding="utf-8")
    replace_directory(tmp_path / "new", tmp_path / "old")
    assert (tmp_path / "old" / "file").read_text(encoding="utf-8") == "new"
    assert os.listdir(tmp_path) == ["old"]


# --- Windows, which renames no file in use --------------------------------------------------------


class Busy:
    """A rename that fails a number of times."""

    def __init__(self, rename: Callable[..., Any], failures: int) -> None:
        self._rename, self._left = rename, failures

    def __call__(self, *arguments: Any) -> Any:
        if self._left:
            self._left -= 1
            raise PermissionError(13, "The process cannot access the file")
        return self._rename(*arguments)


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Windows; the pauses are recorded, not made."""
    made: list[float] = []
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(time, "sleep", made.append)
    return made


def test_a_file_that_a_scanner_has_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pauses: list[float]
) -> None:
    path = tmp_path / "file"
    monkeypatch.setattr(os, "replace", Busy(os.replace, 2))
    replace_file(path, b"new")
    assert path.read_bytes() == b"new"
    assert len(pauses) == 2


def test_a_file_that_stays_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pauses: list[float]
) -> None:
    path = tmp_path / "file"
    replace_file(path, b"old")
    monkeypatch.setattr(os, "replace", Busy(os.replace, 100))
    with pytest.raises(PermissionError, match="cannot access"):
        replace_file(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]
    assert 0.5 < sum(pauses) < 5


def test_other_systems_do_not_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail("waited"))
    monkeypatch.setattr(os, "replace", Busy(os.replace, 1))
    with pytest.raises(PermissionError):
        replace_file(tmp_path / "file", b"new")


@pytest.mark.parametrize("failures", [1, 2])
def test_a_directory_that_a_scanner_has_open(
    failures: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pauses: list[float]
) -> None:
    for name in ("new", "old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name, encoding="utf-8")
    busy = Busy(Path.rename, failures)
    monkeypatch.setattr(Path, "rename", lambda path, target: busy(path, target))
    replace_directory(tmp_path / "new", tmp_path / "old")
    assert (tmp_path / "old" / "file").read_text(encoding="utf-8") == "new"
    assert len(pauses) == failures


def test_a_directory_in_use_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pauses: list[float]
) -> None:
    for name in ("new", "old"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(Path, "rename", Busy(Path.rename, 100))
    with pytest.raises(PermissionError):
        replace_directory(tmp_path / "new", tmp_path / "old")
    assert sorted(os.listdir(tmp_path)) == ["new", "old"]


def test_advice_depends_on_the_system(monkeypatch: pytest.MonkeyPatch) -> None:
    denied, full = PermissionError(13, "Access is denied"), OSError(28, "No space left on device")
    monkeypatch.setattr(sys, "platform", "linux")
    assert write_remedy(denied) == write_remedy(full)
    assert "enough free space" in write_remedy(full)
    monkeypatch.setattr(sys, "platform", "win32")
    assert write_remedy(denied).startswith("Close the programs that use it")
    assert "enough free space" in write_remedy(full)
