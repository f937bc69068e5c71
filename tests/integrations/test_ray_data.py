"""The actor classes for Ray Data, called as Ray calls them; Ray is not needed."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from tests.support.watched_backend import noise
from whisper_opt import EngineClosed, OptionError, TranscribeOptions, Whisper, render
from whisper_opt.integrations import ray_data
from whisper_opt.integrations.ray_data import CorpusTranscriber, Transcriber, corpus_rows
from whisper_opt.serving import Engine

OPTIONS: dict[str, Any] = {"vad": "off", "temperature": 0.0, "max_new_tokens": 6}
LOAD: dict[str, Any] = {"device": "cpu", "threads": 1}


@pytest.fixture(scope="module")
def engine(tiny: Path) -> str:
    return str(tiny)


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    found = [tmp_path / f"{i}.wav" for i in range(4)]
    for i, path in enumerate(found):
        soundfile.write(path, noise(1.0 + 4 * i, i), 16000, "FLOAT")
    return found


def together(actor: Any, *batches: dict[str, Any]) -> list[dict[str, Any]]:
    """Calls at the same time, as Ray makes them."""

    async def run() -> list[dict[str, Any]]:
        return list(await asyncio.gather(*map(actor, batches)))

    return asyncio.run(run())


def test_rows_keep_their_order_and_columns(engine: str, files: list[Path]) -> None:
    actor = Transcriber(engine, load=LOAD, options=OPTIONS)
    long_first = [str(path) for path in reversed(files)]
    first, second = together(
        actor,
        {"path": np.array(long_first, object), "number": np.array([7, 8, 9, 10])},
        {
            "bytes": np.array([files[1].read_bytes(), b"RIFF"], object),
            "path": np.array(["1.wav", "2.wav"], object),
            "options": np.array(['{"max_new_tokens": 3}', "{}"], object),
        },
    )
    assert first["path"] == long_first
    assert first["number"] == [7, 8, 9, 10]
    assert first["error"] == [""] * 4
    assert set(second) == {*first, "options"} - {"number"}
    assert second["error"][0] == ""
    assert "cannot be decoded as audio" in second["error"][1]
    assert second["text"][1] == ""
    with Whisper.load(engine, **LOAD) as model:
        for path, transcript, duration in zip(long_first, first["transcript"], first["duration"]):
            alone = model.transcribe(path, **OPTIONS)
            assert (transcript, duration) == (render(alone, "json"), alone.duration)
        short = model.transcribe(files[1], **{**OPTIONS, "max_new_tokens": 3})
        assert second["transcript"][0] == render(short, "json")


def test_samples_and_an_empty_batch(engine: str) -> None:
    actor = Transcriber(engine, load=LOAD, options=OPTIONS)
    samples = np.empty(1, object)
    samples[0] = noise(5.0)
    (found, nothing) = together(actor, {"audio": samples, "id": np.array(["a"])}, {"audio": []})
    assert nothing == {}
    assert "audio" not in found
    assert found["id"] == ["a"]
    assert found["duration"] == [5.0]


def test_a_full_queue_is_waited_for(
    engine: str, files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_data, "_PAUSE", 0.001)
    actor = Transcriber(engine, load=LOAD, options=OPTIONS)
    actor._engine.close()
    actor._engine = Engine(actor._model, max_queued=1)
    (found,) = together(actor, {"path": np.array([str(path) for path in files * 4], object)})
    assert found["error"] == [""] * 16


def test_an_engine_that_failed_ends_the_actor(engine: str, files: list[Path]) -> None:
    actor = Transcriber(engine, load=LOAD, options=OPTIONS)
    actor._engine.close()
    with pytest.raises(EngineClosed):
        together(actor, {"path": np.array([str(files[0])], object)})


def test_a_corpus_is_continued_by_another_actor(
    engine: str, files: list[Path], tmp_path: Path
) -> None:
    lines = [*(path.name for path in files), "gone.wav"]
    lines[1] = json.dumps({"audio": lines[1], "id": "one", "max_new_tokens": 3})
    (tmp_path / "list").write_text("\n".join(lines), "utf-8")
    rows = corpus_rows(tmp_path / "list", TranscribeOptions(**OPTIONS))
    assert (rows[1]["id"], rows[1]["audio"]) == ("one", str(files[1].resolve()))
    given = {**OPTIONS, "temperature": [0.0], "max_new_tokens": 3}
    assert json.loads(rows[1]["options"]) == given
    out = tmp_path / "out"
    batches = [
        {name: np.array([row[name] for row in part], object) for name in rows[0]}
        for part in (rows[:2], rows[2:])
    ]
    first, second = together(CorpusTranscriber(engine, str(out), load=LOAD), *batches)
    assert [*first["id"], *second["id"]] == ["0.wav", "one", "2.wav", "3.wav", "gone.wav"]
    assert [bool(each) for each in (*first["error"], *second["error"])] == [False] * 4 + [True]
    made = {path.name: path.stat().st_mtime_ns for path in out.glob("*.json")}
    assert set(made) == {"0.wav.json", "one.json", "2.wav.json", "3.wav.json"}
    with Whisper.load(engine, **LOAD) as model:
        alone = model.transcribe(files[1], **{**OPTIONS, "max_new_tokens": 3})
    assert (out / "one.json").read_text("utf-8") == render(alone, "json")
    again = together(CorpusTranscriber(engine, str(out), load=LOAD), *batches)
    assert again == [first, second]
    assert made == {path.name: path.stat().st_mtime_ns for path in out.glob("*.json")}


def test_rows_of_a_manifest_have_absolute_paths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    row = {"audio": "a.wav", "diarize": True, "known_speakers": {"Ann": "ann.wav"}}
    Path("list.jsonl").write_text(f"{json.dumps(row)}\nb.wav\n", encoding="utf-8")
    common = TranscribeOptions(diarize=True, known_speakers={"Bob": Path("bob.wav")})
    rows = corpus_rows("list.jsonl", common)
    assert [row["audio"] for row in rows] == [str(tmp_path / "a.wav"), str(tmp_path / "b.wav")]
    found = [json.loads(row["options"])["known_speakers"] for row in rows]
    assert found == [{"Ann": str(tmp_path / "ann.wav")}, {"Bob": str(tmp_path / "bob.wav")}]
    known = ray_data.recording_of(rows[0], TranscribeOptions()).options.known_speakers
    assert known == (("Ann", str(tmp_path / "ann.wav")),)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"diarize": True, "known_speakers": {"Ann": b"RIFF"}}, "a clip that is no path"),
        ({"draft": [{"text": "a", "what": {1, 2}}]}, "cannot be written as JSON"),
    ],
)
def test_options_that_a_row_cannot_hold(
    tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    (tmp_path / "list").write_text("a.wav\n", encoding="utf-8")
    with pytest.raises(OptionError, match=message):
        corpus_rows(tmp_path / "list", TranscribeOptions(**options))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({}, "the row has no audio; expected a column audio, path or bytes"),
        ({"path": "a", "options": "{"}, "the column options is no JSON object"),
        ({"path": "a", "options": "[]"}, "the column options is .*; expected a JSON object"),
        ({"path": "a", "options": '{"id": "b"}'}, "the column options is .*; expected a JSON"),
        ({"path": "a", "options": '{"lang": "b"}'}, "has 'lang', which is no option"),
        ({"path": "a", "options": '{"language": 3}'}, "language"),
    ],
)
def test_wrong_rows(row: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        ray_data.recording_of(row, TranscribeOptions())
