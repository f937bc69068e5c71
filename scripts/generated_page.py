"""Command line of scripts that generate a page of docs/."""

from __future__ import annotations

import argparse
from pathlib import Path

__all__ = ["write_or_compare"]


def write_or_compare(target: Path, text: str) -> int:
    """Write the page; with ``--check`` nothing is written.

    Returns:
        The exit status: 1 if ``--check`` is given and the file is out of date.
    """
    parser = argparse.ArgumentParser(description=f"write docs/{target.name}")
    parser.add_argument("--check", action="store_true", help="only compare")
    if not parser.parse_args().check:
        target.write_text(text, encoding="utf-8")
        return 0
    return int(not target.exists() or target.read_text(encoding="utf-8") != text)
