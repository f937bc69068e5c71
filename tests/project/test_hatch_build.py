"""Compiling the kernels, with and without a compiler; platforms and data of the wheel."""

from __future__ import annotations

import copy
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
from hatch_build import TARGETS, VARIABLE, KernelHook, compile_kernels, library_name, target_tag
from whisper_opt.core import native_library

ROOT = Path(__file__).parents[2]
LIBRARY = library_name()
COMPILER = hatch_build.compiler()
SUITED = sys.platform == "linux" and platform.machine() == "x86_64"
LIBRARIES = ("*.so", "*.dylib", "*.dll")

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
        ROOT / "whisper_opt" / "runtime" / "native",
        folder,
        ignore=shutil.ignore_patterns(*LIBRARIES),
    )
    (folder / LIBRARY).write_text("of before")
    return folder


@pytest.fixture(autouse=True)
def _for_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)


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


def test_cc_with_arguments(sources: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
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
    sources: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    use(monkeypatch, tmp_path, BAD)
    assert "my-cc failed:\nlinear.c:1: error: no such thing" in str(compile_kernels(sources))
    assert left(sources) == set()  # an old one would not match the sources


@pytest.mark.parametrize("name", ["/nonexistent", "/"])
def test_a_missing_compiler(name: str, sources: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", name)
    assert f"{name} cannot be run (" in str(compile_kernels(sources))
    assert left(sources) == set()


def test_no_compiler(sources: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert compile_kernels(sources) == "no C compiler found"
    assert left(sources) == set()


@pytest.mark.parametrize(
    ("system", "chosen"), [("linux", ["cc"]), ("darwin", ["cc"]), ("win32", ["clang"])]
)
def test_compilers_by_system(
    system: str, chosen: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(shutil, "which", lambda name: name)
    monkeypatch.setattr(sys, "platform", system)
    assert hatch_build.compiler() == chosen


def test_gcc_is_not_used_on_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """It stores 64-byte registers at addresses that are not aligned."""
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(shutil, "which", lambda name: name if name in ("cc", "gcc") else None)
    monkeypatch.setattr(sys, "platform", "win32")
    assert hatch_build.compiler() is None


def test_a_compiler_with_a_windows_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", r"C:\llvm\clang.exe -m64")
    monkeypatch.setattr(sys, "platform", "win32")
    assert hatch_build.compiler() == [r"C:\llvm\clang.exe", "-m64"]


@pytest.mark.parametrize(
    ("system", "target", "name"),
    [
        ("linux", "manylinux_2_17_x86_64", "libwhisper_opt.so"),
        ("darwin", "macosx_11_0_arm64", "libwhisper_opt.dylib"),
        ("win32", "win_amd64", "whisper_opt.dll"),
    ],
)
def test_names_of_the_library(system: str, target: str, name: str) -> None:
    """The package looks for what is built."""
    assert native_library.library_name(system) == name
    assert library_name(system) == name
    assert library_name(target) == name


def test_linkers_write_only_the_library(
    sources: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """That of Windows writes an import library into the working directory."""
    use(monkeypatch, tmp_path, "#!/bin/sh\necho >attention.lib\n" + GOOD.split("\n", 1)[1])
    assert compile_kernels(sources) is None
    assert left(sources) == {LIBRARY}


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
    assert "cannot be run" in done.stderr


# --- data of the wheel
# -----------------------------------------------------------------------------


PURE: dict[str, Any] = {"artifacts": [], "force_include": {}, "pure_python": True}


def hooked(sources: Path, target: str = "wheel") -> tuple[dict[str, Any], list[str]]:
    """The build data for hatchling, and the warnings."""
    warnings: list[str] = []
    told: dict[str, Any] = copy.deepcopy(PURE)
    hook: Any = SimpleNamespace(
        target_name=target,
        root=str(sources.parents[2]),
        app=SimpleNamespace(display_warning=warnings.append, abort=sys.exit),
    )
    KernelHook.initialize(hook, "standard", told)
    return told, warnings


def test_a_wheel_with_kernels(
    sources: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    use(monkeypatch, tmp_path, GOOD)
    monkeypatch.setattr(sysconfig, "get_platform", lambda: "linux-x86_64")
    told, warnings = hooked(sources)
    assert told == {
        "artifacts": [f"whisper_opt/runtime/native/{LIBRARY}"],
        "force_include": {},
        "pure_python": False,
        "tag": "py3-none-linux_x86_64",
    }
    assert warnings == []


def test_a_wheel_without_kernels(sources: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "/nonexistent")
    told, (warning,) = hooked(sources)
    assert told == PURE
    assert "built without compiled kernels: /nonexistent cannot be run" in warning


def test_a_source_archive_compiles_nothing(sources: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "/nonexistent")
    assert hooked(sources, "sdist") == (PURE, [])
    assert left(sources) == {LIBRARY}


@pytest.fixture
def zig(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A script in place of the Python that has zig; returns the file for its arguments."""
    log = use(monkeypatch, tmp_path, GOOD)
    monkeypatch.setenv("CC", "/nonexistent")
    monkeypatch.setattr(sys, "executable", str(tmp_path / "my-cc"))
    return log


@pytest.mark.parametrize("target", TARGETS)
def test_a_wheel_for_another_platform(
    target: str, sources: Path, zig: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, target)
    told, warnings = hooked(sources)
    ((library, held),) = told.pop("force_include").items()
    assert Path(library).read_text() == "compiled\n"
    assert held == f"whisper_opt/runtime/native/{library_name(target)}"
    assert told == {
        "artifacts": [],
        "pure_python": False,
        "tag": f"py3-none-{target_tag(target)}",
    }
    assert warnings == []
    arguments = zig.read_text().split()
    assert arguments[:5] == ["-m", "ziglang", "cc", "-target", TARGETS[target]]
    assert {"-g0", "-s", *hatch_build.FLAGS} <= {*arguments}
    assert left(sources) == {LIBRARY}
    assert (sources / LIBRARY).read_text() == "of before"


def test_tags_that_an_old_pip_knows() -> None:
    assert target_tag("manylinux_2_17_aarch64") == "manylinux_2_17_aarch64.manylinux2014_aarch64"
    assert target_tag("macosx_11_0_arm64") == "macosx_11_0_arm64"


def test_a_wheel_for_any_platform(
    sources: Path, zig: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, "any")
    assert hooked(sources) == (PURE, [])
    assert not zig.exists()


def test_another_platform_must_compile(
    sources: Path, zig: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A wheel that is named after a platform has kernels."""
    monkeypatch.setenv(VARIABLE, "win_amd64")
    (tmp_path / "my-cc").write_text(BAD)
    with pytest.raises(SystemExit, match=r"WHISPER_OPT_TARGET=win_amd64: .*failed:\nlinear.c:1"):
        hooked(sources)
    assert list((tmp_path / "build" / "kernels" / "win_amd64").iterdir()) == []


def test_an_unknown_platform(sources: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "win_arm64")
    with pytest.raises(SystemExit, match=r"win_arm64: unknown; expected manylinux_2_17_x86_64, "):
        hooked(sources)


@pytest.mark.parametrize(
    ("platform_", "tag"),
    [
        ("linux-x86_64", "linux_x86_64"),
        ("macosx-11.0-arm64", "macosx_11_0_arm64"),
        ("macosx-10.9-universal2", f"macosx_10_9_{platform.machine()}"),
        ("win-amd64", "win_amd64"),
    ],
)
def test_tags_of_this_machine(platform_: str, tag: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Python for both processors of Macs does not make the library one for both."""
    monkeypatch.setattr(sysconfig, "get_platform", lambda: platform_)
    assert hatch_build.host_tag() == tag
