"""What the pages of the documentation say to run, run: commands, Python and curl.

It runs in a directory with recordings of the names that the pages use, beside a hub on this machine
that has the checkpoint of base. What needs a container, another machine or minutes is in
:data:`NOT_RUN`, with the reason; a test finds entries that no page has.
"""

from __future__ import annotations

import contextlib
import glob
import io
import re
import shlex
import shutil
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

from sybil import Document
from sybil.parsers.markdown import PythonCodeBlockParser

from whisper_opt.cli.main import main

ROOT = Path(__file__).parents[2]
SPEECH = ROOT / "tests" / "data" / "speech"

NOT_RUN = {
    "whisper-opt build": "needs TensorRT; tests/export/tensorrt run it",
    "whisper-opt serve": "runs until it is stopped; the server of this test stands for it",
    "whisper-opt bench": "takes minutes; tests/cli/bench run it",
    "whisper-opt live": "needs a microphone, or plays at its own pace; tests/cli/test_live.py",
    "whisper-opt triton-repository": "is for a server; tests/serving/triton run it",
    "whisper-opt export my-finetune/ engines/mine --alignment-heads 3.1": (
        "names heads of a larger model"
    ),
    "whisper-opt export openai/whisper-base engines/base-int8 --precision int8 --calibrate": (
        "half a minute of calibration; tests/export/quantization run it"
    ),
    "whisper-opt transcribe whisper-base-onnx": "tests/runtime/optimum run it",
    "whisper-opt transcribe onnx-community/whisper-base": "the same",
    "whisper-opt transcribe engines/base-fp16-contrib": "needs a GPU",
    "whisper-opt transcribe engines/base talk.mp3 --encoder-precision": (
        "depends on the processor; tests/runtime/openvino"
    ),
}
"""Beginnings of commands that are not run, and why."""

FILES = {
    "mp3": SPEECH / "formats" / "jfk-44k-stereo-128k.mp3",
    "m4a": SPEECH / "formats" / "jfk-aac.m4a",
    "wav": SPEECH / "formats" / "jfk-16k-mono-s16.wav",
    "ogg": SPEECH / "multilingual" / "de-fleurs-000.ogg",
}
"""Recordings by suffix."""


def shell_blocks(text: str) -> Iterator[str]:
    """Indented blocks, lines that are continued joined, without those of code blocks."""
    text = re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S)
    block: list[str] = []
    for line in [*re.sub(r"\\\n\s*", "", text).splitlines(), ""]:
        if line.startswith("    "):
            block.append(line[4:])
        elif block:
            yield "\n".join(block)
            block = []


def commands(text: str, program: str = "whisper-opt") -> list[str]:
    """Lines of indented blocks that begin with a program."""
    lines = (line for block in shell_blocks(text) for line in block.splitlines())
    return [line for line in lines if line.startswith(program + " ")]


def why_not(command: str) -> str | None:
    """Why a command is not run; None if it is."""
    return next((why for start, why in NOT_RUN.items() if command.startswith(start)), None)


def make_recordings(text: str, folder: Path) -> None:
    """Put recordings where a page expects them."""
    for name, suffix in re.findall(r"(?<![\w/.])((?:[\w-]+/)*[\w-]+\.(mp3|m4a|wav|ogg))\b", text):
        target = folder / name
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(FILES[suffix], target)


def run_command(command: str) -> None:
    """Run a command line in the working directory.

    In this process, which is faster, unless it has a pipe.

    Raises:
        AssertionError: it failed; with what it printed.
    """
    if "|" in command:
        program = f"{shlex.quote(sys.executable)} -m whisper_opt"
        shell = f'set -o pipefail; whisper-opt() {{ {program} "$@"; }}; {command}'
        done = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
        return
    words = shlex.split(command, comments=True)[1:]
    arguments = [name for word in words for name in (sorted(glob.glob(word)) or [word])]
    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        status = main(arguments)
    assert status == 0, f"{command}\n{output.getvalue()}"


def run_python(path: Path, folder: Path, rewrite: dict[str, str]) -> int:
    """Run the Python blocks of a page, one after another with the same names; returns how many.

    Args:
        path: the page.
        folder: where its copy is put.
        rewrite: text to replace, by what.
    """
    text = path.read_text(encoding="utf-8")
    for old, new in rewrite.items():
        text = text.replace(old, new)
    copy = folder / path.name
    copy.write_text(text, encoding="utf-8")
    document = Document.parse(str(copy), PythonCodeBlockParser())
    n = 0
    with warnings.catch_warnings():
        warnings.simplefilter("default")  # as for a user: those of openai-whisper's interface
        for example in document.examples():
            example.evaluate()
            n += 1
    return n
