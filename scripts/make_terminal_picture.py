"""Runs a command and writes what it printed as a picture: docs/images/terminal.svg.

    python scripts/make_terminal_picture.py [--engine tiny.en] [--target FILE]

Needs the extra [docs].
"""

from __future__ import annotations

import argparse
import io
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.text import Text

ROOT = Path(__file__).resolve().parents[1]
TARGET = ROOT / "docs" / "images" / "terminal.svg"
RECORDING = "examples/jfk.flac"
COMMANDS = (
    f"transcribe ENGINE {RECORDING}",
    f"transcribe ENGINE {RECORDING} --format srt --word-timestamps --max-line-width 42",
)


def output(arguments: str, engine: str) -> str:
    """What a command prints.

    Raises:
        CalledProcessError: it failed.
    """
    given = [engine if word == "ENGINE" else word for word in arguments.split()]
    command = [sys.executable, "-m", "whisper_opt", *given]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.rstrip()


def picture(engine: str, name: str = "tiny.en") -> str:
    """The commands and their output as SVG.

    Args:
        engine: what is run.
        name: how it is called in the picture.
    """
    console = Console(record=True, width=100, file=io.StringIO(), force_terminal=True)
    for arguments in COMMANDS:
        shown = arguments.replace("ENGINE", name)
        console.print(Text.assemble(("$ ", "green"), (f"whisper-opt {shown}", "bold")))
        console.print(Text(output(arguments, engine)))
        console.print()
    svg: str = console.export_svg(title="whisper-opt", unique_id="whisper-opt")
    return svg


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--engine", default="tiny.en", help="engine directory, or a name")
    parser.add_argument("--target", type=Path, default=TARGET)
    args = parser.parse_args()
    args.target.write_text(picture(args.engine), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
