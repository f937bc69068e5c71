"""Compiling the kernels with, without and with a failing compiler; data of the wheel."""

from __future__ import annotations

import ctypes
import platform
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import hatch_build
from hatch_build import LIBRARY, KernelHook, compile_kernels

ROOT = Path(__file__).parents[2]
COMPILER = hatch_build.compiler()
SUITED = sys.platform == "linux" and platform.machine() == "x86_64"

GOOD = """#!/bin/sh
echo "$@" >"{log}"
while [ "$1" != -o ]; do shift; done
echo compiled >"$2"
"""
BAD = """#!/bin/sh
while [ "$1" != -o ]; do shift; done
echo half >"$2"
echo "linear.c:1: error: no such thing" >&2
exit 3
"""


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """A copy of the sources, with an old library."""
    folder = tmp_path / "whisper_opt" / "runtime" / "native"
    shutil.copytree(
        ROOT / "whisper_opt" / "runtime" / "native", folder, ignore=shutil.ignore_patterns("*.so")
    )
    (folder / LIBRARY).write_text("of before")
    return folder


@pytest.fixture
def suited(monkeypatch: pytest.MonkeyPatch) -> None:
    """The system supports the kernels."""
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")


def use(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: str) -> Path:
    """Make a script the compiler; returns the file for its arguments."""
    path, log = tmp_path / "my-cc", tmp_path / "log"
    path.write_text(script.replace("{log}", str(log)))
    path.chmod(0o755)
    monkeypatch.setenv("CC", f"{path} -pipe")
    return log


def left(folder: Path) -> set[str]:
    """Files that are not sources."""
    return {path.name for path in folder.iterdir() if path.suffix not in (".c", ".h", ".py")} - {
        "__pycache__"
    }


@pytest.mark.skipif(not (SUITED and COMPILER), reason="not tested: no C compiler here, or no Linux")
def test_the_real_one(sources: Path) -> None:
    assert compile_kernels(sources) is None
    assert left(sources) == {LIBRARY}
    assert ctypes.CDLL(str(sources / LIBRARY)).whisper_opt_supported() in (0, 1)
    assert hasattr(ctypes.CDLL(str(sources / LIBRARY)), "RegisterCustomOps")


def test_cc_with_arguments(
    sources: Path, suited: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    log = use(monkeypatch, tmp_path, GOOD)
    assert compile_kernels(sources) is None
    assert (sources / LIBRARY).read_text() == "compiled\n"
    given = log.read_text().split()
    assert given[0] == "-pipe"
    assert {Path(name).name for name in given if name.endswith(".c")} == {
        path.name for path in sources.glob("*.c")
    }
    assert left(sources) == {LIBRARY}


def test_a_compiler_that_fails_leaves_nothing(
    sources: Path, suited: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    use(monkeypatch, tmp_path, BAD)
    assert "my-cc failed:\nlinear.c:1: error: no such thing" in str(compile_kernels(sources))
    assert left(sources) == set()  # an old one would not match the sources


@pytest.mark.parametrize("name", ["/nonexistent", "/"])
def test_a_missing_compiler(
    name: str, sources: Path, suited: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CC", name)
    assert f"{name} cannot be run (" in str(compile_kernels(sources))
    assert left(sources) == set()


def test_no_compiler(
    sources: Path, suited: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert compile_kernels(sources) == "no C compiler found"
    assert left(sources) == set()


@pytest.mark.parametrize(("system", "machine"), [("linux", "aarch64"), ("darwin", "x86_64")])
def test_other_systems(
    system: str, machine: str, sources: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(platform, "machine", lambda: machine)
    assert f"this is {system} on {machine}" in str(compile_kernels(sources))
    assert left(sources) == set()


def test_as_a_program(sources: Path) -> None:
    root = sources.parent.parent
    shutil.copy(ROOT / "hatch_build.py", root)
    done = subprocess.run(
        [sys.executable, str(root / "hatch_build.py")],
        env={"CC": "/nonexistent", "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "cannot be run" in done.stderr or "they need Linux" in done.stderr


# --- data of the wheel
# -----------------------------------------------------------------------------


def hooked(sources: Path, target: str = "wheel") -> tuple[dict[str, Any], list[str]]:
    """The build data for hatchling, and the warnings."""
    warnings: list[str] = []
    told: dict[str, Any] = {"artifacts": [], "pure_python": True}
    hook: Any = SimpleNamespace(
        target_name=target,
        root=str(sources.parents[2]),
        app=SimpleNamespace(display_warning=warnings.append),
    )
    KernelHook.initialize(hook, "standard", told)
    return told, warnings


def test_a_wheel_with_kernels(
    sources: Path, suited: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    use(monkeypatch, tmp_path, GOOD)
    monkeypatch.setattr(sysconfig, "get_platform", lambda: "linux-x86_64")
    told, warnings = hooked(sources)
    assert told == {
        "artifacts": ["whisper_opt/runtime/native/libwhisper_opt.so"],
        "pure_python": False,
        "tag": "py3-none-linux_x86_64",
    }
    assert warnings == []


def test_a_wheel_without_kernels(
    sources: Path, suited: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CC", "/nonexistent")
    told, (warning,) = hooked(sources)
    assert told == {"artifacts": [], "pure_python": True}
    assert "built without compiled kernels: /nonexistent cannot be run" in warning


def test_a_source_archive_compiles_nothing(
    sources: Path, suited: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CC", "/nonexistent")
    assert hooked(sources, "sdist") == ({"artifacts": [], "pure_python": True}, [])
    assert left(sources) == {LIBRARY}
