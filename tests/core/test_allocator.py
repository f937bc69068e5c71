"""How many arenas glibc's allocator has."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

PROGRAM = """
import ctypes, sys, threading
from whisper_opt.core.allocator import few_arenas
few = sys.argv[1] == "few" and few_arenas()
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
ready = threading.Barrier(6)
def allocate():
    ready.wait()
    for _ in range(100):
        libc.malloc(1000)
    ready.wait()
threads = [threading.Thread(target=allocate) for _ in range(6)]
for thread in threads: thread.start()
for thread in threads: thread.join()
libc.fopen.restype = ctypes.c_void_p
libc.malloc_info(0, ctypes.c_void_p(libc.fopen(b"/dev/stdout", b"w")))
libc.fflush(None)
print(few)
"""


def arenas(which: str, **env: str) -> tuple[int, bool]:
    """Arenas of a new process with six threads, and what ``few_arenas`` returned."""
    clean = {name: value for name, value in os.environ.items() if name != "MALLOC_ARENA_MAX"}
    found = subprocess.run(
        [sys.executable, "-c", PROGRAM, which],
        env={**clean, **env},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    return found.count("<heap nr="), found.rstrip().endswith("True")


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has arenas")
def test_threads_share_two_arenas() -> None:
    assert arenas("few") == (2, True)
    assert arenas("usual")[0] > 2
    assert arenas("few", MALLOC_ARENA_MAX="1") == (1, False)
