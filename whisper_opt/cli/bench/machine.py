"""Description of the machine and software: CPU, memory, load, versions, commit, command."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Union

from whisper_opt.core.cpu import cpu_info, memory_bytes
from whisper_opt.core.version import __version__, installed_version
from whisper_opt.runtime.native import variant, why_no_kernels

__all__ = [
    "BUSY",
    "busy_cores",
    "command_line",
    "commit",
    "load",
    "machine",
    "versions",
]

BUSY = 0.5
"""Cores kept busy by other processes above which times are unreliable."""
_PACKAGES = ("numpy", "onnxruntime", "onnxruntime-gpu", "soundfile", "soxr")


def load() -> Union[list[float], None]:
    """Load averages of the last 1, 5 and 15 minutes."""
    try:
        return [round(value, 2) for value in os.getloadavg()]
    except (AttributeError, OSError):  # not on Windows
        return None


def _jiffies() -> Union[tuple[int, int], None]:
    try:
        line = Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0]
    except OSError:
        return None
    values = [int(value) for value in line.split()[1:9]]
    return sum(values), values[3] + values[4]  # idle and iowait


def busy_cores(seconds: float = 0.5) -> Union[float, None]:
    """Cores busy while this process sleeps; None if the system does not report it.

    Unlike the load average it has no delay of a minute.
    """
    before = _jiffies()
    time.sleep(seconds)
    after = _jiffies()
    if before is None or after is None or after[0] == before[0]:
        return None
    idle = (after[1] - before[1]) / (after[0] - before[0])
    return round((1 - idle) * (os.cpu_count() or 1), 2)


def machine() -> dict[str, Any]:
    """CPU, its relevant features, which kernels can be used, memory and load."""
    found = cpu_info()
    return {
        "cpu": found.name,
        "flags": list(found.flags),
        "kernels": why_no_kernels() is None,
        "kernel_variant": variant(),
        "cores": found.cores,
        "memory_bytes": memory_bytes().get("MemTotal"),
        "system": f"{platform.system()} {platform.machine()}",
        "load_before": load(),
        "busy_cores_before": busy_cores(),
    }


def versions() -> dict[str, str]:
    """Versions of Python, this library and those numerical packages that are installed."""
    every = {name: installed_version(name) for name in _PACKAGES}
    found = {name: version for name, version in every.items() if version is not None}
    return {"python": platform.python_version(), "whisper_opt": __version__, **found}


def commit(folder: Path) -> Union[str, None]:
    """The commit of the git tree of this source, and whether the source was changed since."""
    try:
        output = [
            subprocess.run(
                ["git", *arguments], cwd=folder, capture_output=True, text=True, check=True
            ).stdout.strip()
            for arguments in (
                ("rev-parse", "--short", "HEAD"),
                ("ls-files", "version.py"),
                ("status", "--short", "."),
            )
        ]
    except (OSError, subprocess.CalledProcessError):
        return None
    if not output[1]:  # installed into an environment inside another git tree
        return None
    return output[0] + (" with changes" if output[2] else "")


def command_line(arguments: Sequence[str]) -> str:
    """A command line with absolute paths shortened to their last part."""
    return " ".join(_short(argument) for argument in arguments)


def _short(argument: str) -> str:
    flag, equals, value = argument.partition("=")
    if equals and flag.startswith("-"):
        return f"{flag}={_short(value)}"
    return Path(argument).name if Path(argument).is_absolute() else argument
