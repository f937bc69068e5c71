"""scripts/quickstart.sh in a copy of the repository's outline, with a fake Python."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from make_constraints import ROOT

# Replaces the interpreter and, in the environment that it makes, the command.
FAKE = """#!/bin/sh
echo "$(basename "$0") $*" >>"$FAKE_LOG"
echo "cache ${WHISPER_OPT_CACHE:-}" >>"$FAKE_LOG.cache"
case "$*" in
    *"import sys, venv"*) echo 3.11.7 ;;
    "-m venv "*) mkdir -p "$3/bin"; cp "$0" "$3/bin/python"; cp "$0" "$3/bin/whisper-opt" ;;
    "scripts/get_model.py "*)
        mkdir -p "models/$2"
        echo model >"models/$2/model.bin"
        exit "${FAKE_FETCH_EXIT:-0}" ;;
esac
"""


class Clone:
    """What the script needs of a clone; nothing is installed, fetched or transcribed."""

    def __init__(self, root: Path) -> None:
        self.root, self.log = root / "clone", root / "log"
        self.python = root / "fake" / "python3"
        self.python.parent.mkdir()
        self.python.write_text(FAKE)
        self.python.chmod(0o755)
        for folder in ("scripts", "constraints", "whisper_opt/runtime/native", "examples"):
            (self.root / folder).mkdir(parents=True)
        for name in ("quickstart.sh", "venv.sh"):
            shutil.copy(ROOT / "scripts" / name, self.root / "scripts" / name)
        (self.root / "constraints" / "py311.txt").write_text("numpy==2.4.6\n")
        (self.root / "pyproject.toml").write_text("[project]\n")
        (self.root / "hatch_build.py").touch()
        library = self.root / "whisper_opt" / "runtime" / "native" / "libwhisper_opt.so"
        library.with_name("linear.c").touch()
        library.touch()
        os.utime(library, (4e9, 4e9))

    def run(self, *arguments: str, cwd: Path | None = None, **environment: str) -> list[str]:
        """The calls of Python and of the command; the exit status must be 0."""
        status, calls = self.status(*arguments, cwd=cwd, **environment)
        assert status == 0
        return calls

    def status(
        self, *arguments: str, cwd: Path | None = None, **environment: str
    ) -> tuple[int, list[str]]:
        self.log.write_text("")
        outside = {name: value for name, value in os.environ.items() if name != "PYTHON"}
        path = f"{self.python.parent}{os.pathsep}{os.environ['PATH']}"
        done = subprocess.run(
            [str(self.root / "scripts" / "quickstart.sh"), *arguments],
            cwd=cwd or self.root,
            env={**outside, "PATH": path, "FAKE_LOG": str(self.log), **environment},
            capture_output=True,
            text=True,
            check=False,
        )
        return done.returncode, self.log.read_text().splitlines()


@pytest.fixture
def clone(tmp_path: Path) -> Clone:
    return Clone(tmp_path)


def test_first_run(clone: Clone) -> None:
    calls = clone.run()
    (install,) = (call for call in calls if " install " in call)
    assert install.endswith("-c constraints/py311.txt -e .[cpu,audio,export]")
    assert calls[-2:] == [
        "python scripts/get_model.py tiny.en",
        f"whisper-opt transcribe models/tiny.en {clone.root / 'examples' / 'jfk.flac'}",
    ]


def test_later_runs_start_one_python(clone: Clone) -> None:
    clone.run()
    assert clone.run("talk.mp3", "-", "/a b.wav", cwd=clone.root.parent) == [
        f"whisper-opt transcribe models/tiny.en {clone.root.parent}/talk.mp3 - /a b.wav"
    ]


def test_a_model_that_is_not_whole_is_fetched_again(clone: Clone) -> None:
    fetch = "python scripts/get_model.py tiny.en"
    status, calls = clone.status(FAKE_FETCH_EXIT="1")
    assert (status, calls[-1]) == (1, fetch)
    assert fetch in clone.run()
    assert fetch not in clone.run()
    changed = clone.root / "models" / "tiny.en" / "model.bin"
    os.utime(changed, (4e9, 4e9))
    assert fetch in clone.run()
    shutil.rmtree(changed.parent)
    assert fetch in clone.run()


def test_names_ids_and_paths_of_models(clone: Clone) -> None:
    audio = str(clone.root / "examples" / "jfk.flac")
    calls = clone.run("--model", "base")
    assert any(call.endswith("-e .[cpu,audio,export,hf]") for call in calls)
    assert calls[-1] == f"whisper-opt transcribe base {audio}"
    assert clone.run("--model=org/model@main") == [f"whisper-opt transcribe org/model@main {audio}"]
    folder = clone.root.parent / "mine"
    folder.mkdir()
    (call,) = clone.run("--model", "mine", cwd=clone.root.parent)
    assert call == f"whisper-opt transcribe {folder} {audio}"
    # the environment with one more extra is good for the other model too
    assert not any(" install " in call for call in clone.run())


def test_changed_pins_are_installed(clone: Clone) -> None:
    clone.run()
    (clone.root / "pyproject.toml").write_text("[project] # changed\n")
    assert any(" install " in call for call in clone.run())


def test_a_relative_cache_is_that_of_the_caller(clone: Clone) -> None:
    clone.run(cwd=clone.root.parent, WHISPER_OPT_CACHE="cache")
    seen = Path(f"{clone.log}.cache").read_text().splitlines()
    assert seen[-1] == f"cache {clone.root.parent / 'cache'}"


@pytest.mark.parametrize("arguments", [("--modle", "base"), ("--model",)])
def test_wrong_usage(clone: Clone, arguments: tuple[str, ...]) -> None:
    assert clone.status(*arguments) == (2, [])


def test_help(clone: Clone) -> None:
    done = subprocess.run(
        [str(clone.root / "scripts" / "quickstart.sh"), "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith("From a fresh clone to a transcript")
    assert done.stdout.endswith("PYTHON=... picks the Python.\n")
