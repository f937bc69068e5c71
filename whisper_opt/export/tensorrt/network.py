"""One graph in TensorRT's parser and builder."""

from __future__ import annotations

import collections
import dataclasses
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Callable

from whisper_opt.core.errors import EngineError, OptionError
from whisper_opt.runtime.tensorrt.library import Library

__all__ = ["Network", "Settings", "Shapes"]

Shapes = Mapping[str, tuple[tuple[int, ...], ...]]
"""Smallest, typical and largest shape of every input, by name."""

_PRECISIONS = {"FLOAT": "fp32", "HALF": "fp16", "INT64": "int64", "INT32": "int32", "BOOL": "bool"}
_POLL = 0.02
"""Seconds between two progress reports of a build."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings of a build.

    Attributes:
        profiles: shapes of every optimization profile.
        gpus: compute capabilities to build for; empty if the library builds for its current GPU.
        local_gpu: compute capability of the local GPU, which the library may not list; or None.
        version_compatible: the plan also runs with later releases.
        hardware_compatibility: ``same-sm``, ``ampere+`` or None.
        weight_streaming: weights may stay in host memory.
        timing_cache: timings of earlier builds; b"" starts a cache, None uses none.
    """

    profiles: Sequence[Shapes]
    gpus: tuple[str, ...] = ()
    local_gpu: str | None = None
    version_compatible: bool = False
    hardware_compatibility: str | None = None
    weight_streaming: bool = False
    timing_cache: bytes | None = None


class _Phases:
    """Progress of a build, from the nested phases and steps that the library reports."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._phases: dict[str, tuple[str | None, int, int]] = {}  # parent, steps, done
        self._furthest = 0.0
        self.cancelled = threading.Event()

    def start(self, name: str, parent: str | None, steps: int) -> None:
        with self._lock:
            self._phases[name] = (parent, max(steps, 1), 0)

    def step(self, name: str, step: int) -> None:
        with self._lock:
            if name in self._phases:
                parent, steps, _ = self._phases[name]
                self._phases[name] = (parent, steps, min(step + 1, steps))

    def finish(self, name: str) -> None:
        with self._lock:
            self._phases.pop(name, None)

    @property
    def fraction(self) -> float:
        """Progress from 0 to 1; it never decreases."""
        with self._lock:
            inner = 0.0
            for parent, steps, done in reversed(list(self._phases.values())):
                inner = min((done + inner) / steps, 1.0)
                if parent is None:
                    break
            self._furthest = max(self._furthest, inner)
            return self._furthest


def _monitor(trt: Any, phases: _Phases) -> Any:
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]  # the library has no types
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            phases.start(phase_name, parent_phase, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            phases.step(phase_name, step)
            return not phases.cancelled.is_set()

        def phase_finish(self, phase_name: str) -> None:
            phases.finish(phase_name)

    return Monitor()


class Network:
    """A parsed graph, strongly typed: precisions are those of the ONNX file."""

    def __init__(
        self,
        library: Library,
        model: bytes,
        path: Path,
        select: Callable[[], object] = lambda: None,
    ) -> None:
        """Parse a serialized ONNX model with external data.

        Args:
            library: the library that parses and builds.
            model: the model.
            path: its file; the external data is in the same directory.
            select: makes the GPU that builds current in the calling thread.

        Raises:
            EngineError: the parser refuses the model; the message names the node.
        """
        self._library, self._path, trt = library, path, library.module
        self._select = select
        select()
        library.messages.clear()
        self._builder = trt.Builder(library.messages.logger)
        typed = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
        self._network = self._builder.create_network(typed)
        # the parser owns the weights that the builder reads
        self._parser = trt.OnnxParser(self._network, library.messages.logger)
        if not self._parser.parse(model, str(path)):
            errors = [str(self._parser.get_error(i)) for i in range(self._parser.num_errors)]
            reason = " ".join("; ".join(errors[:1]).split()) or library.messages.reason()
            raise EngineError(
                f"{library.name} {library.version} cannot parse {path}: {reason[:500]}"
            )

    @property
    def layers(self) -> dict[str, int]:
        """Number of layers per type and precision: ``{"ATTENTION_INPUT fp16": 4}``."""
        counts: collections.Counter[str] = collections.Counter()
        for i in range(self._network.num_layers):
            layer = self._network.get_layer(i)
            kind = layer.get_output(0).dtype.name
            counts[f"{layer.type.name} {_PRECISIONS.get(kind, kind.lower())}"] += 1
        return dict(sorted(counts.items()))

    def build(
        self, settings: Settings, on_progress: Callable[[float], None]
    ) -> tuple[Any, bytes | None]:
        """Build and serialize a plan.

        The library builds in a thread of its own, so that Ctrl-C takes effect: the build then stops
        at its next step.

        Args:
            settings: profiles, targets and flags.
            on_progress: called with a fraction from 0 to 1, in the caller's thread.

        Returns:
            A buffer with the plan, and the timing cache if the settings have one.

        Raises:
            EngineError: the library cannot build it; the message has the reason.
            OptionError: the library does not support the settings.
        """
        config, phases = self._config(settings), _Phases()
        config.progress_monitor = monitor = _monitor(self._library.module, phases)
        self._library.messages.clear()
        plans: list[Any] = []
        failures: list[BaseException] = []

        def work() -> None:
            try:
                self._select()
                plans.append(self._builder.build_serialized_network(self._network, config))
            except BaseException as error:  # reported in the caller's thread
                failures.append(error)

        thread = threading.Thread(target=work, name="tensorrt-build", daemon=True)
        thread.start()
        try:
            while thread.is_alive():
                thread.join(_POLL)
                on_progress(phases.fraction)
        except BaseException:
            phases.cancelled.set()
            thread.join()
            raise
        del monitor  # must outlive the build
        plan = plans[0] if plans else None
        if plan is None:
            reason = failures[0] if failures else self._library.messages.reason()
            raise EngineError(
                f"{self._library.name} {self._library.version} cannot build {self._path}: {reason}"
            )
        return plan, self._timings(config, settings)

    def _timings(self, config: Any, settings: Settings) -> bytes | None:
        if settings.timing_cache is None:
            return None
        return bytes(config.get_timing_cache().serialize())

    def _config(self, settings: Settings) -> Any:
        trt = self._library.module
        config = self._builder.create_builder_config()
        for shapes in settings.profiles:
            profile = self._builder.create_optimization_profile()
            for name, sizes in shapes.items():
                profile.set_shape(name, *sizes)
            config.add_optimization_profile(profile)
        # the inspector then shows precisions
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
        self._set_flags(config, settings)
        if settings.hardware_compatibility:
            levels = {"same-sm": "SAME_COMPUTE_CAPABILITY", "ampere+": "AMPERE_PLUS"}
            level = levels[settings.hardware_compatibility]
            config.hardware_compatibility_level = getattr(trt.HardwareCompatibilityLevel, level)
        if settings.gpus:
            self._set_gpus(config, settings)
        if settings.timing_cache is not None:
            cache = config.create_timing_cache(settings.timing_cache)
            if not config.set_timing_cache(cache, False):
                raise OptionError(
                    "the timing cache is of another GPU or TensorRT version; give another file"
                )
        return config

    def _set_flags(self, config: Any, settings: Settings) -> None:
        flags = self._library.module.BuilderFlag
        if settings.version_compatible:
            config.set_flag(flags.VERSION_COMPATIBLE)
        if settings.weight_streaming:
            config.set_flag(flags.WEIGHT_STREAMING)
        elif hasattr(flags, "REQUIRE_USER_ALLOCATION"):
            # calls that do not allocate can be captured in a graph; weight streaming allocates
            config.set_flag(flags.REQUIRE_USER_ALLOCATION)

    def _set_gpus(self, config: Any, settings: Settings) -> None:
        capabilities = self._library.module.ComputeCapability
        config.num_compute_capabilities = len(settings.gpus)
        for i, gpu in enumerate(settings.gpus):
            known = getattr(capabilities, gpu.upper().replace("_", ""), None)
            if known is None and gpu == settings.local_gpu:
                known = capabilities.CURRENT  # a GPU that the library does not list
            if known is None or not config.set_compute_capability(known, i):
                raise OptionError(
                    f"{self._library.name} {self._library.version} builds no plans for {gpu};"
                    f" expected one of {', '.join(self._library.gpus)}"
                )
