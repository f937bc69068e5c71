"""Exports that are interrupted, killed or out of disk space leave no incomplete files."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable

import pytest

from tests.support.engines import sharp_checkpoint
from tests.support.exports import SMALL, snapshot
from whisper_opt import Whisper
from whisper_opt.core.errors import EngineError
from whisper_opt.core.files import replace_directory
from whisper_opt.export import export, writer
from whisper_opt.export.checkpoints import Checkpoint
from whisper_opt.runtime.engine import read_engine

ROOT = Path(__file__).parent.parent.parent

# --- interruptions --------------------------------------------------------------------------------


def interrupt_at(wanted: str) -> Callable[[str, float, float], None]:
    def on_progress(stage: str, done: float, total: float) -> None:
        if stage == wanted and done * 2 >= total:
            raise KeyboardInterrupt

    return on_progress


@pytest.mark.parametrize("stage", ["write", "verify"])
def test_ctrl_c_leaves_nothing(place: Path, small: Checkpoint, stage: str) -> None:
    with pytest.raises(KeyboardInterrupt):
        export(small, place / "engine", on_progress=interrupt_at(stage))
    assert os.listdir(place) == []


@pytest.mark.parametrize("stage", ["write", "verify"])
def test_ctrl_c_keeps_the_engine_that_was_there(place: Path, small: Checkpoint, stage: str) -> None:
    export(small, place / "engine")
    before = snapshot(place)
    with pytest.raises(KeyboardInterrupt):
        export(small, place / "engine", overwrite=True, on_progress=interrupt_at(stage))
    assert snapshot(place) == before
    assert os.listdir(place) == ["engine"]


def test_the_old_engine_comes_back_when_the_new_one_cannot_take_its_place(
    place: Path, small: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    export(small, place / "engine")
    before = snapshot(place)
    rename = Path.rename

    def refuse(self: Path, target: Path) -> Path:
        if ".partial-" in self.name and not self.name.endswith(".old"):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(EngineError, match="cannot write the engine"):
        export(small, place / "engine", overwrite=True)
    assert snapshot(place) == before
    assert os.listdir(place) == ["engine"]


@pytest.mark.parametrize("limit", [0, 100_000, 1_200_000])
def test_a_full_disk_leaves_nothing(
    place: Path, small: Checkpoint, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    write = writer._HashingFile.write
    room = limit

    def full(self: Any, data: bytes) -> None:
        nonlocal room
        room -= len(data)
        if room < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(self, data)

    monkeypatch.setattr(writer._HashingFile, "write", full)
    with pytest.raises(EngineError) as caught:
        export(small, place / "engine")
    said = str(caught.value)
    assert f"cannot write the engine {place / 'engine'}: No space left on device" in said
    assert "enough free space" in said
    assert os.listdir(place) == []


@contextlib.contextmanager
def file_limit(size: int) -> Iterator[None]:
    """The system refuses to write more than ``size`` bytes to a file.

    Within a test only: the report that pytest prints may go to a file too.
    """
    resource = pytest.importorskip("resource", reason="not tested: no file limits on this system")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("size", [100, 200_000, 800_000])
def test_a_file_size_limit_leaves_nothing(place: Path, small: Checkpoint, size: int) -> None:
    with (
        file_limit(size),
        pytest.raises(EngineError, match=r"cannot write the engine .*File too large"),
    ):
        export(small, place / "engine")
    assert os.listdir(place) == []


def test_a_file_is_closed_when_its_last_bytes_are_refused(
    place: Path,
) -> None:
    stream = writer._HashingFile(place / "manifest.json")
    stream.write(bytes(500))  # still in the buffer
    with file_limit(100), pytest.raises(OSError, match="File too large"):
        stream.close()
    assert stream._stream.closed


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS])
def test_an_unwritable_place(
    place: Path, small: Checkpoint, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def refuse(self: Path, *_: Any, **__: Any) -> None:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "mkdir", refuse)
        with pytest.raises(EngineError) as caught:
            export(small, place / "engine")
    assert os.strerror(code) in str(caught.value)
    assert "Choose a writable directory" in str(caught.value)
    assert os.listdir(place) == []


def test_a_place_inside_a_file(place: Path, small: Checkpoint) -> None:
    (place / "file").write_bytes(b"content")
    with pytest.raises(EngineError, match=r"cannot write the engine .*(Not a directory|exists)"):
        export(small, place / "file" / "engine")
    assert snapshot(place) == {"file": b"content"} or os.listdir(place) == ["file"]


# --- leftovers of killed exports ------------------------------------------------------------------


def dead_pid() -> int:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
        return process.pid


def leave(place: Path, name: str) -> Path:
    path = place / name
    path.mkdir()
    (path / "encoder.data").write_bytes(b"half of it")
    return path


def test_leftovers_of_the_dead_are_removed(place: Path, small: Checkpoint) -> None:
    dead = dead_pid()
    leave(place, f".engine.partial-{dead}")
    leave(place, f".engine.partial-{dead}.old")
    leave(place, f".engine.partial-{os.getpid()}")  # of a process that had our pid
    others = {
        f".engine.partial-{os.getppid()}",  # alive
        f".engine2.partial-{dead}",  # of another target
        ".engine.partial-kept",
        "engine.partial",
    }
    for name in others:
        leave(place, name)
    export(small, place / "engine")
    assert set(os.listdir(place)) == {"engine", *others}


def test_leftovers_are_found_under_any_name(place: Path, small: Checkpoint) -> None:
    leave(place, f".tiny[1]*.partial-{dead_pid()}")
    export(small, place / "tiny[1]*")
    assert os.listdir(place) == ["tiny[1]*"]


def test_two_exports_at_once_to_one_target(place: Path, small: Checkpoint) -> None:
    """The second fails, the first succeeds."""
    refused: list[str] = []

    def on_progress(stage: str, done: float, total: float) -> None:
        if stage == "verify" and done == 0:
            with pytest.raises(EngineError, match="cannot write the engine") as caught:
                export(small, place / "engine")
            refused.append(str(caught.value))

    engine = export(small, place / "engine", on_progress=on_progress)
    assert len(refused) == 1
    assert read_engine(engine.path, verify=True)
    assert os.listdir(place) == ["engine"]


KILLED = """
import sys, time
from tests.support.engines import sharp_checkpoint
from tests.support.exports import SMALL
from whisper_opt.export import export

def on_progress(stage, done, total):
    if stage == sys.argv[2] and done * 2 >= total:
        print("now", flush=True)
        time.sleep(600)

export(sharp_checkpoint(SMALL), sys.argv[1], overwrite=True, on_progress=on_progress)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="not tested: no SIGKILL here")
@pytest.mark.parametrize("stage", ["write", "verify"])
@pytest.mark.parametrize("replace", [False, True])
def test_a_killed_export_leaves_no_engine(
    place: Path, small: Checkpoint, stage: str, replace: bool
) -> None:
    target = place / "engine"
    if replace:
        export(sharp_checkpoint(SMALL, seed=1), target)
    before = snapshot(target) if replace else {}
    command = [sys.executable, "-c", KILLED, str(target), stage]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "now\n"
        finally:
            process.kill()
    assert process.returncode == -signal.SIGKILL
    assert (place / f".engine.partial-{process.pid}" / "encoder.data").is_file()
    if replace:
        assert snapshot(target) == before
    else:
        assert not target.exists()
    engine = export(small, target, overwrite=replace)
    assert read_engine(target, verify=True) == engine
    assert engine.manifest.source["name"] == "random-0"
    assert os.listdir(place) == ["engine"]


def test_an_engine_lost_between_two_renames_comes_back(place: Path, small: Checkpoint) -> None:
    """Killed after the old engine was renamed and before the new one was."""
    old = export(sharp_checkpoint(SMALL, seed=1), place / "engine")
    before = snapshot(old.path)
    old.path.rename(place / f".engine.partial-{dead_pid()}.old")
    with pytest.raises(EngineError, match="already exists"):
        export(small, place / "engine")
    assert snapshot(place / "engine") == before
    assert os.listdir(place) == ["engine"]


# --- Windows, which renames no directory with an open file ----------------------------------------


def in_use(folder: Path) -> set[str]:
    """Files of a folder that this process has open or mapped (Linux)."""
    opened = {os.path.realpath(f"/proc/self/fd/{number}") for number in os.listdir("/proc/self/fd")}
    mapped = Path("/proc/self/maps").read_text(encoding="utf-8").split()
    return {name for name in {*opened, *mapped} if str(folder) in name}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="not tested: it reads /proc")
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_no_file_is_in_use_when_the_engine_appears(
    precision: str, place: Path, small: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor when it is closed: it can then be exported again."""
    held: list[set[str]] = []

    def watched(temporary: Path, target: Path) -> None:
        held.append(in_use(place))
        replace_directory(temporary, target)

    monkeypatch.setattr(writer, "replace_directory", watched)
    with Whisper.load(export(small, place / "engine", precision=precision).path):
        assert in_use(place) != set()
    export(small, place / "engine", precision=precision, overwrite=True)
    assert held == [set(), set()]


def test_an_engine_in_use_on_windows(
    place: Path, small: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(temporary: Path, target: Path) -> None:
        raise PermissionError(13, "Access is denied")

    monkeypatch.setattr(writer, "replace_directory", refuse)
    monkeypatch.setattr(writer, "is_running", lambda pid: True)
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(EngineError, match=r"Access is denied.*Close the programs that use it"):
        export(small, place / "engine")
