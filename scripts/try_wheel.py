"""Install a wheel into an empty environment without a compiler, and transcribe with it.

    python scripts/try_wheel.py dist --engine engines/tiny.en-int8
    python scripts/try_wheel.py dist --engine engines/tiny.en-int8 --python python3.9

pip takes the wheel for this machine from the folder. The environment is temporary, and the PATH of
all that runs in it is an empty folder. Exit status 1: something failed, the kernels of the wheel
cannot be loaded, or the transcript of examples/jfk.flac lacks its words. A processor for which
there are no kernels is no failure.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
WORDS = "ask what you can do for your country"
_BROKEN = ("not compiled", "cannot be loaded", "compiled from other sources")
"""Reasons of `whisper-opt doctor` that are faults of the wheel, not of the processor."""


class TrialError(Exception):
    """A wheel that does not do what it should."""


class Trial:
    """An empty environment in a folder."""

    def __init__(self, folder: Path, python: str) -> None:
        self.folder = folder
        venv = folder / "venv"
        self._empty = folder / "empty"
        self._empty.mkdir()
        _run([python, "-m", "venv", str(venv)], dict(os.environ), folder)
        programs = venv / ("Scripts" if sys.platform == "win32" else "bin")
        suffix = ".exe" if sys.platform == "win32" else ""
        self.python = str(programs / f"python{suffix}")
        self.program = str(programs / f"whisper-opt{suffix}")

    def run(self, *command: str) -> str:
        """Output of a command that finds no other program; raises TrialError if it fails."""
        return _run(command, {**os.environ, "PATH": str(self._empty)}, self._empty)

    def install(self, wheels: Path, constraints: Path | None) -> None:
        """Install the wheel for this machine, and what it requires."""
        pip = (self.python, "-m", "pip", "--disable-pip-version-check", "--quiet", "install")
        self.run(*pip, "--no-index", "--no-deps", "--find-links", str(wheels), "whisper-opt")
        pinned = ("-c", str(constraints)) if constraints else ()
        self.run(*pip, "--only-binary", ":all:", *pinned, "whisper-opt[cpu]")

    def kernels(self) -> str:
        """What `whisper-opt doctor` says of the kernels."""
        (line,) = re.findall(r"^kernels +(.*\S)", self.run(self.program, "doctor"), re.M)
        return str(line)

    def transcript(self, engine: Path) -> str:
        """The example, transcribed."""
        recording = str(ROOT / "examples" / "jfk.flac")
        return self.run(self.program, "transcribe", str(engine), recording, "--format", "txt")


def _run(command: Sequence[str], environment: dict[str, str], folder: Path) -> str:
    done = subprocess.run(
        command,
        env=environment,
        cwd=folder,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
    )
    if done.returncode:
        raise TrialError(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
    return done.stdout


def check_kernels(line: str, without: bool) -> None:
    """Raise TrialError if the kernels are missing or broken, or are there but should not be."""
    if without and "not compiled" not in line:
        raise TrialError(f"expected a wheel without kernels, found: {line}")
    if not without and any(reason in line for reason in _BROKEN):
        raise TrialError(f"expected kernels, or a processor without any; found: {line}")


def check_words(text: str) -> None:
    """Raise TrialError if a transcript lacks the words."""
    found = " ".join(re.findall(r"[a-z]+", text.lower()))
    if WORDS not in found:
        raise TrialError(f"expected {WORDS!r} in the transcript, found: {text!r}")


def main(argv: Sequence[str] | None = None) -> int:
    """Try the wheel that the arguments name."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("wheels", type=Path, help="folder of wheels")
    parser.add_argument("--engine", type=Path, required=True, help="an int8 engine of tiny.en")
    parser.add_argument("--python", default=sys.executable, help="default: the one that runs this")
    parser.add_argument("--constraints", type=Path, help="for ONNX Runtime and other packages")
    parser.add_argument(
        "--without-kernels", action="store_true", help="the wheel `any` is the one to be found"
    )
    args = parser.parse_args(argv)
    constraints = args.constraints.resolve() if args.constraints else None
    with tempfile.TemporaryDirectory() as folder:
        try:
            trial = Trial(Path(folder).resolve(), args.python)
            trial.install(args.wheels.resolve(), constraints)
            print(trial.run(trial.python, "--version").strip())
            line = trial.kernels()
            print(f"kernels: {line}", flush=True)
            check_kernels(line, args.without_kernels)
            text = trial.transcript(args.engine.resolve())
            print(f"text: {' '.join(text.split())}")
            check_words(text)
        except TrialError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
