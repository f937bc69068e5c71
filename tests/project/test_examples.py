"""The programs in examples/ are short and run."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from tests.support.documented import FILES
from tests.support.results import segment
from whisper_opt import Segment, Whisper

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def engine(tiny: Path) -> str:
    return str(tiny)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a.mp3", "b.mp3"):
        shutil.copyfile(FILES["mp3"], tmp_path / name)
    return tmp_path


def test_every_program_is_listed_and_short() -> None:
    listed = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    for path in sorted(EXAMPLES.glob("*.py")):
        assert f"| `{path.name}` |" in listed
        limit = 130 if path.name == "live_subtitles.py" else 60  # it contains its page
        assert len(path.read_text(encoding="utf-8").splitlines()) <= limit, path.name


def test_subtitle_folder(folder: Path, engine: str, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "b.srt").write_text("mine", encoding="utf-8")
    (folder / "c.mp3").write_bytes(b"no recording")
    example("subtitle_folder").main(str(folder), engine)
    assert (folder / "a.srt").read_text(encoding="utf-8").startswith("1\n00:00:0")
    assert (folder / "b.srt").read_text(encoding="utf-8") == "mine"
    assert "c.mp3" in capsys.readouterr().err


def test_watch_folder(folder: Path, engine: str) -> None:
    example("watch_folder").main(str(folder), engine, seconds=0.01, looks=2)
    assert (folder / "a.txt").exists()
    assert (folder / "b.txt").exists()


def test_watch_folder_tries_a_recording_that_fails_once(
    folder: Path, engine: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "c.mp3").write_bytes(b"no recording")
    example("watch_folder").main(str(folder), engine, seconds=0.01, looks=1000)
    assert capsys.readouterr().err.count("c.mp3:") == 1


def test_fastapi_app(folder: Path, engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("fastapi", reason="not tested: fastapi needs Python 3.10")
    from starlette.testclient import TestClient

    monkeypatch.setenv("MODEL", engine)
    with TestClient(example("fastapi_app").app) as client:
        found = client.post("/transcribe", files={"file": (folder / "a.mp3").read_bytes()})
        assert found.status_code == 200
        assert set(found.json()) >= {"text", "segments", "language"}
        assert client.post("/transcribe", files={"file": b"no recording"}).status_code == 400


GRADIO = """
import sys
sys.path.insert(0, sys.argv[1])
import gradio_demo
from gradio_client import Client, handle_file
from whisper_opt import Whisper
from whisper_opt.serving import Engine

with Engine(Whisper.load(sys.argv[2])) as engine:
    app = gradio_demo.demo(engine)
    _, address, _ = app.launch(prevent_thread_lock=True, quiet=True)
    try:
        client = Client(address, verbose=False)
        html, srt = client.predict(handle_file(sys.argv[3]), False, api_name="/transcribe")
    finally:
        app.close()
assert "data-transcript" in html
assert "-->" in srt
"""


@pytest.mark.slow
def test_gradio_demo(folder: Path, engine: str) -> None:
    """In an environment of its own: a client sends a recording to the running demo."""
    python = os.environ.get("WHISPER_OPT_GRADIO")
    if not python:
        pytest.skip("not tested: WHISPER_OPT_GRADIO names no Python (scripts/test.sh sets it)")
    command = [python, "-c", GRADIO, str(EXAMPLES), engine, str(folder / "a.mp3")]
    offline = {**os.environ, "GRADIO_ANALYTICS_ENABLED": "False"}
    done = subprocess.run(command, env=offline, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_search_transcripts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, text in (("monday", " Ask not what"), ("tuesday", " Nothing here")):
        entry = {"segments": [{"text": text, "start": 65.0}]}
        (tmp_path / f"{name}.json").write_text(json.dumps(entry), encoding="utf-8")
    example("search_transcripts").main(str(tmp_path), "ask OR missing")
    assert capsys.readouterr().out == "monday 1:05  [Ask] not what\n"


def test_karaoke(folder: Path, engine: str) -> None:
    example("karaoke").main(str(folder / "a.mp3"), engine)
    assert "[Events]" in (folder / "a.ass").read_text(encoding="utf-8")


def test_chapters_begin_after_the_longest_pauses() -> None:
    times = [(0, 50), (51, 100), (110, 170), (171, 300), (305, 400)]
    segments = [segment(i, a, b, " x") for i, (a, b) in enumerate(times)]
    assert example("chapters").chapter_starts(segments, 100.0) == [0, 2, 4]


class Podcast:
    """A model that finds two chapters in a recording."""

    def __enter__(self) -> Podcast:
        return self

    def __exit__(self, *raised: object) -> None:
        pass

    def transcribe(self, recording: str, **options: str) -> list[Segment]:
        assert options == {"strategy": "batched"}
        times = [(3.2, 50), (51, 170), (3725.9, 3800)]
        return [segment(i, a, b, f" {i} a b c d e f g h") for i, (a, b) in enumerate(times)]


def test_chapters(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(Whisper, "load", lambda name: Podcast())
    example("chapters").main("podcast.mp3")
    assert capsys.readouterr().out == "0:00:00 0 a b c d e f g\n1:02:05 2 a b c d e f g\n"


def test_chapters_of_a_recording(
    folder: Path, engine: str, capsys: pytest.CaptureFixture[str]
) -> None:
    example("chapters").main(str(folder / "a.mp3"), engine)
    with Whisper.load(engine) as model:
        found = model.transcribe(folder / "a.mp3", strategy="batched")
    assert capsys.readouterr().out == f"0:00:00 {' '.join(found[0].text.split()[:8])}\n"


@pytest.fixture
def precisions(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same engine for every precision: an export of each is not what is tested here."""
    load = Whisper.load
    monkeypatch.setattr(Whisper, "load", lambda name, precision: load(name))


def test_compare_precisions(
    folder: Path, engine: str, precisions: None, capsys: pytest.CaptureFixture[str]
) -> None:
    example("compare_precisions").main(engine, str(folder / "a.mp3"))
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["fp32", "int8", "int4"]
    assert all("100.0 % of the words of fp32" in line for line in lines)


class Rows(list[dict[str, Any]]):
    """A dataset of Ray that runs nothing."""

    iter_rows = list.__iter__


@pytest.mark.parametrize("workers", [1, 3])
def test_corpus_ray(
    workers: int, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ray is replaced; tests/integrations/test_ray_cluster.py has a real one."""
    ray = SimpleNamespace(data=SimpleNamespace(from_items=Rows))
    monkeypatch.setitem(sys.modules, "ray", ray)
    program = example("corpus_ray")
    (folder / "list").write_text("a.mp3\nb.mp3\n", encoding="utf-8")

    def transcribe(rows: Rows, model: str, **given: Any) -> Rows:
        assert (model, given["workers"], given["out"]) == ("base", workers, "out")
        assert given["resources"] == {"num_cpus": 2}
        assert given["load"] == {"device": "cpu", "threads": 2}
        return Rows({"id": row["id"], "error": "gone" * (row["id"] == "b.mp3")} for row in rows)

    monkeypatch.setattr(program, "transcribe", transcribe)
    given = ["corpus_ray.py", "base", str(folder / "list"), "out", "--cpus", "2"]
    monkeypatch.setattr(sys, "argv", [*given, "--workers", str(workers)])
    assert program.main() == 1
    assert capsys.readouterr().err == "b.mp3: gone\n1 recordings are there, 1 failed\n"


def test_three_gpus(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    import build_engines

    if sys.version_info < (3, 11):
        pytest.importorskip("tomli")
    assert build_engines.main([str(EXAMPLES / "three_gpus.toml"), "--dry-run"]) == 0
    assert "base-gpu" in capsys.readouterr().out
