"""Transcribe recordings as they are put into a folder; Ctrl-C ends it.

python watch_folder.py FOLDER [MODEL]
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path

from whisper_opt import Whisper, WhisperOptError, write
from whisper_opt.serving import Engine, Handle

SUFFIXES = {".flac", ".m4a", ".mp3", ".ogg", ".opus", ".wav", ".webm"}


def complete(
    folder: Path, sizes: dict[Path, int], failed: dict[Path, int]
) -> Iterator[tuple[Path, int]]:
    """Recordings without a transcript, and their size, which is the same as at the last look.

    Those that failed are left out until their size changes.
    """
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in SUFFIXES and not path.with_suffix(".txt").exists():
            size = path.stat().st_size
            if sizes.get(path) == size and failed.get(path) != size:
                yield path, size
            sizes[path] = size


def main(folder: str, model: str = "base", seconds: float = 2.0, looks: int | None = None) -> None:
    sizes: dict[Path, int] = {}
    failed: dict[Path, int] = {}
    running: dict[Path, tuple[Handle, int]] = {}
    with Engine(Whisper.load(model)) as engine:
        while running or looks is None or looks > 0:
            for path, size in complete(Path(folder), sizes, failed):
                if path not in running:
                    running[path] = engine.submit(path), size
            for path, (handle, size) in [*running.items()]:
                if handle.state not in ("queued", "running"):
                    del running[path]
                    try:
                        write(handle.result(), path.with_suffix(".txt"), "txt")
                        print(path.with_suffix(".txt"), flush=True)
                    except WhisperOptError as error:
                        failed[path] = size
                        print(f"{path}: {error}", file=sys.stderr)
            time.sleep(seconds)
            looks = None if looks is None else looks - 1


if __name__ == "__main__":
    try:
        main(sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else "base")
    except KeyboardInterrupt:
        print("ended")
