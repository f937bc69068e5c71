"""Name, cores and instruction sets of the CPU, and memory of the machine.

Linux: files of /proc. macOS: ``sysctlbyname``. Windows: the registry and functions of kernel32,
which know too few instruction sets of x86 processors to list any.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import importlib
import os
import platform
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

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

_MACOS_FLAGS: Mapping[str, str] = {
    "hw.optional.AdvSIMD": "asimd",
    "hw.optional.arm.FEAT_DotProd": "asimddp",
    "hw.optional.arm.FEAT_I8MM": "i8mm",
    "hw.optional.arm.FEAT_BF16": "bf16",
}
"""Numbers that are 1 on Apple silicon, since macOS 12."""
_MACOS_WORDS: Mapping[str, str] = {"avx512vnni": "avx512_vnni"}
"""Words in the lists of Intel processors that Linux spells otherwise, in lower case."""

# IsProcessorFeaturePresent: the constants PF_* of winnt.h
_WINDOWS_FLAGS: Mapping[int, str] = {19: "asimd", 43: "asimddp"}
_WINDOWS_KEY = r"HARDWARE\DESCRIPTION\System\CentralProcessor\0"


@dataclasses.dataclass(frozen=True)
class CpuInfo:
    """The CPU as the operating system describes it.

    Attributes:
        name: model name.
        cores: cores that this process may use.
        flags: instruction sets relevant to this library, by their names in Linux; empty if the
            system does not list them.
    """

    name: str
    cores: int
    flags: tuple[str, ...]


def cpu_info() -> CpuInfo:
    """The CPU of this machine."""
    if sys.platform == "darwin":
        name, flags = _macos()
    elif sys.platform == "win32":
        name, flags = _windows()
    else:
        name, flags = _linux()
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return CpuInfo(
        name=name or platform.processor() or platform.machine(),
        cores=usable or 1,
        flags=tuple(flag for flag in _FLAGS if flag in flags),
    )


def memory_bytes() -> dict[str, int]:
    """``MemTotal``, ``MemAvailable`` and more in bytes; those that the system reports.

    macOS reports only ``MemTotal``, Windows only these two; others than Linux, nothing.
    """
    if sys.platform == "darwin":
        total = int.from_bytes(_sysctl("hw.memsize"), sys.byteorder)
        return {"MemTotal": total} if total else {}
    if sys.platform == "win32":
        return _windows_memory()
    found = re.findall(r"^(\w+):\s+(\d+) kB", _read("/proc/meminfo"), re.M)
    return {key: int(kib) * 1024 for key, kib in found}


def _linux() -> tuple[str, set[str]]:
    text = _read("/proc/cpuinfo")
    name = re.search(r"^model name\s*: (.*)$", text, re.M)
    listed = re.search(r"^(?:flags|Features)\s*: (.*)$", text, re.M)
    return name.group(1) if name else "", set(listed.group(1).split()) if listed else set()


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


# macOS


def _macos() -> tuple[str, set[str]]:
    lists = (_text("machdep.cpu.features"), _text("machdep.cpu.leaf7_features"))
    words = " ".join(lists).lower().split()
    flags = {_MACOS_WORDS.get(word, word) for word in words}
    flags |= {flag for key, flag in _MACOS_FLAGS.items() if any(_sysctl(key))}
    return _text("machdep.cpu.brand_string"), flags


def _text(key: str) -> str:
    return _sysctl(key).rstrip(b"\0").decode("utf-8", "replace")


def _sysctl(key: str) -> bytes:
    """The value of a key: a string with a zero byte at its end, or a number; empty if unknown."""
    with contextlib.suppress(OSError, AttributeError):
        ask = ctypes.CDLL(None).sysctlbyname
        size = ctypes.c_size_t(0)
        if ask(key.encode(), None, ctypes.byref(size), None, 0):
            return b""
        value = ctypes.create_string_buffer(size.value)
        if ask(key.encode(), value, ctypes.byref(size), None, 0) == 0:
            return value.raw[: size.value]
    return b""


# Windows


class _MemoryStatus(ctypes.Structure):
    """MEMORYSTATUSEX of sysinfoapi.h."""

    _fields_ = (
        ("length", ctypes.c_uint32),
        ("load", ctypes.c_uint32),
        ("total", ctypes.c_uint64),
        ("available", ctypes.c_uint64),
        ("others", ctypes.c_uint64 * 5),
    )


def _windows() -> tuple[str, set[str]]:
    kernel = _kernel32()
    flags = {
        flag for number, flag in _WINDOWS_FLAGS.items() if kernel.IsProcessorFeaturePresent(number)
    }
    registry: Any = importlib.import_module("winreg")
    try:
        with registry.OpenKey(registry.HKEY_LOCAL_MACHINE, _WINDOWS_KEY) as key:
            return str(registry.QueryValueEx(key, "ProcessorNameString")[0]).strip(), flags
    except OSError:
        return "", flags


def _windows_memory() -> dict[str, int]:
    status = _MemoryStatus(length=ctypes.sizeof(_MemoryStatus))
    if not _kernel32().GlobalMemoryStatusEx(ctypes.byref(status)):
        return {}
    return {"MemTotal": status.total, "MemAvailable": status.available}


def _kernel32() -> Any:
    return ctypes.WinDLL("kernel32")  # type: ignore[attr-defined,unused-ignore]
