"""glibc's allocator in processes that run for long with changing threads."""

from __future__ import annotations

import ctypes
import os
import platform

__all__ = ["few_arenas"]

_ARENA_MAX = -8
"""``M_ARENA_MAX`` of glibc's malloc.h."""
_ARENAS = 2
"""How many threads allocate without waiting; those of Python wait for one another anyway."""


def few_arenas() -> bool:
    """Have all threads share two arenas; whether that was possible.

    By default glibc gives each new thread one of up to eight per processor. Memory that a thread
    freed there is not used by others, so a process whose threads come and go grows for long. The
    environment variable ``MALLOC_ARENA_MAX`` is honoured if it is set. Only for processes of this
    library alone, before their threads start.
    """
    if platform.libc_ver()[0] != "glibc" or "MALLOC_ARENA_MAX" in os.environ:
        return False
    return bool(ctypes.CDLL(None).mallopt(_ARENA_MAX, _ARENAS))
