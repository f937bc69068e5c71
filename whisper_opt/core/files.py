"""Putting a finished directory in the place of another."""

from __future__ import annotations

import shutil
from pathlib import Path

__all__ = ["replace_directory"]


def replace_directory(temporary: Path, target: Path) -> None:
    """Rename ``temporary``, a sibling, to ``target``; what was there goes only when that is done.

    Raises:
        OSError: a directory cannot be renamed; what was there is there again.
    """
    old = temporary.with_name(temporary.name + ".old")
    if target.exists():
        target.rename(old)
    try:
        temporary.rename(target)
    except BaseException:
        if old.exists():
            old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)
