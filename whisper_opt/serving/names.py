"""Names of models that are given as arguments."""

from __future__ import annotations

import re
from pathlib import Path

__all__ = ["named_source"]

_NAMED = re.compile(r"([\w.:-]+)=(.+)", re.DOTALL)


def named_source(argument: str) -> tuple[str, str]:
    """Name and source of a MODEL argument, ``SOURCE`` or ``NAME=SOURCE``.

    The name of a directory is its last part; that of anything else is the source itself.
    """
    given = _NAMED.fullmatch(argument)
    if given and not Path(argument).exists():
        return given.group(1), given.group(2)
    path = Path(argument)
    return (path.resolve().name if path.exists() else argument), argument
