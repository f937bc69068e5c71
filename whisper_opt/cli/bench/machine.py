"""What figures were made with: processor, memory, load, versions, commit, command."""

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
from whisper_opt.runtime.native import why_no_kernels

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
"""Cores that others keep busy above which times are doubtful."""
_PACKAGES = ("numpy", "onnxruntime", "onnxruntime-gpu", "soundfile", "soxr")


def load() -> Union[list[float], None]:
    """Processes that wanted to run in the last 1, 5 and 15 minutes, on average."""
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
    return sum(values), values[3] + values[4]  # idle, and waiting for disks


def busy_cores(seconds: float = 0.5) -> Union[float, None]:
    """Cores at work while this process sleeps; None where the system does not tell.

    The average load lags by a minute: this is now.
    """
    before = _jiffies()
    time.sleep(seconds)
    after = _jiffies()
    if before is None or after is None or after[0] == before[0]:
        return None
    idle = (after[1] - before[1]) / (after[0] - before[0])
    return round((1 - idle) * (os.cpu_count() or 1), 2)


def machine() -> dict[str, Any]:
    """Processor, its instructions that matter, whether kernels can use them, memory and load."""
    found = cpu_info()
    return {
        "cpu": found.name,
        "flags": list(found.flags),
        "kernels": why_no_kernels() is None,
        "cores": found.cores,
        "memory_bytes": memory_bytes().get("MemTotal"),
        "system": f"{platform.system()} {platform.machine()}",
        "load_before": load(),
        "busy_cores_before": busy_cores(),
    }


def versions() -> dict[str, str]:
    """Python, this library and the packages that compute, as far as they are installed."""
    every = {name: installed_version(name) for name in _PACKAGES}
    found = {name: version for name, version in every.items() if version is not None}
    return {"python": platform.python_version(), "whisper_opt": __version__, **found}


def commit(folder: Path) -> Union[str, None]:
    """The commit of the git tree that this source lies in, and whether it was changed since."""
    try:
        said = [
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
    if not said[1]:  # installed into an environment that lies in somebody else's tree
        return None
    return said[0] + (" with changes" if said[2] else "")


def command_line(arguments: Sequence[str]) -> str:
    """A command as one would type it: of absolute paths, only the last part."""
    return " ".join(_short(argument) for argument in arguments)


def _short(argument: str) -> str:
    flag, equals, value = argument.partition("=")
    if equals and flag.startswith("-"):
        return f"{flag}={_short(value)}"
    return Path(argument).name if Path(argument).is_absolute() else argument
