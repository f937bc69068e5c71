"""Outcomes of checks, stored on disk immediately, so that a later run can continue."""

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
"""A check that failed this many times is not tried again automatically."""


class NotAvailableError(Exception):
    """A package or a device required by a check is missing."""


class Results:
    """The JSON file: the machine, and every check with its outcome and measured parts."""

    def __init__(self, path: Path, environment: dict[str, Any]) -> None:
        """Continue ``path`` if it has the same environment, else start a new file."""
        self.path = path
        self.content: dict[str, Any] = {"environment": environment, "checks": {}}
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            if found["environment"] == environment and isinstance(found["checks"], dict):
                self.content = found
            else:
                path.replace(path.with_suffix(".old.json"))
        except (OSError, ValueError, KeyError, TypeError):
            pass  # missing or unusable

    def missing(self, name: str, parts: Sequence[str]) -> list[str]:
        """The remaining parts of a check; none if it cannot run or keeps failing."""
        found = self.content["checks"].get(name)
        if found is None:
            return list(parts)
        if found["outcome"] == NOT_AVAILABLE:
            return []
        if found["outcome"] == FAILED and found["attempts"] >= ATTEMPTS:
            return []
        return [part for part in parts if part not in found["parts"]]

    def forget(self, names: Sequence[str]) -> None:
        """Run these checks again."""
        for name in names:
            self.content["checks"].pop(name, None)

    def part(self, name: str, part: str, figures: dict[str, Any]) -> None:
        """Record one measured part of a check."""
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
        """Record the end of a check, or of its run.

        Args:
            name: name of the check.
            outcome: ``OK``, ``FAILED`` or ``NOT_AVAILABLE``.
            error: reason of the outcome.
            seconds: duration.
            left: parts for which there was no time.
            counts: whether it counts as an attempt.
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
        """Write the file atomically."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        part = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        try:
            text = json.dumps(self.content, indent=1, ensure_ascii=False) + "\n"
            part.write_text(text, encoding="utf-8")
            part.replace(self.path)
        finally:
            part.unlink(missing_ok=True)
