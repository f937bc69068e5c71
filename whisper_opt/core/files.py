"""Files and directories that appear whole or not at all."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import stat
import sys
import time
from collections.abc import Callable
from pathlib import Path

__all__ = ["replace_directory", "replace_file", "write_remedy"]

_BINARY: int = getattr(os, "O_BINARY", 0)
"""Without it Windows writes other line ends."""
_PAUSES = (0.01, 0.03, 0.1, 0.3, 0.6)
"""Seconds between attempts to rename on Windows."""


def replace_file(
    target: str | os.PathLike[str],
    data: bytes | memoryview,
    *,
    partial: str | os.PathLike[str] | None = None,
) -> None:
    """Write a file beside ``target`` and rename it to ``target`` when it is complete.

    The file keeps the permissions of the one that it replaces. A link is followed. If ``target`` is
    a device or a pipe, the data is written into it.

    Args:
        target: the file.
        data: its contents.
        partial: where to write it first, on the same file system; a file that is there, left by a
            process that was killed, is removed. Default: a new name beside ``target``.

    Raises:
        OSError: the file cannot be written; an older one is as it was.
    """
    target = os.path.realpath(target)
    try:
        mode = os.stat(target).st_mode
    except FileNotFoundError:
        mode = None
    if mode is not None and not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        with open(target, "wb") as file:
            file.write(data)
        return
    if partial is None:
        partial = os.path.join(os.path.dirname(target), f".whisper-opt-{secrets.token_hex(8)}.tmp")
    else:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(partial)
    allowed = 0o666 if mode is None else stat.S_IMODE(mode) & 0o777
    try:
        # minus the umask: the new file is never readable to more users than the older one
        number = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _BINARY, allowed)
        with open(number, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if mode is not None:
            with contextlib.suppress(OSError):  # a file system without permissions
                os.chmod(partial, allowed)
        _patiently(lambda: os.replace(partial, target))
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(partial)
        raise


def replace_directory(temporary: Path, target: Path) -> None:
    """Rename ``temporary``, a sibling of ``target``, to ``target``; then delete the old directory.

    Raises:
        OSError: a directory cannot be renamed; the old directory is restored.
    """
    old = temporary.with_name(temporary.name + ".old")
    if target.exists():
        _patiently(lambda: target.rename(old))
    try:
        _patiently(lambda: temporary.rename(target))
    except BaseException:
        if old.exists():
            old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _patiently(rename: Callable[[], object]) -> None:
    """Rename; on Windows several times, as virus scanners and indexers open new files for a moment.

    Windows renames no open file, and no directory that holds one.
    """
    for pause in _PAUSES if sys.platform == "win32" else ():
        try:
            rename()
        except PermissionError:  # noqa: PERF203  # a few attempts
            time.sleep(pause)
        else:
            return
    rename()


def write_remedy(error: OSError) -> str:
    """What to do if files cannot be written: a sentence without its full stop."""
    if sys.platform == "win32" and isinstance(error, PermissionError):
        return (
            "Close the programs that use it (Windows does not replace files in use), or choose a"
            " writable directory"
        )
    return "Choose a writable directory with enough free space"
