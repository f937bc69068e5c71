"""Names: from the hub's HTTP to words, through the real client and a hub on this machine."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT, model_dir
from tests.support.loopback_hub import LoopbackHub
from tests.support.models import random_checkpoint
from tests.support.models_write import write_huggingface
from tests.support.optimum_dirs import write_optimum
from whisper_opt import Whisper
from whisper_opt.core.errors import CheckpointError, EngineError
from whisper_opt.core.model_names import MODEL_NAMES
from whisper_opt.core.options import LoadOptions
from whisper_opt.export.checkpoints import load_checkpoint
from whisper_opt.runtime.engine import read_engine
from whisper_opt.transcription.model_source import engine_directory

NAME = "someone/whisper"
COMMITS = ["1" * 40, "2" * 40]
PROGRAM = (
    "import whisper_opt;"
    " print(whisper_opt.Whisper.load('tiny.en').transcribe('examples/jfk.flac').text)"
)
WORDS = "ask not what your country can do for you"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Directories of two models that differ in their weights."""
    root = tmp_path_factory.mktemp("models")
    return [
        write_huggingface(random_checkpoint(seed=seed), root / str(seed), shards=1 + seed)
        for seed in range(2)
    ]


@pytest.fixture
def options(tmp_path: Path) -> LoadOptions:
    return LoadOptions(precision="fp32", cache_dir=str(tmp_path / "engines"))


def source_of(engine: Path) -> str:
    return str(read_engine(engine).manifest.source["name"])


def test_revisions(
    loopback: LoopbackHub, models: list[Path], options: LoadOptions, tmp_path: Path
) -> None:
    loopback.add(NAME, models[0], commit=COMMITS[0])
    loopback.add(NAME, models[1], commit=COMMITS[1], branch="v1.0")
    tag = LoadOptions(precision="fp32", cache_dir=options.cache_dir, revision="v1.0")
    assert source_of(engine_directory(NAME, options)) == f"{NAME}@{COMMITS[0]}"
    tagged = engine_directory(NAME, tag)
    assert source_of(tagged) == f"{NAME}@{COMMITS[1]}"
    assert engine_directory(f"{NAME}@v1.0", options) == tagged
    assert engine_directory(f"{NAME}@{COMMITS[1]}", options) == tagged
    loopback.stop()
    assert engine_directory(f"{NAME}@v1.0", options) == tagged


def test_short_name_asks_for_its_commit(
    loopback: LoopbackHub, models: list[Path], options: LoadOptions
) -> None:
    name = MODEL_NAMES["base.en"]
    loopback.add(name.hub_id, models[0], commit=str(name.revision), branch="older")
    loopback.add(name.hub_id, models[1], commit=COMMITS[1])
    assert source_of(engine_directory("base.en", options)) == f"{name.hub_id}@{name.revision}"
    assert all(str(name.revision) in path for path in loopback.asked(name.hub_id))


def test_revision_that_is_gone(
    loopback: LoopbackHub, models: list[Path], options: LoadOptions
) -> None:
    loopback.add(NAME, models[0], commit=COMMITS[0], branch="dev")
    engine_directory(f"{NAME}@dev", options)
    del loopback.repositories[NAME].refs["dev"]
    with pytest.raises(CheckpointError, match="it has no revision 'dev'"):
        engine_directory(f"{NAME}@dev", options)


@pytest.mark.parametrize("variable", ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"])
def test_offline_variables_need_neither_client_nor_exporter(
    variable: str,
    loopback: LoopbackHub,
    models: list[Path],
    options: LoadOptions,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loopback.add(NAME, models[0], commit=COMMITS[0])
    engine = engine_directory(NAME, options)
    loopback.forget()
    monkeypatch.setenv(variable, "1")
    monkeypatch.setitem(sys.modules, "whisper_opt.export.prepare", None)
    assert engine_directory(NAME, options) == engine
    assert loopback.requests == []


def test_failed_download_leaves_no_engine(
    loopback: LoopbackHub, models: list[Path], options: LoadOptions, tmp_path: Path
) -> None:
    loopback.add(NAME, models[1], commit=COMMITS[1])
    loopback.fail("model-00002-of-00002", keep=1000)
    with pytest.raises(CheckpointError, match=rf"model-00002-of-00002\.safetensors of '{NAME}"):
        engine_directory(NAME, options)
    assert not [path for path in (tmp_path / "engines").iterdir() if path.is_dir()]
    loopback.mend()
    assert source_of(engine_directory(NAME, options)) == f"{NAME}@{COMMITS[1]}"


class TestOptimum:
    @pytest.fixture
    def hub(self, loopback: LoopbackHub, tmp_path: Path) -> LoopbackHub:
        """A hub with a model as those of onnx-community, in fp32 and int8."""
        for precision in ("fp32", "int8"):
            write_optimum(
                tmp_path / "onnx",
                subfolder="onnx",
                precision=precision,
                external=precision == "fp32",
            )
        loopback.add(NAME, tmp_path / "onnx", commit=COMMITS[0])
        return loopback

    def test_graphs_are_opened_as_they_are(self, hub: LoopbackHub, options: LoadOptions) -> None:
        with Whisper.load(NAME, options=options) as model:
            assert model.engine.manifest.dialect == "optimum"
            assert model.engine.manifest.precision == "fp32"
        assert hub.asked("encoder_model.onnx_data")
        assert not hub.asked("_quantized.onnx", "HEAD")
        hub.stop()
        with Whisper.load(NAME, options=options, local_files_only=True) as model:
            assert model.engine.manifest.dialect == "optimum"

    def test_precision_chooses_the_graphs(self, hub: LoopbackHub, tmp_path: Path) -> None:
        with Whisper.load(NAME, precision="int8", cache_dir=str(tmp_path / "engines")) as model:
            assert model.engine.manifest.precision == "int8"
        assert not hub.asked("encoder_model.onnx", "HEAD")
        with pytest.raises(CheckpointError, match=r"precision is 'fp16', but .* in fp32, int8:"):
            Whisper.load(NAME, precision="fp16", cache_dir=str(tmp_path / "engines"))

    def test_checkpoint_is_preferred(
        self, hub: LoopbackHub, models: list[Path], options: LoadOptions, tmp_path: Path
    ) -> None:
        for file in models[0].iterdir():
            (tmp_path / "onnx" / file.name).write_bytes(file.read_bytes())
        hub.add(NAME, tmp_path / "onnx", commit=COMMITS[1])
        assert read_engine(engine_directory(NAME, options)).manifest.dialect == "contrib"

    def test_graphs_that_arrived_in_part(self, hub: LoopbackHub, options: LoadOptions) -> None:
        hub.lose("onnx/decoder_model_merged.onnx")
        with pytest.raises(CheckpointError, match=r"decoder_model_merged\.onnx of '"):
            Whisper.load(NAME, options=options)
        with pytest.raises((CheckpointError, EngineError), match="there is no whole copy of it"):
            Whisper.load(NAME, options=options, local_files_only=True)


def run_program(hub: LoopbackHub, home: Path, **more: str) -> str:
    finished = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env={**hub.environment(home), **more},
        cwd=ROOT,
        check=False,
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


@pytest.mark.slow
def test_words_with_nothing_exported(tmp_path: Path) -> None:
    """A second run needs no network, whether or not a setting says that there is none."""
    name = MODEL_NAMES["tiny.en"]
    folder = write_huggingface(load_checkpoint(model_dir("tiny.en")), tmp_path / "tiny.en")
    with LoopbackHub() as hub:
        hub.add(name.hub_id, folder, commit=str(name.revision))
        hub.fail("model.safetensors", keep=40_000_000, times=1)
        first = run_program(hub, tmp_path)
        asked = hub.asked(name.hub_id)
        sent, size = hub.sent("/cdn/"), (folder / "model.safetensors").stat().st_size
    assert WORDS in first
    assert asked
    assert all(str(name.revision) in path for path in asked)
    assert sent < size + 11_000_000  # the client writes in parts of 10 MiB
    assert run_program(hub, tmp_path) == first
    assert run_program(hub, tmp_path, HF_HUB_OFFLINE="1") == first
