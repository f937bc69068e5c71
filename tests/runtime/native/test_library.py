"""Whether the compiled library can be used, the option ``kernels``, and messages."""

from __future__ import annotations

import ctypes
import io
import logging
import platform
import re
import shutil
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.support.engines import random_engine, sharp_checkpoint
from tests.support.models import random_dims
from tests.support.one_node import linear_graph, run, session
from whisper_opt import Whisper
from whisper_opt.cli import doctor as doctor_module
from whisper_opt.cli import main as cli
from whisper_opt.cli.bench.system import System
from whisper_opt.core.arrays import F32
from whisper_opt.core.dims import HEAD_DIM, HOP_LENGTH, N_FFT
from whisper_opt.core.errors import BackendUnavailable, OptionError
from whisper_opt.core.options import KERNELS, LoadOptions
from whisper_opt.export import export
from whisper_opt.export.graphs import convolutions, int4_operators, operators, packed_weights
from whisper_opt.export.graphs.operators import LINEARS
from whisper_opt.export.quantization import int8
from whisper_opt.export.verification.verify import noise_mel
from whisper_opt.runtime import head_bounds, native, padding
from whisper_opt.runtime.devices import Machine, open_backend
from whisper_opt.runtime.engine import Engine
from whisper_opt.runtime.gpus import Driver
from whisper_opt.runtime.native import kernel_library, why_no_kernels
from whisper_opt.runtime.onnxruntime import graph as ort_graph

DIMS = random_dims(n_vocab=2000, n_audio_state=64, n_text_state=64, n_audio_layer=1, n_text_layer=1)
DEFINED = re.compile(r"^#define (\w+) (-?[\d.e-]+)f?\b", re.M)
needs_kernels = pytest.mark.usefixtures("library")


@pytest.fixture(autouse=True)
def _asked_anew() -> Iterator[None]:
    """Clear the cached result, which these tests change."""
    why_no_kernels.cache_clear()
    yield
    why_no_kernels.cache_clear()


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No library was compiled."""
    monkeypatch.setattr(native, "LIBRARY", tmp_path / "libwhisper_opt.so")


@pytest.fixture(scope="module")
def fp32(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return random_engine(tmp_path_factory.mktemp("fp32") / "engine", DIMS)


@pytest.fixture(scope="module", params=["int8", "int4"])
def integers(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Engine:
    folder = tmp_path_factory.mktemp("integers") / "engine"
    return export(sharp_checkpoint(DIMS), folder, precision=request.param)


def scores(backend: Any) -> F32:
    """Scores of a prompt."""
    session = backend.open(backend.encode(noise_mel(DIMS)[None, :, :800]))
    found: F32 = session.extend(np.arange(6, dtype=np.int64)[None]).numpy()
    session.close()
    return found


def no_gpu() -> Machine:
    found = Machine()
    found.driver = Driver((), None, "no NVIDIA driver")
    return found


# --- availability ---------------------------------------------------------------------------------


def test_a_missing_library(without: None) -> None:
    assert kernel_library() is None
    assert "not compiled: the package was built without a C compiler" in str(why_no_kernels())
    assert "install one (gcc or clang)" in str(why_no_kernels())


def test_a_library_that_cannot_be_loaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken = tmp_path / "libwhisper_opt.so"
    broken.write_bytes(b"\x7fELF, but not for long")
    monkeypatch.setattr(native, "LIBRARY", broken)
    assert kernel_library() is None
    assert f"{broken} cannot be loaded (" in str(why_no_kernels())
    assert "reinstall whisper-opt" in str(why_no_kernels())


@pytest.mark.skipif(sys.platform != "linux", reason="libraries are .so there")
def test_an_unrelated_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It loads, but lacks the expected function."""
    import _ctypes

    other = tmp_path / "libwhisper_opt.so"
    shutil.copy(_ctypes.__file__, other)
    monkeypatch.setattr(native, "LIBRARY", other)
    assert "whisper_opt_supported" in str(why_no_kernels())
    assert kernel_library() is None


def library(variant: str | None, abi: int = native.ABI, failed: str = "") -> SimpleNamespace:
    """Replaces the compiled library: what its functions return."""
    return SimpleNamespace(
        whisper_opt_supported=lambda: int(variant is not None),
        whisper_opt_abi=lambda: abi,
        whisper_opt_variants=lambda: b"avx2,generic",
        whisper_opt_failed=lambda: failed.encode(),
        whisper_opt_variant=lambda: variant.encode() if variant else None,
        whisper_opt_problem=lambda: None if variant else b"this processor has no AVX2",
        whisper_opt_has_vnni=lambda: 1,
    )


@pytest.fixture
def there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A library, of which only the name is used."""
    path = tmp_path / "libwhisper_opt.so"
    path.touch()
    monkeypatch.setattr(native, "LIBRARY", path)
    return path


@pytest.mark.parametrize("variant", [None, "avx2"])
def test_the_processor_decides(
    variant: str | None, there: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ctypes.CDLL", lambda path: library(variant))
    assert native.variant() == variant
    if variant:
        assert (why_no_kernels(), kernel_library()) == (None, there)
    else:
        assert why_no_kernels() == "this processor has no AVX2"
        assert kernel_library() is None


def test_a_library_of_another_abi_is_refused(there: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ctypes.CDLL", lambda path: library("avx2", native.ABI + 1))
    assert f"(ABI {native.ABI + 1}, expected {native.ABI})" in str(why_no_kernels())
    assert "compile again: python hatch_build.py" in str(why_no_kernels())
    assert kernel_library() is None
    assert (native.variant(), native.supported_variants(), native.has_vnni()) == (None, (), None)
    with pytest.raises(BackendUnavailable, match="compile again"):
        native.select_variant("generic")


def test_a_library_without_an_abi_number(there: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ctypes.CDLL", lambda path: SimpleNamespace(whisper_opt_supported=int))
    assert "(ABI 0, expected" in str(why_no_kernels())


def test_a_failed_self_test_is_a_warning(
    there: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("ctypes.CDLL", lambda path: library("generic", failed="avx2"))
    assert why_no_kernels() is None
    assert native.supported_variants() == ("generic",)
    assert "kernels for AVX2 failed their self-test on this processor" in caplog.text


@pytest.mark.parametrize("flags", [(), ("avx2", "avx_vnni"), ("avx512_vnni",), ("avx2",)])
@pytest.mark.parametrize("vnni", [None, False, True])
def test_whether_sums_overflow(
    flags: tuple[str, ...], vnni: bool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The library knows; without it, the system may list instruction sets; unknown: they may."""
    cpu = SimpleNamespace(flags=flags)
    monkeypatch.setattr(platform, "machine", lambda: "AMD64")
    monkeypatch.setattr(ort_graph, "cpu_info", lambda: cpu)
    monkeypatch.setattr(ort_graph, "has_vnni", lambda: vnni)
    listed = bool(set(flags) & {"avx_vnni", "avx512_vnni"})
    expected = not (listed if vnni is None else vnni)
    assert ort_graph.sums_overflow.__wrapped__() is expected


def test_kernels_and_graphs_share_constants() -> None:
    """``layout.h`` has the constants of the C code."""
    text = (Path(native.__file__).parent / "layout.h").read_text(encoding="utf-8")
    found = {name: float(number) for name, number in DEFINED.findall(text)}
    expected = {
        "WHISPER_OPT_ABI": native.ABI,
        "HEAD": HEAD_DIM,
        "PANEL": packed_weights.PANEL,
        "BLOCK": padding.BLOCK,
        "MASKED": padding.MASKED,
        "GELU_ZERO": operators.GELU_ZERO_POINT,
        "GELU_STEPS": operators.GELU_STEPS,
        "GELU_LOW": operators.GELU_MIN,
        "LEAST": operators.MIN_ABSMAX,
        "HEAD_ZERO": head_bounds.STEPS + 1,
        "HEAD_STEPS": head_bounds.STEPS,
        "NIBBLE_BLOCK": int4_operators.BLOCK,
        "FOUR_LIMIT": int8.FOUR_LIMIT,
        "CONV_STEPS": convolutions.INPUT_STEPS,
        "CONV_LIMIT": convolutions.COLUMN_LIMIT,
        "N_FFT": N_FFT,
        "HOP_LENGTH": HOP_LENGTH,
    }
    assert {name: found[name] for name in expected} == expected


@needs_kernels
def test_the_compiled_abi_is_that_of_the_header() -> None:
    assert ctypes.CDLL(str(native.LIBRARY)).whisper_opt_abi() == native.ABI


@needs_kernels
def test_many_sessions_made_at_once() -> None:
    """All sessions have the operators, which are registered with ONNX Runtime once."""
    model = linear_graph(LINEARS.plain, 64, 70)
    x = np.ones((1, 2, 64), np.float32)
    with ThreadPoolExecutor(8) as pool:
        runners = list(pool.map(lambda _: session(model, kernels=True), range(32)))
    results = [run(runner, x=x) for runner in runners]
    for found in results:
        np.testing.assert_array_equal(found, results[0])


def test_kernels_that_onnxruntime_cannot_load(
    integers: Engine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The exception of ONNX Runtime is replaced."""
    broken = tmp_path / "libwhisper_opt.so"
    broken.write_bytes(b"no library")
    monkeypatch.setattr(ort_graph, "kernel_library", lambda: broken)
    with pytest.raises(BackendUnavailable, match="cannot load the compiled kernels") as caught:
        ort_graph.load_graph(integers, "encoder.onnx", 1, kernels=True)
    assert "kernels='off'" in str(caught.value)


FLAGS: dict[str, set[str]] = {
    "avx512vnni": {"avx2", "fma", "avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni"},
    "avxvnni": {"avx2", "fma", "avx_vnni"},
    "avx2": {"avx2", "fma"},
    "generic": set(),
}


@needs_kernels
@pytest.mark.skipif(platform.machine() != "x86_64", reason="not tested: instruction sets of x86-64")
def test_the_cpu_check_agrees_with_linux() -> None:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    flags = set(next(line for line in lines if line.startswith("flags")).split())
    expected = tuple(name for name, needed in FLAGS.items() if needed <= flags)
    assert native.supported_variants() == expected
    assert native.has_vnni() is bool(flags & {"avx_vnni", "avx512_vnni"})


# --- opening --------------------------------------------------------------------------------------


@needs_kernels
def test_auto_and_native_use_them_and_off_does_not(
    integers: Engine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    opened = {name: open_backend(integers, LoadOptions(kernels=name), no_gpu()) for name in KERNELS}
    assert {name: one.kernels for name, one in opened.items()} == {
        "auto": True,
        "native": True,
        "off": False,
    }
    found = {name: scores(one.backend) for name, one in opened.items()}
    np.testing.assert_array_equal(found["auto"], found["native"])
    assert (found["off"] != found["auto"]).any()
    far = np.linalg.norm(found["off"] - found["auto"]) / np.linalg.norm(found["off"])
    assert far < 0.05
    monkeypatch.setattr(native, "LIBRARY", tmp_path / "none.so")
    why_no_kernels.cache_clear()
    without = open_backend(integers, LoadOptions(), no_gpu())
    assert without.kernels is False
    np.testing.assert_array_equal(scores(without.backend), found["off"])


def test_missing_kernels_are_logged_and_refused_by_name(
    integers: Engine, without: None, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="whisper_opt.runtime.devices")
    assert open_backend(integers, LoadOptions(), no_gpu()).kernels is False
    assert "8-bit operators without compiled kernels: not compiled" in caplog.text
    caplog.clear()
    assert open_backend(integers, LoadOptions(kernels="off"), no_gpu()).kernels is False
    assert "compiled kernels" not in caplog.text
    with pytest.raises(BackendUnavailable, match="'native', but they cannot be used: not compiled"):
        open_backend(integers, LoadOptions(kernels="native"), no_gpu())


def test_a_library_that_is_refused_is_warned_of(
    integers: Engine,
    there: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It costs half of the speed, and compiling again is easily forgotten after an update."""
    monkeypatch.setattr("ctypes.CDLL", lambda path: library("avx2", native.ABI + 1))
    assert open_backend(integers, LoadOptions(), no_gpu()).kernels is False
    [warning] = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert "compile again: python hatch_build.py" in warning.getMessage()


def test_other_engines_have_no_operators_for_kernels(fp32: Engine) -> None:
    for name in ("auto", "off"):
        assert open_backend(fp32, LoadOptions(kernels=name), no_gpu()).kernels is False
    with pytest.raises(OptionError, match="this fp32 engine has no operators for them"):
        open_backend(fp32, LoadOptions(kernels="native"), no_gpu())


@pytest.mark.parametrize("device", ["cuda", "tensorrt"])
def test_a_gpu_by_name_has_no_kernels(device: str) -> None:
    assert LoadOptions(device=device, kernels="auto").kernels == "auto"
    for name in ("native", "off"):
        with pytest.raises(OptionError, match=f"kernels is '{name}', but device is '{device}'"):
            LoadOptions(device=device, kernels=name)


def test_an_unknown_choice_is_refused() -> None:
    with pytest.raises(OptionError, match="expected one of auto, native, off"):
        LoadOptions(kernels="fast")


@needs_kernels
def test_native_keeps_auto_on_the_cpu(integers: Engine) -> None:
    opened = open_backend(integers, LoadOptions(kernels="native"))
    assert opened.device == "cpu"
    assert "native kernels run on the CPU only" in opened.reason


def test_loading_has_the_option(integers: Engine, without: None) -> None:
    Whisper.load(integers.path, threads=1, kernels="off").close()
    with pytest.raises(BackendUnavailable, match="not compiled"):
        Whisper.load(integers.path, threads=1, kernels="native")


@needs_kernels
def test_a_benchmark_says_whether_they_were_used(integers: Engine) -> None:
    for kernels, used in (("auto", True), ("off", False)):
        system = System(str(integers.path), {"kernels": kernels, "threads": 1})
        assert system.about["kernels"] is used


# --- the command line -----------------------------------------------------------------------------


def test_the_command_line_has_the_option(
    integers: Engine, fp32: Engine, without: None, capsys: pytest.CaptureFixture[str]
) -> None:
    for engine, said in ((integers, "not compiled"), (fp32, "no operators for them")):
        status = cli.main(
            ["transcribe", str(engine.path), "examples/jfk.flac", "--kernels", "native"]
        )
        assert status != 0
        assert said in capsys.readouterr().err


def report() -> str:
    out = io.StringIO()
    doctor_module.doctor(out)
    return out.getvalue()


def test_doctor_says_why_there_are_none(without: None) -> None:
    assert "kernels      none: not compiled" in report()


def compiled(monkeypatch: pytest.MonkeyPatch, used: str, *supported: str) -> None:
    """A machine with these variants."""
    monkeypatch.setattr(doctor_module, "why_no_kernels", lambda: None)
    monkeypatch.setattr(doctor_module, "variant", lambda: used)
    monkeypatch.setattr(doctor_module, "supported_variants", lambda: supported)


def test_doctor_names_the_variant_and_what_would_be_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled(monkeypatch, "avx512vnni", "avx512vnni", "avx2", "generic")
    assert "kernels      compiled (AVX-512 VNNI): used with int8 and int4 engines\n" in report()
    compiled(monkeypatch, "avx2", "avx2", "generic")
    said = "compiled (AVX2): used with int8 and int4 engines; processors with AVX-512 VNNI or"
    assert said in report()
    compiled(monkeypatch, "avx2", "avxvnni", "avx2", "generic")
    said = "this processor is faster with AVX-VNNI: unset WHISPER_OPT_KERNELS"
    assert said in report()


@needs_kernels
def test_doctor_says_that_they_are_used() -> None:
    used = native.VARIANTS[str(native.variant())]
    assert f"kernels      compiled ({used}): used with int8 and int4 engines" in report()
