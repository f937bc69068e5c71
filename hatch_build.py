"""Compiles the C kernels when a wheel is built, if there is a compiler.

Run directly, it only compiles them beside their sources: python hatch_build.py

The environment variable WHISPER_OPT_TARGET selects the platform of the wheel: one of TARGETS, which
is compiled by zig (the package ziglang, in the Python that builds), or "any" for a wheel without
kernels. scripts/build_wheels.py builds all of them. By default the wheel is for this machine.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

try:
    from hatchling.builders.hooks.plugin.interface import BuildHookInterface
except ImportError:  # run directly
    BuildHookInterface = object

NATIVE = "whisper_opt/runtime/native"
FLAGS = (
    "-std=gnu11",
    "-O2",
    "-fno-math-errno",
    "-ffp-contract=off",  # the same bits from every compiler and for every instruction set
    "-fPIC",
    "-shared",
    "-fvisibility=hidden",
    "-Wall",
)
STRIPPED = ("-g0", "-s")

VARIABLE = "WHISPER_OPT_TARGET"
ANY = "any"
TARGETS = {
    "manylinux_2_17_x86_64": "x86_64-linux-gnu.2.17",
    "manylinux_2_17_aarch64": "aarch64-linux-gnu.2.17",
    "macosx_11_0_x86_64": "x86_64-macos.11.0",
    "macosx_11_0_arm64": "aarch64-macos.11.0",
    "win_amd64": "x86_64-windows-gnu",
}
"""Platform tags of wheels, and what zig calls these platforms."""
BUILT = "build/kernels"
"""Where libraries for TARGETS are put, in a folder each."""


def library_name(platform: str = sys.platform) -> str:
    """File name of the library on a platform, which is named as ``sys.platform`` or a wheel's tag.

    ``whisper_opt/core/native_library.py`` has the same, which cannot be imported before numpy.
    """
    if platform.startswith("win"):
        return "whisper_opt.dll"
    apple = platform.startswith(("darwin", "macosx"))
    return "libwhisper_opt.dylib" if apple else "libwhisper_opt.so"


def compiler() -> list[str] | None:
    """The command of a C compiler: $CC, or the first of cc, gcc and clang; None without one.

    On Windows only clang: GCC does not align what it spills from 64-byte registers there.
    """
    if os.environ.get("CC"):
        return shlex.split(os.environ["CC"], posix=sys.platform != "win32")
    names = ("clang",) if sys.platform == "win32" else ("cc", "gcc", "clang")
    found = next(filter(None, map(shutil.which, names)), None)
    return [found] if found else None


def compile_kernels(folder: Path) -> str | None:
    """Compile the library beside its sources in ``folder``; returns the problem, or None.

    An old library is replaced when the new one is complete, and removed if compiling fails.
    """
    command, library = compiler(), folder / library_name()
    problem = _compile(folder, library, command) if command else "no C compiler found"
    if problem:
        library.unlink(missing_ok=True)
    return problem


def compile_for(target: str, folder: Path, library: Path) -> str | None:
    """Compile ``library`` by zig for one of TARGETS; returns the problem, or None."""
    command = [sys.executable, "-m", "ziglang", "cc", "-target", TARGETS[target], *STRIPPED]
    library.parent.mkdir(parents=True, exist_ok=True)
    return _compile(folder, library, command)


def _compile(folder: Path, library: Path, command: list[str]) -> str | None:
    sources = sorted(str(path.resolve()) for path in folder.glob("*.c"))
    arguments = [*command, *FLAGS, *sources, "-lm", "-o", library.name]
    try:
        # in a folder of its own: linkers write import libraries into the working directory, and the
        # name of the output, without a path, into the library
        with tempfile.TemporaryDirectory(prefix=".compiling-", dir=library.parent) as fresh:
            done = subprocess.run(arguments, cwd=fresh, capture_output=True, text=True)
            if done.returncode:
                return f"{command[0]} failed:\n{done.stderr.strip()}"
            Path(fresh, library.name).replace(library)
    except OSError as error:
        return f"{command[0]} cannot be run ({error})"
    return None


def host_tag() -> str:
    """Platform tag of a wheel with a library that was compiled for this machine."""
    found = sysconfig.get_platform().replace("-", "_").replace(".", "_")
    # a Python for both processors of Macs; the library is for one
    return found.replace("universal2", os.uname().machine) if "universal2" in found else found


def target_tag(target: str) -> str:
    """Platform tag of a wheel for one of TARGETS, with the name that older versions of pip know."""
    older = target.replace("manylinux_2_17", "manylinux2014")
    return target if older == target else f"{target}.{older}"


class KernelHook(BuildHookInterface):  # type: ignore[misc]
    """Hatchling calls it before it builds a wheel."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile the kernels and set the platform tag of the wheel."""
        target = os.environ.get(VARIABLE, "")
        if self.target_name != "wheel" or target == ANY:
            return
        folder = Path(self.root) / NATIVE
        problem = (
            _add_target(folder, target, build_data) if target else _add_host(folder, build_data)
        )
        if problem and target:
            self.app.abort(f"{VARIABLE}={target}: {problem}")
        if problem:
            self.app.display_warning(f"whisper-opt is built without compiled kernels: {problem}")


def _add_host(folder: Path, build_data: dict[str, Any]) -> str | None:
    """Add kernels for this machine to a wheel; returns the problem, or None."""
    problem = compile_kernels(folder)
    if not problem:
        build_data["artifacts"].append(f"{NATIVE}/{library_name()}")
        build_data.update(pure_python=False, tag=f"py3-none-{host_tag()}")
    return problem


def _add_target(folder: Path, target: str, build_data: dict[str, Any]) -> str | None:
    """Add kernels for one of TARGETS to a wheel; returns the problem, or None."""
    if target not in TARGETS:
        return f"unknown; expected {', '.join(TARGETS)} or {ANY}"
    library = folder.parents[2] / BUILT / target / library_name(target)
    problem = compile_for(target, folder, library)
    if not problem:
        build_data["force_include"][str(library)] = f"{NATIVE}/{library.name}"
        build_data.update(pure_python=False, tag=f"py3-none-{target_tag(target)}")
    return problem


if __name__ == "__main__":
    sys.exit(compile_kernels(Path(__file__).parent / NATIVE))
