"""whisper.cpp built natively: ``whisper-cli``, one process per recording.

The time is the sum of the times that it reports, without loading the model; the wall time of the
process, which loads the model every time, is reported too.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from peers.peer import Peer, PeerResult, internal_seconds

__all__ = ["System"]


class System(Peer):
    """A ggml file and the folder of a build with ``bin/whisper-cli``."""

    def __init__(self, model: str, threads: int, precision: str, build: str) -> None:
        self._cli = Path(build) / "bin" / "whisper-cli"
        if not self._cli.is_file():
            raise FileNotFoundError(f"no {self._cli}; build the target whisper-cli")
        self._model, self._threads = model, threads
        described = subprocess.run(
            ["git", "describe", "--tags"], cwd=Path(build), capture_output=True, text=True
        )
        self.about = {"versions": {"whisper.cpp": described.stdout.strip() or "unknown"}}

    def run_one(
        self, pcm: Any, path: str, beam_size: int, language: str, batch_size: int
    ) -> PeerResult:
        if batch_size > 1:
            raise ValueError("whisper.cpp decodes one window at a time")
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "out"
            search = ["-bs", str(beam_size), "-bo", "1"]
            done = subprocess.run(
                [
                    *(str(self._cli), "-m", self._model, "-f", path, "-l", language),
                    *("-t", str(self._threads), "--no-fallback", *search),
                    *("--output-json", "--output-file", str(out)),
                ],
                capture_output=True,
                text=True,
                check=True,
            )
            said = json.loads(
                out.with_suffix(".json").read_text(encoding="utf-8", errors="replace")
            )
        segments = [
            (part["offsets"]["from"] / 1000, part["offsets"]["to"] / 1000, part["text"])
            for part in said["transcription"]
        ]
        text = " ".join(part.strip() for _, _, part in segments)
        return PeerResult(text, segments, internal_seconds(done.stderr))
