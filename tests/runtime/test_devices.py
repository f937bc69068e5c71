"""Selection of the device: reasons against each, the order of ``auto``, options."""

from __future__ import annotations

import dataclasses
import io
import logging
from pathlib import Path
from typing import Any

import pytest

from tests.support.engines import random_engine
from tests.support.models import random_dims
from whisper_opt import Whisper
from whisper_opt.cli import doctor as doctor_module
from whisper_opt.core.errors import BackendUnavailable, EngineError, OptionError
from whisper_opt.core.options import DEVICES, LoadOptions
from whisper_opt.runtime import devices
from whisper_opt.runtime.devices import GPU_ENGINES, Machine, check_device, open_backend
from whisper_opt.runtime.engine import Engine, Manifest
from whisper_opt.runtime.gpus import Driver, Gpu
from whisper_opt.runtime.onnxruntime.backend import OrtBackend
from whisper_opt.runtime.tensorrt.library import Probe
from whisper_opt.transcription import model as model_module

DIMS = random_dims(n_vocab=2000)
CARD = Gpu(0, "NVIDIA GeForce RTX 3060", (8, 6), 12 << 30)
GPU_BUILD = {"onnxruntime-gpu": "1.31.1"}
CUDA = ("TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider")


def machine(
    gpus: int = 1,
    builds: dict[str, str] | None = None,
    providers: tuple[str, ...] = CUDA,
    tensorrt: str | None = "tensorrt",
) -> Machine:
    """A machine that has everything except the given parts."""
    found = Machine()
    cards = tuple(dataclasses.replace(CARD, index=index) for index in range(gpus))
    found.driver = Driver(cards, (13, 0) if gpus else None, "" if gpus else "no NVIDIA driver (-)")
    found.builds = GPU_BUILD if builds is None else builds
    found.providers = providers
    found.tensorrt = tensorrt
    return found


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return random_engine(tmp_path_factory.mktemp("engine") / "e", DIMS)


def called(engine: Engine, precision: str, dialect: str) -> Engine:
    """The same engine with another label: the device depends on the manifest only."""
    manifest = dataclasses.replace(engine.manifest, precision=precision, dialect=dialect)
    return Engine(engine.path, manifest)


def suited(engine: Engine, device: str) -> Engine:
    return called(engine, *GPU_ENGINES[device])


class Loaders:
    """Replaces the GPU backends, which cannot open here."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **errors: Exception) -> None:
        self.asked: list[tuple[str, LoadOptions]] = []
        self._errors = errors
        for device in ("cuda", "tensorrt"):
            monkeypatch.setitem(devices._LOADERS, device, self._loader(device))

    def _loader(self, device: str) -> Any:
        def load(engine: Engine, options: LoadOptions, machine: Machine, build: object) -> Any:
            self.asked.append((device, options))
            if device in self._errors:
                raise self._errors[device]
            return object()

        return load


# reasons


def reason(device: str, found: Machine, manifest: Manifest | None = None, index: int = 0) -> Any:
    return check_device(device, found, index=index, manifest=manifest)


def test_the_cpu_is_always_usable() -> None:
    assert reason("cpu", machine(gpus=0, providers=(), tensorrt=None)) is None


def test_a_complete_installation_is_usable(engine: Engine) -> None:
    for device in GPU_ENGINES:
        assert reason(device, machine()) is None
        assert reason(device, machine(), suited(engine, device).manifest) is None


@pytest.mark.parametrize("device", sorted(GPU_ENGINES))
def test_no_gpu(device: str) -> None:
    error = reason(device, machine(gpus=0))
    assert isinstance(error, BackendUnavailable)
    assert "no NVIDIA driver (-)" in str(error)
    assert "device='cpu'" in str(error)


@pytest.mark.parametrize("device", sorted(GPU_ENGINES))
def test_no_gpu_of_that_index(device: str) -> None:
    error = reason(device, machine(gpus=2), index=2)
    assert isinstance(error, OptionError)
    assert "device_index is 2; this machine has 2" in str(error)
    assert reason(device, machine(gpus=2), index=1) is None


def test_a_runtime_for_the_cpu_only_names_the_extras() -> None:
    found = machine(builds={"onnxruntime": "1.32.0"}, providers=("CPUExecutionProvider",))
    error = reason("cuda", found)
    assert isinstance(error, BackendUnavailable)
    assert "onnxruntime 1.32.0" in str(error)
    for extra in ("cuda12", "cuda13"):
        assert f"whisper-opt[{extra}]" in str(error)


def test_no_runtime_at_all() -> None:
    assert "not installed" in str(reason("cuda", machine(builds={}, providers=())))


def test_two_builds_of_the_runtime_are_a_known_breakage() -> None:
    both = {"onnxruntime": "1.32.0", "onnxruntime-gpu": "1.31.1"}
    found = machine(builds=both, providers=("CPUExecutionProvider",))
    assert "overwrite each other's files" in str(reason("cuda", found))


def test_two_builds_of_which_the_right_one_won_work_with_a_warning(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    Loaders(monkeypatch)
    both = {"onnxruntime": "1.32.0", "onnxruntime-gpu": "1.31.1"}
    open_backend(suited(engine, "cuda"), LoadOptions(device="cuda"), machine(builds=both))
    assert "both installed" in caplog.text


def test_no_tensorrt_names_the_extras() -> None:
    error = reason("tensorrt", machine(tensorrt=None))
    assert isinstance(error, BackendUnavailable)
    for extra in ("tensorrt-cu12", "tensorrt-cu13", "tensorrt-rtx"):
        assert f"whisper-opt[{extra}]" in str(error)


@pytest.mark.parametrize("device", sorted(GPU_ENGINES))
def test_an_engine_for_something_else_is_refused_with_the_export_to_make(
    engine: Engine, device: str
) -> None:
    precision, dialect = GPU_ENGINES[device]
    for found in (("fp32", "contrib"), ("fp32", "standard"), *GPU_ENGINES.values()):
        error = reason(device, machine(), called(engine, *found).manifest)
        if found == (precision, dialect):
            assert error is None
            continue
        assert isinstance(error, EngineError)
        assert f"this engine is {found[0]} {found[1]}" in str(error)
        assert f"--precision {precision} --dialect {dialect}" in str(error)


# choosing


def test_auto_is_the_cpu_for_an_engine_made_for_it(
    engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="whisper_opt.runtime.devices")
    opened = open_backend(engine, LoadOptions(), machine())
    assert opened.device == "cpu"
    assert isinstance(opened.backend, OrtBackend)
    assert f"{engine.path} runs on cpu" in caplog.text
    assert "this engine is fp32 contrib" in caplog.text


@pytest.mark.parametrize("device", sorted(GPU_ENGINES))
def test_auto_takes_the_gpu_for_an_engine_made_for_it(
    engine: Engine,
    device: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, logger="whisper_opt.runtime.devices")
    loaders = Loaders(monkeypatch)
    opened = open_backend(suited(engine, device), LoadOptions(device_index=1), machine(gpus=2))
    assert opened.device == device
    assert [(name, options.device_index) for name, options in loaders.asked] == [(device, 1)]
    assert f"runs on {device} ({CARD.name})" in caplog.text


@pytest.mark.parametrize("device", sorted(GPU_ENGINES))
@pytest.mark.parametrize("error", [BackendUnavailable("no libcudnn"), EngineError("no plan")])
def test_auto_falls_back_when_a_gpu_does_not_open(
    engine: Engine,
    device: str,
    error: Exception,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    Loaders(monkeypatch, **{device: error})
    opened = open_backend(suited(engine, device), LoadOptions(), machine())
    assert opened.device == "cpu"
    assert str(error) in opened.reason
    assert f"auto: {device} cannot be used: {error}" in caplog.text


@pytest.mark.parametrize("device", sorted(GPU_ENGINES))
def test_a_device_by_name_never_falls_back(
    engine: Engine, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    Loaders(monkeypatch, **{device: BackendUnavailable("no libcudnn")})
    for_it, options = suited(engine, device), LoadOptions(device=device)
    with pytest.raises(BackendUnavailable, match="no libcudnn"):
        open_backend(for_it, options, machine())
    with pytest.raises(BackendUnavailable, match="needs an NVIDIA GPU"):
        open_backend(for_it, options, machine(gpus=0))
    with pytest.raises(EngineError, match="this engine is fp32 contrib"):
        open_backend(engine, options, machine())


def test_an_index_without_a_gpu_is_not_ignored(engine: Engine) -> None:
    with pytest.raises(BackendUnavailable, match="device_index is 1, but there is no GPU"):
        open_backend(engine, LoadOptions(device_index=1), machine(gpus=0))
    with pytest.raises(OptionError, match="device_index is 3"):
        open_backend(suited(engine, "cuda"), LoadOptions(device_index=3), machine())


def test_an_index_is_not_ignored_by_an_engine_for_the_cpu(engine: Engine) -> None:
    with pytest.raises(OptionError, match=r"device_index is 1, but no GPU can be used .*fp32"):
        open_backend(engine, LoadOptions(device_index=1), machine(gpus=2))


@pytest.mark.parametrize("device", ["auto", "cpu"])
def test_whole_padding_is_refused_without_compression(engine: Engine, device: str) -> None:
    with pytest.raises(OptionError, match="padding is 'whole', but this fp32 engine never"):
        open_backend(engine, LoadOptions(device=device, padding="whole"), machine())


def test_an_fp16_engine_on_the_cpu_gives_a_warning(
    engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    open_backend(suited(engine, "cuda"), LoadOptions(device="cpu"), machine(gpus=0))
    assert "which is slow on a CPU" in caplog.text


def test_the_real_machine() -> None:
    found = Machine()
    assert found.builds
    assert "CPUExecutionProvider" in found.providers
    for device in DEVICES[1:]:
        check_device(device, found)  # any result, without an exception


# doctor


def report(found: Machine, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(doctor_module, "Machine", lambda: found)
    out = io.StringIO()
    doctor_module.doctor(out)
    return out.getvalue()


def test_doctor_lists_gpus_and_what_they_could_run(monkeypatch: pytest.MonkeyPatch) -> None:
    text = report(machine(gpus=2), monkeypatch)
    assert "gpu          1: NVIDIA GeForce RTX 3060, compute capability 8.6, 12.0 GiB" in text
    assert "driver for CUDA up to 13.0" in text
    assert "device       cuda: usable with fp16 contrib engines" in text
    assert "device       tensorrt: usable with fp16 standard engines" in text
    assert "device       auto: cpu; tensorrt for engines exported for it" in text


def test_doctor_says_why_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    text = report(machine(gpus=0), monkeypatch)
    assert "gpu          none: no NVIDIA driver (-)" in text
    assert "device       auto: cpu\n" in text
    assert "usable with" not in text


def test_doctor_names_the_extras(monkeypatch: pytest.MonkeyPatch) -> None:
    text = report(machine(providers=("CPUExecutionProvider",), tensorrt=None), monkeypatch)
    assert "whisper-opt[cuda13]" in text
    assert "whisper-opt[tensorrt-rtx]" in text
    assert "device       auto: cpu\n" in text


def test_doctor_says_which_tensorrt_works(monkeypatch: pytest.MonkeyPatch) -> None:
    reports = {
        "tensorrt": Probe("tensorrt", None, "tensorrt is installed but does not work (a stub)"),
        "tensorrt-rtx": Probe("tensorrt-rtx", "1.7.1.116", ""),
    }
    monkeypatch.setattr(doctor_module, "probe", reports.__getitem__)
    text = report(machine(), monkeypatch)
    assert "library      tensorrt tensorrt is installed but does not work (a stub)" in text
    assert "library      tensorrt-rtx 1.7.1.116 (runs and builds plans)" in text


# options


def test_load_takes_the_options_as_one_object_or_by_name(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen: list[LoadOptions] = []

    def opened(engine: Engine, options: LoadOptions, **_: object) -> Any:
        chosen.append(options)
        raise BackendUnavailable("enough")

    monkeypatch.setattr(model_module, "open_backend", opened)
    options = LoadOptions(device="cpu", threads=3)
    for given, expected in (
        ({}, LoadOptions()),
        ({"options": options}, options),
        ({"options": options, "threads": 2}, LoadOptions(device="cpu", threads=2)),
        ({"device": "cuda", "device_index": 1}, LoadOptions(device="cuda", device_index=1)),
    ):
        with pytest.raises(BackendUnavailable, match="enough"):
            Whisper.load(engine.path, **given)
        assert chosen.pop() == expected


def test_load_refuses_unknown_options_before_it_reads_anything(tmp_path: Path) -> None:
    known = ", ".join(field.name for field in dataclasses.fields(LoadOptions))
    with pytest.raises(OptionError, match=f"^unknown option 'devise'; expected one of {known}$"):
        Whisper.load(tmp_path / "missing", devise="cpu")


def test_load_describes_every_option() -> None:
    for field in dataclasses.fields(LoadOptions):
        assert f"``{field.name}``" in (Whisper.load.__doc__ or ""), field.name


def test_load_says_what_computes(engine: Engine) -> None:
    with Whisper.load(engine.path, device="cpu", threads=1) as model:
        assert model.device == "cpu"
    with pytest.raises(EngineError, match="--precision fp16 --dialect standard"):
        Whisper.load(engine.path, device="tensorrt")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"device": "gpu"}, "device is 'gpu'; expected one of auto, cpu, cuda, tensorrt"),
        ({"device": None}, "device is None"),
        ({"device_index": -1}, "device_index is -1; expected an integer of 0 or more"),
        ({"device_index": True}, "device_index is True"),
        ({"device": "cpu", "device_index": 1}, "device_index is 1, but device is 'cpu'"),
        ({"threads": 0}, "threads is 0; expected a positive integer or None"),
        ({"device": "tensorrt", "threads": 2}, "threads is 2, but device is 'tensorrt'"),
        ({"device": "cuda", "cuda_graphs": True}, "cuda_graphs is given, but device is 'cuda'"),
        ({"cuda_graphs": False}, "cuda_graphs is given, but device is 'auto'"),
        ({"tensorrt_provider": True}, "tensorrt_provider is given, but device is 'auto'"),
    ],
)
def test_options_are_checked(engine: Engine, options: dict[str, Any], words: str) -> None:
    with pytest.raises(OptionError, match=words):
        LoadOptions(**options)
    with pytest.raises(OptionError, match=words):
        Whisper.load(engine.path, **options)
