"""Write docs/options.md from the option classes, which are the only list of options.

python scripts/make_options_doc.py [--check]

With --check nothing is written; the exit status is 1 when the file is not what would be written.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import Any

from whisper_opt.core.options import LoadOptions, SubtitleOptions, TranscribeOptions, VadOptions

TARGET = Path(__file__).parent.parent / "docs" / "options.md"
SECTIONS = (
    (
        TranscribeOptions,
        "Transcription",
        "Keyword arguments of `Whisper.transcribe`, `stream` and `transcribe_many`, and of"
        " `TranscribeOptions`; on the command line `--name-of-option`. Every option works in every"
        " mode and in batches, or is refused with the reason.",
    ),
    (
        LoadOptions,
        "Loading",
        "Keyword arguments of `Whisper.load`; on the command line `--name-of-option`. What runs"
        " where is told in [deploy.md](deploy.md).",
    ),
    (
        SubtitleOptions,
        "Subtitles",
        "Arguments of `SubtitleOptions`, for `whisper_opt.write`; on the command line"
        " `--name-of-option`. They need word times.",
    ),
    (
        VadOptions,
        "Voice activity detection",
        "Arguments of `VadOptions`, for `whisper_opt.detect_speech`; as options of `transcribe` they"
        " begin with `vad_`.",
    ),
)


def shown(value: Any) -> str:
    """A default as it is written in Python."""
    return "" if value is None else f"`{value!r}`".replace("|", "\\|")


def values(field: Any) -> str:
    """What an option takes."""
    meta = field.metadata
    if "choices" in meta:
        return ", ".join(f"`{choice}`" for choice in meta["choices"])
    bounds = ""
    if meta["low"] is not None and meta["high"] is not None:
        bounds = f" from {meta['low']:g} to {meta['high']:g}".replace(" to inf", " up")
    elif meta["low"] is not None:
        bounds = f" from {meta['low']:g} up"
    return str(meta["kind"]) + bounds.replace("from -inf to", "up to")


def page() -> str:
    """The whole text."""
    lines = [
        "# Options",
        "",
        "Made by `scripts/make_options_doc.py` from `whisper_opt/core/options`.",
    ]
    for options, title, text in SECTIONS:
        lines += ["", f"## {title}", "", text, "", "| option | takes | default | meaning |"]
        lines.append("|---|---|---|---|")
        for field in dataclasses.fields(options):
            cells = (f"`{field.name}`", values(field), shown(field.default), field.metadata["help"])
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Command line; see the module docstring."""
    parser = argparse.ArgumentParser(description="write docs/options.md")
    parser.add_argument("--check", action="store_true", help="only compare")
    text = page()
    if not parser.parse_args().check:
        TARGET.write_text(text, encoding="utf-8")
        return 0
    return int(not TARGET.exists() or TARGET.read_text(encoding="utf-8") != text)


if __name__ == "__main__":
    sys.exit(main())
