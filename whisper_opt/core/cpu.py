"""Name, cores and instruction sets of the CPU, and memory of the machine."""

from __future__ import annotations

import dataclasses
import os
import platform
import re
from pathlib import Path

__all__ = ["CpuInfo", "cpu_info", "memory_bytes"]

_FLAGS = (
    "avx2",
    "fma",
    "f16c",
    "avx512f",
    "avx512_vnni",
    "avx_vnni",
    "avx512_bf16",
    "amx_int8",
    "amx_bf16",
    "asimd",
    "asimddp",
    "i8mm",
    "bf16",
)


@dataclasses.dataclass(frozen=True)
class CpuInfo:
    """The CPU as the operating system describes it.

    Attributes:
        name: model name.
        cores: cores that this process may use.
        flags: instruction sets relevant to this library, by their names in Linux.
    """

    name: str
    cores: int
    flags: tuple[str, ...]


def cpu_info() -> CpuInfo:
    """The CPU of this machine."""
    text = _read("/proc/cpuinfo")
    name = re.search(r"^model name\s*: (.*)$", text, re.M)
    listed = re.search(r"^(?:flags|Features)\s*: (.*)$", text, re.M)
    flags = listed.group(1).split() if listed else []
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return CpuInfo(
        name=name.group(1) if name else platform.processor() or platform.machine(),
        cores=usable or 1,
        flags=tuple(flag for flag in _FLAGS if flag in flags),
    )


def memory_bytes() -> dict[str, int]:
    """``MemTotal``, ``MemAvailable`` and so on in bytes; empty on systems without /proc."""
    found = re.findall(r"^(\w+):\s+(\d+) kB", _read("/proc/meminfo"), re.M)
    return {key: int(kib) * 1024 for key, kib in found}


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
