"""A small graph builder over ``onnx.helper``.

Graphs are written node by node, not traced: they are the same on every Python, and no torch is
needed. Large weights are only declared here (:class:`Weight`). The writer streams their values to
the external-data file one at a time.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Callable, Generic, TypeVar

import numpy as np
from onnx import (
    AttributeProto,
    FunctionProto,
    ModelProto,
    NodeProto,
    TensorProto,
    ValueInfoProto,
    helper,
    numpy_helper,
)

from whisper_opt.core.arrays import NDArray

__all__ = ["MICROSOFT", "OWN", "GraphBuilder", "OnnxGraph", "Together", "Weight"]

MICROSOFT = "com.microsoft"
OWN = "whisper_opt"
"""The domain of operators that are model-local functions (:meth:`GraphBuilder.define`)."""


@dataclasses.dataclass(frozen=True)
class Weight:
    """One initializer whose values are in the external-data file.

    Attributes:
        name: initializer name in the graph.
        shape: dimensions as stored.
        read: returns the values, computed from the checkpoint when called.
        dtype: type in the file.
    """

    name: str
    shape: tuple[int, ...]
    read: Callable[[], NDArray]
    dtype: np.dtype[Any]

    @property
    def nbytes(self) -> int:
        """Size in the data file."""
        return self.dtype.itemsize * math.prod(self.shape)


@dataclasses.dataclass(frozen=True)
class OnnxGraph:
    """A finished graph and the weights of its external-data file, in file order."""

    model: ModelProto
    weights: tuple[Weight, ...]
    host: tuple[Weight, ...] = ()
    """Tensors that the runtime reads from the same file; they may include weights."""

    @property
    def stored(self) -> tuple[Weight, ...]:
        """All tensors of the data file, in file order."""
        own = {weight.name for weight in self.weights}
        return (*self.weights, *(weight for weight in self.host if weight.name not in own))


_T = TypeVar("_T")


class Together(Generic[_T]):
    """Weights that are computed together, such as integers and their scales.

    The result is kept from the first read of a weight until all of them have been read.
    """

    def __init__(self, compute: Callable[[], _T]) -> None:
        """``compute``: makes all weights; called at the first read."""
        self._compute = compute
        self._names: set[str] = set()
        self._unread: set[str] = set()
        self._found: _T | None = None

    def part(self, name: str, of: Callable[[_T], NDArray]) -> Callable[[], NDArray]:
        """What reads the weight ``name``, which ``of`` takes from the result."""
        self._names.add(name)

        def read() -> NDArray:
            if self._found is None:
                self._found, self._unread = self._compute(), set(self._names)
            values = of(self._found)
            self._unread.discard(name)
            if not self._unread:
                self._found = None
            return values

        return read


class GraphBuilder:
    """Collects nodes, inputs, outputs and weights of one graph; values are named by strings."""

    def __init__(self, name: str) -> None:
        """Start an empty graph called ``name``."""
        self.name = name
        self._nodes: list[NodeProto] = []
        self._domains: set[str] = set()
        self._inputs: list[ValueInfoProto] = []
        self._outputs: list[ValueInfoProto] = []
        self._constants: dict[str, TensorProto] = {}
        self._weights: dict[str, Weight] = {}
        self._host: dict[str, Weight] = {}
        self._functions: dict[str, _Function] = {}
        self._count = 0
        self._scope = ""

    def scope(self, name: str) -> None:
        """Prefix the values created from here on with ``name``, for readable graphs."""
        self._scope = f"{name}/" if name else ""

    def input(self, name: str, dtype: int, shape: Sequence[int | str]) -> str:
        """Declare a graph input of ONNX type ``dtype``; string dimensions are symbolic."""
        self._inputs.append(helper.make_tensor_value_info(name, dtype, list(shape)))
        return name

    def output(self, value: str, name: str, dtype: int, shape: Sequence[int | str]) -> None:
        """Expose ``value`` as the graph output ``name``."""
        if value != name:
            self._rename(value, name)
        self._outputs.append(helper.make_tensor_value_info(name, dtype, list(shape)))

    def _rename(self, value: str, name: str) -> None:
        for node in self._nodes:
            for i, output in enumerate(node.output):
                if output == value:
                    node.output[i] = name
            for i, used in enumerate(node.input):
                if used == value:
                    node.input[i] = name

    def weight(
        self, name: str, shape: Sequence[int], read: Callable[[], NDArray], dtype: Any = np.float32
    ) -> str:
        """Declare a streamed initializer; several nodes may use it."""
        if name not in self._weights:
            self._weights[name] = Weight(name, tuple(shape), read, np.dtype(dtype))
        return name

    def host(
        self, name: str, shape: Sequence[int], read: Callable[[], NDArray], dtype: Any = np.float32
    ) -> None:
        """Store a tensor in the data file for the runtime; it may also be a weight."""
        self._host[name] = Weight(name, tuple(shape), read, np.dtype(dtype))

    def cast(self, value: str, given: Any, wanted: Any) -> str:
        """``value``, of type ``given``, as type ``wanted``; no node if they are equal."""
        if np.dtype(given) == np.dtype(wanted):
            return value
        return self.node("Cast", value, to=helper.np_dtype_to_tensor_dtype(np.dtype(wanted)))

    def constant(self, value: NDArray | int | Sequence[int]) -> str:
        """A small inline initializer, int64 unless ``value`` is an array; equal ones are shared."""
        array = np.asarray(value) if isinstance(value, np.ndarray) else np.asarray(value, np.int64)
        key = f"{array.dtype}{list(array.shape)}:{array.tobytes().hex()}"
        if key not in self._constants:
            self._constants[key] = numpy_helper.from_array(array, f"const_{len(self._constants)}")
        return str(self._constants[key].name)

    def nodes(
        self, op: str, inputs: Sequence[str], n_outputs: int, domain: str = "", **attrs: Any
    ) -> list[str]:
        """Add a node and return the names of its outputs."""
        self._count += 1
        base = f"{self._scope}{op}_{self._count}"
        self._domains.add(domain)
        names = [base if n_outputs == 1 else f"{base}.{i}" for i in range(n_outputs)]
        self._nodes.append(
            helper.make_node(op, list(inputs), names, name=base, domain=domain, **attrs)
        )
        return names

    def node(self, op: str, *inputs: str, domain: str = "", **attrs: Any) -> str:
        """Add a node with one output and return its name."""
        return self.nodes(op, inputs, 1, domain, **attrs)[0]

    def if_else(self, condition: str, then: Callable[[], str], otherwise: Callable[[], str]) -> str:
        """An ``If`` node on ``condition``, a bool scalar.

        ``then`` and ``otherwise`` build the branches. Each returns the name of a float32 value and
        may read any value of the graph.
        """
        branches, around = {}, self._nodes
        for branch, build in (("then_branch", then), ("else_branch", otherwise)):
            self._nodes = []
            try:
                value = build()
                info = helper.make_tensor_value_info(value, TensorProto.FLOAT, None)
                branches[branch] = helper.make_graph(self._nodes, branch, [], [info])
            finally:
                self._nodes = around
        return self.node("If", condition, **branches)

    def define(
        self,
        name: str,
        inputs: Sequence[str],
        body: Callable[[GraphBuilder], Sequence[str]],
        attributes: Sequence[str] = (),
    ) -> None:
        """Define a function of domain :data:`OWN`, unless the graph has it already.

        Args:
            name: name of the operator.
            inputs: names of its inputs, which ``body`` reads.
            body: builds the function in a builder of its own and returns the outputs.
            attributes: names of its attributes, for :meth:`attribute` and for native kernels.
        """
        if name in self._functions:
            return
        builder = GraphBuilder(name)
        outputs = tuple(body(builder))
        self._functions[name] = _Function(builder, tuple(inputs), outputs, tuple(attributes))

    def attribute(self, name: str) -> str:
        """An integer attribute of the function being defined, as int64 scalar."""
        value = self.node("Constant")
        self.refer(value_int=name)
        return value

    def refer(self, **names: str) -> None:
        """Give the last node integer attributes of the function being defined, by their names."""
        for name, of_function in names.items():
            attribute = self._nodes[-1].attribute.add()
            attribute.name, attribute.ref_attr_name = name, of_function
            attribute.type = AttributeProto.INT

    def reshape(self, value: str, shape: Sequence[int]) -> str:
        """Reshape; 0 keeps a dimension, -1 is inferred."""
        return self.node("Reshape", value, self.constant(list(shape)))

    def transpose(self, value: str, perm: Sequence[int]) -> str:
        """Permute the dimensions."""
        return self.node("Transpose", value, perm=list(perm))

    def dim(self, value: str, axis: int) -> str:
        """The size of one dimension as int64 [1]."""
        return self.node("Shape", value, start=axis, end=axis + 1)

    def finish(self, opset: int, ir_version: int) -> OnnxGraph:
        """Assemble the model; the writer sets the locations of the weights later."""
        initializers = list(self._constants.values())
        for weight in self._weights.values():
            data_type = helper.np_dtype_to_tensor_dtype(weight.dtype)
            tensor = TensorProto(name=weight.name, data_type=data_type)
            tensor.dims.extend(weight.shape)
            initializers.append(tensor)
        graph = helper.make_graph(self._nodes, self.name, self._inputs, self._outputs, initializers)
        opsets = self._opsets(opset)
        functions = [function.finish(opset) for function in self._functions.values()]
        model = helper.make_model(
            graph,
            opset_imports=opsets,
            functions=functions,
            ir_version=ir_version,
            producer_name="whisper-opt",
        )
        return OnnxGraph(model, tuple(self._weights.values()), tuple(self._host.values()))

    def _opsets(self, opset: int) -> list[Any]:
        others = sorted(self._domains - {""})
        return [helper.make_opsetid("", opset), *(helper.make_opsetid(name, 1) for name in others)]

    def _body(self) -> list[NodeProto]:
        """The nodes, after ``Constant`` nodes: a function has no initializers."""
        constants = [
            helper.make_node("Constant", [], [tensor.name], value=tensor)
            for tensor in self._constants.values()
        ]
        return [*constants, *self._nodes]


@dataclasses.dataclass(frozen=True)
class _Function:
    """A model-local function."""

    builder: GraphBuilder
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: tuple[str, ...]

    def finish(self, opset: int) -> FunctionProto:
        return helper.make_function(
            OWN,
            self.builder.name,
            self.inputs,
            self.outputs,
            self.builder._body(),
            self.builder._opsets(opset),
            self.attributes,
        )
