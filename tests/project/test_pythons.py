"""The README's code on every supported Python, and more on the oldest with its ONNX Runtime.

``scripts/test.sh`` makes the environments: WHISPER_OPT_PYTHONS lists the interpreters of all,
WHISPER_OPT_PY39 is that of Python 3.9.
"""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.conftest import Engines, model_dir
from whisper_opt.runtime.native import variant, why_no_kernels

ROOT = Path(__file__).parents[2]
WORDS = (
    " And so my fellow Americans ask not what your country can do for you"
    " ask what you can do for your country"
)
CODE = """
import sys, onnxruntime, whisper_opt
model = whisper_opt.Whisper.load(sys.argv[1], threads=2)
print(sys.version_info[:2], onnxruntime.__version__)
print(model.transcribe(sys.argv[2]).text)
"""


@pytest.mark.slow
def test_this_python(engines: Engines) -> None:
    found = engines.model("tiny.en").transcribe(ROOT / "examples" / "jfk.flac")
    assert found.text == WORDS


def python_39() -> str:
    """An interpreter; skips if there is none."""
    python = os.environ.get("WHISPER_OPT_PY39")
    if not python:
        pytest.skip("not tested: WHISPER_OPT_PY39 names no Python 3.9 (scripts/test.sh sets it)")
    return python


@pytest.mark.slow
def test_kernels_of_python_39() -> None:
    """The very same tests, in ONNX Runtime 1.19."""
    python, reason = python_39(), why_no_kernels()
    if reason:
        pytest.skip(f"not tested: {reason}")
    command = [
        python,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-k",
        str(variant()),  # the variant in use; the others do not depend on Python
        "tests/runtime/native/test_convolution.py",
        "tests/runtime/native/test_cross_kernels.py",
        "tests/runtime/native/test_head.py",
        "tests/runtime/native/test_kernels.py",
        "tests/runtime/native/test_self_attention.py",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "passed" in done.stdout
    assert "skipped" not in done.stdout


@pytest.mark.slow
def test_python_39(engines: Engines, tmp_path: Path) -> None:
    python = python_39()
    # exported there too: the old runtime needs graphs of the old onnx package
    target = tmp_path / "tiny.en"
    export = [python, "-m", "whisper_opt", "export", str(model_dir("tiny.en")), str(target)]
    subprocess.run(export, check=True, cwd=tmp_path, capture_output=True)
    for engine in (target, engines.engine("tiny.en").path):
        command = [python, "-c", CODE, str(engine), str(ROOT / "examples" / "jfk.flac")]
        done = subprocess.run(
            command, check=True, cwd=tmp_path, capture_output=True, text=True, encoding="utf-8"
        )
        version, text = done.stdout.splitlines()
        assert version == "(3, 9) 1.19.2"
        assert text == WORDS


SUPPORTED = ("3.9", "3.10", "3.11", "3.12", "3.13")


def interpreter(version: str) -> str:
    """Path of an interpreter of a minor version; skips if there is none."""
    for python in filter(None, os.environ.get("WHISPER_OPT_PYTHONS", "").split(":")):
        show = [python, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]
        found = subprocess.run(show, check=True, capture_output=True, text=True).stdout.strip()
        if found == version:
            return python
    pytest.skip(f"not tested: WHISPER_OPT_PYTHONS has no Python {version} (see scripts/test.sh)")


def readme_block(start: str, language: str = "") -> str:
    """The code block of the README's section of that title."""
    section = (ROOT / "README.md").read_text("utf-8").partition(f"## {start}\n")[2]
    fenced = re.search(rf"^```{language}\n(.*?)^```", section, re.DOTALL | re.MULTILINE)
    assert fenced
    return fenced.group(1)


def run(command: list[str], folder: Path) -> str:
    environment = {**os.environ, "WHISPER_OPT_CACHE": str(folder / "cache"), "PYTHONUTF8": "1"}
    environment.pop("PYTHONPATH", None)
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("version", SUPPORTED)
def test_readme(version: str, tmp_path: Path) -> None:
    """Export to the cache on the first call; the command uses what the code has exported."""
    python = interpreter(version)
    checkpoint = str(model_dir("tiny.en"))
    recording = str(ROOT / "examples" / "jfk.flac")
    code = readme_block("Five lines", "python")
    for name, path in (("tiny.en", checkpoint), ("talk.mp3", recording)):
        assert code.count(f'"{name}"') == 1
        code = code.replace(f'"{name}"', repr(path))
    lines = run([python, "-c", code], tmp_path).splitlines()  # "start end text" of each segment
    assert "".join(line[14:] for line in lines) == WORDS
    (manifest,) = (tmp_path / "cache").glob("*/manifest.json")
    made = manifest.stat().st_mtime_ns

    command = "transcribe base *.mp3 --format srt --output-dir subtitles"
    assert f"    whisper-opt {command}\n" in (ROOT / "README.md").read_text("utf-8")
    arguments = command.replace("base", checkpoint).replace("*.mp3", recording).split()
    run([python, "-m", "whisper_opt", *arguments], tmp_path)
    cues = (tmp_path / "subtitles" / "jfk.srt").read_text("utf-8").split("\n\n")
    assert " ".join(cue.split("\n", 2)[2] for cue in cues if cue).split() == WORDS.split()
    assert [*(tmp_path / "cache").glob("*/manifest.json")] == [manifest]
    assert manifest.stat().st_mtime_ns == made
