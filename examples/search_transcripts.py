"""Search the transcripts of a folder for words, with SQLite's full-text index.

whisper-opt transcribe base *.mp3 --format json --output-dir transcripts
python search_transcripts.py transcripts "country NEAR ask"
"""

from __future__ import annotations

import json
import sqlite3
import sys
from pathlib import Path


def index(folder: Path) -> sqlite3.Connection:
    """An index of all segments; made anew, which takes seconds for a million segments."""
    database = sqlite3.connect(":memory:")
    database.execute(
        "CREATE VIRTUAL TABLE segments USING fts5(text, file UNINDEXED, start UNINDEXED)"
    )
    for path in sorted(folder.rglob("*.json")):
        segments = json.loads(path.read_text(encoding="utf-8"))["segments"]
        rows = [(segment["text"].strip(), path.stem, segment["start"]) for segment in segments]
        database.executemany("INSERT INTO segments VALUES (?, ?, ?)", rows)
    return database


def main(folder: str, query: str) -> None:
    command = (
        "SELECT file, start, highlight(segments, 0, '[', ']') FROM segments"
        " WHERE segments MATCH ? ORDER BY rank LIMIT 20"
    )
    for file, start, text in index(Path(folder)).execute(command, (query,)):
        print(f"{file} {int(start) // 60}:{int(start) % 60:02d}  {text}")


if __name__ == "__main__":
    main(*sys.argv[1:3])
