"""Builds with the real TensorRT for RTX, which needs no GPU to build.

Not collected with the other tests: ``tests/export/tensorrt/test_build_plans.py`` runs this file in
the Python that has the library (``scripts/test.sh`` makes one).
"""

from __future__ import annotations

import inspect
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import onnx
import pytest

os.environ["POLYGRAPHY_USE_TENSORRT_RTX"] = "1"  # read when polygraphy is imported

from tests.conftest import model_dir
from tests.support.models import random_checkpoint, random_dims
from whisper_opt.core.dims import ModelDims
from whisper_opt.core.errors import EngineError
from whisper_opt.export import build, export
from whisper_opt.export.tensorrt import build as tensorrt
from whisper_opt.export.tensorrt.build import build_plans
from whisper_opt.export.tensorrt.network import Network, Settings
from whisper_opt.export.tensorrt.operators import with_attention
from whisper_opt.runtime.engine import Engine
from whisper_opt.runtime.tensorrt import library as library_module
from whisper_opt.runtime.tensorrt.library import Library, load_library
from whisper_opt.runtime.tensorrt.plan_record import RECORD
from whisper_opt.runtime.tensorrt.plan_spec import PlanSpec
from whisper_opt.runtime.tensorrt.plans import GRAPHS, Fresh, inspect_plans

GPUS = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_120", "sm_121")
# turbo and large-v3 with four heads; steps have no kernel for fewer
TURBO = {"n_mels": 128, "n_vocab": 51866, "n_audio_layer": 32, "n_text_layer": 4}
LARGE = {"n_mels": 128, "n_vocab": 51866, "n_audio_layer": 1, "n_text_layer": 32}
NARROW = {"n_audio_state": 256, "n_text_state": 256}


@pytest.fixture(scope="session")
def library() -> Library:
    return load_library("tensorrt-rtx")


def fp16_engine(folder: Path, source: Any) -> Engine:
    return export(source, folder, precision="fp16", dialect="standard")


@pytest.fixture
def unverified(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fast exports of deep models; their results do not matter here."""

    class Parity:
        def to_dict(self) -> dict[str, Any]:
            return {}

    monkeypatch.setattr(build, "verify", lambda *arguments, **options: Parity())


def random_engine(folder: Path, dims: ModelDims) -> Engine:
    return fp16_engine(folder, random_checkpoint(dims))


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    dims = random_dims(n_vocab=2000, n_audio_layer=1, n_text_layer=1, **NARROW)
    return random_engine(tmp_path_factory.mktemp("engines") / "small", dims)


def networks(engine: Engine, library: Library) -> dict[str, Network]:
    """The graphs of an engine, parsed by the library."""
    found = {}
    for graph in ("encoder", "decoder"):
        model = onnx.load(str(engine.file(f"{graph}.onnx")), load_external_data=False)
        model = with_attention(model)
        tensorrt._fix_dimensions(model, tensorrt._fixed_sizes(engine.manifest.dims))
        found[graph] = Network(library, model.SerializeToString(), engine.file(f"{graph}.onnx"))
    return found


def check_layers(layers: dict[str, int], n_text_layer: int, *, decoder: bool) -> None:
    """Precisions are those of the ONNX types."""
    kinds = {name.split()[0] for name in layers}
    products = {name for name in layers if name.startswith("MATRIX_MULTIPLY")}
    assert {"ATTENTION_INPUT", "NORMALIZATION"} <= kinds
    assert not [name for name in layers if name.startswith("NORM") and not name.endswith("fp32")]
    assert "MATRIX_MULTIPLY fp16" in products
    if decoder:
        assert layers["KV_CACHE_UPDATE fp16"] == 2 * n_text_layer
        assert layers["ATTENTION_INPUT fp16"] == n_text_layer
        assert layers["SOFTMAX fp16"] + layers.get("SOFTMAX fp32", 0) >= n_text_layer


# --- models ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "gpus"), [("tiny.en", GPUS), ("base", ("sm_86",))])
def test_real_models(name: str, gpus: tuple[str, ...], tmp_path: Path, library: Library) -> None:
    engine = fp16_engine(tmp_path / name, model_dir(name))
    plans = build_plans(engine, gpus=gpus)
    assert plans.record.target.gpus == gpus
    graphs = [graph for graph in GRAPHS if engine.file(f"{graph}.onnx").exists()]
    assert sorted(path.name for path in plans.path.iterdir()) == sorted(
        [RECORD, *(f"{graph}.plan" for graph in graphs)]
    )
    for graph in ("encoder", "decoder"):
        weights = engine.manifest.files[f"{graph}.data"].size
        assert weights < plans.record.files[f"{graph}.plan"].size < 2 * weights + (8 << 20)
        counts = plans.record.layers[graph]["counts"]
        check_layers(counts, engine.manifest.dims.n_text_layer, decoder=graph == "decoder")
        assert plans.record.layers[graph]["from"] == "network definition"
    found = inspect_plans(engine, plans.record.target, PlanSpec(), verify=True)
    assert isinstance(found.verdict, Fresh)
    text = (plans.path / RECORD).read_text(encoding="utf-8")
    assert json.loads(text)["target"]["version"] == library.version


def test_turbo_shaped_model(tmp_path: Path, unverified: None) -> None:
    engine = random_engine(tmp_path / "turbo", random_dims(**TURBO, **NARROW))
    plans = build_plans(engine, PlanSpec(max_batch=2, max_beam=2), gpus=["sm_89"])
    assert {f"{graph}.plan" for graph in GRAPHS} == set(plans.record.files)
    check_layers(plans.record.layers["decoder"]["counts"], 4, decoder=True)


def test_large_shaped_model(tmp_path: Path, unverified: None, library: Library) -> None:
    """Steps of every decoder layer of large-v3; its encoder is that of turbo."""
    engine = random_engine(tmp_path / "large", random_dims(**LARGE, **NARROW))
    dims, network = engine.manifest.dims, networks(engine, library)["decoder"]
    check_layers(network.layers, 32, decoder=True)
    model = onnx.load(str(engine.file("decoder.onnx")), load_external_data=False)
    inputs = tensorrt._fix_dimensions(model, tensorrt._fixed_sizes(dims))
    step = PlanSpec(max_batch=2, max_beam=2).profiles(dims)["decoder"][0]
    settings = Settings([tensorrt._shapes(inputs, step)], ("sm_120",))
    plan, timings = network.build(settings, lambda done: None)
    assert memoryview(plan).nbytes > engine.manifest.files["decoder.data"].size
    assert timings is None


@pytest.mark.parametrize("gpu", GPUS)
def test_every_gpu_of_its_own(gpu: str, small: Engine, library: Library) -> None:
    assert library.gpus == GPUS
    plans = build_plans(small, PlanSpec(max_batch=1, max_beam=1), gpus=[gpu])
    assert plans.path.name == f"{gpu.replace('_', '')}-tensorrt-rtx-{library.version}"
    assert not build_plans(small, PlanSpec(max_batch=1, max_beam=1), gpus=[gpu]).path.samefile(
        small.path
    )


def test_weights_that_are_streamed(small: Engine) -> None:
    spec = PlanSpec(max_batch=1, max_beam=1, weight_streaming=True)
    plans = build_plans(small, spec, gpus=["sm_86"])
    assert plans.record.spec.weight_streaming


def test_polygraphy_inspects(
    small: Engine, library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    # its inspector imports tensorrt, whatever the environment says
    monkeypatch.setitem(sys.modules, "tensorrt", library.module)
    from polygraphy.backend.trt import util

    for graph, network in networks(small, library).items():
        text = util.str_from_network(network._network, show_layers=True)
        assert "LayerType.ATTENTION_INPUT" in text
        assert ("LayerType.KV_CACHE_UPDATE" in text) is (graph == "decoder")
        assert ("mel [dtype=float32, shape=(-1, 80, 3000)]" in text) is (graph == "encoder")


def test_the_library_has_the_called_names(library: Library) -> None:
    """The library has what ``Plan`` and ``Context`` call; the calls need a GPU."""
    source = Path(inspect.getfile(library_module)).read_text("utf-8")
    trt = library.module
    owners = {
        "engine": (trt.ICudaEngine, r"\bself\._engine\.(\w+)|\bengine\.(\w+)"),
        "context": (trt.IExecutionContext, r"\bself\._context\.(\w+)"),
        "inspector": (trt.EngineInspector, r"\binspector\.(\w+)"),
        "config": (trt.IRuntimeConfig, r"\bconfig\.(\w+)"),
        "runtime": (trt.Runtime, r"\bruntime\.(\w+)"),
        "module": (trt, r"\btrt\.(\w+)"),
    }
    for owner, (kind, pattern) in owners.items():
        names = {name for found in re.finditer(pattern, source) for name in found.groups() if name}
        assert names, owner
        assert [name for name in names if not hasattr(kind, name)] == []


# --- refusals -------------------------------------------------------------------------------------


def test_fp32_attention_has_no_kernel(tmp_path: Path, library: Library, unverified: None) -> None:
    """Why fp32 engines are refused."""
    dims = random_dims(n_vocab=2000, n_audio_layer=1, n_text_layer=1, **NARROW)
    engine = export(random_checkpoint(dims), tmp_path / "fp32", dialect="standard")
    prefill = PlanSpec().profiles(dims)["decoder"][1]
    model = onnx.load(str(engine.file("decoder.onnx")), load_external_data=False)
    inputs = tensorrt._fix_dimensions(model, tensorrt._fixed_sizes(dims))
    settings = Settings([tensorrt._shapes(inputs, prefill)], ("sm_86",))
    with pytest.raises(EngineError, match="was not supported by a dedicated kernel"):
        networks(engine, library)["decoder"].build(settings, lambda done: None)


def test_a_capacity_that_is_not_fixed(small: Engine, library: Library) -> None:
    """Why the capacity must be a constant before parsing."""
    path = small.file("decoder.onnx")
    model = onnx.load(str(path), load_external_data=False).SerializeToString()
    with pytest.raises(EngineError, match="must have a static sequence length dimension"):
        Network(library, model, path)


def run(*arguments: object) -> tuple[int, str, str]:
    command = [sys.executable, "-m", "whisper_opt", "build", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8")
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--max-batch", 0), "max_batch is 0; expected a positive integer"),
        (("--profile", "prefill.n_new=1:4:449"), "is 1:4:449; expected at most 448"),
        (("--gpu", "sm_90"), "builds no plans for sm_90; expected sm_75, sm_80, sm_86"),
        (("--gpu", "rtx3060"), "gpu is 'rtx3060'; expected a compute capability such as sm_86"),
        (("--hardware-compatibility", "ampere+"), "hardware_compatibility is not in tensorrt-rtx"),
    ],
)
def test_bad_requests(options: tuple[object, ...], message: str, small: Engine) -> None:
    status, out, err = run(small.path, *options)
    assert (status, out) == (2, "")
    assert err.startswith("whisper-opt: error: ")
    assert message in err
    assert err.count("\n") == 1


def test_command(small: Engine) -> None:
    options = ("--gpu", "sm_86", "sm_75", "--max-batch", 2, "--max-beam", 1)
    status, out, err = run(small.path, *options)
    assert (status, err) == (0, "")
    assert "sm75+sm86-tensorrt-rtx-1.7.1.116: " in out
    assert "plans for sm_75, sm_86" in out
    assert "built in" in out
    assert "tokens: not checked (no GPU here that runs them)" in out
    status, out, _ = run(small.path, *options)
    assert status == 0
    assert "up to date, nothing to build" in out


def test_ctrl_c_leaves_nothing(small: Engine) -> None:
    seen: list[float] = []

    def on_progress(graph: str, done: float) -> None:
        seen.append(done)
        raise KeyboardInterrupt

    before = sorted((small.path / "trt").glob("[!.]*"))
    with pytest.raises(KeyboardInterrupt):
        build_plans(small, PlanSpec(max_batch=3), gpus=["sm_80", "sm_120"], on_progress=on_progress)
    assert len(seen) == 1
    assert sorted((small.path / "trt").glob("[!.]*")) == before
    assert list((small.path / "trt").glob(".*.partial*")) == []
