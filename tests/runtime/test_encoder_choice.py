"""Precision of the encoder: the rule of ``auto``, the options, the report of doctor."""

from __future__ import annotations

import argparse
import dataclasses
import io
import logging
from collections.abc import Mapping
from typing import Any

import pytest

from tests.support.engines import random_engine
from tests.support.models import random_dims
from whisper_opt.cli import doctor as doctor_module
from whisper_opt.cli.options import add_options, options_from
from whisper_opt.core.errors import BackendUnavailable, EngineError, OptionError
from whisper_opt.core.options import ENCODER_PRECISIONS, LoadOptions
from whisper_opt.runtime import devices
from whisper_opt.runtime.devices import Machine, open_backend
from whisper_opt.runtime.encoder_choice import MIN_SPEEDUP, choose_encoder, fastest
from whisper_opt.runtime.engine import Engine
from whisper_opt.runtime.gpus import Driver, Gpu
from whisper_opt.runtime.openvino import encoder as openvino_encoder

SLOW_BF16 = {"fp32": 1.0, "bf16": 1.5, "int8": 0.3}


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    dims = random_dims(n_vocab=2000)
    return random_engine(tmp_path_factory.mktemp("encoders") / "engine", dims)


def machine(times: Mapping[str, float] | None, gpus: int = 0) -> Machine:
    """A machine with these matrix multiplication times; None: without OpenVINO."""
    found = Machine()
    card = Gpu(0, "NVIDIA L4", (8, 9), 24 << 30)
    found.driver = Driver((card,) * gpus, (13, 0) if gpus else None, "" if gpus else "none")
    found.tensorrt = "tensorrt"
    found.openvino = "2026.4.1" if times else None
    if times:
        found.products = dict(times)
    return found


@pytest.fixture
def no_openvino(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise BackendUnavailable("OpenVINO is not there; get [openvino]")

    monkeypatch.setattr(openvino_encoder, "import_openvino", refuse)
    monkeypatch.setattr("whisper_opt.runtime.openvino.probe.import_openvino", refuse)


class FakeEncoder:
    """Replaces the encoder in OpenVINO."""

    def __init__(self, engine: Engine, precision: str, *, threads: int | None = None) -> None:
        self.precision, self.threads = precision, threads


# the rule


@pytest.mark.parametrize(
    ("times", "chosen"),
    [
        ({"fp32": 1.0}, "engine"),
        ({"fp32": 1.0, "int8": 0.9}, "engine"),
        ({"fp32": 1.0, "bf16": 0.9, "int8": 0.8}, "engine"),
        (SLOW_BF16, "int8"),
        ({"fp32": 1.0, "bf16": 0.5, "int8": 0.45}, "bf16"),
        ({"fp32": 1.0, "bf16": 0.5, "int8": 0.2}, "int8"),
        ({"fp32": 1.0, "bf16": 1 / MIN_SPEEDUP}, "bf16"),
    ],
)
def test_auto_chooses_the_most_exact_that_is_clearly_faster(
    times: dict[str, float], chosen: str
) -> None:
    assert fastest(times).precision == chosen


def test_the_reason_has_the_speedups() -> None:
    assert "bf16 0.7, int8 3.3" in fastest(SLOW_BF16).reason
    assert "nothing else" in fastest({"fp32": 1.0}).reason


@pytest.mark.parametrize("wanted", ["engine", "bf16", "int8"])
def test_nothing_is_measured_without_auto(wanted: str) -> None:
    def never() -> dict[str, float]:
        raise AssertionError

    assert choose_encoder(wanted, "fp32", never).precision == wanted
    assert choose_encoder("auto", "int8", never).precision == "engine"
    assert "is int8" in choose_encoder("auto", "int8", never).reason


# opening


def test_the_default_is_the_precision_of_the_engine(engine: Engine) -> None:
    assert LoadOptions().encoder_precision == "engine"
    assert open_backend(engine, LoadOptions(), machine(SLOW_BF16)).encoder_precision == "engine"


def test_auto_uses_the_choice(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(openvino_encoder, "OpenVinoEncoder", FakeEncoder)
    caplog.set_level(logging.INFO, logger="whisper_opt.runtime.devices")
    options = LoadOptions(encoder_precision="auto", threads=1)
    opened = open_backend(engine, options, machine(SLOW_BF16))
    assert opened.encoder_precision == "int8"
    encoder: Any = opened.backend.encoder  # type: ignore[attr-defined]
    assert (encoder.precision, encoder.threads) == ("int8", 1)
    assert "encoder in int8: speed of OpenVINO" in caplog.text
    opened = open_backend(engine, options, machine({"fp32": 1.0, "int8": 1.0}))
    assert opened.encoder_precision == "engine"


def test_auto_without_openvino_is_the_engine(
    engine: Engine, no_openvino: None, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="whisper_opt.runtime.devices")
    opened = open_backend(engine, LoadOptions(encoder_precision="auto"), machine(None))
    assert opened.encoder_precision == "engine"
    assert "encoder in engine: OpenVINO is not there" in caplog.text


def test_auto_falls_back_and_a_name_does_not(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise EngineError("cannot be read")

    monkeypatch.setattr(openvino_encoder, "OpenVinoEncoder", refuse)
    opened = open_backend(engine, LoadOptions(encoder_precision="auto"), machine(SLOW_BF16))
    assert opened.encoder_precision == "engine"
    assert "auto: the encoder cannot be computed in int8: cannot be read" in caplog.text
    with pytest.raises(EngineError, match="cannot be read"):
        open_backend(engine, LoadOptions(encoder_precision="int8"), machine(SLOW_BF16))


@pytest.mark.parametrize(("requested", "device"), [("int8", "cpu"), ("auto", "tensorrt")])
def test_a_gpu_uses_the_precision_of_the_engine(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, requested: str, device: str
) -> None:
    monkeypatch.setattr(openvino_encoder, "OpenVinoEncoder", FakeEncoder)
    monkeypatch.setitem(devices._LOADERS, "tensorrt", lambda *_: object())
    manifest = dataclasses.replace(engine.manifest, precision="fp16", dialect="standard")
    options = LoadOptions(encoder_precision=requested)
    opened = open_backend(Engine(engine.path, manifest), options, machine(SLOW_BF16, gpus=1))
    assert opened.device == device
    assert opened.encoder_precision == ("int8" if device == "cpu" else "engine")
    if device == "cpu":
        assert "encoder_precision int8 runs on the CPU only" in opened.reason


@pytest.mark.parametrize("device", ["cuda", "tensorrt"])
@pytest.mark.parametrize("precision", ENCODER_PRECISIONS)
def test_a_gpu_by_name_is_refused(device: str, precision: str) -> None:
    if precision == "engine":
        LoadOptions(device=device, encoder_precision=precision)
        return
    with pytest.raises(OptionError, match=f"'{precision}', but device is '{device}'"):
        LoadOptions(device=device, encoder_precision=precision)


def test_an_unknown_precision_is_refused() -> None:
    with pytest.raises(OptionError, match="expected one of engine, bf16, int8, auto"):
        LoadOptions(encoder_precision="fp8")


# doctor


def report(found: Machine, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(doctor_module, "Machine", lambda: found)
    out = io.StringIO()
    doctor_module.doctor(out)
    return out.getvalue()


def test_doctor_reports_the_choice_of_auto(monkeypatch: pytest.MonkeyPatch) -> None:
    text = report(machine(SLOW_BF16), monkeypatch)
    assert "encoder      auto: int8 through OpenVINO 2026.4.1 with fp32 engines" in text
    assert "bf16 0.7, int8 3.3" in text


def test_doctor_reports_missing_openvino(
    no_openvino: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = report(machine(None), monkeypatch)
    assert "encoder      auto: engine with fp32 engines (OpenVINO is not there" in text


def test_the_command_line_has_the_option() -> None:
    parser = argparse.ArgumentParser()
    add_options(parser, LoadOptions)
    given = parser.parse_args(["--encoder-precision", "int8"])
    assert options_from(given, LoadOptions).encoder_precision == "int8"
