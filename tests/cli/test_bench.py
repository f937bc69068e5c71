"""Modules of the benchmark without a model: workers, stages, grids, recordings, comparison."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

import whisper_opt.transcription.chunking  # noqa: F401  # one of the modules that are patched
from tests.support.fake_backend import FakeBackend, FakeSession
from tests.support.models import random_dims
from whisper_opt.audio import decode as audio
from whisper_opt.cli.bench import machine, plots, report, serve
from whisper_opt.cli.bench.compare import compare, percent
from whisper_opt.cli.bench.grid import Configuration, Grid, is_engine, read_grid
from whisper_opt.cli.bench.measure import Found, jobs, turns
from whisper_opt.cli.bench.recordings import Recording, from_files, from_manifest, of_length
from whisper_opt.cli.bench.settings import Settings
from whisper_opt.cli.bench.stages import STAGES, Clock, TimedBackend, timing
from whisper_opt.cli.bench.workers import Pool, Program, Worker, WorkerError
from whisper_opt.core.backend import MultiStepResult, MultiStepSession, TokenMask
from whisper_opt.core.errors import BackendUnavailable, OptionError, WhisperOptError
from whisper_opt.core.interruption import Interruption
from whisper_opt.runtime.native import variant, why_no_kernels

ROOT = Path(__file__).parents[2]
FAKE = Program("fake", ROOT, "tests.support.fake_peer")


# arguments


def test_engines_and_recordings_are_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("engines/base", "talks", "tiny"):
        (tmp_path / folder).mkdir(parents=True)
    for file in ("talk.wav", "model.pt", "ggml-base.bin", "base.en"):
        (tmp_path / file).touch()
    engines = ("engines/base", "tiny", "model.pt", "ggml-base.bin", "large-v3", "org/model@main")
    assert [name for name in engines if not is_engine(name)] == []
    recordings = ("talk.wav", "base.en", "missing", "talks/missing", "elsewhere/a.mp3", "./tiny.en")
    assert [name for name in recordings if is_engine(name)] == []


def test_engines_of_a_grid_may_be_names(tmp_path: Path) -> None:
    (tmp_path / "engines" / "mine").mkdir(parents=True)
    path = tmp_path / "grid.toml"
    path.write_text('engines = ["engines/mine", "engines/gone", "tiny.en", "org/model"]')
    mine, gone, *names = read_grid(path)["engines"]
    assert [mine, gone] == [tmp_path / "engines" / name for name in ("mine", "gone")]
    assert names == [Path("tiny.en"), Path("org/model")]


# workers


def test_jobs_over_pipes() -> None:
    jobs = ['{"job": "transcribe", "audio": []}', "", '{"job": "load", "word": "broken"}']
    jobs += ['{"job": "load", "word": "hm"}', '{"job": "transcribe", "audio": ["a", "b"]}']
    jobs += ['{"job": "dance"}', '{"job": "quit"}', '{"job": "load"}']
    from tests.support.fake_peer import System

    output = io.StringIO()
    serve.serve(System, io.StringIO("\n".join(jobs)), output)
    found = [json.loads(line) for line in output.getvalue().splitlines()]
    assert [entry["ok"] for entry in found] == [False, False, True, True, False]
    assert "nothing is loaded" in found[0]["error"]
    assert found[1]["error"] == "ValueError: cannot load that"
    assert found[2]["versions"] == {"fake": "1.0"}
    assert found[2]["seconds"] >= 0
    assert found[3]["text"] == ["hm", "hm"]
    assert found[3]["memory"]["peak_bytes"] > 1 << 20
    assert "dance" in found[4]["error"]


def test_worker_output_is_not_part_of_the_response() -> None:
    with Worker(FAKE) as worker:
        assert worker.request("load", word="yes")["versions"] == {"fake": "1.0"}
        first = worker.request("transcribe", audio=["a"])
        assert first["text"] == ["yes"]
        with pytest.raises(WorkerError, match="fake: RuntimeError: no such sound"):
            worker.request("transcribe", audio=["a"], fail="raise")
        again = worker.request("transcribe", audio=["a"])
        assert again["pid"] == first["pid"] != os.getpid()


def test_worker_that_ends_is_reported() -> None:
    with Worker(FAKE) as worker:
        worker.request("load")
        with pytest.raises(WorkerError, match="ended with status 7: segmentation fault, say"):
            worker.request("transcribe", audio=[], fail="die")


def test_worker_of_a_missing_environment(tmp_path: Path) -> None:
    absent = Program("absent", ROOT, "tests.support.fake_peer", tmp_path / "bin" / "python")
    with Worker(absent) as worker, pytest.raises(WorkerError, match="absent cannot be started"):
        worker.request("load")


def _state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs Linux' /proc")
def test_worker_is_stopped_between_jobs_and_ends_when_closed() -> None:
    with Worker(FAKE) as worker:
        worker.request("load")
        pid = worker.request("transcribe", audio=[])["pid"]
        for _ in range(100):
            if _state(pid) == "T":
                break
            time.sleep(0.02)
        assert _state(pid) == "T"
    assert not Path(f"/proc/{pid}").exists()


def test_closing_does_not_wait_for_a_running_job() -> None:
    # ignored in background jobs
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    worker = Worker(FAKE)
    worker.request("load")
    pid = worker.request("transcribe", audio=[])["pid"]
    threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
    try:
        with pytest.raises(KeyboardInterrupt):
            worker.request("transcribe", audio=[], sleep=60)
    finally:
        signal.signal(signal.SIGINT, before)
    begin = time.perf_counter()
    worker.close()
    assert time.perf_counter() - begin < 4
    assert not Path(f"/proc/{pid}").exists()


ABANDON = """
import os
from tests.cli.test_bench import FAKE, Worker
worker = Worker(FAKE)
worker.request("load")
print(worker.request("transcribe", audio=[])["pid"], flush=True)
os._exit(0)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux' parent death signal")
def test_stopped_worker_does_not_outlive_its_parent() -> None:
    run = [sys.executable, "-c", ABANDON]
    pid = int(subprocess.run(run, cwd=ROOT, stdout=subprocess.PIPE, check=True).stdout)
    for _ in range(250):
        if not Path(f"/proc/{pid}").exists() or _state(pid) == "Z":
            return
        time.sleep(0.02)
    pytest.fail(f"process {pid} is still there, in state {_state(pid)}")


def test_pool_ends_the_least_recently_used() -> None:
    workers = {key: Worker(FAKE) for key in "abc"}
    pool = Pool(2)
    pids = {}
    try:
        for key in "ab":
            workers[key].request("load")
            pids[key] = workers[key].request("transcribe", audio=[])["pid"]
            pool.put(key, workers[key])
        assert pool.get("a") is workers["a"]
        pool.put("c", workers["c"])
        assert pool.get("b") is None
        assert pool.get("a") is workers["a"]
        assert not Path(f"/proc/{pids['b']}").exists()
    finally:
        pool.close()
    assert pool.get("a") is None


# stages


class Passing:
    """A clock that advances only on request."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr("whisper_opt.cli.bench.stages.time.perf_counter", lambda: self.now)

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def passing(monkeypatch: pytest.MonkeyPatch) -> Passing:
    return Passing(monkeypatch)


def test_inner_stage_stops_the_outer_one(passing: Passing) -> None:
    clock = Clock()
    with clock.stage("outer"):
        passing.sleep(2)
        with clock.stage("inner"):
            passing.sleep(5)
        passing.sleep(1)
    assert clock.seconds == {"inner": 5, "outer": 3}


def test_generators_are_timed_only_while_they_run(passing: Passing) -> None:
    def slow() -> Any:
        passing.sleep(3)
        yield 1

    clock = Clock()
    values = clock.of("slow", slow)()
    passing.sleep(5)
    assert list(values) == [1]
    assert clock.seconds["slow"] == 3


def test_timed_backend_returns_what_the_backend_returns(
    passing: Passing, monkeypatch: pytest.MonkeyPatch
) -> None:
    extend = FakeSession.extend

    def slowly(*args: Any, **kwargs: Any) -> Any:
        passing.sleep(1)
        return extend(*args, **kwargs)

    monkeypatch.setattr(FakeSession, "extend", slowly)
    dims, clock = random_dims(), Clock()
    mel = np.random.default_rng(0).standard_normal((2, 80, 3000), np.float32)
    plain = FakeBackend(dims)
    mask = TokenMask(np.zeros((2, dims.n_vocab), np.bool_), np.full(2, dims.n_vocab))

    def run(backend: Any) -> list[Any]:
        session = backend.open(backend.encode(mel))
        prompt = np.array([[1, 2], [3, 4]])
        found = [session.extend(prompt, at=np.array([[0], [0]])).requested()]
        added = backend.open(backend.encode(mel[:1]))
        added.extend(np.array([[5]]))
        session.append(added)
        session.gather(np.array([2, 0]))
        found.append(session.extend(np.array([[5], [6]])).top(3, mask).tokens)
        found.append(session.extend(np.array([[7], [8]])).numpy())
        session.close()
        attention = backend.attention(backend.encode(mel[:1]), np.array([[1, 2]]), np.array([2]))
        return [*found, attention.scores]

    timed = run(TimedBackend(plain, clock))
    for ours, theirs in zip(timed, run(plain)):
        np.testing.assert_array_equal(ours, theirs)
    assert set(clock.seconds) == {"encode", "prefill", "step", "align"}
    assert clock.encoded == 4
    assert clock.steps == [1, 1]
    assert clock.seconds["step"] == 2
    clock.reset()
    assert not clock.steps
    assert not clock.seconds


def test_multistep_sessions_stay_multistep(passing: Passing) -> None:
    class Running(FakeSession):
        supports_multistep = True

        def decode_steps(self, tokens: Any, rows: Any, steps: int) -> MultiStepResult:
            passing.sleep(3)
            return MultiStepResult(np.zeros((steps, 1), np.int64), np.zeros((steps, 1), np.float32))

    class Backend(FakeBackend):
        def open(self, audio: Any) -> FakeSession:
            return Running(self, audio)

    clock, mel = Clock(), np.zeros((1, 80, 3000), np.float32)
    backend = TimedBackend(Backend(random_dims()), clock)
    session: Any = backend.open(backend.encode(mel))
    assert isinstance(session, MultiStepSession)
    session.extend(np.array([[1]]))
    rows: Any = None
    session.decode_steps(np.array([[2]]), rows, 3)
    assert clock.steps == [1, 1, 1]
    assert clock.seconds["step"] == 3
    plain = TimedBackend(FakeBackend(random_dims()), clock)
    assert not isinstance(plain.open(plain.encode(mel)), MultiStepSession)


def test_timed_backend_is_not_interrupted() -> None:
    """A run that is stopped and done again has no time of its own."""

    class Interruptible(FakeBackend):
        def encode(self, mel: Any, interruption: Interruption | None = None) -> Any:
            assert interruption is None
            return super().encode(mel)

    backend = TimedBackend(Interruptible(random_dims()), Clock())
    asked = Interruption()
    asked.request()
    assert len(backend.encode(np.zeros((1, 80, 3000), np.float32), asked)) == 1


def test_timing_patches_and_restores_functions() -> None:
    strategies: Any = sys.modules["whisper_opt.transcription.chunking"]
    before = (strategies.load_audio, strategies.log_mel, audio.AudioStream.__next__)
    clock = Clock()
    with timing(clock):
        samples = strategies.load_audio(np.zeros(16000, np.float32))
        strategies.log_mel(samples, 80)
    assert clock.seconds["audio"] > 0
    assert clock.seconds["mel"] > 0
    assert (strategies.load_audio, strategies.log_mel, audio.AudioStream.__next__) == before


# grids


def test_grid_is_every_combination() -> None:
    grid = Grid((Path("engines/a"), Path("engines/b")), threads=(1, 2), beam_size=(1, 5))
    found = grid.configurations()
    assert len(found) == 8
    assert found[0].name == "a, 1 thread, greedy"
    assert found[-1].name == "b, 2 threads, beam 5"
    assert Configuration(Path("a"), "bf16").name == "a, bf16 encoder, greedy"
    assert Configuration(Path("x/a"), batch_size=4, seconds=2.5).name == "a, greedy, batch 4, 2.5 s"


@pytest.mark.parametrize(
    ("lists", "message"),
    [
        ({"threads": (0,)}, "threads has 0"),
        ({"beam_size": (True,)}, "beam_size has True"),
        ({"batch_size": (1, 1)}, "names a value twice"),
        ({"seconds": (-1.0,)}, "seconds has -1.0"),
        ({"batch_size": ()}, "batch_size is empty"),
        ({"engines": (Path("x/a"), Path("y/a"))}, "same name"),
    ],
)
def test_grid_refuses(lists: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        Grid(**{"engines": (Path("a"),), **lists})


TOML = """
engines = ["base", "/abs/tiny", "small"]
manifest = "speech/manifest.jsonl"
only = "language=en"
threads = 2
seconds = [5, 30.5]

[options]
language = "en"
"""


def test_grid_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "grid.toml"
    path.write_text(TOML)
    (tmp_path / "base").mkdir()  # beside the file; without it, this is the name of a model
    found = read_grid(path)
    assert found["engines"] == [tmp_path / "base", Path("/abs/tiny"), Path("small")]
    assert found["manifest"] == tmp_path / "speech" / "manifest.jsonl"
    assert found["threads"] == [2]
    assert found["only"] == ["language=en"]
    assert found["options"] == {"language": "en"}
    path.write_text("beams = [1]")
    with pytest.raises(OptionError, match="has beams; expected engines"):
        read_grid(path)
    path.write_text("threads = [")
    with pytest.raises(OptionError, match="cannot read the grid"):
        read_grid(path)


def test_grid_without_a_reader_of_toml(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 9))
    monkeypatch.setitem(sys.modules, "tomli", None)
    with pytest.raises(BackendUnavailable, match=r"whisper-opt\[bench\]"):
        read_grid(tmp_path / "grid.toml")


# recordings


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    """A manifest of two recordings, one and two seconds long."""
    lines = []
    for i, language in enumerate(("en", "de"), 1):
        soundfile.write(tmp_path / f"{i}.wav", np.full(16000 * i, i / 8), 16000)
        entry = {"id": f"clip{i}", "path": f"{i}.wav", "text": "words", "language": language}
        lines.append(json.dumps({**entry, "wer": i == 1}))
    path = tmp_path / "manifest.jsonl"
    path.write_text("\n".join([*lines, ""]))
    return path


def test_manifest(manifest: Path) -> None:
    first, second = from_manifest(manifest)
    assert first == Recording("clip1", manifest.parent / "1.wav", 1.0, "en", "words")
    assert (second.seconds, second.text) == (2.0, None)
    assert [r.name for r in from_manifest(manifest, ["language=de"])] == ["clip2"]
    assert [r.name for r in from_manifest(manifest, ["wer=true", "language=en"])] == ["clip1"]
    with pytest.raises(OptionError, match="no recording with language=fr"):
        from_manifest(manifest, ["language=fr"])
    manifest.write_text('{"text": "no path"}')
    with pytest.raises(OptionError, match=r"line 1 of .* is not a recording"):
        from_manifest(manifest)
    with pytest.raises(OptionError, match="cannot read the manifest"):
        from_manifest(manifest.with_name("absent"))


def test_a_recording_of_given_length_is_joined_and_repeated(manifest: Path, tmp_path: Path) -> None:
    found = of_length(from_manifest(manifest), 4.5, tmp_path)
    samples, rate = soundfile.read(found.path)
    assert (len(samples), rate, found.seconds) == (72000, 16000, 4.5)
    wanted = np.array([1, 2, 2, 1, 2]) / 8
    np.testing.assert_allclose(samples[[100, 16100, 47900, 48100, 71900]], wanted, atol=1e-4)
    assert (found.language, found.text) == (None, None)
    assert of_length(from_files([manifest.parent / "1.wav"]), 0.5, tmp_path).seconds == 0.5


# jobs and results


def _found(**changes: Any) -> Found:
    made = {"configuration": Configuration(Path("engines/tiny")), "recordings": RECORDINGS}
    return Found(**{**made, **changes})


RECORDINGS = [
    Recording("a", Path("a.wav"), 2.0, "en", "one two three four"),
    Recording("b", Path("b.wav"), 3.0, "ja"),
]


def _run(seconds: float, steps: list[float], peak: int = 300) -> dict[str, Any]:
    return {
        "text": ["one two free four", "x"],
        "seconds": seconds,
        "each": [seconds / 4, seconds * 3 / 4],
        "stages": dict.fromkeys((*STAGES, "other"), seconds / 8),
        "windows": 2,
        "tokens": 9,
        "steps_ms": steps,
        "memory": {"resident_bytes": 200, "peak_bytes": peak},
    }


def test_each_runs_once_per_round_in_rotating_order() -> None:
    assert turns(3, 3) == [0, 1, 2, 1, 2, 0, 2, 0, 1]


def test_job_of_a_batch_repeats_recordings() -> None:
    options = {"language": "en"}
    job = jobs(_found(), Settings(options=options))
    assert job["audio"] == ["a.wav", "b.wav"]
    assert job["options"] == {"language": "en", "batch_size": 1}
    assert job["batch"] is False
    wide = _found(configuration=Configuration(Path("t"), beam_size=5, batch_size=5))
    job = jobs(wide, Settings(options=options))
    assert job["audio"] == ["a.wav", "b.wav"] * 3
    assert job["options"] == {"language": "en", "batch_size": 5, "beam_size": 5}
    assert job["batch"] is True
    job = jobs(wide, Settings(options={"strategy": "batched"}))
    assert job["audio"] == ["a.wav", "b.wav"]  # each is split into windows


def test_results_are_medians_and_percentiles_of_all_rounds() -> None:
    loaded = {"seconds": 1.0, "memory": {"resident_bytes": 100}, "precision": "fp32"}
    runs = [_run(1.0, [1.0, 2.0]), _run(4.0, [3.0]), _run(2.0, [4.0] * 97, peak=400)]
    entry = report.figures(_found(loaded=loaded, runs=runs, busy=[0.1, None, 0.2]), Settings())
    assert entry["median_s"] == 2.0
    assert (entry["fastest_s"], entry["slowest_s"]) == (1.0, 4.0)
    assert entry["audio_s"] == 5.0
    assert entry["rtfx"] == 2.5
    assert entry["step_ms"] == {"n": 100, "p50": 4.0, "p95": 4.0, "p99": 4.0}
    assert entry["each_s"] == {"a": 0.5, "b": 1.5}
    assert entry["memory"] == {"peak_bytes": 400, "loaded_bytes": 100, "growth_bytes": 300}
    assert entry["stages_s"]["encode"] == 0.25
    assert report.percentile([5.0, 1.0, 3.0, 2.0], 50) == 2.0
    assert report.percentile([5.0, 1.0, 3.0, 2.0], 99) == 5.0
    json.dumps(entry)
    failed = report.figures(_found(error="no memory"), Settings())
    assert failed["error"] == "no memory"
    text = report.overview([entry, failed])
    assert "failed: tiny, greedy: no memory" in text


def test_error_rates_or_the_reason_why_not(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["one two free four", "x"]
    unknown = report.errors(RECORDINGS[1:], texts[1:], {})
    assert unknown == {"reason": "no transcript"}
    translated = report.errors(RECORDINGS, texts, {"task": "translate"})
    assert "translation" in translated["reason"]
    monkeypatch.setitem(sys.modules, "jiwer", None)
    assert "whisper-opt[bench]" in report.errors(RECORDINGS, texts, {})["reason"]


def test_json_is_written_atomically(tmp_path: Path) -> None:
    path = tmp_path / "new" / "x.json"
    report.write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        report.write_json(path, {"a": object()})
    assert json.loads(path.read_text()) == {"a": 1}
    assert list(path.parent.iterdir()) == [path]
    (tmp_path / "file").write_text("")
    with pytest.raises(WhisperOptError, match="cannot write"):
        report.write_json(tmp_path / "file" / "x.json", {})


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    for text in ("{", "[]", '{"format": 1}', '{"format": 1, "configurations": 3}'):
        path.write_text(text)
        with pytest.raises(WhisperOptError, match="was not written by whisper-opt bench"):
            report.read_json(path)
    path.write_text('{"format": 99, "configurations": []}')
    with pytest.raises(WhisperOptError, match="format 99"):
        report.read_json(path)
    with pytest.raises(WhisperOptError, match="cannot read"):
        report.read_json(tmp_path / "absent.json")


# comparison


def _file(**medians: float) -> dict[str, Any]:
    entries = [
        {"name": name, "median_s": s, "step_ms": {"n": 0}, "errors": {"wer": 5.0}}
        for name, s in medians.items()
    ]
    return {"format": 1, "machine": {"cpu": "x"}, "configurations": entries}


def test_comparison_of_common_configurations() -> None:
    found = compare(_file(a=1.0, b=2.0, c=1.0), _file(a=1.05, b=2.4, d=1.0))
    assert found.ratios == {"a": pytest.approx(1.05), "b": pytest.approx(1.2)}
    assert (found.missing, found.added) == (["c"], ["d"])
    assert "only in the old file: c" in found.text()
    with pytest.raises(WhisperOptError, match="not measured in the new file: c"):
        found.slower(0.1)
    (line,) = compare(_file(a=1.0, b=2.0), _file(a=1.05, b=2.4)).slower(0.1)
    assert line.startswith("b: 1.200")
    with pytest.raises(WhisperOptError, match="no configuration in common"):
        compare(_file(a=1.0), _file(b=1.0))


def test_comparison_of_different_machines_warns() -> None:
    other = {**_file(a=1.0), "machine": {"cpu": "y"}, "settings": {"rounds": 2}}
    warnings = compare(_file(a=1.0), other).warnings
    assert warnings == ["the machines differ: cpu was x, is y", "the settings differ"]


def test_percentages() -> None:
    assert percent("10%") == pytest.approx(0.1)
    assert percent("2.5 %") == pytest.approx(0.025)
    for text in ("10", "%", "-5%", "0.1"):
        with pytest.raises(OptionError, match="is not a percentage"):
            percent(text)


# plots


def _content() -> dict[str, Any]:
    common = {"engine": "e", "precision": "fp32", "threads": 2, "beam_size": 1}
    single = [
        {**common, "batch_size": 1, "length_s": n, "median_s": n / 10, "rtfx": 10.0}
        for n in (30, 5)
    ]
    wide = {**common, "batch_size": 4, "length_s": 30, "median_s": 6.0, "rtfx": 20.0}
    failed = {**common, "batch_size": 8, "length_s": 30, "error": "no memory"}
    return {"recordings": [], "configurations": [*single, wide, failed]}


def test_plot_series() -> None:
    label = "e fp32, 2 threads, greedy"
    assert plots.series(_content()) == {
        "latency": {label: [(5, 0.5), (30, 3.0)]},
        "throughput": {f"{label}, 30 s": [(1, 10.0), (4, 20.0)]},
    }
    clips = {"recordings": [{"name": "b", "seconds": 9.0}, {"name": "a", "seconds": 2.0}]}
    entry = {**_content()["configurations"][0], "length_s": None, "each_s": {"a": 0.1, "b": 0.4}}
    found = plots.series({**clips, "configurations": [entry]})
    assert found == {"latency": {label: [(2.0, 0.1), (9.0, 0.4)]}, "throughput": {}}


def test_plots_need_matplotlib(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(BackendUnavailable, match=r"whisper-opt\[bench\]"):
        plots.plot(_content(), tmp_path)


# the machine


def test_commands_have_no_absolute_paths(tmp_path: Path) -> None:
    given = ["whisper-opt", "bench", str(tmp_path / "base"), f"--json={tmp_path}/x.json", "a/b.wav"]
    found = machine.command_line([*given, "--threads", "2"])
    assert found == "whisper-opt bench base --json=x.json a/b.wav --threads 2"


def test_machine_and_versions() -> None:
    found = machine.machine()
    assert found["cores"] >= 1
    assert found["cpu"]
    assert set(found) >= {"flags", "memory_bytes", "load_before", "busy_cores_before"}
    assert found["kernels"] is (why_no_kernels() is None)
    assert found["kernel_variant"] == variant()
    assert {"python", "numpy", "onnxruntime", "whisper_opt"} <= set(machine.versions())
    assert machine.commit(Path("/")) is None
