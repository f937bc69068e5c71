"""Executor of TensorRT plans: streams, execution contexts, CUDA graphs.

The execution contexts of a stream share one working memory, since its work runs in order. A graph
sequence is launched directly twice and captured as a CUDA graph after the second launch: a capture
does not pay off for sequences that run once.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, Callable

from whisper_opt.core.errors import EngineError
from whisper_opt.runtime.cuda.runtime import Copies, Cuda, DeviceBlock, PinnedBlock
from whisper_opt.runtime.device.executor import GRAPHS, Buffer, GraphSequence, Tensor, aligned
from whisper_opt.runtime.tensorrt.library import Context, Library, Plan
from whisper_opt.runtime.tensorrt.plan_spec import PlanSpec

__all__ = ["TrtExecutor"]

_log = logging.getLogger(__name__)


def _inputs(plan: Plan) -> list[str]:
    return [name for name, info in plan.tensors.items() if info.is_input]


def _opened(library: Library, graph: str, data: bytes, spec: PlanSpec | None) -> Plan:
    plan = library.open(data, host_code=spec is not None and spec.version_compatible)
    if spec is not None and spec.weight_streaming and graph in ("encoder", "decoder"):
        plan.stream_weights()
    return plan


class TrtExecutor:
    """Implements :class:`whisper_opt.runtime.device.executor.Executor`."""

    def __init__(
        self,
        library: Library,
        read: Callable[[str], bytes],
        *,
        graphs: Sequence[str] = GRAPHS,
        device_index: int = 0,
        cuda_graphs: bool = True,
        spec: PlanSpec | None = None,
        runtime: Any = None,
    ) -> None:
        """Load the plans of the graphs onto a GPU.

        Args:
            library: the TensorRT that the plans were built with.
            read: returns the plan of a graph by name
                (:meth:`whisper_opt.runtime.tensorrt.plans.Plans.read`).
            graphs: names of the graphs that have plans.
            device_index: index of the GPU.
            cuda_graphs: replay graph sequences as CUDA graphs.
            spec: what they were built with
                (:attr:`whisper_opt.runtime.tensorrt.plan_record.BuildRecord.spec`).
            runtime: replaces ``cuda.bindings.runtime``.

        Raises:
            BackendUnavailable: cuda-bindings or the GPU is missing.
            EngineError: the library cannot load a plan.
        """
        self.cuda = Cuda(device_index, runtime)
        self.cuda_graphs = cuda_graphs
        self.graphs = tuple(graphs)
        self._plans = {name: _opened(library, name, read(name), spec) for name in self.graphs}
        self._limits = {
            graph: [
                {name: plan.limits(name, profile) for name in _inputs(plan)}
                for profile in range(plan.n_profiles)
            ]
            for graph, plan in self._plans.items()
        }
        self._tensors = {
            name: {
                tensor: Tensor(info.dtype, tuple(info.shape))
                for tensor, info in plan.tensors.items()
            }
            for name, plan in self._plans.items()
        }

    def plan(self, graph: str) -> Plan:
        """The plan of a graph."""
        return self._plans[graph]

    def tensors(self, graph: str) -> Mapping[str, Tensor]:
        return self._tensors[graph]

    def fits(self, graph: str, shapes: Mapping[str, Sequence[int]]) -> bool:
        return self.profile(graph, shapes) is not None

    def profile(self, graph: str, shapes: Mapping[str, Sequence[int]]) -> int | None:
        """Index of the first profile that allows these shapes (or leading sizes), if any."""
        for profile in range(self._plans[graph].n_profiles):
            if all(self._allows(graph, name, profile, shape) for name, shape in shapes.items()):
                return profile
        return None

    def _allows(self, graph: str, name: str, profile: int, shape: Sequence[int]) -> bool:
        low, _, high = self._limits[graph][profile][name]
        return all(first <= size <= last for first, size, last in zip(low, shape, high))

    def allocate(self, n_bytes: int) -> DeviceBlock:
        return DeviceBlock(self.cuda, n_bytes)

    def pin(self, n_bytes: int) -> PinnedBlock:
        return PinnedBlock(self.cuda, n_bytes)

    def available(self) -> int:
        free, _ = self.cuda("cudaMemGetInfo")
        return int(free)

    def stream_memory(self, graphs: Sequence[str]) -> int:
        return max(
            aligned(plan.memory(profile))
            for plan in (self._plans[graph] for graph in graphs)
            for profile in range(plan.n_profiles)
        )

    def open_stream(self, graphs: Sequence[str]) -> _Stream:
        return _Stream(self, graphs)

    def close(self) -> None:
        self._plans.clear()


class _Stream(Copies):
    """A CUDA stream and the execution contexts that run on it."""

    def __init__(self, owner: TrtExecutor, graphs: Sequence[str]) -> None:
        self._owner, self._graphs = owner, tuple(graphs)
        self._contexts: dict[tuple[str, int], Context] = {}
        self._work = DeviceBlock(owner.cuda, max(owner.stream_memory(graphs), 1))
        try:
            super().__init__(owner.cuda)
        except BaseException:
            self._work.free()
            raise

    def _context(self, graph: str, profile: int) -> Context:
        """The context of a profile; switching a context between profiles would slow each step."""
        key = (graph, profile)
        if key not in self._contexts:
            context = self._owner.plan(graph).context()
            context.set_memory(self._work.address, self._work.n_bytes)
            context.select(profile, int(self.handle))
            self._contexts[key] = context
        return self._contexts[key]

    def enqueue(self, graph: str, buffers: Mapping[str, Buffer]) -> Context:
        """Bind buffers and run once; returns the context, which can run again with them."""
        self.cuda.select()
        plan = self._owner.plan(graph)
        inputs = _inputs(plan)
        profile = self._owner.profile(graph, {name: buffers[name].shape for name in inputs})
        if profile is None:
            shapes = ", ".join(f"{name} {list(buffers[name].shape)}" for name in inputs[:4])
            raise EngineError(
                f"the plan of {graph} has no profile for {shapes}; build it again for them"
            )
        context = self._context(graph, profile)
        for name in inputs:
            context.set_shape(name, buffers[name].shape)
        for name, buffer in buffers.items():
            context.set_address(name, buffer.address)
        context.run(int(self.handle))
        return context

    def run(self, graph: str, buffers: Mapping[str, Buffer]) -> None:
        self.enqueue(graph, buffers)

    def bind(self, sequence: GraphSequence) -> _CapturedGraph:
        return _CapturedGraph(self, sequence, self._owner.cuda_graphs)

    def _release_resources(self) -> None:
        self._contexts.clear()
        self._work.free()


class _CapturedGraph:
    """A graph sequence on fixed buffers: two direct launches, then a captured CUDA graph."""

    def __init__(self, stream: _Stream, sequence: GraphSequence, cuda_graphs: bool) -> None:
        self._cuda_graphs = cuda_graphs
        self._stream, self._sequence = stream, sequence
        self._n_runs = 0
        self._replay: Any = None
        self._destroy: Callable[[], object] = lambda: None

    def run(self) -> None:
        stream = self._stream
        if self._replay is not None:
            stream.cuda("cudaGraphLaunch", self._replay, stream.handle)
            return
        contexts = [stream.enqueue(graph, buffers) for graph, buffers in self._sequence.runs]
        self._download()
        self._n_runs += 1
        if self._n_runs == 2 and self._cuda_graphs:
            self._capture(contexts)

    def _download(self) -> None:
        for target, source in self._sequence.downloads:
            self._stream.download(target, source)

    def _capture(self, contexts: Sequence[Context]) -> None:
        """Capture the sequence that just ran; contexts must have run once with their shapes."""
        cuda, stream = self._stream.cuda, self._stream.handle
        graph = None
        try:
            # relaxed: other threads and finalizers may allocate or free memory during the capture
            mode = cuda.runtime.cudaStreamCaptureMode.cudaStreamCaptureModeRelaxed
            cuda("cudaStreamBeginCapture", stream, mode)
            try:
                for context in contexts:  # this GPU is still the current one
                    context.run(int(stream))
                self._download()
            finally:
                graph = cuda("cudaStreamEndCapture", stream)
            self._replay = cuda("cudaGraphInstantiate", graph, 0)
            self._destroy = cuda.owned(self, "cudaGraphExecDestroy", self._replay)
        except EngineError as error:
            names = " and ".join(graph for graph, _ in self._sequence.runs)
            _log.warning("%s is launched without a CUDA graph: %s", names, str(error))
        finally:
            if graph is not None:
                cuda.release("cudaGraphDestroy", graph)

    def close(self) -> None:
        self._destroy()
        self._sequence = GraphSequence(())
