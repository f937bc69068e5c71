"""NVIDIA GPUs of this machine, as listed by the driver; no package is needed.

Uses the CUDA driver API (``libcuda``) through ctypes, which honours ``CUDA_VISIBLE_DEVICES``.
"""

from __future__ import annotations

import ctypes
import dataclasses
import sys
from typing import Any

__all__ = ["Driver", "Gpu", "find_gpus"]

# CUdevice_attribute
_MAJOR, _MINOR = 75, 76


@dataclasses.dataclass(frozen=True)
class Gpu:
    """One GPU.

    Attributes:
        index: index among the visible GPUs, from 0.
        name: product name.
        sm: compute capability, (8, 6) for an RTX 3060.
        memory: total memory in bytes.
    """

    index: int
    name: str
    sm: tuple[int, int]
    memory: int


@dataclasses.dataclass(frozen=True)
class Driver:
    """What the driver reports.

    Attributes:
        gpus: in the driver's order.
        cuda: newest CUDA version the driver supports, (13, 0), or None without a driver.
        error: why there are no GPUs; empty if there are some.
    """

    gpus: tuple[Gpu, ...] = ()
    cuda: tuple[int, int] | None = None
    error: str = ""


def _load() -> Any:
    if sys.platform == "win32":
        return ctypes.CDLL("nvcuda.dll")
    return ctypes.CDLL("libcuda.so.1")


def find_gpus() -> Driver:
    """Query the driver; never raises."""
    try:
        library = _load()
    except OSError as error:
        return Driver(error=f"no NVIDIA driver ({error})")
    try:
        return _query(library)
    except (AttributeError, _DriverError) as error:
        return Driver(error=f"the NVIDIA driver does not respond ({error})")


class _DriverError(Exception):
    pass


def _call(library: Any, name: str, *arguments: Any) -> None:
    status = getattr(library, name)(*arguments)
    if status == 100:  # CUDA_ERROR_NO_DEVICE
        raise _DriverError("it sees no GPU; CUDA_VISIBLE_DEVICES may hide them")
    if status:
        raise _DriverError(f"{name} gave CUDA error {status}")


def _query(library: Any) -> Driver:
    number, total = ctypes.c_int(), ctypes.c_size_t()
    _call(library, "cuInit", 0)
    _call(library, "cuDriverGetVersion", ctypes.byref(number))
    cuda = (number.value // 1000, number.value % 1000 // 10)
    _call(library, "cuDeviceGetCount", ctypes.byref(number))
    gpus = []
    for index in range(number.value):
        device, name = ctypes.c_int(), ctypes.create_string_buffer(256)
        _call(library, "cuDeviceGet", ctypes.byref(device), index)
        _call(library, "cuDeviceGetName", name, len(name), device)
        sm = []
        for attribute in (_MAJOR, _MINOR):
            _call(library, "cuDeviceGetAttribute", ctypes.byref(number), attribute, device)
            sm.append(number.value)
        _call(library, "cuDeviceTotalMem_v2", ctypes.byref(total), device)
        text = name.value.decode("utf-8", "replace")
        gpus.append(Gpu(index, text, (sm[0], sm[1]), total.value))
    return Driver(tuple(gpus), cuda, "" if gpus else "the driver sees no GPU")
