"""Create the environments of the other systems from their pinned requirements.

    python benchmarks/peers/install.py                          # all of them
    python benchmarks/peers/install.py faster-whisper whisper-cpp

They are in build/peers/environments (or WHISPER_OPT_PEERS), several GB each with PyTorch. One that
fails is reported, and the others continue. Arguments after ``--`` are passed to pip.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from peers.catalog import ENVIRONMENTS, HERE, environments  # the path is set above

__all__ = ["install"]

STAMP = "requirements.txt"
"""File in an environment with its requirements, written when all are installed."""


def install(name: str, python: str, pip: list[str]) -> bool:
    """Create one environment unless it is up to date; returns whether it succeeded."""
    folder = environments() / name
    wanted = (HERE / "requirements" / f"{name}.txt").read_text(encoding="utf-8")
    stamp = folder / STAMP
    if stamp.is_file() and stamp.read_text(encoding="utf-8") == wanted:
        print(f"{name}: there already")
        return True
    shutil.rmtree(folder, ignore_errors=True)
    requirements = str(HERE / "requirements" / f"{name}.txt")
    for command in (
        [python, "-m", "venv", str(folder)],
        [str(folder / "bin" / "python"), "-m", "pip", "install", "-q", "-r", requirements, *pip],
    ):
        if subprocess.run(command).returncode:
            print(f"{name}: FAILED: {' '.join(command[1:])}")
            return False
    stamp.write_text(wanted, encoding="utf-8")
    print(f"{name}: installed")
    return True


def main() -> int:
    """Install what the arguments name; exit status 1 if anything failed."""
    arguments, _, pip = _split(sys.argv[1:])
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(ENVIRONMENTS))
    parser.add_argument("--python", default="python3.11", help="whose venv is used")
    args = parser.parse_args(arguments)
    unknown = sorted(set(args.names) - set(ENVIRONMENTS))
    if unknown:
        parser.error(f"unknown: {', '.join(unknown)}; expected some of {', '.join(ENVIRONMENTS)}")
    environments().mkdir(parents=True, exist_ok=True)
    done = [install(name, args.python, pip) for name in args.names or ENVIRONMENTS]
    return 0 if all(done) else 1


def _split(arguments: list[str]) -> tuple[list[str], str, list[str]]:
    if "--" not in arguments:
        return arguments, "", []
    at = arguments.index("--")
    return arguments[:at], "--", arguments[at + 1 :]


if __name__ == "__main__":
    sys.exit(main())
