"""conda environments, constraints files and the scripts' virtual environments.

No conda client is needed: what conda reads is parsed with py-rattler, and what it hands to pip is
handed to pip of the same Python.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import make_constraints
import pytest
import yaml
from make_constraints import EXTRAS, PYTHONS, ROOT, constraints_file
from rattler import MatchSpec

ENVIRONMENTS: Mapping[str, str] = {"environment.yml": "3.11", "environments/py39.yml": "3.9"}


def load(path: str) -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load((ROOT / path).read_text(encoding="utf-8"))
    return document


def conda_specs(path: str) -> list[str]:
    return [entry for entry in load(path)["dependencies"] if isinstance(entry, str)]


def pip_lines(path: str) -> list[str]:
    (section,) = (entry for entry in load(path)["dependencies"] if not isinstance(entry, str))
    assert section.keys() == {"pip"}
    lines: list[str] = section["pip"]
    return lines


environments = pytest.mark.parametrize(("path", "python"), ENVIRONMENTS.items())


def test_every_conda_file_is_checked_here() -> None:
    found = {*ROOT.glob("environment*.y*ml"), *ROOT.glob("environments/*.y*ml")}
    assert {str(path.relative_to(ROOT)) for path in found} == set(ENVIRONMENTS)


@environments
def test_keys_and_channels(path: str, python: str) -> None:
    document = load(path)
    assert document.keys() == {"name", "channels", "dependencies"}
    assert document["channels"] == ["conda-forge", "nodefaults"]


@environments
def test_conda_specs(path: str, python: str) -> None:
    specs = {str(spec.name.normalized): spec for spec in map(strict_spec, conda_specs(path))}
    assert specs.keys() == {"python", "pip", "ffmpeg", "c-compiler", "jupyterlab"}
    assert str(specs["python"].version) == f"{python}.*"
    assert specs["pip"].version is None
    assert specs["ffmpeg"].version is None
    assert specs["c-compiler"].version is None
    assert specs["jupyterlab"].version is None


def strict_spec(text: str) -> Any:
    return MatchSpec(text, strict=True)


@environments
def test_pip_section_names_existing_files(path: str, python: str) -> None:
    constraint, editable = pip_lines(path)
    folder = (ROOT / path).parent
    option, _, relative = constraint.partition(" ")
    assert option == "-c"
    assert (folder / relative).resolve() == constraints_file(python)
    option, _, target = editable.partition(" ")
    assert option == "-e"
    relative, _, extras = target.rstrip("]").partition("[")
    assert (folder / relative).resolve() == ROOT
    assert tuple(extras.split(",")) == EXTRAS
    assert set(EXTRAS) <= make_constraints.read_project()["optional-dependencies"].keys()


def copy_of_repository(target: Path) -> Path:
    """A copy of the files that an install reads, so that the work tree stays unchanged."""
    target.mkdir()
    texts = ("README.md", "CHANGELOG.md", "LICENSE")
    for name in ("pyproject.toml", "hatch_build.py", "environment.yml", *texts):
        shutil.copy(ROOT / name, target / name)
    for name in ("whisper_opt", "constraints", "environments"):
        shutil.copytree(ROOT / name, target / name)
    return target


@pytest.mark.slow
@environments
def test_pip_section_resolves(path: str, python: str, tmp_path: Path) -> None:
    interpreter = make_constraints.find_python(python)
    if interpreter is None:
        pytest.skip(f"not tested: no Python {python} here")
    folder = (copy_of_repository(tmp_path / "repository") / path).parent
    # conda writes the section to a requirements file beside the yml and runs pip there
    (folder / "condaenv.requirements.txt").write_text("\n".join(pip_lines(path)))
    subprocess.run([str(interpreter), "-m", "venv", str(tmp_path / "venv")], check=True)
    command = [str(tmp_path / "venv" / "bin" / "python"), "-m", "pip", "--quiet", "install"]
    command += ["--dry-run", "-r", "condaenv.requirements.txt"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("python", PYTHONS)
def test_constraints_are_in_order(python: str) -> None:
    assert make_constraints.problems(python) == []


def test_constraints_are_independent_of_this_machine() -> None:
    for python in PYTHONS:
        text = constraints_file(python).read_text(encoding="utf-8")
        assert "://" not in text
        assert "--" not in text
        assert str(ROOT) not in text


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("numpy==", "nompy==", "no pin for numpy"),
        ("soxr==", "soxr>=", "expected name==version, found 'soxr>="),
        ("tornado==", "torch==2.0\ntornado==", "torch must not be pinned"),
        ("tqdm==", "tqdm==1.0\ntqdm==", "tqdm is pinned twice"),
        ("anyio==", "zzz==1\nanyio==", "not in alphabetical order"),
        ("onnx==", "--find-links /somewhere\nonnx==", "expected name==version"),
    ],
)
def test_bad_constraints_are_reported(tmp_path: Path, old: str, new: str, complaint: str) -> None:
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    good = constraints_file("3.9").read_text(encoding="utf-8")
    assert f"\n{old}" in good
    bad = constraints_file("3.9", tmp_path)
    bad.parent.mkdir()
    bad.write_text(good.replace(f"\n{old}", f"\n{new}", 1), encoding="utf-8")
    (problem,) = make_constraints.problems("3.9", tmp_path)
    assert complaint in problem


def test_a_missing_constraints_file_is_reported(tmp_path: Path) -> None:
    (problem,) = make_constraints.problems("3.12", tmp_path)
    assert problem.endswith("py312.txt is missing")


def test_direct_requirements_follow_extras_and_markers() -> None:
    names = {
        python: make_constraints.direct_requirements(ROOT / "pyproject.toml", python, ["dev"])
        for python in ("3.9", "3.11")
    }
    assert names["3.9"] - names["3.11"] == {"tomli"}
    assert names["3.11"] - names["3.9"] == {
        *("deepgram-sdk", "fastapi", "mkdocstrings-python", "openai", "openvino"),
        *("schemathesis", "selenium", "sybil", "zensical"),
    }
    assert {"numpy", "onnxruntime", "av", "onnx", "huggingface-hub", "pytest"} <= names["3.11"]


FAKE_PYTHON = """#!/bin/sh
# Replaces the interpreter, inside and outside an environment.
echo "$*" >>"$FAKE_LOG"
case "$*" in
    *"import sys, venv"*) echo 3.11.7 ;;
    "-m venv "*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
    *" install "*) exit "${FAKE_PIP_EXIT:-0}" ;;
esac
"""


class Sandbox:
    """make_venv of scripts/venv.sh in a temporary folder, with a fake Python."""

    def __init__(self, root: Path) -> None:
        self.root, self.log = root, root / "log"
        self.python = root / "fake" / "python"
        self.python.parent.mkdir()
        self.python.write_text(FAKE_PYTHON)
        self.python.chmod(0o755)
        (root / "constraints").mkdir()
        (root / "constraints" / "py311.txt").write_text("numpy==2.4.6\n")
        (root / "pyproject.toml").write_text("[project]\n")
        self.venv = root / ".venv"

    def make(self, *requirements: str, pip_exit: int = 0) -> tuple[int, list[str]]:
        """Exit status, and the arguments of pip."""
        call = f"make_venv .venv '{self.python}' \"$@\""
        status, lines = self._run(call, *requirements, FAKE_PIP_EXIT=str(pip_exit))
        return status, [line.split(" install ")[1] for line in lines if " install " in line]

    def kernels(self) -> tuple[int, list[str]]:
        """Exit status of make_kernels, and the scripts that Python was to run."""
        return self._run(f"make_kernels '{self.python}'")

    def _run(self, call: str, *arguments: str, **environment: str) -> tuple[int, list[str]]:
        self.log.write_text("")
        done = subprocess.run(
            ["sh", "-euc", f". '{ROOT}/scripts/venv.sh'; {call}", "sh", *arguments],
            cwd=self.root,
            env={**os.environ, "FAKE_LOG": str(self.log), **environment},
            capture_output=True,
            text=True,
            check=False,
        )
        return done.returncode, self.log.read_text().splitlines()


@pytest.fixture
def sandbox(tmp_path: Path) -> Sandbox:
    return Sandbox(tmp_path)


def test_an_environment_is_made_once(sandbox: Sandbox) -> None:
    assert sandbox.make(".[cpu]") == (0, ["--no-compile -c constraints/py311.txt -e .[cpu]"])
    assert sandbox.make(".[cpu]") == (0, [])


def test_an_incomplete_environment_is_recreated(sandbox: Sandbox) -> None:
    status, _ = sandbox.make(".[cpu]", pip_exit=3)
    assert status == 3
    (sandbox.venv / "half-installed").touch()
    status, installed = sandbox.make(".[cpu]")
    assert status == 0
    assert len(installed) == 1
    assert not (sandbox.venv / "half-installed").exists()


def test_changed_requirements_are_installed_in_place(sandbox: Sandbox) -> None:
    sandbox.make(".[cpu]")
    (sandbox.venv / "added-by-the-user").touch()
    assert sandbox.make(".[cpu,hf]") == (0, ["--no-compile -c constraints/py311.txt -e .[cpu,hf]"])
    (sandbox.root / "pyproject.toml").write_text("[project] # changed\n")
    _, installed = sandbox.make(".[cpu,hf]")
    assert len(installed) == 1
    assert (sandbox.venv / "added-by-the-user").exists()


def test_a_foreign_environment_is_never_deleted(sandbox: Sandbox) -> None:
    (sandbox.venv / "bin").mkdir(parents=True)
    shutil.copy(sandbox.python, sandbox.venv / "bin" / "python")
    for pip_exit in (3, 0, 0):
        sandbox.make(".[cpu]", pip_exit=pip_exit)
        assert (sandbox.venv / "bin" / "python").exists()
        assert not (sandbox.venv / ".whisper-opt-venv").exists()
    assert sandbox.make(".[cpu]") == (0, [])


def test_another_folder_is_refused(sandbox: Sandbox) -> None:
    sandbox.venv.mkdir()
    (sandbox.venv / "precious").touch()
    assert sandbox.make(".[cpu]") == (1, [])
    assert (sandbox.venv / "precious").exists()


def test_kernels_are_compiled_when_their_sources_are_newer(sandbox: Sandbox) -> None:
    folder = sandbox.root / "whisper_opt" / "runtime" / "native"
    folder.mkdir(parents=True)
    build, source, library = (
        sandbox.root / "hatch_build.py",
        folder / "linear.c",
        folder / "libwhisper_opt.so",
    )
    build.touch()
    source.touch()
    assert sandbox.kernels() == (0, ["hatch_build.py"])  # the fake Python makes no library
    library.touch()
    os.utime(library, (2e9, 2e9))
    assert sandbox.kernels() == (0, [])
    for changed in (build, source):
        os.utime(changed, (2e9 + 1, 2e9 + 1))
        assert sandbox.kernels() == (0, ["hatch_build.py"])
        os.utime(changed, (1e9, 1e9))
    library.unlink()
    sandbox.python.write_text("#!/bin/sh\necho no C compiler found >&2\nexit 1\n")
    status, _ = sandbox.kernels()
    assert status == 0  # quickstart goes on
