from __future__ import annotations

import sys
import tracemalloc
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.fake_torch import FakeTensor, openai_model, transformers_model, wrapped
from tests.support.loopback_hub import LoopbackHub
from tests.support.models import random_checkpoint, random_dims
from tests.support.models_write import rounded, write_huggingface
from whisper_opt.core.errors import BackendUnavailable, CheckpointError, OptionError
from whisper_opt.export.build import export
from whisper_opt.export.checkpoints import Checkpoint, in_memory, load_checkpoint
from whisper_opt.export.checkpoints.checkpoint import OUTPUT_HEAD

MODELS = {"transformers": transformers_model, "openai": openai_model}


class Processor:
    """A processor of transformers."""

    def __init__(self, text: str) -> None:
        self.text = text

    def save_pretrained(self, folder: str) -> None:
        (Path(folder) / "tokenizer.json").write_text(self.text, encoding="utf-8")


class Rust:
    """A ``tokenizers.Tokenizer``."""

    def __init__(self, text: str) -> None:
        self.text = text

    def to_str(self) -> str:
        return self.text


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("kind", MODELS)
def test_tensors_of_any_type_and_device(kind: str, dtype: str, small: Checkpoint) -> None:
    model = MODELS[kind](small, dtype=dtype, device="cuda:0")  # type: ignore[operator]
    found = load_checkpoint(model, tokenizer=Processor(small.tokenizer_json))
    assert found.dims == small.dims
    assert found.tensors.keys() == small.tensors.keys()
    for name, tensor in small.tensors.items():
        values = found.tensors[name].read()
        assert values.dtype == np.float32
        assert values.flags.c_contiguous
        np.testing.assert_array_equal(values, rounded(tensor.read(), dtype), err_msg=name)
    assert found.alignment_heads == small.alignment_heads
    assert found.tokenizer_json == small.tokenizer_json
    assert found.source.dtype == dtype


def test_values_read_are_copies(small: Checkpoint) -> None:
    found = load_checkpoint(openai_model(small), tokenizer=Rust(small.tokenizer_json))
    name = "decoder.ln.bias"
    found.tensors[name].read()[:] = 9
    np.testing.assert_array_equal(found.tensors[name].read(), small.tensors[name].read())


def test_lists_of_the_generation_configuration(small: Checkpoint) -> None:
    words = Processor(small.tokenizer_json)
    found = load_checkpoint(transformers_model(small), tokenizer=words)
    assert found.suppress_tokens == small.suppress_tokens
    assert found.begin_suppress_tokens == small.begin_suppress_tokens
    bare = load_checkpoint(transformers_model(small, generation=False), tokenizer=words)
    assert (bare.alignment_heads, bare.suppress_tokens) == (None, None)
    assert load_checkpoint(openai_model(small, heads=False), tokenizer=words).heads


def test_the_base_class_and_a_subclass(small: Checkpoint) -> None:
    for model in (
        transformers_model(small, kind="WhisperModel", generation=False),
        transformers_model(small, subclass=True),
    ):
        found = load_checkpoint(model, tokenizer=Processor(small.tokenizer_json))
        assert found.tensors.keys() == small.tensors.keys()


def test_wrappers_of_torch(small: Checkpoint) -> None:
    inner = wrapped(openai_model(small), "OptimizedModule", "_orig_mod")
    model = wrapped(inner, "DistributedDataParallel", "module")
    assert load_checkpoint(model, tokenizer=Rust(small.tokenizer_json)).dims == small.dims


class TestOutputHead:
    def test_tied_weights_are_not_compared(self, small: Checkpoint) -> None:
        model = transformers_model(small)
        head = model.state_dict()["proj_out.weight"]
        assert (
            OUTPUT_HEAD not in load_checkpoint(model, tokenizer=Rust(small.tokenizer_json)).tensors
        )
        assert head.reads == 1  # for the digest

    def test_another_head(self, small: Checkpoint) -> None:
        model = transformers_model(small)
        values = small.tensors["decoder.token_embedding.weight"].read()
        model._state["proj_out.weight"] = FakeTensor(values + 1)
        found = load_checkpoint(model, tokenizer=Rust(small.tokenizer_json))
        np.testing.assert_array_equal(found.tensors[OUTPUT_HEAD].read(), values + 1)


class TestDigest:
    @staticmethod
    def digests(model: Any, text: str) -> dict[str, str]:
        return dict(load_checkpoint(model, tokenizer=Rust(text)).source.sha256)

    def test_depends_on_the_weights(self, small: Checkpoint) -> None:
        words = small.tokenizer_json
        first = self.digests(transformers_model(small), words)
        assert first == self.digests(transformers_model(small), words)
        assert first.keys() == {"weights", "configuration"}
        assert first["weights"] == self.digests(openai_model(small), words)["weights"]
        model = openai_model(small)
        model._state["decoder.ln.bias"]._values[-1] += 1e-3
        assert first["weights"] != self.digests(model, words)["weights"]

    def test_depends_on_the_configuration(self, small: Checkpoint) -> None:
        first = self.digests(transformers_model(small), small.tokenizer_json)
        bare = transformers_model(small, generation=False)
        second = self.digests(bare, small.tokenizer_json)
        assert first["weights"] == second["weights"]
        assert first["configuration"] != second["configuration"]


class TestTokenizer:
    def test_of_the_directory_it_was_loaded_from(self, small: Checkpoint, tmp_path: Path) -> None:
        folder = write_huggingface(small, tmp_path / "mine")
        found = load_checkpoint(transformers_model(small, origin=str(folder)))
        assert found.tokenizer_json == small.tokenizer_json
        assert found.source.name == "mine"

    def test_of_the_hub(
        self,
        small: Checkpoint,
        tmp_path: Path,
        loopback: LoopbackHub,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        folder = write_huggingface(small, tmp_path / "repository")
        loopback.add("someone/whisper", folder, commit="1" * 40)
        found = load_checkpoint(transformers_model(small, origin="someone/whisper"))
        assert found.source.name == "someone/whisper"
        assert loopback.asked("tokenizer.json")
        assert not loopback.asked("model.safetensors", "HEAD")
        monkeypatch.setitem(sys.modules, "huggingface_hub", None)
        with pytest.raises(BackendUnavailable, match=r"pass the model's tokenizer as tokenizer="):
            load_checkpoint(transformers_model(small, origin="someone/whisper"))

    @pytest.mark.parametrize("origin", ["", "/home/someone/gone"])
    def test_none(self, origin: str, small: Checkpoint) -> None:
        with pytest.raises(CheckpointError, match=r"no tokenizer.*WhisperProcessor"):
            load_checkpoint(transformers_model(small, origin=origin))

    def test_of_openai_whisper(
        self, tiktoken: Path, wide: Checkpoint, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        package = types.SimpleNamespace(submodule_search_locations=[str(tiktoken.parent)])
        monkeypatch.setattr("importlib.util.find_spec", lambda name: package)
        assets = tiktoken.parent / "assets"
        assets.mkdir(exist_ok=True)
        (assets / "multilingual.tiktoken").write_bytes(tiktoken.read_bytes())
        assert load_checkpoint(openai_model(wide)).multilingual

    def test_something_else(self, small: Checkpoint) -> None:
        with pytest.raises(CheckpointError, match="tokenizer= is a list"):
            load_checkpoint(openai_model(small), tokenizer=[1])


class TestRefused:
    def test_other_models(self, small: Checkpoint) -> None:
        with pytest.raises(CheckpointError, match=r"builtins\.dict is not a Whisper model"):
            load_checkpoint({})
        model = transformers_model(small, kind="WhisperForAudioClassification")
        with pytest.raises(CheckpointError, match="WhisperForAudioClassification is not a Whisper"):
            load_checkpoint(model)

    def test_adapters(self) -> None:
        kind = type("PeftModel", (), {"__module__": "peft.peft_model"})
        with pytest.raises(CheckpointError, match=r"PeftModel, whose adapter.*merge_and_unload"):
            load_checkpoint(kind())

    def test_arguments_of_other_sources(self, small: Checkpoint) -> None:
        words = Rust(small.tokenizer_json)
        with pytest.raises(OptionError, match="is no adapter"):
            load_checkpoint(openai_model(small), tokenizer=words, base="base")
        with pytest.raises(CheckpointError, match="revision 'main' was given with a Whisper in"):
            load_checkpoint(openai_model(small), tokenizer=words, revision="main")

    @pytest.mark.parametrize(
        ("tensor", "message"),
        [
            (FakeTensor(np.zeros(64), device="meta"), "not in memory.*without offloading"),
            (FakeTensor(np.zeros(64, np.int8), "int8"), "is int8.*without quantization"),
            (FakeTensor(np.zeros(63)), "has shape"),
        ],
    )
    def test_tensors(self, tensor: FakeTensor, message: str, small: Checkpoint) -> None:
        model = openai_model(small)
        model._state["decoder.ln.bias"] = tensor
        with pytest.raises(CheckpointError, match=message):
            load_checkpoint(model, tokenizer=Rust(small.tokenizer_json))


def test_nothing_is_kept_of_a_model(wide: Checkpoint) -> None:
    model = openai_model(wide, dtype="float16")
    words = Rust(wide.tokenizer_json)
    checkpoint = load_checkpoint(model, tokenizer=words)
    largest = 4 * 51865 * 64
    tracemalloc.start()
    try:
        for tensor in checkpoint.tensors.values():
            tensor.read()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert largest < peak < 1.9 * largest


def test_export_of_a_model(tmp_path: Path) -> None:
    checkpoint = random_checkpoint(random_dims(n_vocab=2000, n_audio_state=64, n_text_state=64))
    engine = export(
        openai_model(checkpoint), tmp_path / "engine", tokenizer=Rust(checkpoint.tokenizer_json)
    )
    assert engine.manifest.source["format"] == "openai"
    assert set(engine.manifest.source["sha256"]) == {"weights", "configuration"}


def test_torch_is_not_imported() -> None:
    assert not {"torch", "transformers"} & vars(in_memory).keys()
