"""Writing plans: one builder at a time, and complete directories only."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Callable

from whisper_opt.core.errors import EngineError
from whisper_opt.core.files import replace_directory, write_remedy
from whisper_opt.core.locks import LockHeldError, file_lock

__all__ = ["locked", "replacing"]


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
    with contextlib.ExitStack() as held:
        try:
            home.mkdir(parents=True, exist_ok=True)
            held.enter_context(file_lock(home / ".lock", on_wait, timeout))
        except LockHeldError as error:
            raise EngineError(
                f"another process has been building plans in {home} for {timeout:g} s;"
                " wait for it, or end it"
            ) from error
        except OSError as error:
            raise _cannot_write(home, error) from error
        yield


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
