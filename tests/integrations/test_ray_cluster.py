"""Ray Data and Ray Serve on a local Ray of two workers.

Ray is no requirement of the tests: it takes a minute to install. In an environment that has it,

    pip install -e '.[cpu,export]' 'ray[data,serve]' pytest
    python -m pytest tests/integrations/test_ray_cluster.py
"""

from __future__ import annotations

import json
import os
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import soundfile

from tests.support.http_server import wait_until
from tests.support.ports import free_port
from tests.support.watched_backend import noise
from whisper_opt import TranscribeOptions, Whisper, render
from whisper_opt.integrations.ray_data import CorpusTranscriber, corpus_rows, transcribe
from whisper_opt.integrations.ray_serve import deployment

ray: Any = pytest.importorskip("ray", reason="not tested: Ray is not installed")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),  # those of Ray are its own
]

ROOT = Path(__file__).parents[2]
N = 100
OPTIONS: dict[str, Any] = {"vad": "off", "temperature": 0.0, "max_new_tokens": 6}
LOAD: dict[str, Any] = {"device": "cpu", "threads": 1}


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    environment = {"env_vars": {"PYTHONPATH": str(ROOT)}}
    ray.init(num_cpus=4, include_dashboard=False, runtime_env=environment)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def engine(tiny: Path) -> str:
    return str(tiny)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recordings")
    for i in range(N):
        soundfile.write(folder / f"{i}.wav", noise(1.0 + i % 7, i), 16000, "FLOAT")
    (folder / "list").write_text("\n".join(f"{i}.wav" for i in range(N)), "utf-8")
    return folder / "list"


class DiesOnce(CorpusTranscriber):
    """The process of the first actor that has transcribed 20 recordings is killed."""

    async def _row(self, row: Any) -> dict[str, Any]:
        found = await super()._row(row)
        folder = self._corpus.folder
        done = list(folder.glob("*.json"))
        if len(done) >= 20:
            try:
                (folder / "killed").mkdir()
            except FileExistsError:
                return found
            os.kill(os.getpid(), 9)
        return found


def test_all_recordings_are_there_once_though_a_worker_was_killed(
    cluster: None, engine: str, manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("whisper_opt.integrations.ray_data.CorpusTranscriber", DiesOnce)
    rows = corpus_rows(manifest, TranscribeOptions(**OPTIONS))
    dataset = ray.data.from_items(rows, override_num_blocks=10)
    out = tmp_path / "out"
    found = transcribe(dataset, engine, workers=2, out=str(out), load=LOAD).take_all()
    assert (out / "killed").is_dir()
    assert sorted(each["id"] for each in found) == sorted(each["id"] for each in rows)
    assert {each["error"] for each in found} == {""}
    assert {path.name for path in out.glob("*.json")} == {f"{i}.wav.json" for i in range(N)}
    with Whisper.load(engine, **LOAD) as model:
        for i in (0, 17, 99):
            alone = model.transcribe(manifest.parent / f"{i}.wav", **OPTIONS)
            assert (out / f"{i}.wav.json").read_text("utf-8") == render(alone, "json")


def test_transcripts_as_columns(cluster: None, engine: str, manifest: Path) -> None:
    paths = [str(manifest.parent / f"{i}.wav") for i in range(10, 22)]
    files = ray.data.read_binary_files(paths, include_paths=True)
    found = transcribe(files, engine, workers=2, load=LOAD, options=OPTIONS).take_all()
    assert sorted(each["path"] for each in found) == paths
    with Whisper.load(engine, **LOAD) as model:
        for each in found:
            assert each["transcript"] == render(model.transcribe(each["path"], **OPTIONS), "json")


def test_serve_answers_requests_at_once(cluster: None, engine: str, manifest: Path) -> None:
    from ray import serve

    serve.start(http_options={"port": 0, "host": "127.0.0.1"})
    handle = serve.run(deployment(engine, load=LOAD, options=OPTIONS, num_replicas=2))
    paths = [manifest.parent / f"{i}.wav" for i in range(12)]
    answers = [handle.transcribe.remote(path.read_bytes(), max_new_tokens=4) for path in paths]
    with Whisper.load(engine, **LOAD) as model:
        for path, answer in zip(paths, answers):
            alone = model.transcribe(path, **{**OPTIONS, "max_new_tokens": 4})
            assert answer.result() == {**alone.to_dict(), "duration": alone.duration}
        segments = handle.options(stream=True).segments.remote(paths[3].read_bytes())
        alone = model.transcribe(paths[3], **OPTIONS)
        assert list(segments) == [each.to_dict() for each in alone]
    serve.shutdown()


def routes(url: str) -> dict[str, str]:
    """The routes that the proxy knows; it is told of them after ``serve.run`` has returned."""
    try:
        with urllib.request.urlopen(f"{url}-/routes") as answer:
            found: dict[str, str] = json.load(answer)
            return found
    except urllib.error.HTTPError as error:
        if error.code == 503:  # it knows none yet
            return {}
        raise


def test_serve_speaks_http(cluster: None, engine: str, manifest: Path) -> None:
    from ray import serve

    port = free_port()
    url = f"http://127.0.0.1:{port}/"
    serve.start(http_options={"port": port, "host": "127.0.0.1"})
    serve.run(deployment(engine, load=LOAD, options=OPTIONS))
    wait_until(lambda: "/" in routes(url), "the proxy knows the route")
    audio = (manifest.parent / "3.wav").read_bytes()
    with urllib.request.urlopen(f"{url}?max_new_tokens=4&language=en", audio) as answer:
        found = json.load(answer)
    with Whisper.load(engine, **LOAD) as model:
        alone = model.transcribe(
            manifest.parent / "3.wav", **{**OPTIONS, "max_new_tokens": 4, "language": "en"}
        )
    assert found == {**alone.to_dict(), "duration": alone.duration}
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"{url}?lang=en", audio)
    assert refused.value.code == 400
    assert "there is no option 'lang'" in json.load(refused.value)["error"]
    serve.shutdown()
