"""Locks between processes and threads, by a file each."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable

__all__ = ["LockHeldError", "file_lock"]

POLL = 0.1
"""Seconds between two attempts to get a lock."""


class LockHeldError(Exception):
    """Another process or thread held the lock until the timeout."""


@contextlib.contextmanager
def file_lock(
    path: Path,
    on_wait: Callable[[], None] | None = None,
    timeout: float | None = None,
    *,
    remove: bool = False,
) -> Iterator[None]:
    """Hold the lock of a file, which is created if necessary.

    The operating system releases it when the process ends, even if it is killed. The file may be
    removed by whoever holds its lock: a process that waited for it takes the lock of the new file.

    Args:
        path: the file; it stays empty.
        on_wait: called once, when another process or thread holds the lock.
        timeout: seconds to wait (default: no limit).
        remove: remove the file at the end.

    Raises:
        LockHeldError: the timeout has passed.
        OSError: the file cannot be opened.
    """
    begin, notified = time.monotonic(), False
    while True:
        with path.open("a+b") as stream:
            if _try_lock(stream):
                if not _is_at(stream, path):
                    continue
                try:
                    yield
                finally:
                    _unlock(stream)
                    if remove:
                        with contextlib.suppress(OSError):  # Windows: it is open
                            path.unlink()
                return
        if timeout is not None and time.monotonic() - begin >= timeout:
            raise LockHeldError
        if on_wait is not None and not notified:
            on_wait()
        notified = True
        time.sleep(POLL)


def _try_lock(stream: Any) -> bool:
    """Take the lock of an open file unless another process or thread has it."""
    try:
        if sys.platform == "win32":
            import msvcrt

            stream.seek(0)
            msvcrt.locking(stream.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(stream.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    return True


def _unlock(stream: Any) -> None:
    """Release the lock before the file is closed: Windows may release it much later."""
    if sys.platform == "win32":
        import msvcrt

        stream.seek(0)
        msvcrt.locking(stream.fileno(), msvcrt.LK_UNLCK, 1)


def _is_at(stream: Any, path: Path) -> bool:
    """Whether an open file is still the one at its path: it may have been removed meanwhile."""
    if os.name == "nt":  # an open file cannot be removed there
        return True
    try:
        return os.path.samestat(os.fstat(stream.fileno()), path.stat())
    except FileNotFoundError:
        return False
