"""What became of a check, on disk as soon as it is known, so that a later run goes on."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

__all__ = ["FAILED", "NOT_AVAILABLE", "OK", "NotAvailableError", "Results"]

OK, FAILED, NOT_AVAILABLE = "ok", "failed", "not available"
ATTEMPTS = 2
"""A check that failed so many times is not tried again by itself."""


class NotAvailableError(Exception):
    """A package or a device that a check needs is missing."""


class Results:
    """The JSON file: the machine, and every check with its outcome and the parts it measured."""

    def __init__(self, path: Path, environment: dict[str, Any]) -> None:
        """Go on from ``path`` where it tells of the same environment, else begin anew."""
        self.path = path
        self.content: dict[str, Any] = {"environment": environment, "checks": {}}
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            if found["environment"] == environment and isinstance(found["checks"], dict):
                self.content = found
            else:
                path.replace(path.with_suffix(".old.json"))
        except (OSError, ValueError, KeyError, TypeError):
            pass  # nothing there, or nothing that can be used

    def missing(self, name: str, parts: Sequence[str]) -> list[str]:
        """The parts of a check still to do; none where it cannot be done or keeps failing."""
        found = self.content["checks"].get(name)
        if found is None:
            return list(parts)
        if found["outcome"] == NOT_AVAILABLE:
            return []
        if found["outcome"] == FAILED and found["attempts"] >= ATTEMPTS:
            return []
        return [part for part in parts if part not in found["parts"]]

    def forget(self, names: Sequence[str]) -> None:
        """Have these checks done again."""
        for name in names:
            self.content["checks"].pop(name, None)

    def part(self, name: str, part: str, figures: dict[str, Any]) -> None:
        """One part of a check was measured."""
        self._entry(name)["parts"][part] = figures
        self.save()

    def end(
        self,
        name: str,
        outcome: str,
        error: str,
        seconds: float,
        left: Sequence[str] = (),
        *,
        counts: bool = True,
    ) -> None:
        """A check ended, for now.

        Args:
            name: of the check.
            outcome: ``OK``, ``FAILED`` or ``NOT_AVAILABLE``.
            error: why.
            seconds: how long it took.
            left: parts that there was no time for.
            counts: as an attempt, of which there are not many.
        """
        entry = self._entry(name)
        entry.update(outcome=outcome, error=error, left=list(left))
        entry["attempts"] += counts
        entry["seconds"] = round(entry["seconds"] + seconds, 2)
        entry["ended"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        self.save()

    def _entry(self, name: str) -> dict[str, Any]:
        new: dict[str, Any] = {
            "outcome": FAILED,
            "error": "",
            "attempts": 0,
            "seconds": 0.0,
            "left": [],
        }
        new["parts"] = {}
        entry: dict[str, Any] = self.content["checks"].setdefault(name, new)
        return entry

    def parts(self, name: str) -> dict[str, Any]:
        """What a check measured."""
        found: dict[str, Any] = self.content["checks"].get(name, {}).get("parts", {})
        return found

    def save(self) -> None:
        """Write beside the file and rename."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        part = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        try:
            text = json.dumps(self.content, indent=1, ensure_ascii=False) + "\n"
            part.write_text(text, encoding="utf-8")
            part.replace(self.path)
        finally:
            part.unlink(missing_ok=True)
