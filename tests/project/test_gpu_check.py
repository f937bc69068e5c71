"""``scripts/gpu_check.py`` without a GPU: measurements, failures, stored results."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gpu_check
import numpy as np
import pytest
from gpu import checks, conform, engines, measure, roofline, transcription
from gpu.checks import Check
from gpu.engines import Setting
from gpu.outcome import FAILED, NOT_AVAILABLE, OK, NotAvailableError, Results
from gpu.report import report
from gpu.sizes import SIZES, random_checkpoint

from tests.support.cpu_executor import CpuExecutor
from tests.support.engines import random_engine, require, runs
from tests.support.fake_backend import FakeBackend
from tests.support.models import random_dims
from whisper_opt.core.arrays import F32, Int
from whisper_opt.core.backend import GreedyRows, MultiStepResult
from whisper_opt.core.dims import ModelDims
from whisper_opt.runtime.device.backend import DeviceBackend
from whisper_opt.runtime.device.session import DeviceSession
from whisper_opt.runtime.gpus import Driver, Gpu

RUNNING = random_dims(n_vocab=2000)
ENVIRONMENT: dict[str, Any] = {"device": "-", "packages": {"numpy": "2"}}


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("work")


def run(work: Path, *more: str) -> tuple[int, dict[str, Any]]:
    out = work / "out.json"
    arguments = ["--device", "cpu", "--sizes", "test", "--in-process", "--threads", "1"]
    arguments += ["--models", str(work / "no")]
    status = gpu_check.main([*arguments, "--work", str(work), "--out", str(out), *more])
    found: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    return status, found["checks"]


# whole runs


def test_everything_the_cpu_can_do(
    work: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks, "PATIENCE", 0.05)
    everything = ["--only", "roofline/*", "export/*", "conformance/*", "speech/*", "latency/*/cpu"]
    everything += ["reference/*", "transcription/*"]
    status, found = run(work, *everything)  # except torch, which is slow
    assert status == 0
    outcomes = {name: check["outcome"] for name, check in found.items()}
    for name in ("roofline/numpy", "export/test/fp32-contrib"):
        assert outcomes[name] == OK, found[name]["error"]
    assert outcomes["speech/tiny.en/cpu"] == NOT_AVAILABLE
    assert FAILED not in outcomes.values()
    text = capsys.readouterr().out
    assert "not available" in text
    if runs("standard"):  # otherwise not available
        assert outcomes["conformance/test/cpu"] == OK
        step = found["latency/test/cpu"]["parts"]["b1 beam1"]["step"]
        assert 0 < step["p50_ms"] <= step["p95_ms"]
        assert "test/cpu b1 beam5" in text
    else:
        assert outcomes["conformance/test/cpu"] == NOT_AVAILABLE

    before = {name: check["ended"] for name, check in found.items()}
    status, found = run(work, *everything)  # nothing remains
    assert status == 0
    assert {name: check["ended"] for name, check in found.items()} == before
    status, found = run(work, "--only", "roofline/*", "--redo", "roofline/*", "latency/*")
    assert found["roofline/numpy"]["attempts"] == 1
    assert "latency/test/cpu" not in found


def test_a_gpu_without_any_package_is_no_failure(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everything except exports is reported as not available; nothing is raised."""
    driver = Driver((Gpu(0, "NVIDIA H100", (9, 0), 80 << 30),), (13, 1))
    for module in (
        "gpu_check",
        "gpu.engines",
        "whisper_opt.runtime.devices",
        "whisper_opt.export.tensorrt.build",
    ):
        monkeypatch.setattr(f"{module}.find_gpus", lambda: driver)
    for package in ("torch", "cuda", "cuda.bindings", "tensorrt", "tensorrt_rtx"):
        monkeypatch.setitem(sys.modules, package, None)
    out = tmp_path / "out.json"
    arguments = ["--sizes", "test", "--in-process", "--threads", "1", "--work", str(work)]
    arguments += ["--models", str(work / "no"), "--out", str(out)]
    assert gpu_check.main(arguments) == 0
    content = json.loads(out.read_text(encoding="utf-8"))
    assert content["environment"]["device"] == "NVIDIA H100"
    found = {name: (one["outcome"], one["error"]) for name, one in content["checks"].items()}
    assert set(found) == {check.name for check in checks.all_checks(["test"], on_cpu=False)}
    for name, (ended, error) in found.items():
        on_cpu = name.startswith(("export/", "reference/"))
        if not on_cpu or (name.endswith("standard") and not runs("standard")):
            assert ended == NOT_AVAILABLE, (name, error)
            assert error
        else:
            assert ended == OK, (name, error)
    if runs("standard"):
        assert "whisper-opt[tensorrt-rtx]" in found["build/test/tensorrt-rtx"][1]
    assert "whisper-opt[cuda13]" in found["conformance/test/cuda"][1]


def test_no_time_is_no_failure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, found = run(tmp_path, "--minutes", "0")
    assert (status, found) == (3, {})
    assert "run the same command again" in capsys.readouterr().out


def test_checks_can_be_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu_check.main(["--list", "--device", "cpu", "--only", "latency/base/*"]) == 0
    listed = capsys.readouterr().out.split()
    assert listed == [f"latency/base/{path}" for path in ("cpu", "torch-eager", "torch-compile")]


def test_a_gpu_has_every_way_and_every_size() -> None:
    names = [check.name for check in checks.all_checks(list(SIZES), on_cpu=False)]
    assert len(names) == len(set(names))
    for size in SIZES:
        for path in set(engines.PATHS) - {"cpu"}:
            assert f"latency/{size}/{path}" in names
            assert f"conformance/{size}/{path}" in names
    cases = [check.parts for check in checks.all_checks(["base"], on_cpu=False)]
    wanted = {f"b{batch} beam{beam}" for batch in (1, 4, 16, 64) for beam in (1, 5)}
    assert wanted in map(set, cases)


def test_the_environment_names_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    card = Gpu(0, "NVIDIA H100", (9, 0), 80 << 30)
    monkeypatch.setattr(gpu_check, "find_gpus", lambda: Driver((card,), (13, 1)))
    found = gpu_check.environment(False, 0)
    assert (found["device"], found["compute_capability"]) == ("NVIDIA H100", [9, 0])
    assert found["packages"]["numpy"] == np.__version__
    assert gpu_check.environment(True, 0)["compute_capability"] is None


# failures of checks


def check(run: Any, *parts: str) -> Check:
    return Check("a/b/c", parts or ("x",), run)


def ended(action: Any) -> tuple[str, str]:
    def go(setting: Setting, parts: Sequence[str], seconds: float, emit: Any) -> None:
        action()

    return checks.run_check(check(go), Setting(Path()), ["x"], 1.0, lambda part, figures: None)


def test_every_error_is_an_outcome() -> None:
    def missing() -> None:
        raise NotAvailableError("no torch")

    assert ended(lambda: None) == (OK, "")
    assert ended(missing) == (NOT_AVAILABLE, "no torch")
    found, error = ended(lambda: 1 // 0)
    assert found == FAILED
    assert error.startswith("ZeroDivisionError")
    assert "test_gpu_check.py" in error


def test_a_batch_that_fails_stops_no_other() -> None:
    told: dict[str, Any] = {}

    def measured(case: measure.Case, seconds: float) -> dict[str, Any]:
        if case.batch == 4:
            raise MemoryError("out of memory")
        return {"step": 1}

    for case in measure.CASES[:3]:
        checks._part(told.__setitem__, case.name, measured, case, 10.0)
    assert told["b4 beam1"] == {"error": "MemoryError: out of memory"}
    assert told["b16 beam1"] == {"step": 1}


def stand_in(tmp_path: Path, code: str) -> Any:
    """Arguments with which a child runs ``code`` instead of a check."""
    script = tmp_path / "child.py"
    script.write_text("import sys, os, time, json\nout = sys.argv[-1]\n" + code, encoding="utf-8")
    args = gpu_check.arguments(["--work", str(tmp_path), "--device", "cpu"])
    args.script = script
    return args


TOLD = 'open(out, "a").write(json.dumps({"part": "x", "figures": {"n": 1}}) + "\\n")\n'


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (TOLD + "os.abort()", "signal 6"),
        (TOLD + "sys.exit('no such library')", "status 1: no such library"),
        (TOLD + "time.sleep(60)", gpu_check.OUT_OF_TIME),
        (TOLD + 'open(out, "a").write(\'{"part": "y", "fig\')\nos.abort()', "signal 6"),
    ],
)
def test_a_process_that_fails_does_not_affect_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, words: str
) -> None:
    args = stand_in(tmp_path, code)
    monkeypatch.setattr(gpu_check, "__file__", str(args.script))
    monkeypatch.setattr(gpu_check, "GRACE", 1.0)
    results = Results(tmp_path / "r.json", ENVIRONMENT)
    found, error = gpu_check.in_child(check(None, "x", "y"), ["x", "y"], 1.0, args, results)
    assert found == FAILED
    assert words in error
    assert results.parts("a/b/c") == {"x": {"n": 1}}


@pytest.mark.slow
def test_a_check_in_a_process_of_its_own(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    arguments = ["--device", "cpu", "--sizes", "test", "--only", "roofline/*", "export/*contrib"]
    status = gpu_check.main([*arguments, "--work", str(tmp_path), "--out", str(out)])
    found = json.loads(out.read_text(encoding="utf-8"))["checks"]
    assert status == 0
    assert {name: check["outcome"] for name, check in found.items()} == {
        "roofline/numpy": OK,
        "export/test/fp32-contrib": OK,
    }


# stored results


def test_finished_checks_are_not_repeated(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    results = Results(path, ENVIRONMENT)
    assert results.missing("a", ["x", "y"]) == ["x", "y"]
    results.part("a", "x", {"n": 1})
    results.end("a", OK, "", 1.0, ["y"])
    again = Results(path, ENVIRONMENT)
    assert again.missing("a", ["x", "y"]) == ["y"]
    assert again.content["checks"]["a"]["left"] == ["y"]
    again.end("a", NOT_AVAILABLE, "no torch", 0.1)
    assert again.missing("a", ["x", "y"]) == []
    again.forget(["a"])
    assert again.missing("a", ["x", "y"]) == ["x", "y"]


def test_a_failure_is_tried_twice_and_a_timeout_as_often_as_asked(tmp_path: Path) -> None:
    results = Results(tmp_path / "r.json", ENVIRONMENT)
    for counts, left in ((False, ["x"]), (True, ["x"]), (False, ["x"]), (True, [])):
        results.end("a", FAILED, "no", 1.0, counts=counts)
        assert results.missing("a", ["x"]) == left


@pytest.mark.parametrize("text", ["", "{", "[]", '{"checks": {}}', '{"environment": {"gpu": 2}}'])
def test_other_files_are_not_continued(tmp_path: Path, text: str) -> None:
    path = tmp_path / "r.json"
    path.write_text(text, encoding="utf-8")
    assert Results(path, ENVIRONMENT).content == {"environment": ENVIRONMENT, "checks": {}}


def test_figures_of_another_machine_are_kept_aside(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    other = {"environment": {"device": "another"}, "checks": {"a": {}}}
    path.write_text(json.dumps(other), encoding="utf-8")
    Results(path, ENVIRONMENT).save()
    assert json.loads((tmp_path / "r.old.json").read_text(encoding="utf-8")) == other


# arithmetic

DESIGN = {
    "tiny": (66, 22, 23, 71, 40, 0.07),
    "base": (117, 39, 41, 137, 97, 0.16),
    "small": (337, 112, 117, 407, 387, 0.64),
    "medium": (968, 323, 336, 1109, 1289, 2.1),
    "large-v3": (1863, 621, 643, 1932, 2588, 4.3),
    "turbo": (349, 116, 119, 280, 2313, 3.9),
}
"""By hand, at 3.0 TB/s and 600 TFLOP/s: megabytes and microseconds of a step, microseconds with 5
beams and with 16 windows, GFLOP and milliseconds of the encoder."""


@pytest.mark.parametrize("size", sorted(DESIGN))
def test_the_roofline(size: str) -> None:
    dims, rates = SIZES[size], (3.0e12, 6.0e14)
    megabytes, one, beams, batch, gigaflop, milliseconds = DESIGN[size]
    steps = [roofline.step_work(dims, *case) for case in ((1, 1), (1, 5), (16, 1))]
    assert round(steps[0].bytes / 1e6) == megabytes
    found = [round(1e6 * roofline.lower_bound(work, *rates)) for work in steps]
    assert found == [one, beams, batch]
    encoder = roofline.encoder_work(dims, 1)
    assert round(encoder.flop / 1e9) == gigaflop
    assert 1e3 * encoder.flop / rates[1] == pytest.approx(milliseconds, abs=0.05)


def test_percentiles() -> None:
    found = measure.figures([0.001 * n for n in range(1, 101)])
    assert found == {"p50_ms": 50.5, "p95_ms": 95.0, "n": 100}
    assert measure.figures([0.002]) == {"p50_ms": 2.0, "p95_ms": 2.0, "n": 1}


# sizes


def test_weights_come_from_the_seed_alone() -> None:
    name = "decoder.blocks.1.attn.query.weight"
    one, same = (random_checkpoint("test").tensors[name].read() for _ in range(2))
    other = random_checkpoint("test", 1).tensors[name].read()
    np.testing.assert_array_equal(one, same)
    assert not np.array_equal(one, other)
    assert np.abs(one).max() < 10


def test_sizes_are_openais() -> None:
    assert {size: dims.n_text_layer for size, dims in SIZES.items()} == {
        "test": 2,
        "tiny": 4,
        "base": 6,
        "turbo": 4,
        "small": 12,
        "large-v3": 32,
        "medium": 24,
    }
    assert SIZES["turbo"].n_audio_layer == 32
    assert SIZES["large-v3"].n_mels == 128


# conformance

DIMS = SIZES["test"]


def _logits(dims: ModelDims) -> list[F32]:
    return list(conform.program(FakeBackend(dims)))


class _Off(FakeBackend):
    """A backend whose third result is wrong."""

    def open(self, audio: Any) -> Any:
        session = super().open(audio)
        extend, calls = session.extend, iter(range(1000))

        def other(tokens: Int, lengths: Int | None = None) -> Any:
            return extend(tokens ^ 1 if next(calls) == 2 else tokens, lengths)

        vars(session)["extend"] = other
        return session


def test_a_backend_agrees_with_itself() -> None:
    found = conform.compare(FakeBackend(DIMS), _logits(DIMS))
    assert found["best_tokens_agree"] == found["of"] > 100
    assert found["largest_error_in_standard_deviations"] == 0


def test_the_reference_is_computed_once(tmp_path: Path) -> None:
    file, opened = tmp_path / "kept" / "test-0.npz", []

    def reference() -> FakeBackend:
        opened.append(True)
        return FakeBackend(DIMS)

    for _ in range(2):
        found = conform.reference_logits(file, reference)
        assert all(map(np.array_equal, found, _logits(DIMS)))
    assert (len(found), len(opened)) == (len(_logits(DIMS)), 1)
    assert [path.name for path in file.parent.iterdir()] == [file.name]


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> DeviceBackend:
    require("standard")
    engine = random_engine(tmp_path_factory.mktemp("runs") / "engine", RUNNING, "standard")
    return DeviceBackend(CpuExecutor(engine, threads=1), RUNNING)


def test_multistep_decoding(device: DeviceBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is compared with single steps, and timed."""
    assert conform.check_runs(device) == 80
    assert conform.check_runs(FakeBackend(RUNNING)) is None
    found = measure.latency(device, measure.Case(1, 1), 0.05, 4)
    assert found["run"]["p50_ms"] > 0
    assert "run" not in measure.latency(device, measure.Case(1, 5), 0.05, 4)
    real = DeviceSession.decode_steps

    def decode_steps(
        session: DeviceSession, tokens: Int, rows: GreedyRows, steps: int
    ) -> MultiStepResult:
        found = real(session, tokens, rows, steps)
        found.tokens[7, 1] ^= 1
        return found

    monkeypatch.setattr(DeviceSession, "decode_steps", decode_steps)
    with pytest.raises(conform.DisagreementError, match="multi-step 7"):
        conform.check_runs(device)


def test_a_wrong_result_is_found() -> None:
    with pytest.raises(conform.DisagreementError, match="other best tokens at step 2 row 0"):
        conform.compare(_Off(DIMS), _logits(DIMS))


# whole recordings


def test_a_recording_is_timed() -> None:
    lengths = []

    def transcribe(samples: F32, case: transcription.Case) -> str:
        lengths.append(len(samples))
        return " Ask not"

    found = transcription.timed(transcribe, "jfk", 10.0)
    assert lengths == [176_000] * (1 + transcription.ROUNDS)
    assert (found["text"], found["rounds"], found["audio_seconds"]) == ("Ask not", 5, 11.0)
    assert found["seconds"] >= 0


def test_a_case_that_a_system_cannot_run_is_reported(tmp_path: Path) -> None:
    def refuse(samples: F32, case: transcription.Case) -> str:
        raise NotAvailableError("one window at a time")

    assert transcription.timed(refuse, "jfk", 1.0) == {"error": "one window at a time"}
    with pytest.raises(NotAvailableError, match=r"no recording at .*missing.flac"):
        transcription.Case("missing.flac").samples()


# report


def test_the_report_lists_remaining_and_failed_checks() -> None:
    figures = {"p50_ms": 2.0, "p95_ms": 3.0, "n": 5}
    part = {name: figures for name in ("encode", "prefill", "step", "run")}
    content = {
        "environment": ENVIRONMENT,
        "checks": {
            "roofline/torch": {
                "outcome": OK,
                "seconds": 1,
                "error": "",
                "left": [],
                "parts": {"rates": {"bytes_per_second": 3.0e12, "flop_per_second": 6.0e14}},
            },
            "latency/base/cuda": {
                "outcome": OK,
                "seconds": 1,
                "error": "",
                "left": ["b64 beam5"],
                "parts": {"b1 beam1": part, "b16 beam5": {"error": "EngineError: too big"}},
            },
        },
    }
    text = report(content, SIZES)
    assert "copy 3000 GB/s, product 600.00 TFLOP/s" in text
    (row,) = (line for line in text.splitlines() if line.startswith("base/cuda b1 beam1"))
    cells = [cell.strip() for cell in row.split("|")]
    assert cells[1:] == ["2.0", "0.16", "2.0", "2.0", "3.0", "2.0", "0.039", "51.4"]
    assert "EngineError: too big" in text
    assert "base/cuda b64 beam5" in text
