"""What must hold of a wheel before it is published: files, size, and what its library needs.

`scripts/build_wheels.py` runs these checks. Each returns the problems found, as sentences.
"""

from __future__ import annotations

import dataclasses
import zipfile
from collections.abc import Collection, Iterable
from email import message_from_bytes
from pathlib import Path
from typing import Any

from hatch_build import NATIVE, TARGETS, library_name, target_tag

MAX_BYTES = 4_000_000
GLIBC = (2, 17)
MACOS = (11, 0)

REGISTER = "RegisterCustomOps"
"""The function that ONNX Runtime calls. All other exported names begin with PREFIX."""
PREFIX = "whisper_opt_"

_LIBRARIES = {
    "manylinux": ("libc.so.6", "libm.so.6"),
    "macosx": ("/usr/lib/libSystem.B.dylib",),
    # Windows itself, and the C library that is part of Windows since version 10
    "win": ("kernel32.dll", "api-ms-win-crt-*"),
}


@dataclasses.dataclass(frozen=True)
class Library:
    """What a compiled library exports and needs.

    Attributes:
        exports: names of exported functions.
        needs: names of the libraries that it loads.
        version: the newest glibc whose symbols it needs, or the oldest macOS it is for; (0, 0) for
            Windows.
        signed: whether it has a code signature (macOS).
    """

    exports: frozenset[str]
    needs: frozenset[str]
    version: tuple[int, int] = (0, 0)
    signed: bool = False


def read_library(data: bytes) -> Library:
    """Read an ELF, Mach-O or PE file."""
    import lief  # in the environment of build_wheels.py only

    lief.logging.disable()  # it complains about parts that are not read here
    found: Any = lief.parse(data)
    if isinstance(found, lief.ELF.Binary):
        names = [
            version.name
            for requirement in found.symbols_version_requirement
            for version in requirement.get_auxiliary_symbols()
        ]
        glibc = [_version(name[6:]) for name in names if name.startswith("GLIBC_")]
        exports = frozenset(str(symbol.name) for symbol in found.exported_symbols)
        return Library(exports, frozenset(found.libraries), max(glibc, default=(0, 0)))
    if isinstance(found, lief.MachO.Binary):
        # C names have an underscore in front; the linker's own begin with two or more
        names = [str(symbol.name)[1:] for symbol in found.exported_symbols]
        needs = {str(command.name) for command in found.libraries if "/" in command.name}
        oldest = found.build_version.minos if found.has_build_version else found.version_min.version
        return Library(
            frozenset(name for name in names if not name.startswith("_")),
            frozenset(needs),
            (oldest[0], oldest[1]),
            found.has_code_signature,
        )
    if isinstance(found, lief.PE.Binary):
        exports = frozenset(str(entry.name) for entry in found.get_export().entries)
        return Library(exports, frozenset(str(needed.name) for needed in found.imports))
    raise ValueError("not a library of Linux, macOS or Windows")


def _version(text: str) -> tuple[int, int]:
    major, minor = text.split(".")[:2]
    return int(major), int(minor)


def check_library(found: Library, target: str) -> list[str]:
    """Check exports, needed libraries and the oldest system of a library for a target."""
    problems = []
    if REGISTER not in found.exports:
        problems.append(f"does not export {REGISTER}")
    others = sorted(name for name in found.exports - {REGISTER} if not name.startswith(PREFIX))
    if others:
        problems.append(f"exports {', '.join(others)}; expected only {REGISTER} and {PREFIX}*")
    (allowed,) = (names for start, names in _LIBRARIES.items() if target.startswith(start))
    foreign = sorted(name for name in found.needs if not _is_one_of(name, allowed))
    if foreign:
        problems.append(f"needs {', '.join(foreign)}; expected only {', '.join(allowed)}")
    return problems + _check_system(found, target)


def _is_one_of(name: str, patterns: Iterable[str]) -> bool:
    return any(
        name.lower().startswith(pattern[:-1]) if pattern.endswith("*") else name.lower() == pattern
        for pattern in map(str.lower, patterns)
    )


def _check_system(found: Library, target: str) -> list[str]:
    if target.startswith("manylinux") and found.version > GLIBC:
        return [f"needs glibc {_dotted(found.version)}; expected at most {_dotted(GLIBC)}"]
    if target.startswith("macosx") and found.version > MACOS:
        return [f"is for macOS {_dotted(found.version)}; expected at most {_dotted(MACOS)}"]
    if target == "macosx_11_0_arm64" and not found.signed:
        return ["has no code signature, without which macOS on Apple silicon does not load it"]
    return []


def _dotted(version: tuple[int, int]) -> str:
    return ".".join(map(str, version))


def check_wheel(wheel: Path, target: str, sources: Collection[str]) -> list[str]:
    """Check names, tags, size and files of a wheel, and its library.

    Args:
        wheel: the file.
        target: one of TARGETS, or "any".
        sources: the files of the package in the source archive, relative to its root.
    """
    problems = []
    if wheel.stat().st_size > MAX_BYTES:
        problems.append(f"has {wheel.stat().st_size:,} bytes; expected at most {MAX_BYTES:,}")
    tag = target_tag(target)
    if not wheel.name.endswith(f"-py3-none-{tag}.whl"):
        problems.append(f"is not named *-py3-none-{tag}.whl")
    with zipfile.ZipFile(wheel) as archive:
        problems += _check_files(archive, wheel.name, target, sources)
        if target in TARGETS and library_path(target) in archive.namelist():
            found = read_library(archive.read(library_path(target)))
            problems += [
                f"{library_path(target)} {problem}" for problem in check_library(found, target)
            ]
    return problems


def library_path(target: str) -> str:
    """Path of the library in a wheel."""
    return f"{NATIVE}/{library_name(target)}"


def _check_files(
    archive: zipfile.ZipFile, name: str, target: str, sources: Collection[str]
) -> list[str]:
    info = "-".join(name.split("-")[:2]) + ".dist-info"
    names = archive.namelist()
    package = {path for path in sources if not path.endswith((".c", ".h"))}
    if target in TARGETS:
        package.add(library_path(target))
    held = {path for path in names if not path.startswith(f"{info}/")}
    problems = [f"lacks {path}" for path in sorted(package - held)]
    problems += [f"has {path}, which is not of the package" for path in sorted(held - package)]
    if len(names) != len(set(names)):
        problems.append("has a file twice")
    for path in ("METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE"):
        if f"{info}/{path}" not in names:
            problems.append(f"lacks {info}/{path}")
    if f"{info}/WHEEL" in names:
        stated = message_from_bytes(archive.read(f"{info}/WHEEL")).get_all("Tag", [])
        expected = [f"py3-none-{part}" for part in target_tag(target).split(".")]
        if sorted(stated) != sorted(expected):
            problems.append(f"states the tags {', '.join(stated)}; expected {', '.join(expected)}")
    return problems
