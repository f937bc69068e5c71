"""Pages of mapped files in memory, on Linux."""

from __future__ import annotations

from pathlib import Path

__all__ = ["resident"]


def resident(file: Path) -> int:
    """Resident kilobytes of a mapped file."""
    found, ours = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split()[0]:
            ours = line.endswith(str(file))
        elif ours and line.startswith("Rss:"):
            found += int(line.split()[1])
    return found
