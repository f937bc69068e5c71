"""Published archives: metadata, contents, and a clean install."""

from __future__ import annotations

import importlib
import platform
import re
import subprocess
import sys
import tarfile
import zipfile
from email import message_from_bytes
from email.message import Message
from pathlib import Path

import make_constraints
import pytest
from make_constraints import ROOT, canonical, constraints_file, direct_requirements

from hatch_build import compiler

PROJECT = make_constraints.read_project()
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
# includes pip and setuptools of the environment, but no bytecode
INSTALLED_LIMIT = 200_000_000
COMPILES = sys.platform == "linux" and platform.machine() == "x86_64" and bool(compiler())


def names_in(requirements: list[str]) -> set[str]:
    return {canonical(re.split(r"[\[<>=~!; ]", line, maxsplit=1)[0]) for line in requirements}


def test_identity() -> None:
    assert PROJECT["name"] == "whisper-opt"
    assert PROJECT["license"] == "MIT"
    assert PROJECT["requires-python"] == ">=3.9"
    assert (ROOT / "LICENSE").read_text(encoding="utf-8").startswith("MIT License")


def test_this_version_is_in_the_changelog() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.search(rf"^## \[{re.escape(PROJECT['version'])}\]", changelog, re.MULTILINE)


def test_the_command_exists() -> None:
    module, _, function = PROJECT["scripts"]["whisper-opt"].partition(":")
    assert callable(getattr(importlib.import_module(module), function))


def test_the_core_is_small() -> None:
    assert names_in(PROJECT["dependencies"]) == {
        "numpy",
        "platformdirs",
        "soundfile",
        "soxr",
        "tiktoken",
        "tqdm",
    }


def test_no_extra_has_two_builds_of_onnxruntime() -> None:
    both = {"onnxruntime", "onnxruntime-gpu"}
    for extra in EXTRAS:
        found = direct_requirements(ROOT / "pyproject.toml", "3.11", [extra])
        assert not both <= found, extra
    assert "onnxruntime" in names_in(EXTRAS["cpu"])
    assert "onnxruntime-gpu" in names_in(EXTRAS["cuda12"]) & names_in(EXTRAS["cuda13"])


@pytest.mark.parametrize("extra", sorted(EXTRAS))
def test_no_extra_requires_torch(extra: str) -> None:
    found = direct_requirements(ROOT / "pyproject.toml", "3.11", [extra])
    assert not found & {"torch", "transformers", "optimum"}


@pytest.mark.parametrize("python", make_constraints.PYTHONS)
def test_every_tested_python_is_declared(python: str) -> None:
    assert f"Programming Language :: Python :: {python}" in PROJECT["classifiers"]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The source archive and the wheel made from it (not from the work tree)."""
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--outdir", str(out), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (sdist,), (wheel,) = out.glob("*.tar.gz"), out.glob("*.whl")
    return sdist, wheel


def metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return message_from_bytes(archive.read(name))


@pytest.mark.slow
def test_the_wheel_contains_only_the_package(built: tuple[Path, Path]) -> None:
    with zipfile.ZipFile(built[1]) as archive:
        names = archive.namelist()
    info = f"whisper_opt-{PROJECT['version']}.dist-info/"
    assert {name.split("/")[0] + "/" for name in names} == {"whisper_opt/", info}
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "whisper_opt").rglob("*.py")}
    assert modules == {name for name in names if name.endswith(".py")}
    assert {"whisper_opt/py.typed", info + "licenses/LICENSE", info + "entry_points.txt"} <= {
        *names
    }


@pytest.mark.slow
def test_the_wheel_contains_kernels_if_there_is_a_compiler(built: tuple[Path, Path]) -> None:
    """It was built from the source archive, not from the work tree."""
    with zipfile.ZipFile(built[1]) as archive:
        names = archive.namelist()
    assert not [name for name in names if name.endswith((".c", ".h"))]
    libraries = [name for name in names if name.endswith((".so", ".dylib", ".dll"))]
    if COMPILES:
        assert libraries == ["whisper_opt/runtime/native/libwhisper_opt.so"]
        assert built[1].name.endswith("-py3-none-linux_x86_64.whl")
    else:
        assert libraries == []
        assert built[1].name.endswith("-py3-none-any.whl")


@pytest.mark.slow
def test_the_wheel_states_its_requirements(built: tuple[Path, Path]) -> None:
    found = metadata(built[1])
    assert found["License-Expression"] == "MIT"
    assert found["Requires-Python"] == ">=3.9"
    assert set(found.get_all("Provides-Extra", [])) == set(EXTRAS)
    plain = [line for line in found.get_all("Requires-Dist", []) if "extra ==" not in line]
    assert names_in(plain) == names_in(PROJECT["dependencies"])


@pytest.mark.slow
def test_the_source_archive_contains_no_data(built: tuple[Path, Path]) -> None:
    with tarfile.open(built[0]) as archive:
        names = archive.getnames()
    top = {name.split("/")[1] for name in names}
    assert top == {
        "whisper_opt",
        "hatch_build.py",
        "pyproject.toml",
        "PKG-INFO",
        "README.md",
        "CHANGELOG.md",
        "LICENSE",
        ".gitignore",
    }
    held = {Path(name).name for name in names if "/native/" in name}
    sources = {path.name for path in (ROOT / "whisper_opt" / "runtime" / "native").glob("*.[ch]")}
    assert held == {*sources, "__init__.py"}
    assert len(sources) > 3


@pytest.mark.slow
@pytest.mark.parametrize("python", ["3.9", "3.11"])
def test_a_clean_install_works_and_is_small(
    built: tuple[Path, Path], python: str, tmp_path: Path
) -> None:
    interpreter = make_constraints.find_python(python)
    if interpreter is None:
        pytest.skip(f"not tested: no Python {python} here")
    venv = tmp_path / "venv"
    subprocess.run([str(interpreter), "-m", "venv", str(venv)], check=True)
    command = [str(venv / "bin" / "python"), "-m", "pip", "--quiet", "install", "--no-compile"]
    command += ["-c", str(constraints_file(python)), f"{built[1]}[cpu]"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    packages = venv / "lib" / f"python{python}" / "site-packages"
    files = [path for path in packages.rglob("*") if path.is_file() and path.suffix != ".pyc"]
    assert sum(path.stat().st_size for path in files) <= INSTALLED_LIMIT
    program = [str(venv / "bin" / "whisper-opt"), "--help"]
    shown = subprocess.run(program, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert shown.returncode == 0, shown.stderr
    assert "transcribe" in shown.stdout
    script = "from whisper_opt.runtime.native import why_no_kernels; print(why_no_kernels())"
    asked = subprocess.run(
        [str(venv / "bin" / "python"), "-c", script], capture_output=True, text=True, cwd=tmp_path
    )
    assert asked.stdout.startswith("not compiled") is not COMPILES, asked.stderr
    assert "cannot be loaded" not in asked.stdout
