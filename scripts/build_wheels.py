"""Build the wheels of every platform, and the source archive, on one Linux machine.

    python scripts/build_wheels.py                            # all, into dist/
    python scripts/build_wheels.py manylinux_2_17_x86_64 any  # only these, and the source archive
    python scripts/build_wheels.py --skip-failing             # without those that do not compile

zig (the package ziglang) compiles the kernels; it brings the C libraries of all platforms. It, the
build backend and what reads the libraries are installed into .venv-wheels, at fixed versions.
The first build for Windows takes one to four minutes, later ones seconds.

A wheel is built from the source archive, twice, in different folders: both must be the same bytes.
Times in the archives are SOURCE_DATE_EPOCH, by default that of the commit. A wheel is checked
(scripts/wheel_checks.py): its files and tags, its size, what its library exports, and on what
version of the system and on which libraries it depends. A wheel with a problem is not kept.

Exit status: 0, or 1 if a wheel is missing. A platform without a wheel gets the wheel "any", which
has no kernels.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from wheel_checks import check_wheel  # noqa: E402  # the path is set above

from hatch_build import ANY, TARGETS, VARIABLE  # noqa: E402

ENVIRONMENT = ROOT / ".venv-wheels"
TOOLS = ("auditwheel==6.8.2", "hatchling==1.33.0", "lief==1.0.0", "ziglang==0.17.1")
"""Fixed: another zig or hatchling gives other bytes."""
ALL = (*TARGETS, ANY)
_LINES = 12
"""Lines shown of a compiler's messages."""


class BuildError(Exception):
    """A build that failed, or a wheel with a problem."""


def tools() -> Path:
    """The Python of the environment with TOOLS, which is made or completed if necessary."""
    python, stamp = ENVIRONMENT / "bin" / "python", ENVIRONMENT / ".whisper-opt-done"
    wanted = " ".join(TOOLS)
    if stamp.is_file() and stamp.read_text(encoding="utf-8") == wanted:
        return python
    print(f"installing {wanted} into {ENVIRONMENT.name}", flush=True)
    stamp.unlink(missing_ok=True)
    if not python.exists():
        shutil.rmtree(ENVIRONMENT, ignore_errors=True)
        _run([sys.executable, "-m", "venv", str(ENVIRONMENT)])
    pip = [str(python), "-m", "pip", "--disable-pip-version-check", "--quiet", "install"]
    _run([*pip, "--no-compile", *TOOLS])
    stamp.write_text(wanted, encoding="utf-8")
    return python


def _run(
    command: Sequence[str], folder: Path = ROOT, environment: Mapping[str, str] | None = None
) -> str:
    """Run a command and return its output; raises BuildError with its messages if it fails."""
    done = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, **(environment or {})},
        capture_output=True,
        encoding="utf-8",
        errors="replace",
    )
    if done.returncode:
        lines = (done.stderr.strip() or done.stdout.strip()).splitlines()
        more = [f"... and {len(lines) - _LINES} lines"] if len(lines) > _LINES else []
        raise BuildError("\n".join([*lines[:_LINES], *more]) or f"{command[0]} failed")
    return done.stdout


def epoch() -> str:
    """Seconds since 1970 for the times in archives: SOURCE_DATE_EPOCH, or those of the commit."""
    given = os.environ.get("SOURCE_DATE_EPOCH")
    return given or _run(["git", "log", "-1", "--format=%ct"]).strip()


def hatch(kind: str, folder: Path, out: Path, target: str, seconds: str) -> Path:
    """Build one archive of the tree in ``folder``; returns its path."""
    out.mkdir(parents=True, exist_ok=True)
    command = [str(ENVIRONMENT / "bin" / "python"), "-m", "hatchling", "build", "-t", kind]
    _run([*command, "-d", str(out)], folder, {VARIABLE: target, "SOURCE_DATE_EPOCH": seconds})
    (built,) = out.iterdir()
    return built


def unpack(archive: Path, folder: Path) -> Path:
    """Unpack the source archive; returns the folder that it holds."""
    with tarfile.open(archive) as file:
        file.extractall(folder)  # made above
    (tree,) = folder.iterdir()
    return tree


def build_wheel(target: str, trees: Sequence[Path], scratch: Path, seconds: str) -> Path:
    """Build and check the wheel of one target.

    Args:
        target: one of TARGETS, or "any".
        trees: the unpacked source archive, twice.
        scratch: a folder for the wheels.
        seconds: time of the files in the wheels.

    Raises:
        BuildError: a wheel cannot be built, or has a problem.
    """
    wheels = [
        hatch("wheel", tree, scratch / f"{target}-{i}", target, seconds)
        for i, tree in enumerate(trees)
    ]
    package = [path for path in (trees[0] / "whisper_opt").rglob("*") if path.is_file()]
    sources = [path.relative_to(trees[0]).as_posix() for path in package]
    problems = check_wheel(wheels[0], target, sources)
    if len({path.read_bytes() for path in wheels}) != 1:
        problems.append("differs between two builds in different folders")
    if target.startswith("manylinux"):
        problems += audit(wheels[0], target)
    if problems:
        raise BuildError("\n".join(f"the wheel {problem}" for problem in problems))
    return wheels[0]


def audit(wheel: Path, target: str) -> list[str]:
    """The problem that auditwheel finds, if any."""
    shown = _run([str(ENVIRONMENT / "bin" / "python"), "-m", "auditwheel", "show", str(wheel)])
    expected = f'"{target}"'
    return [] if expected in shown else [f"is not {target} to auditwheel:\n{shown.strip()}"]


def build(targets: Sequence[str], out: Path) -> dict[str, str]:
    """Build archives into ``out``, replacing those of the same names.

    Returns:
        The reason for every target without a wheel.
    """
    seconds = epoch()
    missing: dict[str, str] = {}
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="wheels-") as name:
        scratch = Path(name)
        archive = hatch("sdist", ROOT, scratch / "sdist", ANY, seconds)
        trees = [unpack(archive, scratch / f"tree-{i}") for i in range(2)]
        keep(archive, out)
        for target in targets:
            try:
                keep(build_wheel(target, trees, scratch, seconds), out)
            except BuildError as error:  # noqa: PERF203  # the others are built
                missing[target] = str(error)
                print(f"{target}: NOT BUILT\n{error}", flush=True)
    return missing


def keep(archive: Path, out: Path) -> None:
    """Move an archive to where it belongs, and say what it is."""
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    print(f"{archive.name}  {archive.stat().st_size:,} bytes  sha256 {digest}", flush=True)
    partial = out / f".{archive.name}.partial"
    shutil.copyfile(archive, partial)
    partial.replace(out / archive.name)


def main(argv: Sequence[str] | None = None) -> int:
    """Build what the arguments name."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"default: {' '.join(ALL)}")
    parser.add_argument("--out", type=Path, default=ROOT / "dist", help="default: dist")
    parser.add_argument(
        "--skip-failing", action="store_true", help="a wheel that cannot be built is no failure"
    )
    args = parser.parse_args(argv)
    unknown = sorted(set(args.targets) - set(ALL))
    if unknown:
        parser.error(f"unknown: {', '.join(unknown)}; expected some of {', '.join(ALL)}")
    try:
        python = tools()
        if Path(sys.prefix).resolve() != ENVIRONMENT.resolve():  # it has what reads the libraries
            given = sys.argv[1:] if argv is None else argv
            return subprocess.run([str(python), __file__, *given]).returncode
        missing = build(args.targets or ALL, args.out.resolve())
    except BuildError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for target in missing:
        print(f"NO WHEEL for {target}: pip installs the one without kernels there")
    return 1 if missing and not args.skip_failing else 0


if __name__ == "__main__":
    sys.exit(main())
