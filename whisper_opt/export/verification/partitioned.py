"""Runs a graph in partitions, so that a model larger than memory can be verified.

A partition is the part of the graph between two values of the residual stream. The partitions run
one after another and together execute every node, on the same data file. A small model is one
partition: the graph itself.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from onnx import ModelProto, NodeProto, TensorProto, helper

from whisper_opt.core.arrays import NDArray
from whisper_opt.core.errors import BackendUnavailable, VerificationError
from whisper_opt.core.remedies import install_hint
from whisper_opt.export.graphs.builder import OnnxGraph
from whisper_opt.runtime.onnxruntime.graph import sums_overflow
from whisper_opt.runtime.onnxruntime.mapped import release_freed

__all__ = ["PARTITION_BYTES", "PartitionedGraph", "extract", "require_onnxruntime"]

PARTITION_BYTES = 256 << 20
"""Weights loaded at once."""


def extract(model: ModelProto, inputs: Sequence[str], outputs: Sequence[str]) -> ModelProto:
    """The part of ``model`` that computes ``outputs`` from ``inputs``.

    Further graph inputs are added if the part needs them. Weights stay in the same data file.
    """
    producers = {name: node for node in model.graph.node for name in node.output}
    known, needed = set(inputs), _needed(producers, inputs, outputs)
    nodes = [node for node in model.graph.node if node.name in needed]
    used = {name for node in nodes for name in _inputs(node)}
    infos = {info.name: info for info in (*model.graph.input, *model.graph.output)}

    def info(name: str) -> Any:
        return infos.get(name) or helper.make_tensor_value_info(name, TensorProto.FLOAT, None)

    graph = helper.make_graph(
        nodes,
        model.graph.name,
        [info(name) for name in inputs if name in used]
        + [value for value in model.graph.input if value.name in used and value.name not in known],
        [info(name) for name in outputs],
        [tensor for tensor in model.graph.initializer if tensor.name in used],
    )
    return helper.make_model(
        graph,
        opset_imports=model.opset_import,
        functions=model.functions,
        ir_version=model.ir_version,
    )


def _needed(
    producers: Mapping[str, NodeProto], known: Iterable[str], outputs: Iterable[str]
) -> set[str]:
    """Names of the nodes that compute ``outputs`` from the values ``known``."""
    given, needed, wanted = set(known), set(), list(outputs)
    while wanted:
        name = wanted.pop()
        node = producers.get(name)
        if name in given or node is None or node.name in needed:
            continue
        needed.add(node.name)
        wanted.extend(_inputs(node))
    return needed


def _inputs(node: NodeProto) -> list[str]:
    """Inputs of a node, including those of the branches of an ``If``."""
    inner = (one for attribute in node.attribute for one in attribute.g.node)
    return [*node.input, *(name for one in inner for name in one.input)]


def require_onnxruntime(dialect: str = "contrib") -> Any:
    """The ``onnxruntime`` module.

    Raises:
        BackendUnavailable: ONNX Runtime is not installed, or cannot run ``dialect``.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise BackendUnavailable(
            "verifying an export runs the new engine with ONNX Runtime, which is not"
            f" installed; {install_hint('cpu')}"
        ) from error
    release = tuple(int(part) for part in re.findall(r"\d+", onnxruntime.__version__)[:2])
    if dialect == "standard" and release < (1, 24):
        raise BackendUnavailable(
            f"ONNX Runtime {onnxruntime.__version__} cannot verify the standard dialect (opset 24);"
            " it needs 1.24 or later; or export with --dialect contrib"
        )
    return onnxruntime


class PartitionedGraph:
    """One exported graph, run in partitions with ONNX Runtime on the CPU.

    Weights stay in the mapped file: they are not packed for products, and constant expressions
    (:mod:`whisper_opt.export.graphs.packed_weights`) are evaluated in every run. Evaluated at
    loading, they took four times the memory of the weights.
    """

    def __init__(
        self,
        graph: OnnxGraph,
        cuts: Sequence[str],
        folder: Path,
        stem: str,
        *,
        whole: int = 4,
    ) -> None:
        """Plan the partitions.

        Args:
            graph: the graph as written to ``folder/stem.onnx``, with locations of weights.
            cuts: values of the residual stream at which the graph may be cut, in order.
            folder: folder of the graph and its data file. Partitions are temporary files in it.
            stem: file name without suffix.
            whole: a graph with weights of up to this many times :data:`PARTITION_BYTES` is one
                partition, which stays loaded between runs.
        """
        self._whole = whole
        self._runtime = require_onnxruntime()
        self._folder = folder
        self._stem = stem
        self.inputs = [value.name for value in graph.model.graph.input]
        self._outputs = [value.name for value in graph.model.graph.output]
        self._partitions = self._plan(graph, cuts)
        self._single: Any = None

    def _plan(self, graph: OnnxGraph, cuts: Sequence[str]) -> list[ModelProto]:
        sizes = {weight.name: weight.nbytes for weight in graph.weights}
        if sum(sizes.values()) <= self._whole * PARTITION_BYTES:
            return [graph.model]
        partitions: list[ModelProto] = []
        known: list[str] = []
        left = list(self._outputs)
        producers = {name: node for node in graph.model.graph.node for name in node.output}
        for cut, following in zip(cuts, cuts[1:]):
            if _weight_bytes(extract(graph.model, known, [following]), sizes) <= PARTITION_BYTES:
                continue  # the next layer still fits into this partition
            if [cut] == known:
                continue
            partition = extract(graph.model, known, [cut])
            inside = {name for node in partition.graph.node for name in node.output}
            # an output belongs to this partition if it does not depend on ``cut``
            given = {*known, *inside} - {cut}
            last = producers[cut].name
            here = [name for name in left if last not in _needed(producers, given, [name])]
            partitions.append(extract(graph.model, known, [*here, cut]))
            left = [name for name in left if name not in here]
            known = [cut]
        partitions.append(extract(graph.model, known, left))
        return partitions

    def __len__(self) -> int:
        """Number of partitions."""
        return len(self._partitions)

    def close(self) -> None:
        """Free the weights that ONNX Runtime holds; :meth:`run` loads them again."""
        self._single = None
        release_freed()

    def run(self, feeds: Mapping[str, NDArray]) -> dict[str, NDArray]:
        """All graph outputs for ``feeds`` (all graph inputs by name).

        Raises:
            VerificationError: ONNX Runtime cannot load or run a partition.
        """
        values = dict(feeds)
        results: dict[str, NDArray] = {}
        for partition in self._partitions:
            names = [value.name for value in partition.graph.output]
            needed = {value.name: values[value.name] for value in partition.graph.input}
            outputs = dict(zip(names, self._run_partition(partition, names, needed)))
            if len(self._partitions) > 1:  # the session is closed, and its file mapped no more
                release_freed()
            values.update(outputs)
            results.update(outputs)
        return {name: results[name] for name in self._outputs}

    def _run_partition(
        self, partition: ModelProto, names: list[str], feeds: Mapping[str, NDArray]
    ) -> list[NDArray]:
        try:
            outputs: list[NDArray] = self._session(partition).run(names, dict(feeds))
        except Exception as error:  # the runtime's errors share no base class
            raise VerificationError(
                f"ONNX Runtime {self._runtime.__version__} cannot run the exported {self._stem}:"
                f" {str(error).splitlines()[0][:300]}"
            ) from error
        return outputs

    def _session(self, partition: ModelProto) -> Any:
        if len(self._partitions) == 1:
            if self._single is None:
                self._single = self._open(self._folder / f"{self._stem}.onnx")
            return self._single
        path = self._folder / f"{self._stem}.partition.onnx"
        path.write_bytes(partition.SerializeToString())
        try:
            return self._open(path)
        finally:
            path.unlink()

    def _open(self, path: Path) -> Any:
        options = self._runtime.SessionOptions()
        options.log_severity_level = 3
        options.enable_cpu_mem_arena = False
        options.add_session_config_entry("session.disable_prepacking", "1")
        if sums_overflow():
            options.add_session_config_entry("session.x64quantprecision", "1")
        providers = ["CPUExecutionProvider"]
        session = self._runtime.InferenceSession(
            str(path), options, providers=providers, disabled_optimizers=["ConstantFolding"]
        )
        release_freed()
        return session


def _weight_bytes(partition: ModelProto, sizes: Mapping[str, int]) -> int:
    """Bytes of the weights of a partition."""
    return sum(sizes.get(tensor.name, 0) for tensor in partition.graph.initializer)
