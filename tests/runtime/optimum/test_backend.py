"""Graphs that Optimum exported, compared with an engine of the same weights; refusals."""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from tests.support.engines import random_engine
from tests.support.optimum_dirs import DATA, DIMS, MERGED, SPLIT, write_optimum
from whisper_opt import Transcript, Whisper
from whisper_opt.core.arrays import F32, Int, NDArray
from whisper_opt.core.backend import Backend
from whisper_opt.core.errors import EngineError, OptionError, WhisperOptError
from whisper_opt.core.options import LoadOptions
from whisper_opt.runtime.devices import Machine, check_device, open_backend
from whisper_opt.runtime.engine import read_engine
from whisper_opt.runtime.onnxruntime.backend import OrtBackend
from whisper_opt.runtime.optimum import session as session_module
from whisper_opt.runtime.optimum.backend import OptimumBackend
from whisper_opt.runtime.optimum.directory import read_optimum
from whisper_opt.runtime.optimum.graphs import First

TOLERANCE = 1e-4


def windows(n: int) -> F32:
    drawn = np.random.default_rng(n).standard_normal((n, DIMS.n_mels, 3000), np.float32)
    scaled: F32 = drawn * np.float32(0.5)
    return scaled


def draw(*shape: int) -> Int:
    return np.random.default_rng(7).integers(0, DIMS.n_vocab, shape)


def scores_of(backend: Backend) -> F32:
    """Scores after a prompt of four tokens and after each of two more, for two windows."""
    session = backend.open(backend.encode(windows(2)))
    tokens = draw(2, 6)
    at = np.tile(np.arange(3), (2, 1))
    found = [session.extend(tokens[:, :4], at=at).numpy().copy()]
    found += [session.extend(tokens[:, i : i + 1]).numpy().copy() for i in (4, 5)]
    return np.concatenate(found, axis=1)


@pytest.fixture(scope="module")
def engine_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_engine(tmp_path_factory.mktemp("engine") / "e", DIMS).path


@pytest.fixture(scope="module")
def engine(engine_dir: Path) -> OrtBackend:
    return OrtBackend(read_engine(engine_dir), threads=1)


@pytest.fixture(scope="module")
def expected(engine: OrtBackend) -> F32:
    return scores_of(engine)


@pytest.fixture(scope="module")
def merged_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("merged")
    write_optimum(folder, MERGED)
    return folder


@pytest.fixture(scope="module")
def merged(merged_dir: Path) -> OptimumBackend:
    return OptimumBackend(read_optimum(merged_dir), threads=1)


@pytest.fixture(scope="module")
def attentive(tmp_path_factory: pytest.TempPathFactory) -> OptimumBackend:
    folder = tmp_path_factory.mktemp("attentive")
    write_optimum(folder, SPLIT, attention=True, subfolder="onnx", external=True)
    return OptimumBackend(read_optimum(folder), threads=1)


def test_merged_graphs_have_the_scores_of_an_engine(merged: OptimumBackend, expected: F32) -> None:
    np.testing.assert_allclose(scores_of(merged), expected, rtol=0, atol=TOLERANCE)


def test_split_graphs_with_attention_and_data_files(
    attentive: OptimumBackend, expected: F32
) -> None:
    np.testing.assert_allclose(scores_of(attentive), expected, rtol=0, atol=TOLERANCE)


def test_plain_split_graphs(tmp_path: Path, expected: F32) -> None:
    write_optimum(tmp_path, SPLIT)
    backend = OptimumBackend(read_optimum(tmp_path), threads=1)
    np.testing.assert_allclose(scores_of(backend), expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(("precision", "tolerance"), [("fp16", 0.02), ("int8", 0.3)])
@pytest.mark.parametrize("decoders", [MERGED, SPLIT], ids=["merged", "split"])
def test_other_precisions_have_nearly_these_scores(
    tmp_path: Path, expected: F32, precision: str, tolerance: float, decoders: tuple[str, ...]
) -> None:
    """Measured: fp16 (also as input and output) 0.004, int8 0.08 of the scores' own deviation."""
    write_optimum(tmp_path, decoders, precision=precision)
    backend = OptimumBackend(read_optimum(tmp_path), precision, threads=1)
    assert backend.precision == precision
    error = scores_of(backend) - expected
    assert 0 < np.sqrt(np.mean(error**2)) / expected.std() < tolerance


def softmax(scores: F32) -> F32:
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    found: F32 = weights / weights.sum(axis=-1, keepdims=True)
    return found


def test_attention_is_that_of_an_engine(attentive: OptimumBackend, engine: OrtBackend) -> None:
    tokens, lengths = draw(2, 5), np.array([5, 3])
    found = attentive.attention(attentive.encode(windows(2)), tokens, lengths)
    wanted = engine.attention(engine.encode(windows(2)), tokens, lengths)
    assert found.scores.shape == wanted.scores.shape == (2, 2, 5, DIMS.n_audio_ctx)
    for audio, n in enumerate(lengths):
        weights = softmax(wanted.scores[audio, :, :n])
        assert weights.max() > 10 / DIMS.n_audio_ctx  # not the same everywhere
        np.testing.assert_allclose(
            softmax(found.scores[audio, :, :n]), weights, rtol=0, atol=TOLERANCE
        )
        np.testing.assert_allclose(
            found.logits[audio, :n], wanted.logits[audio, :n], rtol=0, atol=TOLERANCE
        )


@pytest.mark.parametrize(
    ("decoders", "name"), [(MERGED, "decoder_model_merged"), (SPLIT, "decoder_with_past_model")]
)
def test_inputs_that_some_versions_add(
    tmp_path: Path, expected: F32, decoders: tuple[str, ...], name: str
) -> None:
    """Positions as an input, and hidden states in the graph with a past, which ignores them."""
    write_optimum(tmp_path, decoders)
    path = tmp_path / f"{name}.onnx"
    model = onnx.load(path)
    positions = helper.make_tensor_value_info("cache_position", TensorProto.INT64, ["m"])
    model.graph.input.append(positions)
    if decoders == SPLIT:
        shape: list[Any] = ["n", DIMS.n_audio_ctx, DIMS.n_audio_state]
        hidden = helper.make_tensor_value_info("encoder_hidden_states", TensorProto.FLOAT, shape)
        model.graph.input.append(hidden)
    onnx.save(model, path)
    backend = OptimumBackend(read_optimum(tmp_path), threads=1)
    np.testing.assert_allclose(scores_of(backend), expected, rtol=0, atol=TOLERANCE)


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
def test_files_may_be_links_into_a_cache(tmp_path: Path) -> None:
    """As in the cache of huggingface_hub: links to files that are named by their hash."""
    write_optimum(tmp_path / "all", external=True, subfolder="onnx")
    (tmp_path / "blobs").mkdir()
    for i, file in enumerate(sorted((tmp_path / "all").rglob("*.*"))):
        link = tmp_path / "snapshot" / file.relative_to(tmp_path / "all")
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(file.rename(tmp_path / "blobs" / str(i)))
    backend = OptimumBackend(read_optimum(tmp_path / "snapshot"), threads=1)
    assert len(backend.encode(windows(1))) == 1


def test_long_prompts_run_in_parts(
    merged: OptimumBackend, monkeypatch: pytest.MonkeyPatch, expected: F32
) -> None:
    """The scores of all tokens of a prompt are returned: few rows at a time bound the memory."""
    monkeypatch.setattr(session_module, "MAX_LOGITS", 4 * 4 * DIMS.n_vocab)  # one row
    sizes: list[int] = []
    first = merged._decoder.first

    def counted(tokens: Int, hidden: NDArray) -> First:
        sizes.append(len(tokens))
        return first(tokens, hidden)

    monkeypatch.setattr(merged._decoder, "first", counted)
    np.testing.assert_allclose(scores_of(merged), expected, rtol=0, atol=TOLERANCE)
    assert sizes == [1, 1]


def test_cross_attention_is_copied_only_for_rows_that_move(merged: OptimumBackend) -> None:
    """A row that leaves is replaced by the last one; the others stay where they are."""
    session = merged.open(merged.encode(windows(4)))
    session.extend(draw(4, 2))
    (group,) = session._groups
    before = [array[1].ctypes.data for array in group.cross.arrays]
    session.gather(np.array([1, 2, 3]))
    assert group.rows.tolist() == [2, 0, 1]
    assert [array[1].ctypes.data for array in group.cross.arrays] == before


# --- whole transcripts --------------------------------------------------------------------------


def noise(seed: int, seconds: float) -> F32:
    n = int(16_000 * seconds)
    drawn: F32 = np.random.default_rng(seed).standard_normal(n).astype(np.float32) * 0.1
    return drawn


LIMITS: dict[str, Any] = {"max_new_tokens": 12, "language": "en", "no_speech_threshold": None}


@pytest.fixture(scope="module")
def models(engine_dir: Path, merged_dir: Path) -> Iterator[tuple[Whisper, Whisper]]:
    found = (Whisper.load(engine_dir, threads=1, device="cpu"), Whisper.load(merged_dir, threads=1))
    yield found
    for model in found:
        model.close()


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0.0},
        {"temperature": 0.0, "beam_size": 3},
        {"temperature": 0.5, "best_of": 3, "seed": 3},
        {"temperature": (0.0, 0.4), "logprob_threshold": -3.8},
        {"temperature": 0.0, "initial_prompt": "ab", "without_timestamps": True},
    ],
    ids=str,
)
def test_transcripts_are_those_of_an_engine(
    models: tuple[Whisper, Whisper], options: dict[str, Any]
) -> None:
    """Recordings of two lengths at once: windows join and leave the batch."""
    audios = [noise(1, 41), noise(2, 3), noise(3, 33)]
    tokens: list[list[list[tuple[int, ...]]]] = [[[], [], []], [[], [], []]]
    for found, model in zip(tokens, models):
        for i, transcript in model.transcribe_many(audios, batch_size=2, **LIMITS, **options):
            assert isinstance(transcript, Transcript)
            found[i] = [tuple(segment.tokens) for segment in transcript]
    assert tokens[0] == tokens[1]
    assert any(tokens[0])


def test_word_times_without_attention_are_refused_at_once(
    models: tuple[Whisper, Whisper], merged: OptimumBackend
) -> None:
    with pytest.raises(OptionError, match="word_timestamps is on, but word times need the cross-"):
        models[1].transcribe(noise(1, 1), word_timestamps=True)
    with pytest.raises(EngineError, match=r"do not return; export the checkpoint with whisper-opt"):
        merged.attention(merged.encode(windows(1)), draw(1, 2), np.array([2]))


# --- options ------------------------------------------------------------------------------------


def test_a_notice_says_what_an_engine_would_bring(
    merged_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        opened = open_backend(read_engine(merged_dir), LoadOptions(threads=1))
    assert opened.device == "cpu"
    (record,) = caplog.records
    assert "graphs of Optimum in fp32; an int8 engine of the same checkpoint is" in record.message
    assert "about 5 times as fast" in record.message
    assert "whisper-opt export CHECKPOINT DIR --precision int8" in record.message


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"kernels": "native"}, "kernels is 'native', but .* exported by Optimum"),
        ({"encoder_precision": "auto"}, "encoder_precision is 'auto', but .* by Optimum"),
        ({"padding": "whole"}, "padding is 'whole', but this fp32 engine never"),
        ({"precision": "int8"}, "precision is 'int8', but .* has graphs in fp32 only"),
    ],
)
def test_options_that_do_not_apply(merged_dir: Path, options: Any, reason: str) -> None:
    with pytest.raises(OptionError, match=reason):
        Whisper.load(merged_dir, **options)


def test_engines_have_one_precision(engine_dir: Path) -> None:
    with pytest.raises(OptionError, match=r"precision is 'int8', but this engine is fp32"):
        Whisper.load(engine_dir, precision="int8")


@pytest.mark.parametrize("device", ["cuda", "tensorrt"])
def test_gpus_are_refused(merged_dir: Path, device: str) -> None:
    refused = check_device(device, Machine(), manifest=read_engine(merged_dir).manifest)
    assert isinstance(refused, EngineError)
    assert "models that Optimum exported run on the CPU only" in str(refused)
    assert "whisper-opt export CHECKPOINT DIR --precision fp16" in str(refused)


# --- graphs that are not as expected ------------------------------------------------------------


def replaced(source: Path, folder: Path, name: str, content: bytes) -> None:
    """The directory ``source`` with another file of this name."""
    for file in source.iterdir():
        if file.name != name:
            (folder / file.name).write_bytes(file.read_bytes())
    (folder / name).write_bytes(content)


def refusal(folder: Path) -> str:
    with pytest.raises(EngineError) as caught:
        OptimumBackend(read_optimum(folder), threads=1)
    said = str(caught.value)
    assert "whisper-opt export" in said
    return said


def graph_of(inputs: dict[str, tuple[int, Any]], outputs: dict[str, list[Any]]) -> bytes:
    """A loadable graph with these inputs, whose outputs are constants."""
    nodes, values = [], []
    for name, shape in outputs.items():
        sizes = [size if isinstance(size, int) else 1 for size in shape]
        constant = helper.make_tensor(name, TensorProto.FLOAT, sizes, np.zeros(sizes).ravel())
        nodes.append(helper.make_node("Constant", [], [name], value=constant))
        values.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
    given = [helper.make_tensor_value_info(n, kind, shape) for n, (kind, shape) in inputs.items()]
    graph = helper.make_graph(nodes, "g", given, values)
    opset = [helper.make_opsetid("", 17)]
    content: bytes = helper.make_model(graph, opset_imports=opset, ir_version=8).SerializeToString()
    return content


MEL = {"input_features": (TensorProto.FLOAT, ["n", DIMS.n_mels, 3000])}
HIDDEN = {"last_hidden_state": ["n", DIMS.n_audio_ctx, DIMS.n_audio_state]}


@pytest.mark.parametrize(
    ("inputs", "outputs", "reason"),
    [
        ({}, HIDDEN, "has no 'input_features'"),
        ({**MEL, "mask": (TensorProto.FLOAT, ["n"])}, HIDDEN, "has the input 'mask'"),
        (
            {"input_features": (TensorProto.FLOAT, ["n", 128, 3000])},
            HIDDEN,
            r"has shape \['any', 128, 3000\]; config.json says \['any', 80, 3000\]",
        ),
        ({"input_features": (TensorProto.FLOAT, ["n", 80])}, HIDDEN, "has shape"),
        ({"input_features": (TensorProto.DOUBLE, ["n", 80, 3000])}, HIDDEN, "tensor.double"),
        ({"input_features": (TensorProto.INT64, ["n", 80, 3000])}, HIDDEN, "is a tensor.int64"),
        (MEL, {"hidden": ["n", 1500, 128]}, "has no output 'last_hidden_state'"),
        (MEL, {"last_hidden_state": ["n", 1500, 64]}, "has shape"),
    ],
)
def test_encoders_of_other_models(
    merged_dir: Path, tmp_path: Path, inputs: Any, outputs: Any, reason: str
) -> None:
    replaced(merged_dir, tmp_path, "encoder_model.onnx", graph_of(inputs, outputs))
    assert re.search(reason, refusal(tmp_path))


@pytest.mark.parametrize(
    ("name", "values"),
    [("logits", {"vocab_size": 2008}), ("past_key_values", {"decoder_layers": 3})],
)
def test_decoders_of_other_models(
    merged_dir: Path, tmp_path: Path, name: str, values: dict[str, int]
) -> None:
    config = json.loads((merged_dir / "config.json").read_text())
    replaced(merged_dir, tmp_path, "config.json", json.dumps({**config, **values}).encode())
    assert name in refusal(tmp_path)


def test_decoders_without_cache(merged_dir: Path, tmp_path: Path) -> None:
    """Exported for another task: no keys and values go out of the first graph."""
    inputs: dict[str, tuple[int, Any]] = {
        "input_ids": (TensorProto.INT64, ["n", "m"]),
        "encoder_hidden_states": (TensorProto.FLOAT, ["n", 1500, DIMS.n_audio_state]),
    }
    content = graph_of(inputs, {"logits": ["n", "m", DIMS.n_vocab]})
    replaced(merged_dir, tmp_path, "decoder_model_merged.onnx", content)
    assert "as Optimum exports Whisper with a cache of keys and values" in refusal(tmp_path)


@pytest.mark.parametrize("name", ["encoder_model.onnx", "decoder_model_merged.onnx"])
def test_damaged_graphs(merged_dir: Path, tmp_path: Path, name: str) -> None:
    content = (merged_dir / name).read_bytes()
    replaced(merged_dir, tmp_path, name, content[: len(content) // 2])
    with pytest.raises(WhisperOptError, match="download it again"):
        OptimumBackend(read_optimum(tmp_path), threads=1)


def test_graphs_that_return_other_shapes(
    merged: OptimumBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Axes may be variable in the file, so shapes are checked again after each run."""
    encoded = merged.encode(windows(1))
    session = merged.open(encoded)
    session.extend(draw(1, 2))
    zeros = np.zeros((1, 1, 1), np.float32)
    monkeypatch.setattr(merged._encoder._graph, "run", lambda names, feeds: [zeros])
    monkeypatch.setattr(merged._decoder._first, "run", lambda names, feeds: [zeros] * len(names))
    with pytest.raises(EngineError, match=r"returned shape \[1, 1, 1\]"):
        merged.encode(windows(1))
    for fed in (merged.open(encoded), session):
        with pytest.raises(EngineError, match=r"returned logits of shape \[1, 1, 1\]"):
            fed.extend(draw(1, 1))


def test_errors_of_the_runtime_are_engine_errors(merged: OptimumBackend) -> None:
    with pytest.raises(EngineError, match="ONNX Runtime failed"):
        merged.open(merged.encode(windows(1))).extend(np.array([[DIMS.n_vocab]]))


def test_the_stored_graphs_are_small() -> None:
    """They have no weights: those follow from a seed."""
    files = list(DATA.glob("*.gz"))
    assert len(files) == 7
    assert sum(file.stat().st_size for file in files) < 100_000
