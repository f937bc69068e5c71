"""Write the exact packages of the conda environments: environments/NAME-PLATFORM.lock.

python scripts/make_conda_lock.py [ENVIRONMENT.yml ...] [--platform linux-64 ...]

Each file lists the URL and hash of every package of conda, so that `conda create --file FILE` (also
of mamba and micromamba) installs those and resolves nothing. py-rattler resolves, from the channels
of the environment file, which must be reachable. Packages of pip are not in it: constraints/ pins
them, and the head of each file has the command. If one cannot be resolved, no file is written.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parent.parent
SOURCES = ("environment.yml", "environments/py39.yml")
PLATFORMS = ("linux-64",)
VIRTUAL: Mapping[str, Sequence[tuple[str, str, str]]] = {
    "linux": (("__linux", "4.18", "0"), ("__glibc", "2.28", "0"), ("__unix", "0", "0")),
    "osx": (("__osx", "13.0", "0"), ("__unix", "0", "0")),
    "win": (("__win", "10.0", "0"),),
}
"""Virtual packages of the systems that a lock is for, by the first part of the platform: name,
version, build. The systems are the oldest that ONNX Runtime runs on."""
ARCHITECTURES = {"64": "x86_64", "aarch64": "aarch64", "arm64": "arm64"}


class LockError(Exception):
    """No lock can be made; the message says why."""


def parts(source: Path) -> tuple[str, list[str], list[str], list[str]]:
    """Name, channels, specs of conda and lines for pip of an environment file.

    Raises:
        LockError: it cannot be read, or is not one.
    """
    try:
        document = yaml.safe_load(source.read_text(encoding="utf-8"))
        entries = document["dependencies"]
        channels = [name for name in document["channels"] if name != "nodefaults"]
        specs = [entry for entry in entries if isinstance(entry, str)]
        pip = [line for entry in entries if not isinstance(entry, str) for line in entry["pip"]]
        return document["name"], channels, specs, pip
    except (OSError, yaml.YAMLError, KeyError, TypeError) as error:
        raise LockError(f"{source} is no environment file of conda: {error!r}") from error


def resolve(channels: Sequence[str], specs: Sequence[str], platform: str) -> list[Any]:
    """Records of the packages that satisfy the specs.

    Raises:
        LockError: py-rattler is not installed, a channel cannot be read, or nothing satisfies them.
    """
    try:
        import rattler
    except ImportError:
        raise LockError("py-rattler is not installed: pip install py-rattler") from None
    system, _, machine = platform.partition("-")
    if system not in VIRTUAL or machine not in ARCHITECTURES:
        raise LockError(f"unknown platform {platform!r}; expected linux-64, osx-arm64 or the like")
    build: Any = getattr(rattler, "BuildString", str)  # before 0.26: a string
    virtual = [
        rattler.GenericVirtualPackage(
            rattler.PackageName(name), rattler.Version(number), build(text)
        )
        for name, number, text in (*VIRTUAL[system], ("__archspec", "1", ARCHITECTURES[machine]))
    ]
    platforms: list[Any] = [platform, "noarch"]  # a type of py-rattler, which differs by version
    work = rattler.solve(list(channels), list(specs), platforms=platforms, virtual_packages=virtual)
    try:
        return list(asyncio.run(work))
    except Exception as error:
        why = " ".join(str(error).split())
        raise LockError(f"cannot resolve {platform} from {', '.join(channels)}: {why}") from error


def lock(source: Path, platform: str, channel: str | None = None) -> tuple[str, str]:
    """File name and text of a lock.

    Args:
        source: an environment file.
        platform: of conda, such as ``linux-64``.
        channel: read in place of those of the file.

    Raises:
        LockError: see :func:`resolve`; or a package has no hash.
    """
    name, channels, specs, pip = parts(source)
    records = sorted(resolve([channel] if channel else channels, specs, platform), key=by_name)
    lines = []
    for record in records:
        if record.md5 is None:
            raise LockError(f"{record.url} has no hash in its channel")
        lines.append(f"{record.url}#{record.md5.hex()}")
    relative = source.name if source.parent == ROOT else f"{source.parent.name}/{source.name}"
    file = f"{name}-{platform}.lock"
    head = [
        f"# {relative} for {platform}, by scripts/make_conda_lock.py",
        f"# conda create --name {name} --file {file}",
        f"# then, in that environment and in the folder of {relative}:",
        f"# pip install {' '.join(map(quoted, pip))}",
        "@EXPLICIT",
    ]
    return file, "\n".join([*head, *lines]) + "\n"


def quoted(line: str) -> str:
    """A line of a requirements file as arguments of pip."""
    option, _, value = line.partition(" ")
    return f"{option} {shlex.quote(value)}" if value else shlex.quote(option)


def by_name(record: Any) -> str:
    return str(record.name.normalized)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; see the module docstring."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sources", nargs="*", type=Path, help=f"default: {' '.join(SOURCES)}")
    parser.add_argument("--platform", nargs="+", default=PLATFORMS, help="default: linux-64")
    parser.add_argument("--channel", help="address of a mirror, for the channels of the files")
    parser.add_argument("--out", type=Path, default=ROOT / "environments", help="folder")
    args = parser.parse_args(argv)
    sources = [path.resolve() for path in args.sources] or [ROOT / name for name in SOURCES]
    try:
        locks = [lock(path, system, args.channel) for path in sources for system in args.platform]
    except LockError as error:
        print(f"error: {error}; nothing was written", file=sys.stderr)
        return 1
    for name, text in locks:
        partial = args.out / f".{name}.partial"
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, args.out / name)
        print(args.out / name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
