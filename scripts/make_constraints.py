"""Write or check constraints/pyXY.txt: the versions that each supported Python is tested with.

    python scripts/make_constraints.py            # resolve anew for every Python found here
    python scripts/make_constraints.py 3.9 3.11   # only for these
    python scripts/make_constraints.py --check    # do the files parse and cover the dependencies?

The pip of each Python resolves EXTRAS in an empty virtual environment; nothing is installed. A
Python is found as pythonX.Y on the PATH or under pyenv. Only names and versions are written; the
index is pip's configuration.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
DISTRIBUTION = "whisper-opt"
PYTHONS = ("3.9", "3.10", "3.11", "3.12", "3.13")
EXTRAS = ("cpu", "audio", "export", "hf", "dev")
# Large packages that nothing here needs: one of them in the result means a wrong dependency.
FORBIDDEN = frozenset({"torch", "transformers", "optimum", "tensorrt", "onnxruntime-gpu"})

_PIN = re.compile(r"(?P<name>[a-z0-9]+(?:-[a-z0-9]+)*)==(?P<version>[0-9A-Za-z.!+]+)")
_REQUIREMENT = re.compile(
    r"(?P<name>[A-Za-z0-9][A-Za-z0-9._-]*)(?:\[(?P<extras>[^\]]*)\])?(?P<rest>.*)"
)
_MARKER = re.compile(r"python_version\s*(?P<sign><|>=)\s*['\"](?P<version>[0-9.]+)['\"]")


def canonical(name: str) -> str:
    """Distribution name normalized by PEP 503."""
    return re.sub(r"[-_.]+", "-", name).lower()


def read_project(pyproject: Path = ROOT / "pyproject.toml") -> dict[str, Any]:
    """The [project] table."""
    project: dict[str, Any] = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]
    return project


def constraints_file(python: str, root: Path = ROOT) -> Path:
    """constraints/py311.txt for "3.11"."""
    return root / "constraints" / f"py{python.replace('.', '')}.txt"


def version_key(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


def find_python(python: str) -> Path | None:
    """An interpreter of that minor version, or None; pyenv shims without a version do not count."""
    pyenv = Path(os.environ.get("PYENV_ROOT", str(Path.home() / ".pyenv")))
    found = sorted(pyenv.glob(f"versions/{python}.*/bin/python"))
    on_path = shutil.which(f"python{python}")
    for candidate in [*found, *([Path(on_path)] if on_path else [])]:
        probe = [str(candidate), "-c", "import sys, venv; print('%d.%d' % sys.version_info[:2])"]
        done = subprocess.run(probe, capture_output=True, text=True, check=False)
        if done.returncode == 0 and done.stdout.strip() == python:
            return candidate
    return None


def direct_requirements(pyproject: Path, python: str, extras: Iterable[str]) -> set[str]:
    """Canonical names of the project's requirements on this Python, including its extras."""
    project = read_project(pyproject)
    names: set[str] = set()
    todo = list(project["dependencies"])
    for extra in extras:
        todo += project["optional-dependencies"][extra]
    while todo:
        line = todo.pop()
        match = _REQUIREMENT.match(line)
        if match is None:
            raise SystemExit(f"{pyproject}: cannot read the requirement {line!r}")
        if not _applies(match["rest"], python):
            continue
        if canonical(match["name"]) == DISTRIBUTION:
            for extra in (match["extras"] or "").split(","):
                todo += project["optional-dependencies"][extra.strip()]
        else:
            names.add(canonical(match["name"]))
    return names


def _applies(markers: str, python: str) -> bool:
    found = _MARKER.search(markers)
    if found is None:
        return True
    older = version_key(python) < version_key(found["version"])
    return older == (found["sign"] == "<")


def read_pins(path: Path) -> dict[str, str]:
    """{canonical name: version} of a constraints file; SystemExit on a line that is not a pin."""
    pins: dict[str, str] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line or line.startswith("#"):
            continue
        match = _PIN.fullmatch(line)
        if match is None:
            raise SystemExit(f"{path}:{number}: expected name==version, found {line!r}")
        if match["name"] in pins:
            raise SystemExit(f"{path}:{number}: {match['name']} is pinned twice")
        pins[match["name"]] = match["version"]
    return pins


def problems(python: str, root: Path = ROOT) -> list[str]:
    """Errors of the constraints file of one Python."""
    path = constraints_file(python, root)
    if not path.is_file():
        return [f"{path} is missing"]
    try:
        pins = read_pins(path)
    except SystemExit as error:
        return [str(error)]
    wanted = direct_requirements(root / "pyproject.toml", python, EXTRAS)
    found = [f"{path}: no pin for {name}" for name in sorted(wanted - pins.keys())]
    found += [f"{path}: {name} must not be pinned" for name in sorted(FORBIDDEN & pins.keys())]
    if list(pins) != sorted(pins):
        found.append(f"{path}: pins are not in alphabetical order")
    return found


def resolve(interpreter: Path) -> dict[str, str]:
    """{canonical name: version} that pip of this interpreter would install for EXTRAS."""
    with tempfile.TemporaryDirectory() as temporary:
        environment = Path(temporary) / "venv"
        subprocess.run([str(interpreter), "-m", "venv", str(environment)], check=True)
        python = str(environment / ("Scripts" if os.name == "nt" else "bin") / "python")
        pip = [python, "-m", "pip", "--quiet", "--disable-pip-version-check"]
        # an old bundled pip may resolve differently from a current one
        subprocess.run([*pip, "install", "--upgrade", "pip"], check=True)
        report = Path(temporary) / "report.json"
        target = f"{ROOT}[{','.join(EXTRAS)}]"
        subprocess.run(
            [*pip, "install", "--dry-run", "--ignore-installed", "--report", str(report), target],
            check=True,
        )
        entries = json.loads(report.read_text(encoding="utf-8"))["install"]
    pins = {canonical(e["metadata"]["name"]): str(e["metadata"]["version"]) for e in entries}
    del pins[DISTRIBUTION]
    return dict(sorted(pins.items()))


def write_pins(python: str, pins: dict[str, str]) -> Path:
    """Write the file of one Python atomically."""
    unwanted = sorted(FORBIDDEN & pins.keys())
    if unwanted:
        raise SystemExit(f"Python {python}: resolved to {unwanted}, which no extra may need")
    path = constraints_file(python)
    lines = [
        f"# Versions whisper-opt[{','.join(EXTRAS)}] is tested with on Python {python}.",
        "# Written by scripts/make_constraints.py; do not edit by hand. Use it with",
        f"#   pip install -c constraints/{path.name} 'whisper-opt[cpu]'",
        *(f"{name}=={version}" for name, version in pins.items()),
    ]
    path.parent.mkdir(exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text("\n".join(lines) + "\n", encoding="utf-8")
    os.replace(partial, path)
    return path


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("pythons", nargs="*", default=[], metavar="X.Y", help="default: all")
    parser.add_argument("--check", action="store_true", help="only check the existing files")
    arguments = parser.parse_args(argv)
    unknown = sorted(set(arguments.pythons) - set(PYTHONS))
    if unknown:
        parser.error(f"unsupported: {', '.join(unknown)} (supported: {', '.join(PYTHONS)})")
    pythons: Sequence[str] = arguments.pythons or PYTHONS
    if arguments.check:
        found = [problem for python in pythons for problem in problems(python)]
        print("\n".join(found) or f"constraints for Python {', '.join(pythons)}: valid")
        return 1 if found else 0
    missing = []
    for python in pythons:
        interpreter = find_python(python)
        if interpreter is None:
            missing.append(python)
            print(f"Python {python}: not found; its file is unchanged")
            continue
        pins = resolve(interpreter)
        print(f"Python {python}: {len(pins)} pins in {write_pins(python, pins).relative_to(ROOT)}")
    return 1 if missing and arguments.pythons else 0


if __name__ == "__main__":
    sys.exit(main())
