"""Models larger than memory: weights are streamed, and a graph is run in partitions."""

from __future__ import annotations

import dataclasses
import os
import sys
import weakref
from pathlib import Path
from typing import Any, Callable

import numpy as np
import onnx
import pytest

from tests.support.engines import DIALECTS, require
from tests.support.exports import BUILDERS, SMALL, change_weight
from tests.support.models import random_checkpoint, random_dims
from tests.support.pages import resident
from whisper_opt.core.arrays import F32, NDArray
from whisper_opt.core.dims import HEAD_DIM
from whisper_opt.core.errors import VerificationError
from whisper_opt.export import export
from whisper_opt.export.checkpoints import Checkpoint
from whisper_opt.export.checkpoints.checkpoint import EMBEDDING
from whisper_opt.export.graphs.builder import OnnxGraph, Weight
from whisper_opt.export.graphs.dialects import make_dialect
from whisper_opt.export.graphs.graph import build_decoder, build_encoder
from whisper_opt.export.graphs.precision import FP16, FP32, Precision
from whisper_opt.export.verification import partitioned as module
from whisper_opt.export.verification.partitioned import PartitionedGraph
from whisper_opt.export.verification.reference import Reference
from whisper_opt.export.writer import write_graph
from whisper_opt.runtime.engine import ENGINE_FILES, MANIFEST
from whisper_opt.runtime.head_names import APPROXIMATE, EXACT, SCOPE

# --- weights are streamed -------------------------------------------------------------------------


def counted(name: str, read: Callable[[], F32], events: list[str]) -> Callable[[], F32]:
    def read_counted() -> F32:
        events.append(name)
        return read()

    return read_counted


@pytest.mark.parametrize("dialect", DIALECTS)
def test_every_tensor_is_read_once_and_written_before_the_next(
    place: Path, small: Checkpoint, dialect: str
) -> None:
    events: list[str] = []
    tensors = {
        name: dataclasses.replace(tensor, read=counted(name, tensor.read, events))
        for name, tensor in small.tensors.items()
    }
    n_weights = 0
    for stem, make in BUILDERS.items():
        graph, _ = make(SMALL, tensors, make_dialect(dialect))
        n_weights += len(graph.stored)
        write_graph(graph, place, stem, lambda n: events.append(f"{n} bytes written"))
    reads = [event for event in events if not event.endswith("written")]
    twice = ["decoder.ln.bias", "decoder.ln.weight", EMBEDDING] if dialect == "contrib" else []
    assert sorted(reads) == sorted([*small.tensors, *twice])  # once more for the 8-bit head
    assert len(events) - len(reads) == n_weights
    in_a_row = 0
    for event in events:
        in_a_row = 0 if event.endswith("written") else in_a_row + 1
        assert in_a_row <= 3, event  # query, key and value are one weight of the file


def test_weights_are_dropped_when_written(place: Path, small: Checkpoint) -> None:
    alive: list[weakref.ref[F32]] = []

    def held(weight: Weight) -> Weight:
        def read() -> F32:
            assert sum(ref() is not None for ref in alive) <= 1, weight.name
            values = weight.read()
            alive.append(weakref.ref(values))
            return values

        return dataclasses.replace(weight, read=read)

    graph, _ = build_decoder(SMALL, small.tensors, make_dialect("contrib"))
    # the parts of the 8-bit head are made together
    weights = [weight for weight in graph.weights if not weight.name.startswith(f"{SCOPE}.")]
    spied = OnnxGraph(graph.model, tuple(held(weight) for weight in weights))
    write_graph(spied, place, "decoder", lambda _: None)
    assert len(alive) == len(weights)
    assert all(ref() is None for ref in alive)


def test_building_a_graph_reads_nothing(small: Checkpoint) -> None:
    def refuse() -> F32:
        raise AssertionError("a weight was read")

    tensors = {
        name: dataclasses.replace(tensor, read=refuse) for name, tensor in small.tensors.items()
    }
    for make in BUILDERS.values():
        for dialect in DIALECTS:
            graph, _ = make(SMALL, tensors, make_dialect(dialect))
            assert graph.weights


# --- a graph in partitions ------------------------------------------------------------------------

DEEP = random_dims(n_vocab=2000, n_audio_state=64, n_text_state=64, n_audio_layer=8, n_text_layer=8)
_BLOCK = 4 * 12 * 64 * 64  # bytes of the matrices of one encoder layer


def feeds_of(stem: str, dialect: str, types: Precision) -> dict[str, NDArray]:
    rng = np.random.default_rng(5)

    def normal(*shape: int) -> NDArray:
        return rng.standard_normal(shape, np.float32).astype(types.compute)

    if stem == "encoder":
        return {"mel": normal(2, DEEP.n_mels, 120).astype(np.float32)}
    feeds: dict[str, NDArray] = {
        "tokens": rng.integers(0, DEEP.n_vocab, (4, 1)).astype(np.int64),
        "start": np.array([5, 0, 17, 63], np.int64),
        "at": np.zeros((4, 1), np.int64),
        "aligned": np.zeros(0, np.int64),
    }
    if dialect == "contrib":
        feeds.update({name: np.zeros(1, np.int64) for name in (EXACT, APPROXIMATE)})
    for i in range(DEEP.n_text_layer):
        for kind in "kv":
            feeds[f"self_{kind}_{i}"] = normal(4, DEEP.n_text_head, 64, HEAD_DIM)
        feeds[f"cross_k_{i}"] = normal(2, DEEP.n_text_head, HEAD_DIM, 60)
        feeds[f"cross_v_{i}"] = normal(2, DEEP.n_text_head, 60, HEAD_DIM)
    return feeds


@pytest.mark.parametrize(
    ("partition_bytes", "n_encoder", "n_decoder"), [(1 << 10, 9, 9), (int(2.6 * _BLOCK), 5, 5)]
)
@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("types", [FP32, FP16], ids=["fp32", "fp16"])
def test_partitions_compute_the_same_as_the_whole(
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    types: Precision,
    dialect: str,
    partition_bytes: int,
    n_encoder: int,
    n_decoder: int,
) -> None:
    require(dialect)
    checkpoint = random_checkpoint(DEEP)
    block = _BLOCK * types.compute.itemsize // 4
    partition_bytes = partition_bytes * types.compute.itemsize // 4
    for stem, n_partitions in (("encoder", n_encoder), ("decoder", n_decoder)):
        graph, cuts = BUILDERS[stem](DEEP, checkpoint.tensors, make_dialect(dialect), types=types)
        write_graph(graph, place, stem, lambda _: None)
        whole = PartitionedGraph(graph, cuts, place, stem)
        assert len(whole) == 1
        with monkeypatch.context() as patch:
            patch.setattr(module, "PARTITION_BYTES", partition_bytes)
            cut = PartitionedGraph(graph, cuts, place, stem)
        assert len(cut) == n_partitions
        feeds = feeds_of(stem, dialect, types)
        expected, found = whole.run(feeds), cut.run(feeds)
        assert list(found) == list(expected) == [value.name for value in graph.model.graph.output]
        for name, values in expected.items():
            atol = 1e-4 if types is FP32 else 2e-2
            np.testing.assert_allclose(found[name], values, rtol=0, atol=atol, err_msg=name)
        again = cut.run(feeds)
        for name, values in found.items():
            np.testing.assert_array_equal(again[name], values)
        _every_node_runs(graph, cut)
        heaviest = max(_weight_bytes(graph, partition) for partition in cut._partitions)
        head = 5 * DEEP.n_vocab * (DEEP.n_text_state + 1)  # in fp32 and in 8 bits
        assert heaviest <= max(partition_bytes, 2 * block) + head
    assert not list(place.glob("*.partition.onnx"))


@pytest.mark.skipif(sys.platform != "linux", reason="not tested: Linux only")
def test_pages_of_weights_are_in_memory_as_long_as_needed(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the runs of a whole graph, but not after those of a partition."""
    tensors = random_checkpoint(DEEP).tensors
    graph, cuts = BUILDERS["decoder"](DEEP, tensors, make_dialect("contrib"))
    write_graph(graph, place, "decoder", lambda _: None)
    feeds, file = feeds_of("decoder", "contrib", FP32), place / "decoder.data"
    whole = PartitionedGraph(graph, cuts, place, "decoder")
    whole.run(feeds)
    assert resident(file) > 0
    whole.close()
    assert resident(file) == 0
    monkeypatch.setattr(module, "PARTITION_BYTES", 1 << 10)
    PartitionedGraph(graph, cuts, place, "decoder").run(feeds)
    assert resident(file) == 0


def _weight_bytes(graph: OnnxGraph, partition: onnx.ModelProto) -> int:
    used = {tensor.name for tensor in partition.graph.initializer}
    return sum(weight.nbytes for weight in graph.weights if weight.name in used)


def _every_node_runs(graph: OnnxGraph, cut: PartitionedGraph) -> None:
    inside = [{node.name for node in partition.graph.node} for partition in cut._partitions]
    assert set.union(*inside) == {node.name for node in graph.model.graph.node}
    weights = {weight.name for weight in graph.weights}
    places: dict[str, int] = {}
    for partition in cut._partitions:
        for tensor in partition.graph.initializer:
            if tensor.name in weights:
                places[tensor.name] = places.get(tensor.name, 0) + 1
    assert set(places) == weights
    twice = {name for name, count in places.items() if count > 1}
    assert twice <= {"decoder.token_embedding.weight"}  # the first and the last partition


@pytest.mark.parametrize("dialect", DIALECTS)
def test_an_export_is_verified_in_partitions(
    place: Path, monkeypatch: pytest.MonkeyPatch, dialect: str
) -> None:
    require(dialect)
    checkpoint = random_checkpoint(DEEP)
    whole = export(checkpoint, place / "whole", dialect=dialect)
    counts: list[int] = []
    plan = PartitionedGraph._plan

    def counted(self: PartitionedGraph, *arguments: Any) -> Any:
        planned = plan(self, *arguments)
        counts.append(len(planned))
        return planned

    monkeypatch.setattr(PartitionedGraph, "_plan", counted)
    monkeypatch.setattr(module, "PARTITION_BYTES", 1 << 10)
    cut = export(checkpoint, place / "cut", dialect=dialect)
    assert counts == [9, 9]  # a layer each, and what stands before the first
    assert cut.manifest.files == whole.manifest.files
    names = {path.name for path in cut.path.iterdir()}
    assert names == {*whole.manifest.files, MANIFEST} >= {*ENGINE_FILES}  # no partition is left
    scale = whole.manifest.parity["attention_scale"]
    assert cut.manifest.parity["attention_scale"] == pytest.approx(scale)
    prompt = cut.manifest.parity["decoded"]  # and no greedy tokens, which take a call each
    assert whole.manifest.parity["decoded"].startswith(prompt)
    change_weight(monkeypatch, "decoder.blocks.5.mlp.2.weight", np.negative)
    with pytest.raises(VerificationError):
        export(checkpoint, place / "damaged", dialect=dialect)
    assert sorted(os.listdir(place)) == ["cut", "whole"]


def test_a_piece_that_cannot_run_is_a_failed_verification(place: Path, small: Checkpoint) -> None:
    graph, cuts = build_encoder(SMALL, small.tensors, make_dialect("contrib"))
    write_graph(graph, place, "encoder", lambda _: None)
    (place / "encoder.data").write_bytes(b"")
    with pytest.raises(VerificationError, match="cannot run the exported encoder"):
        PartitionedGraph(graph, cuts, place, "encoder").run(
            {"mel": np.zeros((1, 80, 100), np.float32)}
        )


def test_a_wrong_reference_would_be_noticed(
    place: Path, small: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The graph is not compared with itself."""
    encode = Reference.encode
    monkeypatch.setattr(Reference, "encode", lambda self, mel: encode(self, mel) * np.float32(1.01))
    with pytest.raises(VerificationError):
        export(small, place / "engine")
    assert os.listdir(place) == []
