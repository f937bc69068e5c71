"""Corpora on a fake model: what is done stays, what has changed is made again, failures."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Union

import pytest
import soundfile

from tests.support.engines_on_fakes import WAIT, options, options_of, stepped, steps
from tests.support.in_threads import Started
from tests.support.stepped_backend import SteppedBackend
from tests.support.watched_backend import ENDLESS, WatchedBackend, engine, noise, quiet_model
from whisper_opt import (
    AudioError,
    EngineError,
    OptionError,
    TranscribeOptions,
    Whisper,
    WhisperOptError,
    render,
)
from whisper_opt.runtime.engine_cache import fingerprint as real_fingerprint
from whisper_opt.serving import (
    Corpus,
    Engine,
    Outcome,
    Recording,
    Shard,
    corpus_run,
    transcribe_corpus,
    transcribe_recording,
)
from whisper_opt.serving import corpus as corpus_module

SIZES = (5.0, 31.0, 3.0, 12.0)
LONG_AGO = 1_600_000_000


@pytest.fixture
def recordings(tmp_path: Path) -> list[Recording]:
    """Recordings whose last change is long ago."""
    found = []
    for i, size in enumerate(SIZES):
        path = tmp_path / f"{i}.wav"
        soundfile.write(path, noise(size, i), 16000, "FLOAT")
        os.utime(path, (LONG_AGO, LONG_AGO))
        found.append(Recording(f"id {i}", path, options(), i + 1))
    return found


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Transcribes what is not done into ``out``; returns the ids of it, sorted."""
    # the time of the last change of the status of a file cannot be set
    _patch_fingerprint(monkeypatch, _aged)

    def transcribe(recordings: Iterable[Recording], **given: Any) -> list[str]:
        with Whisper(engine(), WatchedBackend()) as model, Engine(model) as served:
            return ids(into(tmp_path / "out", served, recordings, **given))

    return transcribe


def _patch_fingerprint(monkeypatch: pytest.MonkeyPatch, replacement: Callable[[Path], Any]) -> None:
    for module in (corpus_module, corpus_run):
        monkeypatch.setattr(module, "fingerprint", replacement)


def _aged(path: Path) -> Any:
    found = real_fingerprint(path)
    return None if found is None else found._replace(when=time.time() + 60)


def into(out: Path, served: Engine, recordings: Iterable[Recording], **given: Any) -> list[Outcome]:
    with Corpus(out, served.model, **given) as corpus:
        left = [each for each in recordings if corpus.outcome(each) is None]
        return list(transcribe_corpus(served, corpus, left, ahead=2))


def ids(outcomes: Iterable[Outcome]) -> list[str]:
    return sorted(each.recording.id for each in outcomes)


ALL = [f"id {i}" for i in range(len(SIZES))]


def test_each_file_is_that_of_the_recording_alone(
    tmp_path: Path, recordings: list[Recording], run: Any
) -> None:
    assert run(recordings, formats=("json", "srt")) == ALL
    for i, each in enumerate(recordings):
        alone = quiet_model().transcribe(each.audio, **options_of())
        for form in ("json", "srt"):
            written = (tmp_path / "out" / f"id_{i}.{form}").read_text(encoding="utf-8")
            assert written == render(alone, form)
    assert len(list((tmp_path / "out").iterdir())) == 2 * len(SIZES) + 1


def test_what_is_there_is_not_made_again(recordings: list[Recording], run: Any) -> None:
    assert run(recordings) == ALL
    assert run(recordings) == []
    assert run(recordings[::-1], shard=Shard(0, 1)) == []


def test_rows_have_options_of_their_own(
    tmp_path: Path, recordings: list[Recording], run: Any
) -> None:
    own = recordings[1]._replace(options=options(max_new_tokens=3))
    assert run([recordings[0], own]) == ALL[:2]
    alone = quiet_model().transcribe(own.audio, **options_of(max_new_tokens=3))
    assert (tmp_path / "out" / "id_1.json").read_text(encoding="utf-8") == render(alone, "json")


# what has changed


@pytest.mark.parametrize("changed", [b"", b"[]", None])
def test_a_damaged_file_is_made_again(
    tmp_path: Path, recordings: list[Recording], run: Any, changed: Union[bytes, None]
) -> None:
    run(recordings)
    path = tmp_path / "out" / "id_2.json"
    before = path.read_bytes()
    path.unlink() if changed is None else path.write_bytes(changed)
    assert run(recordings) == ["id 2"]
    assert path.read_bytes() == before


@pytest.mark.parametrize("content", ["", "{", "[]", '"x"', "{}", '{"key": 1, "outputs": 3}'])
def test_a_damaged_record(
    tmp_path: Path, recordings: list[Recording], run: Any, content: str
) -> None:
    run(recordings)
    (tmp_path / "out" / ".whisper-opt" / "id_2.json").write_text(content, encoding="utf-8")
    assert run(recordings) == ["id 2"]


@pytest.mark.parametrize("keep_times", [False, True])
def test_a_changed_recording_is_transcribed_again(
    tmp_path: Path, recordings: list[Recording], run: Any, keep_times: bool
) -> None:
    run(recordings)
    old = (tmp_path / "out" / "id_2.json").read_bytes()
    soundfile.write(recordings[2].audio, noise(SIZES[2], 77), 16000, "FLOAT")
    if keep_times:
        os.utime(recordings[2].audio, (LONG_AGO, LONG_AGO))
    assert run(recordings) == ["id 2"]
    assert (tmp_path / "out" / "id_2.json").read_bytes() != old


def test_a_copy_of_a_recording_is_the_same(
    tmp_path: Path, recordings: list[Recording], run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its times and inode differ, its sha256 does not: it is read once, and never transcribed."""
    run(recordings)
    copy = tmp_path / "copy.wav"
    copy.write_bytes(recordings[0].audio.read_bytes())
    copy.replace(recordings[0].audio)
    assert run(recordings) == []
    monkeypatch.setattr(corpus_module, "_sha256", _only_outputs)
    assert run(recordings) == []


def _only_outputs(path: Path) -> Union[str, None]:
    assert path.suffix != ".wav", "a recording that has not changed is read"
    return real_sha256(path)


real_sha256 = corpus_module._sha256


def test_a_recording_that_was_just_written_is_compared_by_its_digest(
    recordings: list[Recording], run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A change right after the transcription might leave size and times as they are."""

    def just_now(path: Path) -> Any:
        found = real_fingerprint(path)
        return None if found is None else found._replace(when=0.0)

    _patch_fingerprint(monkeypatch, just_now)
    assert run(recordings) == ALL
    read: list[Path] = []

    def noted(path: Path) -> Union[str, None]:
        read.append(path)
        return real_sha256(path)

    monkeypatch.setattr(corpus_module, "_sha256", noted)
    assert run(recordings) == []
    assert [path for path in read if path.suffix == ".wav"] == [each.audio for each in recordings]


@pytest.mark.parametrize(
    ("given", "again"),
    [
        ({"max_new_tokens": 3}, True),
        ({"seed": 1, "temperature": (0.0, 0.2)}, True),
        ({"batch_size": 3}, False),
        ({"max_duration": 100.0}, False),
        ({"max_audio_bytes": 1 << 29}, False),
    ],
)
def test_other_options(
    recordings: list[Recording], run: Any, given: dict[str, Any], again: bool
) -> None:
    run(recordings[:1])
    other = recordings[0]._replace(options=options(**given))
    assert run([other]) == (["id 0"] if again else [])


@pytest.mark.parametrize("kind", ["path", "bytes", "array"])
def test_clips_of_known_speakers_are_part_of_the_options(
    tmp_path: Path, recordings: list[Recording], run: Any, kind: str
) -> None:
    def row(seed: int) -> Recording:
        soundfile.write(tmp_path / "ann.wav", noise(3.0, seed), 16000, "FLOAT")
        clip: Any = tmp_path / "ann.wav"
        if kind == "bytes":
            clip = clip.read_bytes()
        elif kind == "array":
            clip = noise(3.0, seed)
        known = options(diarize=True, known_speakers={"Ann": clip})
        return recordings[0]._replace(options=known)

    made = Corpus(tmp_path / "out", quiet_model())
    first, same, other = made._key(row(1).options), made._key(row(1).options), row(2).options
    assert first == same
    assert first != made._key(other)


def test_another_version_transcribes_again(
    recordings: list[Recording], run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(recordings)
    monkeypatch.setattr(corpus_module, "__version__", "another")
    assert run(recordings) == ALL


def test_another_model_transcribes_again(
    tmp_path: Path, recordings: list[Recording], run: Any
) -> None:
    run(recordings[:1])
    with Engine(Whisper(engine(n_text_ctx=200), WatchedBackend())) as served:
        assert ids(into(tmp_path / "out", served, recordings[:1])) == ["id 0"]


def test_formats_are_added(tmp_path: Path, recordings: list[Recording], run: Any) -> None:
    assert run(recordings) == ALL
    assert run(recordings, formats=("txt",)) == ALL
    assert run(recordings, formats=("json",)) == []
    assert run(recordings, formats=("txt", "json")) == []


# failures


def failing(recordings: list[Recording]) -> list[Recording]:
    recordings[1].audio.write_bytes(b"no recording")
    os.utime(recordings[1].audio, (LONG_AGO, LONG_AGO))
    return [*recordings, Recording("gone", recordings[0].audio.with_name("gone"), options(), 9)]


def test_a_failure_stops_no_other(tmp_path: Path, recordings: list[Recording], run: Any) -> None:
    rows = failing(recordings)
    assert run(rows) == ["gone", *ALL]
    with Corpus(tmp_path / "out", quiet_model()) as corpus:
        before = [corpus.outcome(each) for each in rows]
        errors = [None if each is None else each.error for each in before]
        assert [error is None for error in errors] == [True, False, True, True, False]
        failed = [each for each in before if each is not None and each.error is not None]
        listed = corpus.list_failed(failed)
        assert listed == tmp_path / "out" / "failed.jsonl"
        lines = [json.loads(line) for line in listed.read_text(encoding="utf-8").splitlines()]
        assert [line["id"] for line in lines] == ["gone", "id 1"]
        assert lines[1]["audio"] == str(rows[1].audio)
        assert "gone" in lines[0]["error"]
        assert corpus.list_failed([]) is None
        assert not listed.exists()
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        ".whisper-opt", "id_0.json", "id_2.json", "id_3.json",
    ]  # fmt: skip


def test_a_failed_recording_that_changes_is_tried_again(
    recordings: list[Recording], run: Any
) -> None:
    rows = failing(recordings)
    run(rows)
    assert run(rows) == []
    soundfile.write(rows[1].audio, noise(2.0), 16000, "FLOAT")
    soundfile.write(rows[-1].audio, noise(2.0), 16000, "FLOAT", format="WAV")
    assert run(rows) == ["gone", "id 1"]
    assert run(rows) == []


def test_a_recording_that_changes_meanwhile_fails(
    tmp_path: Path, recordings: list[Recording], monkeypatch: pytest.MonkeyPatch
) -> None:
    def save(self: Any, recording: Recording, before: Any, found: Any) -> Outcome:
        os.utime(recording.audio, (LONG_AGO + 1, LONG_AGO))
        os.utime(recording.audio, (LONG_AGO + 1, LONG_AGO + 1))
        return real(self, recording, before, found)

    real = Corpus.save
    monkeypatch.setattr(Corpus, "save", save)
    with Engine(quiet_model()) as served:
        (outcome,) = into(tmp_path / "out", served, recordings[:1])
        assert outcome.error is not None
        assert "changed while it was transcribed" in outcome.error
        monkeypatch.undo()
        (outcome,) = into(tmp_path / "out", served, recordings[:1])
        assert outcome.error is None


def test_a_transcript_that_cannot_be_rendered_fails_alone(
    tmp_path: Path, recordings: list[Recording], run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unable(found: Any, form: str, layout: Any, **named: Any) -> str:
        if found.duration == SIZES[2]:
            raise WhisperOptError("a time is negative")
        return render(found, form, layout)

    monkeypatch.setattr(corpus_module, "render", unable)
    assert run(recordings) == ALL
    assert sorted(path.name for path in (tmp_path / "out").glob("*.json")) == [
        "id_0.json", "id_1.json", "id_3.json",
    ]  # fmt: skip


def test_an_engine_that_fails_is_no_failure_of_recordings(
    tmp_path: Path, recordings: list[Recording], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = quiet_model()
    with Engine(model) as served:

        def broken(*_: Any) -> Any:
            raise RuntimeError("a defect")

        monkeypatch.setattr(served._loop._scheduler, "step", broken)
        with pytest.raises(WhisperOptError, match="a defect"):
            into(tmp_path / "out", served, recordings)
    assert [path.name for path in (tmp_path / "out" / ".whisper-opt").glob("*.json")] == []


def test_a_full_disk_stops_the_run(
    tmp_path: Path, recordings: list[Recording], run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(corpus_module, "replace_file", full)
        with pytest.raises(WhisperOptError, match="No space left on device"):
            run(recordings)
    assert run(recordings) == ALL


# the batch, and other processes


def test_recordings_share_a_batch(tmp_path: Path, recordings: list[Recording]) -> None:
    backend = SteppedBackend()
    slow = TranscribeOptions(**ENDLESS, max_new_tokens=8)
    rows = [each._replace(options=slow) for each in recordings[::2]]
    with stepped(backend) as served:
        running = Started(lambda: into(tmp_path / "out", served, rows))
        backend.wait()
        until = time.monotonic() + WAIT
        while served.stats().queued + served.stats().running < 2:  # it is submitting them
            assert time.monotonic() < until
            time.sleep(0.001)
        steps(served, backend, 3)  # one was running; the other is read, then decoded
        together = backend.of("extend")[-1]
        backend.release()
        assert ids(running.result()) == ["id 0", "id 2"]
    assert len(together) == 2


def test_a_full_queue_is_waited_for(tmp_path: Path, recordings: list[Recording]) -> None:
    with Engine(quiet_model(), max_queued=1) as served, Corpus(tmp_path, served.model) as corpus:
        assert ids(transcribe_corpus(served, corpus, recordings, ahead=9)) == ALL


def test_a_run_that_is_stopped_cancels_the_rest(
    tmp_path: Path, recordings: list[Recording]
) -> None:
    with Engine(quiet_model()) as served, Corpus(tmp_path / "out", served.model) as corpus:
        outcomes = transcribe_corpus(served, corpus, recordings)
        first = next(outcomes)
        outcomes.close()
        assert served.drain(60)
        left = [each.id for each in recordings if corpus.outcome(each) is None]
        assert len(left) == len(recordings) - 1
        assert first.recording.id not in left


def test_a_shard_is_transcribed_by_one_process(tmp_path: Path) -> None:
    model = quiet_model()
    with Corpus(tmp_path, model, Shard(0, 2)):
        with pytest.raises(WhisperOptError, match="another process transcribes shard 0/2"):
            Corpus(tmp_path, model, Shard(0, 2)).__enter__()
        with Corpus(tmp_path, model, Shard(1, 2)):
            pass
    with Corpus(tmp_path, model, Shard(0, 2)):
        pass


def test_a_file_system_without_locks(
    tmp_path: Path, recordings: list[Recording], run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Temporary files then have names of their own."""

    def unsupported(*_: Any, **__: Any) -> Any:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(corpus_module, "file_lock", unsupported)
    with Corpus(tmp_path / "out", quiet_model()) as first, Engine(quiet_model()) as served:
        assert ids(into(tmp_path / "out", served, recordings)) == ALL
        assert all(first.outcome(each) is not None for each in recordings)
    assert len(list((tmp_path / "out").iterdir())) == len(SIZES) + 1


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    left = tmp_path / ".whisper-opt" / "shard.tmp"
    left.parent.mkdir()
    left.write_bytes(b"half")
    with Corpus(tmp_path, quiet_model()):
        assert not left.exists()


def test_a_directory_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(WhisperOptError, match=r"cannot write to .*file"):
        Corpus(tmp_path / "file", quiet_model()).__enter__()


def test_progress(tmp_path: Path, recordings: list[Recording], monkeypatch: Any) -> None:
    """It is reported while nothing ends."""
    monkeypatch.setattr(corpus_run, "_TICK", 0.0)
    seen: list[float] = []
    with Engine(quiet_model()) as served, Corpus(tmp_path / "out", served.model) as corpus:
        list(transcribe_corpus(served, corpus, recordings, on_progress=seen.append))
    assert seen
    assert all(0 <= seconds <= sum(SIZES) for seconds in seen)


@pytest.mark.parametrize(
    ("error", "message", "lasting"),
    [
        (KeyError("x"), "KeyError: 'x'", False),
        (EngineError("the device is lost"), "the device is lost", False),
        (AudioError("bad"), "bad", True),
    ],
)
def test_only_what_lies_in_the_recording_lasts(
    tmp_path: Path,
    recordings: list[Recording],
    run: Any,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    message: str,
    lasting: bool,
) -> None:
    def result(self: Any) -> Any:
        raise error

    with monkeypatch.context() as patch, Engine(quiet_model()) as served:
        patch.setattr("whisper_opt.serving.handle.Handle._outcome", result)
        (outcome,) = into(tmp_path / "out", served, recordings[:1])
    assert outcome.error == message
    assert run(recordings[:1]) == ([] if lasting else ["id 0"])


# --- several processes without shards -------------------------------------------------------------


def test_workers_share_a_directory(
    recordings: list[Recording], model: Whisper, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with Engine(model) as served, Corpus(out, model, worker="a") as first:
        with pytest.raises(WhisperOptError, match="another process transcribes as worker-a into"):
            Corpus(out, model, worker="a").__enter__()
        with Corpus(out, model, worker="b") as second:
            found = [
                *transcribe_corpus(served, first, recordings[:2]),
                *transcribe_corpus(served, second, recordings[2:]),
            ]
    assert ids(found) == ALL
    with Corpus(out, model) as corpus:
        assert all(corpus.outcome(each) is not None for each in recordings)


@pytest.mark.parametrize("name", ["", "a/b", "x" * 65, "ä"])
def test_names_of_workers(name: str, model: Whisper, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="expected up to 64 letters, digits, _ and -"):
        Corpus(tmp_path, model, worker=name)


def test_recordings_that_are_awaited_together(
    recordings: list[Recording], model: Whisper, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corpus_run, "_TICK", 0.001)

    async def together(served: Engine, corpus: Corpus) -> list[Outcome]:
        calls = (transcribe_recording(served, corpus, each) for each in recordings)
        return list(await asyncio.gather(*calls))

    with Engine(model, max_queued=1) as served, Corpus(tmp_path / "out", model) as corpus:
        found = asyncio.run(together(served, corpus))
        assert all(corpus.outcome(each) == outcome for each, outcome in zip(recordings, found))
    assert [each.seconds for each in found] == list(SIZES)
