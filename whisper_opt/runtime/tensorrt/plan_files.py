"""Writing plans: one builder at a time, and complete directories only."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable

from whisper_opt.core.errors import EngineError
from whisper_opt.core.files import replace_directory, write_remedy

__all__ = ["locked", "replacing"]

POLL = 0.1
"""Seconds between two attempts to get the lock."""


def _try_lock(stream: Any) -> bool:
    """Take the lock of an open file unless another process or thread has it.

    The operating system releases it when the process ends, even if it is killed.
    """
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


@contextlib.contextmanager
def locked(
    home: Path, on_wait: Callable[[], None] | None = None, timeout: float | None = None
) -> Iterator[None]:
    """Hold the lock of a directory of plans, which is created if necessary.

    Args:
        home: the engine's ``trt`` directory.
        on_wait: called once, when another process or thread holds the lock.
        timeout: seconds to wait (default: no limit).

    Raises:
        EngineError: the directory cannot be written, or the timeout has passed.
    """
    try:
        home.mkdir(parents=True, exist_ok=True)
        stream = (home / ".lock").open("a+b")
    except OSError as error:
        raise _cannot_write(home, error) from error
    with stream:
        begin, notified = time.monotonic(), False
        while not _try_lock(stream):
            if timeout is not None and time.monotonic() - begin >= timeout:
                raise EngineError(
                    f"another process has been building plans in {home} for {timeout:g} s;"
                    " wait for it, or end it"
                )
            if on_wait is not None and not notified:
                on_wait()
            notified = True
            time.sleep(POLL)
        try:
            yield
        finally:
            _unlock(stream)


@contextlib.contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """A temporary sibling directory that replaces ``target`` when the block ends without error.

    An exception in the block removes the sibling. The caller must hold the lock. Directories that a
    killed builder left are removed too.

    Raises:
        EngineError: the disk is full or not writable.
    """
    for leftover in target.parent.glob(".*.partial*"):
        shutil.rmtree(leftover, ignore_errors=True)
    temporary = target.with_name(f".{target.name}.partial-{os.getpid()}")
    try:
        temporary.mkdir()
        yield temporary
        replace_directory(temporary, target)
    except OSError as error:
        raise _cannot_write(target, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _cannot_write(target: Path, error: OSError) -> EngineError:
    return EngineError(
        f"cannot write plans to {target}: {error.strerror or error}; nothing was left there."
        f" {write_remedy(error)}"
    )
