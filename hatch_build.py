"""Compiles the C kernels when the package is built, if there is a compiler.

Run directly, it only compiles them beside their sources: python hatch_build.py
"""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

try:
    from hatchling.builders.hooks.plugin.interface import BuildHookInterface
except ImportError:  # run directly
    BuildHookInterface = object

NATIVE = "whisper_opt/runtime/native"
LIBRARY = "libwhisper_opt.so"
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


def compiler() -> list[str] | None:
    """The command of a C compiler: $CC, or the first of cc, gcc and clang; None without one."""
    if os.environ.get("CC"):
        return shlex.split(os.environ["CC"])
    found = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
    return [found] if found else None


def compile_kernels(folder: Path) -> str | None:
    """Compile the library beside its sources in ``folder``; returns the problem, or None.

    An old library is replaced when the new one is complete, and removed if compiling fails.
    """
    library = folder / LIBRARY
    problem = _compile(folder, library)
    if problem:
        library.unlink(missing_ok=True)
    return problem


def _compile(folder: Path, library: Path) -> str | None:
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return f"they need Linux on x86-64, this is {sys.platform} on {platform.machine()}"
    command = compiler()
    if command is None:
        return "no C compiler found"
    fresh = library.with_name(f".{LIBRARY}.{os.getpid()}")
    sources = sorted(str(path) for path in folder.glob("*.c"))
    try:
        done = subprocess.run(
            [*command, *FLAGS, *sources, "-lm", "-o", str(fresh)], capture_output=True, text=True
        )
        if done.returncode:
            return f"{command[0]} failed:\n{done.stderr.strip()}"
        fresh.replace(library)
    except OSError as error:
        return f"{command[0]} cannot be run ({error})"
    finally:
        fresh.unlink(missing_ok=True)
    return None


class KernelHook(BuildHookInterface):  # type: ignore[misc]
    """Hatchling calls it before it builds a wheel."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile the kernels and set the platform tag of the wheel."""
        if self.target_name != "wheel":
            return
        problem = compile_kernels(Path(self.root) / NATIVE)
        if problem:
            self.app.display_warning(f"whisper-opt is built without compiled kernels: {problem}")
            return
        build_data["artifacts"].append(f"{NATIVE}/{LIBRARY}")
        build_data["pure_python"] = False
        tag = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        build_data["tag"] = f"py3-none-{tag}"


if __name__ == "__main__":
    sys.exit(compile_kernels(Path(__file__).parent / NATIVE))
