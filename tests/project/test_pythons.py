"""The JFK recording, word for word, on the oldest supported Python and ONNX Runtime."""

from __future__ import annotations

import os
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
        "tests/runtime/native/test_cross_kernels.py",
        "tests/runtime/native/test_head.py",
        "tests/runtime/native/test_kernels.py",
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
