"""Other programs and processes on each system: on the PATH, running, started without a window."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import subprocess
import sys
from typing import Any

__all__ = ["CREATION_FLAGS", "find_program", "is_running"]

CREATION_FLAGS: int = getattr(subprocess, "CREATE_NO_WINDOW", 0)
"""For ``subprocess.Popen(creationflags=)``: Windows opens no console for the child of a program
that has none. 0 on other systems."""

# Windows: winnt.h, winerror.h, synchapi
_SYNCHRONIZE, _ACCESS_DENIED, _WAIT_TIMEOUT = 0x00100000, 5, 0x102


def find_program(name: str) -> str | None:
    """Path of a program on the PATH, or None.

    On Windows only ``NAME.exe`` counts, and not one that merely lies in the working directory,
    which ``shutil.which`` searches first: recordings are often in the folder of downloads.
    """
    if sys.platform == "win32":
        return _find_exe(name)
    return shutil.which(name)


def _find_exe(name: str) -> str | None:
    for folder in os.environ.get("PATH", "").split(os.pathsep):
        path = os.path.join(folder.strip('"'), f"{name}.exe")
        if folder and os.path.isfile(path):
            return path
    return None


def is_running(pid: int) -> bool:
    """Whether there is a process of this number, also one of another user."""
    if sys.platform == "win32":  # os.kill(pid, 0) would send Ctrl-C there
        return _is_running_on_windows(pid)
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _is_running_on_windows(pid: int) -> bool:
    kernel = _kernel32()
    handle = kernel.OpenProcess(_SYNCHRONIZE, 0, pid)
    if not handle:
        denied: bool = _last_error() == _ACCESS_DENIED
        return denied
    # an ended process exists as long as somebody holds a handle
    with contextlib.ExitStack() as stack:
        stack.callback(kernel.CloseHandle, handle)
        waiting: bool = kernel.WaitForSingleObject(handle, 0) == _WAIT_TIMEOUT
        return waiting


def _kernel32() -> Any:
    """Windows' process functions, with arguments of the right sizes."""
    library: Any = ctypes.WinDLL("kernel32", use_last_error=True)  # type: ignore[attr-defined,unused-ignore]
    library.OpenProcess.argtypes = (ctypes.c_uint32, ctypes.c_int, ctypes.c_uint32)
    library.OpenProcess.restype = ctypes.c_void_p
    library.WaitForSingleObject.argtypes = (ctypes.c_void_p, ctypes.c_uint32)
    library.WaitForSingleObject.restype = ctypes.c_uint32
    library.CloseHandle.argtypes = (ctypes.c_void_p,)
    return library


def _last_error() -> int:
    code: int = ctypes.get_last_error()  # type: ignore[attr-defined,unused-ignore]
    return code
