"""Memory that ONNX Runtime has mapped or freed."""

from __future__ import annotations

import ctypes
import os
import re
import sys
from collections.abc import Collection, Iterator
from pathlib import Path

__all__ = ["release_freed", "release_pages"]

_MAPPING = re.compile(r"([0-9a-f]+)-([0-9a-f]+) \S+ \S+ \S+ \S+ *(.*)")
_DONTNEED = 4
"""``MADV_DONTNEED`` of Linux: unchanged pages of a file are read from it again when used."""


def release_pages(files: Collection[Path]) -> None:
    """Take the pages of mapped files out of this process's resident memory, on Linux.

    They stay valid, and are mapped again when they are used. Mappings with changed pages are left
    alone. Kernels that copy weights need the originals no more (:mod:`whisper_opt.runtime.native`).
    """
    if sys.platform != "linux":
        return
    names = {os.path.realpath(file) for file in files}
    try:
        found = list(_unchanged(names))
        madvise = ctypes.CDLL(None).madvise
    except (OSError, AttributeError):  # no /proc, or another C library
        return
    madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    for begin, end in found:
        madvise(begin, end - begin, _DONTNEED)


def release_freed() -> None:
    """Return freed memory to the system, with the GNU C library; elsewhere nothing happens.

    The library keeps what is freed for the next allocations: after a large session was closed, up
    to its size.
    """
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError, TypeError):  # another C library
        return
    trim.argtypes = (ctypes.c_size_t,)
    trim(0)


def _unchanged(names: Collection[str]) -> Iterator[tuple[int, int]]:
    """Begin and end of every mapping of these files without changed pages."""
    mapping: tuple[int, int] | None = None
    with open("/proc/self/smaps", encoding="utf-8", errors="surrogateescape") as lines:
        for line in lines:
            header = _MAPPING.fullmatch(line.rstrip("\n"))
            if header is not None:
                begin, end, name = header.groups()
                mapping = (int(begin, 16), int(end, 16)) if name in names else None
            elif line.startswith("Anonymous:") and mapping is not None:  # copies of changed pages
                if line.split()[1] == "0":
                    yield mapping
                mapping = None
