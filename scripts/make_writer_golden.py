"""Regenerate tests/data/writers/<name>.expected.<format> from openai-whisper's own writers.

Run from the repository root, in an environment with openai-whisper:

    python scripts/make_writer_golden.py

The inputs, ``transcript.json`` (awkward texts and times) and ``words.json`` (with word times), were
written by hand and are not regenerated.
"""

from __future__ import annotations

import json
import pathlib

from whisper.utils import get_writer

DATA = pathlib.Path(__file__).resolve().parent.parent / "tests" / "data" / "writers"


def main() -> None:
    """Write the golden files."""
    for name in ("transcript", "words"):
        result = json.loads((DATA / f"{name}.json").read_text(encoding="utf-8"))
        for format in ("txt", "srt", "vtt", "tsv", "json"):
            get_writer(format, str(DATA))(result, f"{name}.expected.audio")


if __name__ == "__main__":
    main()
