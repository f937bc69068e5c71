"""A system for tests of the job protocol: says what it was told, or fails as it was told."""

from __future__ import annotations

import os
import sys
import time
from typing import Any

__all__ = ["System"]


class System:
    """A system whose text is ``word`` for any audio."""

    def __init__(self, word: str = "word") -> None:
        if word == "broken":
            raise ValueError("cannot load that")
        self.about = {"versions": {"fake": "1.0"}}
        self._word = word

    def transcribe(self, audio: list[str], fail: str = "", sleep: float = 0.0) -> dict[str, Any]:
        """Return, raise, or end the process."""
        print("noise on standard output")  # noqa: T201  # as libraries of peers may do
        os.write(1, b"noise from C\n")
        if fail == "raise":
            raise RuntimeError("no such sound")
        if fail == "die":
            sys.stderr.write("segmentation fault, say\n")
            os._exit(7)
        time.sleep(sleep)
        return {
            "text": [self._word for _ in audio],
            "seconds": 0.5 * len(audio),
            "pid": os.getpid(),
        }
