"""Replacing a directory in one step."""

from __future__ import annotations

import shutil
from pathlib import Path

__all__ = ["replace_directory"]


def replace_directory(temporary: Path, target: Path) -> None:
    """Rename ``temporary``, a sibling of ``target``, to ``target``; then delete the old directory.

    Raises:
        OSError: a directory cannot be renamed; the old directory is restored.
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
