"""Programs on the PATH and running processes; Windows by stand-ins."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from whisper_opt.core import processes
from whisper_opt.core.processes import find_program, is_running


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """The working directory, and a directory on the PATH."""
    here, listed = tmp_path / "downloads", tmp_path / "programs"
    for folder in (here, listed):
        folder.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setenv("PATH", os.pathsep.join(["", str(tmp_path / "missing"), str(listed)]))
    return here, listed


def put(folder: Path, name: str) -> str:
    path = folder / name
    path.write_text("", encoding="utf-8")
    path.chmod(0o755)
    return str(path)


def test_a_program_on_the_path(folders: tuple[Path, Path]) -> None:
    assert find_program("ffmpeg") is None
    path = put(folders[1], "ffmpeg")
    assert find_program("ffmpeg") == path


def test_a_program_on_windows(folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the one among the downloads, and no batch file."""
    monkeypatch.setattr(sys, "platform", "win32")
    put(folders[0], "ffmpeg.exe")
    put(folders[1], "ffmpeg.bat")
    assert find_program("ffmpeg") is None
    path = put(folders[1], "ffmpeg.exe")
    assert find_program("ffmpeg") == path


def test_a_quoted_folder_on_windows(
    folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setenv("PATH", f'"{folders[1]}"')
    path = put(folders[1], "ffmpeg.exe")
    assert find_program("ffmpeg") == path


def test_running_processes() -> None:
    assert is_running(os.getpid())
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    assert not is_running(ended.pid)


def test_a_process_of_another_user(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(pid: int, number: int) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "kill", refuse)
    assert is_running(1)


class Kernel:
    """kernel32 with one process, which runs, and one that has ended but is still known."""

    RUNNING, ENDED, FOREIGN = 4, 8, 12

    def __init__(self) -> None:
        self.opened: list[int] = []

    def OpenProcess(self, access: int, inherit: int, pid: int) -> int:  # noqa: N802  # Windows' name
        assert access == 0x100000
        if pid not in (self.RUNNING, self.ENDED):
            return 0
        self.opened.append(pid)
        return pid

    def WaitForSingleObject(self, handle: int, timeout: int) -> int:  # noqa: N802
        assert timeout == 0
        return 0x102 if handle == self.RUNNING else 0

    def CloseHandle(self, handle: int) -> int:  # noqa: N802
        self.opened.remove(handle)
        return 1


@pytest.mark.parametrize(
    ("pid", "error", "running"),
    [
        (Kernel.RUNNING, 0, True),
        (Kernel.ENDED, 0, False),
        (Kernel.FOREIGN, 5, True),
        (99, 87, False),
    ],
)
def test_processes_of_windows(
    pid: int, error: int, running: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def kill(pid: int, number: int) -> None:
        pytest.fail("os.kill(pid, 0) sends Ctrl-C on Windows")

    kernel = Kernel()
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(os, "kill", kill)
    monkeypatch.setattr(processes, "_kernel32", lambda: kernel)
    monkeypatch.setattr(processes, "_last_error", lambda: error)
    assert is_running(pid) is running
    assert kernel.opened == []
