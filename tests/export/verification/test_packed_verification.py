"""An export whose packed graphs differ from the plain ones fails and leaves no files."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Callable

import numpy as np
import pytest
from onnx import NodeProto, helper, numpy_helper

from tests.support.engines import sharp_checkpoint
from tests.support.exports import BUILDERS
from tests.support.models import random_dims
from whisper_opt.core.arrays import NDArray
from whisper_opt.core.errors import VerificationError
from whisper_opt.export import build, export
from whisper_opt.export.checkpoints import Checkpoint
from whisper_opt.export.graphs.builder import OnnxGraph

DIMS = random_dims(n_vocab=2000, n_audio_layer=1, n_text_layer=2)


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return sharp_checkpoint(DIMS)


def nodes(model: Any, kind: str) -> list[NodeProto]:
    """Nodes of an operator in the graph itself."""
    return [node for node in model.graph.node if node.op_type == kind]


def swap_inputs(node: NodeProto, one: int, other: int) -> None:
    node.input[one], node.input[other] = node.input[other], node.input[one]


def wrong_sign_of_steps(model: Any) -> None:
    """Negate all scales of keys and values."""
    producer = next(node for node in model.graph.node if "cross_steps" in node.output)
    producer.output[0] = "steps_before"
    model.graph.node.append(helper.make_node("Neg", ["steps_before"], ["cross_steps"]))


def swapped_steps(model: Any) -> None:
    """Swap the scales of keys and values."""
    stacked = next(
        node
        for node in nodes(model, "Concat")
        if len(node.input) == 2 * DIMS.n_text_layer and node.name.startswith("cross")
    )
    for layer in range(DIMS.n_text_layer):
        swap_inputs(stacked, 2 * layer, 2 * layer + 1)


def swapped_values(model: Any) -> None:
    """Swap the values of two layers."""
    one, other = nodes(model, "CrossAttention")
    one.input[2], other.input[2] = other.input[2], one.input[2]


def another_layer(model: Any) -> None:
    """Use the scales of another layer."""
    node = nodes(model, "CrossAttention")[0]
    (attribute,) = (each for each in node.attribute if each.name == "layer")
    attribute.i = 1


def another_layer_of_scores(model: Any) -> None:
    """Use the scales of another layer for alignment scores."""
    (node, *_) = nodes(model, "CrossScores")
    (attribute,) = (each for each in node.attribute if each.name == "layer")
    attribute.i = 1 - attribute.i


def other_heads(model: Any) -> None:
    (node, *_) = nodes(model, "CrossScores")
    for tensor in model.graph.initializer:
        if tensor.name == node.input[4]:
            reversed_heads: NDArray = numpy_helper.to_array(tensor)[::-1].copy()
            tensor.CopyFrom(numpy_helper.from_array(reversed_heads, tensor.name))
            return
    constant = next(each for each in model.graph.node if node.input[4] in each.output)
    value = constant.attribute[0]
    if value.HasField("t"):
        reversed_heads = numpy_helper.to_array(value.t)[::-1].copy()
        value.t.CopyFrom(numpy_helper.from_array(reversed_heads))
    else:
        value.ints[:] = list(value.ints)[::-1]


def unmasked_behind_the_end(model: Any) -> None:
    """Keys behind the end have the same weight as others."""
    (pad,) = (node for node in nodes(model, "Pad") if node.name.startswith("cross"))
    name = f"{pad.input[2]}_unmasked"
    model.graph.initializer.append(numpy_helper.from_array(np.array(0, np.float32), name))
    pad.input[2] = name


def counts_are_ignored(model: Any) -> None:
    """A key that represents many positions has the weight of one."""
    (pad,) = (node for node in nodes(model, "Pad") if node.name.startswith("cross"))
    at = list(model.graph.node).index(pad)
    found = "nothing_added"
    model.graph.node.insert(at, helper.make_node("Sub", [pad.input[0], pad.input[0]], [found]))
    pad.input[0] = found


FAULTS: dict[str, list[Callable[[Any], None]]] = {
    "encoder": [wrong_sign_of_steps, swapped_steps, unmasked_behind_the_end, counts_are_ignored],
    "decoder": [swapped_values, another_layer, another_layer_of_scores, other_heads],
}


@pytest.mark.parametrize(
    ("stem", "fault"),
    [(stem, fault) for stem, faults in FAULTS.items() for fault in faults],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_faults_are_found(
    stem: str,
    fault: Callable[[Any], None],
    checkpoint: Checkpoint,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def damaged(*arguments: Any, packed: bool = False, **named: Any) -> tuple[OnnxGraph, Any]:
        graph, cuts = BUILDERS[stem](*arguments, packed=packed, **named)
        if packed:
            fault(graph.model)
        return graph, cuts

    monkeypatch.setattr(build, f"build_{stem}", damaged)
    with pytest.raises(VerificationError, match="packed"):
        export(checkpoint, tmp_path / "engine", precision="int8")
    assert not list(tmp_path.iterdir())


def test_without_faults_it_is_an_engine(checkpoint: Checkpoint, tmp_path: Path) -> None:
    found = export(checkpoint, tmp_path / "engine", precision="int8").manifest.parity["packed"]
    assert set(found) == {"cross", "logits", "attention"}
    assert all(0 < error < 0.1 for error in found.values())
