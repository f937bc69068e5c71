"""What each operating system says of the CPU and the memory; macOS and Windows by stand-ins."""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from whisper_opt.core import cpu
from whisper_opt.core.cpu import cpu_info, memory_bytes
from whisper_opt.runtime.onnxruntime import graph

GIB = 1 << 30

# --- Linux ----------------------------------------------------------------------------------------

X86 = "processor\t: 0\nmodel name\t: A Processor @ 3 GHz\nflags\t\t: fpu avx2 fma avx512_vnni\n"
ARM = "processor\t: 0\nBogoMIPS\t: 50\nFeatures\t: fp asimd asimddp i8mm\n"
MEMORY = "MemTotal:       16777216 kB\nMemAvailable:    8388608 kB\nHugePages_Total:   0\n"


def linux(monkeypatch: pytest.MonkeyPatch, files: dict[str, str]) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(cpu, "_read", lambda path: files.get(path, ""))


@pytest.mark.parametrize(
    ("text", "flags"), [(X86, ("avx2", "fma", "avx512_vnni")), (ARM, ("asimd", "asimddp", "i8mm"))]
)
def test_linux(text: str, flags: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    linux(monkeypatch, {"/proc/cpuinfo": text, "/proc/meminfo": MEMORY})
    assert cpu_info().flags == flags
    assert memory_bytes() == {"MemTotal": 16 * GIB, "MemAvailable": 8 * GIB}


def test_the_name_of_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    linux(monkeypatch, {"/proc/cpuinfo": X86})
    assert cpu_info().name == "A Processor @ 3 GHz"
    monkeypatch.setattr(platform, "processor", lambda: "")
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    linux(monkeypatch, {})
    assert cpu_info().name == "riscv64"
    assert memory_bytes() == {}


def test_cores_are_those_that_the_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 5}, raising=False)
    assert cpu_info().cores == 2
    monkeypatch.delattr(os, "sched_getaffinity")  # as on macOS and Windows
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    assert cpu_info().cores == 8
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert cpu_info().cores == 1


# --- macOS ----------------------------------------------------------------------------------------

APPLE = {
    "machdep.cpu.brand_string": b"Apple M2\0",
    "hw.optional.AdvSIMD": b"\1\0\0\0",
    "hw.optional.arm.FEAT_DotProd": b"\1\0\0\0",
    "hw.optional.arm.FEAT_I8MM": b"\1\0\0\0",
    "hw.optional.arm.FEAT_BF16": b"\0\0\0\0",
    "hw.memsize": (16 * GIB).to_bytes(8, sys.byteorder),
}
INTEL = {
    "machdep.cpu.brand_string": b"Intel(R) Core(TM) i7-1068NG7 CPU @ 2.30GHz\0",
    "machdep.cpu.features": b"FPU SSE4.2 FMA AVX1.0 F16C\0",
    "machdep.cpu.leaf7_features": b"AVX2 AVX512F AVX512VNNI\0",
}


def macos(monkeypatch: pytest.MonkeyPatch, values: dict[str, bytes]) -> None:
    """A C library with ``sysctlbyname``."""

    def sysctlbyname(name: bytes, old: Any, size: Any, new: None, new_size: int) -> int:
        value = values.get(name.decode())
        if value is None:
            return -1
        if old is not None:
            ctypes.memmove(old, value, len(value))
        size._obj.value = len(value)
        return 0

    library = SimpleNamespace(sysctlbyname=sysctlbyname)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: library)
    monkeypatch.setattr(sys, "platform", "darwin")


def test_apple_silicon(monkeypatch: pytest.MonkeyPatch) -> None:
    macos(monkeypatch, APPLE)
    found = cpu_info()
    assert (found.name, found.flags) == ("Apple M2", ("asimd", "asimddp", "i8mm"))
    assert memory_bytes() == {"MemTotal": 16 * GIB}


def test_macs_with_intel_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    macos(monkeypatch, INTEL)
    found = cpu_info()
    assert found.name == "Intel(R) Core(TM) i7-1068NG7 CPU @ 2.30GHz"
    assert found.flags == ("avx2", "fma", "f16c", "avx512f", "avx512_vnni")
    assert memory_bytes() == {}


@pytest.mark.parametrize(("word", "expected"), [(b" AVX512VNNI", False), (b"", True)])
def test_products_on_macs_are_exact(
    word: bytes, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    macos(monkeypatch, {"machdep.cpu.leaf7_features": b"AVX2 AVX512F" + word + b"\0"})
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    assert graph.sums_overflow.__wrapped__() is expected


def test_a_system_without_sysctl(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace())
    assert cpu_info().flags == ()
    assert memory_bytes() == {}


# --- Windows --------------------------------------------------------------------------------------


class Kernel:
    """kernel32 of a processor with these features."""

    def __init__(self, *features: int, memory: bool = True) -> None:
        self._features, self._memory = features, memory

    def IsProcessorFeaturePresent(self, number: int) -> int:  # noqa: N802  # Windows' name
        return int(number in self._features)

    def GlobalMemoryStatusEx(self, status: Any) -> int:  # noqa: N802
        assert status._obj.length == 64
        status._obj.total, status._obj.available = 8 * GIB, 3 * GIB
        return int(self._memory)


class Key:
    def __enter__(self) -> Key:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def windows(monkeypatch: pytest.MonkeyPatch, kernel: Kernel, name: str | None) -> None:
    registry: Any = ModuleType("winreg")
    registry.HKEY_LOCAL_MACHINE = 1

    def open_key(root: int, path: str) -> Key:
        if name is None:
            raise FileNotFoundError(path)
        assert path.endswith(r"CentralProcessor\0")
        return Key()

    registry.OpenKey = open_key
    registry.QueryValueEx = lambda key, value: (name, 1)
    monkeypatch.setitem(sys.modules, "winreg", registry)
    monkeypatch.setattr(cpu, "_kernel32", lambda: kernel)
    monkeypatch.setattr(sys, "platform", "win32")


def test_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """A list of instruction sets without VNNI would be taken for a processor without it."""
    windows(monkeypatch, Kernel(40, 41), "A Processor   ")
    found = cpu_info()
    assert (found.name, found.flags) == ("A Processor", ())
    assert memory_bytes() == {"MemTotal": 8 * GIB, "MemAvailable": 3 * GIB}


def test_windows_on_arm(monkeypatch: pytest.MonkeyPatch) -> None:
    windows(monkeypatch, Kernel(19, 43, memory=False), None)
    monkeypatch.setattr(platform, "processor", lambda: "ARMv8 (64-bit)")
    found = cpu_info()
    assert (found.name, found.flags) == ("ARMv8 (64-bit)", ("asimd", "asimddp"))
    assert memory_bytes() == {}
