"""``whisper-opt bench`` over a tiny engine: the file, exit statuses, interruption, the extra."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from tests.support.engines import random_engine
from tests.support.exports import SMALL
from tests.support.models import random_checkpoint, random_dims
from tests.support.models_write import write_huggingface
from whisper_opt.cli import bench_arguments as cli_bench
from whisper_opt.cli.bench.measure import Benchmark, Found
from whisper_opt.cli.bench.workers import Worker, WorkerError
from whisper_opt.cli.main import main

if sys.version_info >= (3, 11):
    pass
else:
    pass

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[2]
SHORT = ("--max-new-tokens", "4", "--temperature", "0", "--vad", "off", "--language", "en")


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An engine with random weights."""
    return random_engine(tmp_path_factory.mktemp("bench") / "random", random_dims()).path


@pytest.fixture(scope="module")
def speech(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seconds of noise in a manifest with a transcript."""
    folder = tmp_path_factory.mktemp("sound")
    noise = np.random.default_rng(0).standard_normal(32000) * 0.1
    soundfile.write(folder / "noise.wav", noise, 16000)
    entry = {"path": "noise.wav", "text": "not a word", "language": "en"}
    (folder / "manifest.jsonl").write_text(json.dumps(entry))
    return folder / "noise.wav"


def run(*argv: object) -> int:
    return main(["bench", *(str(arg) for arg in argv)])


@pytest.fixture(scope="module")
def measured(engine: Path, speech: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of four configurations, two rounds each."""
    path = tmp_path_factory.mktemp("figures") / "figures.json"
    grid = ("--threads", "1", "--beam-size", "1", "2", "--batch-size", "1", "2")
    given = ("--manifest", speech.with_name("manifest.jsonl"), *grid, *SHORT)
    assert run(engine, *given, "--rounds", 2, "--pause", 0.01, "--json", path) == 0
    return path


def test_the_file_is_complete(measured: Path, engine: Path) -> None:
    text = measured.read_text()
    found = json.loads(text)
    assert found["complete"] is True
    assert str(engine.parent) not in text
    assert not re.search(r'"/|=/|\s/', text)  # no absolute path
    assert found["command"].startswith("whisper-opt bench random --manifest manifest.jsonl")
    assert {"cpu", "flags", "cores", "memory_bytes", "load_before"} <= set(found["machine"])
    assert found["machine"]["kernels"] in (False, True)
    assert {"python", "numpy", "onnxruntime", "whisper_opt"} <= set(found["versions"])
    assert found["recordings"] == [{"name": "noise.wav", "seconds": 2.0, "language": "en"}]
    assert found["settings"]["options"]["max_new_tokens"] == 4
    assert [entry["name"] for entry in found["configurations"]] == [
        "random, 1 thread, greedy",
        "random, 1 thread, greedy, batch 2",
        "random, 1 thread, beam 2",
        "random, 1 thread, beam 2, batch 2",
    ]
    for entry in found["configurations"]:
        assert len(entry["rounds_s"]) == len(entry["busy_cores"]) == 2
        stages = entry["stages_s"]
        assert min(stages[name] for name in ("audio", "mel", "encode", "prefill", "step")) > 0
        assert stages["align"] == stages["vad"] == 0
        assert sum(stages.values()) == pytest.approx(entry["median_s"], rel=0.3)
        assert entry["step_ms"]["p50"] <= entry["step_ms"]["p95"] <= entry["step_ms"]["p99"]
        assert entry["memory"]["peak_bytes"] > entry["memory"]["growth_bytes"]
        assert (entry["precision"], entry["device"]) == ("fp32", "cpu")
        assert entry["kernels"] is False  # an fp32 engine has no use for them
    single, double = found["configurations"][:2]
    assert (single["recordings"], double["recordings"]) == (1, 2)
    assert (single["windows"], double["windows"]) == (1, 2)
    assert single["each_s"].keys() == {"noise.wav"}
    # in every round three steps follow the first token, which comes from the prompt
    assert single["step_ms"]["n"] == 6


def test_a_checkpoint_is_exported_once(speech: Path, tmp_path: Path) -> None:
    source = write_huggingface(random_checkpoint(SMALL), tmp_path / "mine")
    path = tmp_path / "x.json"
    quick = ("--rounds", 1, "--warm-up", 0, "--pause", 0, "--cache-dir", tmp_path / "cache")
    for threads in (1, 2):
        options = ("--threads", threads, "--precision", "fp32", *quick, *SHORT)
        assert run(source, speech, *options, "--json", path) == 0
    (entry,) = json.loads(path.read_text())["configurations"]
    assert (entry["name"], entry["precision"]) == ("mine, 2 threads, greedy", "fp32")
    (engine,) = (tmp_path / "cache").glob("mine-*")
    assert engine.name.startswith("mine-fp32-contrib-")


def test_table_and_reading_again(measured: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--read", measured) == 0
    out = capsys.readouterr().out
    assert "| random, 1 thread, beam 2, batch 2 |" in out
    assert "seconds in" in out


def test_lengths_words_and_arrays(engine: Path, speech: Path, tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    quick = ("--rounds", 1, "--warm-up", 0, "--pause", 0, "--word-timestamps", "--arrays")
    assert run(engine, speech, "--seconds", 1, 3, *quick, *SHORT, "--json", path) == 0
    found = json.loads(path.read_text())["configurations"]
    assert [(entry["length_s"], entry["audio_s"]) for entry in found] == [(1.0, 1.0), (3.0, 3.0)]
    assert found[0]["stages_s"]["align"] > 0
    # the times of the backend do not depend on when files are read
    assert found[0]["errors"] == {"reason": "no transcript"}
    assert found[0]["busy_cores"] == [None]


def test_comparison_and_its_exit_status(
    measured: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = json.loads(measured.read_text())
    content["configurations"][2]["median_s"] *= 1.2
    slower = tmp_path / "slower.json"
    slower.write_text(json.dumps(content))
    assert run("--compare", measured, slower) == 0
    assert "1.200" in capsys.readouterr().out
    assert run("--compare", measured, slower, "--fail-if-slower", "25%") == 0
    capsys.readouterr()
    assert run("--compare", measured, slower, "--fail-if-slower", "10%") == cli_bench.SLOWER == 3
    said = capsys.readouterr()
    assert said.err.count("slower than allowed") == 1
    assert "random, 1 thread, beam 2: 1.200 times the old time" in said.err
    assert run("--compare", slower, measured, "--fail-if-slower", "10%") == 0
    del content["configurations"][0]
    slower.write_text(json.dumps(content))
    assert run("--compare", measured, slower, "--fail-if-slower", "10%") == 1
    assert "not measured in the new file: random, 1 thread, greedy" in capsys.readouterr().err


def test_comparison_with_what_is_measured_now(
    measured: Path, engine: Path, speech: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = json.loads(measured.read_text())
    del old["configurations"][1:]
    old["configurations"][0]["median_s"] = 1e-6
    path = tmp_path / "old.json"
    path.write_text(json.dumps(old))
    quick = (*SHORT, "--threads", 1, "--rounds", 1, "--pause", 0)
    judged = ("--compare", path, "--fail-if-slower", "10%")
    assert run(engine, speech, *quick, *judged) == cli_bench.SLOWER
    assert "times the old time" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--fail-if-slower", "10%"), "add --compare"),
        (("--compare", "a", "b", "c"), "expected one or two"),
        (("--compare", "a", "b", "--rounds", "3"), "rounds is given, but the results are read"),
        (
            ("--compare", "a", "b", "--language", "en"),
            "language is given, but the results are read",
        ),
        (("--read", "a", "--compare", "b", "c"), "leave one out"),
        (("--read", "a", "--threads", "1"), "threads is given, but the results are read"),
        (("--compare", "a", "--fail-if-slower", "ten"), "is not a percentage"),
        ((), "no engine is named"),
        ((".",), "no recording is named"),
        ((".", "x.wav", "--only", "kind=read"), "--only is given without --manifest"),
        ((".", "x.wav", "--rounds", "0"), "expected at least 1, 0 and 0"),
        ((".", "x.wav", "--patience", "2", "--beam-size", "2", "1"), "without beam_size"),
        ((".", "x.wav", "--batch-size", "0"), "batch_size has 0"),
    ],
)
def test_arguments_without_effect_are_refused(
    arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*arguments) == 2
    assert message in capsys.readouterr().err


def test_a_grid_in_a_file_and_its_options(
    engine: Path, speech: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grid = tmp_path / "grid.toml"
    lines = [f"engines = {json.dumps(str(engine))}", f"audio = {json.dumps(str(speech))}"]
    lines += ["threads = [1]", "seconds = 1", "[options]", "max_new_tokens = 2"]
    lines += ["temperature = 0.0", "language = 'en'"]
    grid.write_text("\n".join(lines))
    path = tmp_path / "x.json"
    assert run("--grid", grid, "--rounds", 1, "--pause", 0, "--vad", "off", "--json", path) == 0
    found = json.loads(path.read_text())
    assert [entry["name"] for entry in found["configurations"]] == ["random, 1 thread, greedy, 1 s"]
    assert found["settings"]["options"]["vad"] == "off"
    assert found["configurations"][0]["step_ms"]["n"] == 1
    grid.write_text("\n".join([*lines, "beam_size = 3"]))
    assert run("--grid", grid) == 2
    assert "the grid's table options has 'beam_size'" in capsys.readouterr().err


def test_a_configuration_that_fails_does_not_stop_the_others(
    engine: Path,
    speech: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    new = Benchmark._new

    def failing(self: Benchmark, found: Found) -> Worker:
        if found.configuration.seconds == 1:
            raise WorkerError("out of memory")
        return new(self, found)

    monkeypatch.setattr(Benchmark, "_new", failing)
    path = tmp_path / "x.json"
    quick = ("--rounds", 2, "--warm-up", 0, "--pause", 0, "--threads", 1, "--seconds", 1, 2)
    assert run(engine, speech, *SHORT, *quick, "--json", path) == 1
    found = json.loads(path.read_text())
    first, second = found["configurations"]
    assert first["error"] == "out of memory"
    assert len(second["rounds_s"]) == 2
    assert found["complete"] is True
    said = capsys.readouterr()
    assert "failed: random, 1 thread, greedy, 1 s: out of memory" in said.out
    assert "error: out of memory" in said.err


def test_interrupted_keeps_what_was_measured(
    engine: Path,
    speech: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    one = Benchmark._one
    runs: list[Any] = []

    def interrupted(self: Benchmark, found: Found, pool: Any) -> None:
        if len(runs) == 3:
            raise KeyboardInterrupt
        one(self, found, pool)
        runs.append(pool)

    monkeypatch.setattr(Benchmark, "_one", interrupted)
    path = tmp_path / "x.json"
    quick = ("--rounds", 3, "--warm-up", 0, "--pause", 0, "--threads", 1, "--seconds", 1, 2)
    assert run(engine, speech, *SHORT, *quick, "--json", path) == 1
    found = json.loads(path.read_text())
    assert found["complete"] is False
    assert [len(entry["rounds_s"]) for entry in found["configurations"]] == [1, 2]
    assert "random, 1 thread, greedy, 2 s" in capsys.readouterr().out  # the table, all the same
    assert not runs[0]._alive


@pytest.mark.slow
def test_with_the_extra_errors_are_counted_and_plots_drawn(
    engine: Path, speech: Path, tmp_path: Path
) -> None:
    environment = tmp_path / "environment"
    venv.create(environment, with_pip=False, symlinks=True)
    python = environment / "bin" / "python"
    (site,) = environment.glob("lib/python*/site-packages")
    ours = [path for path in sys.path if path.endswith("site-packages")]
    (site / "ours.pth").write_text("\n".join([*ours, str(ROOT)]))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extra = [
        line for line in project["optional-dependencies"]["bench"] if "whisper-opt" not in line
    ]
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "-q", *extra]
    subprocess.run(install, check=True)
    path, folder = tmp_path / "x.json", tmp_path / "plots"
    command = [str(python), "-W", "error", "-m", "whisper_opt", "bench", str(engine)]
    command += ["--manifest", str(speech.with_name("manifest.jsonl")), *SHORT, "--threads", "1"]
    command += ["--rounds", "1", "--pause", "0", "--json", str(path), "--batch-size", "1", "2"]
    done = subprocess.run(
        [*command, "--plots", str(folder)], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert {file.name for file in folder.iterdir()} == {"throughput.png", "throughput.svg"}
    assert (folder / "throughput.png").read_bytes().startswith(b"\x89PNG")
    assert "random fp32, 1 thread, greedy" in (folder / "throughput.svg").read_text()
    (first, _) = json.loads(path.read_text())["configurations"]
    assert first["errors"]["words"] == 3
    assert first["errors"]["wer"] > 0


def test_other_commands_do_not_import_the_benchmark() -> None:
    code = "import sys, whisper_opt.cli.main; print([m for m in sys.modules if 'bench' in m])"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, check=True
    )
    loaded = {
        "whisper_opt.cli.bench",
        "whisper_opt.cli.bench.settings",
        "whisper_opt.cli.bench_arguments",
    }
    assert set(re.findall(r"[\w.]+", done.stdout.decode())) == loaded
