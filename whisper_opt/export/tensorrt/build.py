"""TensorRT plans from an ONNX engine: ``ENGINE/trt/...``, see ``plans.py``.

Precision is in the types of the ONNX graphs alone, so only fp16 engines of the ``standard`` dialect
are built: for fp32 there are no attention kernels that take varying shapes. Dimensions that a model
fixes (mel frames, encoder positions, the capacity of the cache) become constants; the cache is then
updated in place, which TensorRT only does for one of static capacity that is both an input and an
output.
"""

from __future__ import annotations

import dataclasses
import os
import platform
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Callable, Union

import onnx

from whisper_opt.core.dims import ModelDims
from whisper_opt.core.errors import BackendUnavailable, EngineError, OptionError, VerificationError
from whisper_opt.core.remedies import install_hint
from whisper_opt.core.version import __version__
from whisper_opt.export.tensorrt.network import Network, Settings, Shapes
from whisper_opt.export.tensorrt.operators import with_attention
from whisper_opt.export.writer import write_bytes, write_text
from whisper_opt.runtime.cuda.runtime import Cuda
from whisper_opt.runtime.engine import Engine, read_engine
from whisper_opt.runtime.gpus import Driver, find_gpus
from whisper_opt.runtime.tensorrt.library import Library, load_library
from whisper_opt.runtime.tensorrt.plan_files import locked, replacing
from whisper_opt.runtime.tensorrt.plan_record import RECORD, BuildRecord, Target
from whisper_opt.runtime.tensorrt.plan_spec import PlanSpec, Profile, parse_gpu
from whisper_opt.runtime.tensorrt.plans import (
    Foreign,
    Fresh,
    Plans,
    graphs_of,
    inspect_plans,
    source_hash,
)

__all__ = ["BuildProgress", "TokenCheck", "build_plans", "find_target"]

BuildProgress = Callable[[str, float], None]
"""Called with (graph, fraction built)."""
TokenCheck = Callable[[Engine, Plans], Mapping[str, Any]]
"""Compares tokens of plans with those of the ONNX engine: ``{"status": "equal" or "differ",
"detail": what was compared}``."""


def find_target(
    library: Library,
    gpus: Sequence[str] | None = None,
    driver: Driver | None = None,
    device_index: int = 0,
) -> Target:
    """What plans are built for: the GPUs asked for, else the one here, else all.

    Args:
        library: the TensorRT that builds.
        gpus: compute capabilities (``sm_86``, ``8.6``); only TensorRT for RTX takes others than
            that of the GPU here.
        driver: what the NVIDIA driver answered (default: it is asked).
        device_index: which GPU is the one here, where there are several.

    Raises:
        BackendUnavailable: the library needs a GPU to build, and there is none.
        OptionError: the library does not build for one of ``gpus``, or there is no GPU of this
            index.
    """
    driver = driver or find_gpus()
    if device_index and device_index not in range(len(driver.gpus)):
        raise OptionError(
            f"device_index is {device_index}; this machine has {len(driver.gpus)} GPU(s), counted"
            " from 0"
        )
    here = _sm(driver, device_index)
    wanted = tuple(dict.fromkeys(parse_gpu(gpu) for gpu in gpus or ()))
    if not library.is_rtx and here is None:
        raise BackendUnavailable(
            f"{library.name} builds plans on the GPU that runs them, and there is none:"
            f" {driver.error}. TensorRT for RTX builds without one:"
            f" {install_hint('tensorrt-rtx')}, then --library tensorrt-rtx"
        )
    known = library.gpus
    for gpu in wanted:
        if gpu != here and gpu not in known:
            expected = ", ".join(known) or f"{here}, the GPU here"
            raise OptionError(
                f"{library.name} {library.version} builds no plans for {gpu}; expected {expected}"
            )
    chosen = wanted or ((here,) if here else known)
    ordered = tuple(sorted(chosen, key=lambda gpu: int(gpu[3:])))
    at_hand = driver.gpus[device_index].name if ordered == (here,) else None
    return Target(library.name, library.version, ordered, at_hand)


def _sm(driver: Driver, device_index: int) -> str | None:
    """Compute capability of a GPU."""
    return "sm_{}{}".format(*driver.gpus[device_index].sm) if driver.gpus else None


def _selector(driver: Driver, device_index: int) -> Callable[[], object]:
    """What makes a GPU the current one of the calling thread, on which TensorRT builds."""
    if len(driver.gpus) < 2:  # there is no other, and RTX builds on a machine without any
        return lambda: None
    return Cuda(device_index).select


def build_plans(
    engine: Union[str, Path, Engine],
    spec: PlanSpec | None = None,
    *,
    library: str | None = None,
    gpus: Sequence[str] | None = None,
    device_index: int = 0,
    timing_cache: Union[str, Path, None] = None,
    force: bool = False,
    check_tokens: TokenCheck | None = None,
    on_progress: BuildProgress | None = None,
    on_wait: Callable[[], None] | None = None,
) -> Plans:
    """Build the TensorRT plans of an engine, unless they are there.

    One process builds at a time; another one that wants the same plans waits and uses them.

    Args:
        engine: an fp16 engine of the ``standard`` dialect.
        spec: shapes and flags (default: :class:`PlanSpec`'s).
        library: ``tensorrt`` or ``tensorrt-rtx`` (default: the first that works).
        gpus: compute capabilities to build for (default: the GPU here; without one, all that
            TensorRT for RTX builds for).
        device_index: which GPU builds, and is the one here, where there are several.
        timing_cache: file of measurements that is read and added to (TensorRT only).
        force: build even what is fresh, and replace what is foreign.
        check_tokens: called with the new plans where there is a GPU to run them.
        on_progress: called as the work goes on.
        on_wait: called when another process is building.

    Returns:
        The plans.

    Raises:
        BackendUnavailable: no usable library, or no GPU where one is needed.
        EngineError: no such engine, one that TensorRT cannot build, foreign plans in the way, or a
            directory that cannot be written; nothing half-built is left.
        OptionError: a bad spec, GPU or library, or an option that the library does not have.
        VerificationError: the plans give other tokens than the ONNX engine; they stay, and are not
            used.
    """
    engine = engine if isinstance(engine, Engine) else read_engine(engine)
    _check_engine(engine)
    spec = spec or PlanSpec()
    profiles = spec.profiles(engine.manifest.dims)
    found = load_library(library)
    _check_library(found, spec, timing_cache)
    driver = find_gpus()
    target = find_target(found, gpus, driver, device_index)
    cache = None if timing_cache is None else Path(timing_cache)
    builder = _Builder(engine, spec, profiles, found, target, driver, device_index, cache)
    home = engine.path / "trt"
    with locked(home, on_wait):
        seen = inspect_plans(engine, target, spec, verify=True)
        if isinstance(seen.verdict, Fresh) and not force:
            return Plans(seen.path, seen.verdict.record)
        if isinstance(seen.verdict, Foreign) and not force:
            raise EngineError(
                f"{seen.path} will not be replaced: {seen.verdict.reason}; pass --force"
                " (force=True), or remove it"
            )
        path = home / target.directory
        with replacing(path) as folder:
            record = builder.build(folder, on_progress or (lambda graph, done: None), check_tokens)
    if record.tokens["status"] == "differ":
        raise VerificationError(
            f"the plans in {path} give other tokens than the ONNX engine"
            f" ({record.tokens.get('detail')}); they will not be used"
        )
    return Plans(path, record)


def _check_engine(engine: Engine) -> None:
    manifest = engine.manifest
    if (manifest.precision, manifest.dialect) != ("fp16", "standard"):
        raise OptionError(
            f"{engine.path} is a {manifest.precision} engine in the {manifest.dialect} dialect;"
            " TensorRT needs fp16 and standard: whisper-opt export SOURCE DIR --precision fp16"
            " --dialect standard"
        )


def _check_library(library: Library, spec: PlanSpec, timing_cache: Union[str, Path, None]) -> None:
    if not library.is_rtx:
        return
    asked = {
        "version_compatible": spec.version_compatible,
        "hardware_compatibility": spec.hardware_compatibility,
        "timing_cache": timing_cache is not None,
    }
    instead = {
        "version_compatible": "build again after an upgrade: it takes seconds",
        "hardware_compatibility": "name every GPU with --gpu: one plan serves them all",
        "timing_cache": "its builds measure nothing",
    }
    for name, given in asked.items():
        if given:
            raise OptionError(f"{name} is not in {library.name}; {instead[name]}")


def _fixed_sizes(dims: ModelDims) -> dict[str, int]:
    return {
        "n_frames": dims.n_audio_ctx * dims.frames_per_position,
        "n_ctx": dims.n_audio_ctx,
        "capacity": dims.n_text_ctx,
    }


def _fix(model: onnx.ModelProto, sizes: Mapping[str, int]) -> dict[str, list[int | str]]:
    """Make named dimensions constant; the inputs' dimensions, sizes and names, by input."""
    for value in (*model.graph.input, *model.graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in sizes:
                dim.dim_value = sizes[dim.dim_param]
    return {
        value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in model.graph.input
    }


def _shapes(inputs: Mapping[str, list[int | str]], profile: Profile) -> Shapes:
    """Smallest, typical and largest shape of every input under a profile."""
    try:
        return {
            name: tuple(
                tuple(profile.ranges[dim][i] if isinstance(dim, str) else dim for dim in dims)
                for i in range(3)
            )
            for name, dims in inputs.items()
        }
    except KeyError as error:
        raise EngineError(
            f"the graph has a dimension {error} that profile {profile.name} does not name; export"
            " the engine again"
        ) from error


class _Builder:
    """Builds the plans of one engine for one target."""

    def __init__(
        self,
        engine: Engine,
        spec: PlanSpec,
        profiles: Mapping[str, tuple[Profile, ...]],
        library: Library,
        target: Target,
        driver: Driver,
        device_index: int,
        timing_cache: Path | None,
    ) -> None:
        self._engine, self._spec, self._profiles = engine, spec, profiles
        self._library, self._target, self._driver = library, target, driver
        self._timing_cache = timing_cache
        self._here, self._select = _sm(driver, device_index), _selector(driver, device_index)
        self._runs_here = self._here is not None and self._here in target.gpus

    def build(
        self, folder: Path, on_progress: BuildProgress, check_tokens: TokenCheck | None
    ) -> BuildRecord:
        """Every plan and the record, in ``folder``."""
        seconds, layers, files = {}, {}, {}
        graphs = graphs_of(self._engine.manifest)
        for graph in graphs:
            begin = time.perf_counter()
            plan, layers[graph] = self._build_graph(graph, on_progress)
            on_progress(graph, 1.0)
            name = f"{graph}.plan"
            files[name] = write_bytes(folder / name, memoryview(plan))
            seconds[graph] = round(time.perf_counter() - begin, 2)
        record = BuildRecord(
            target=self._target,
            spec=self._spec,
            profiles={graph: self._profiles[graph] for graph in graphs},
            source=source_hash(self._engine.manifest),
            seconds=seconds,
            layers=layers,
            tokens={"status": "not checked", "detail": "no GPU here that runs them"},
            tools=self._tools(),
            files=files,
        )
        return self._checked(record, folder, check_tokens)

    def _checked(
        self, record: BuildRecord, folder: Path, check_tokens: TokenCheck | None
    ) -> BuildRecord:
        if self._runs_here:
            tokens: Mapping[str, Any] = {"status": "not checked", "detail": "nobody asked for it"}
            if check_tokens is not None:
                tokens = check_tokens(self._engine, Plans(folder, record))
            record = dataclasses.replace(record, tokens=dict(tokens))
        write_text(folder / RECORD, record.to_json())
        return record

    def _build_graph(self, graph: str, on_progress: BuildProgress) -> tuple[Any, dict[str, Any]]:
        path = self._engine.file(f"{graph}.onnx")
        model = with_attention(onnx.load(str(path), load_external_data=False))
        inputs = _fix(model, _fixed_sizes(self._engine.manifest.dims))
        network = Network(self._library, model.SerializeToString(), path, self._select)
        self._check_cache(graph, network)
        settings = Settings(
            profiles=[_shapes(inputs, profile) for profile in self._profiles[graph]],
            gpus=self._target.gpus if self._library.is_rtx else (),
            here=self._here,
            version_compatible=self._spec.version_compatible,
            hardware_compatibility=self._spec.hardware_compatibility,
            weight_streaming=self._spec.weight_streaming,
            timing_cache=self._read_timing_cache(),
        )
        plan, measured = network.build(settings, lambda done: on_progress(graph, done))
        if measured is not None and self._timing_cache is not None:
            partial = self._timing_cache.with_name(f"{self._timing_cache.name}.partial")
            write_bytes(partial, measured)
            os.replace(partial, self._timing_cache)
        return plan, self._layers(network, plan)

    def _check_cache(self, graph: str, network: Network) -> None:
        """The parser must have understood the cache as one that is updated in place."""
        expected = 2 * self._engine.manifest.dims.n_text_layer if graph == "decoder" else 0
        found = sum(n for name, n in network.layers.items() if name.startswith("KV_CACHE_UPDATE"))
        if found != expected:
            raise EngineError(
                f"{self._library.name} {self._library.version} reads {found} in-place cache updates"
                f" in the {graph}; expected {expected}"
            )

    def _read_timing_cache(self) -> bytes | None:
        if self._timing_cache is None:
            return None
        try:
            return self._timing_cache.read_bytes() if self._timing_cache.exists() else b""
        except OSError as error:
            raise OptionError(f"cannot read the timing cache: {error}") from error

    def _layers(self, network: Network, plan: Any) -> dict[str, Any]:
        """Layers by type and precision, as built where that can be asked (it needs a GPU)."""
        if not self._runs_here:
            return {"from": "network definition", "counts": network.layers}
        counts: dict[str, int] = {}
        host_code = self._spec.version_compatible
        for layer in self._library.open(memoryview(plan), host_code=host_code).layers():
            outputs = layer.get("Outputs") or [{}]
            kind = outputs[0].get("Format/Datatype") or outputs[0].get("Datatype", "")
            name = f"{layer.get('LayerType', layer.get('Name'))} {kind}".strip()
            counts[name] = counts.get(name, 0) + 1
        return {"from": "engine inspector", "counts": dict(sorted(counts.items()))}

    def _tools(self) -> dict[str, str]:
        cuda, driver = self._driver.cuda, _driver_release()
        return {
            "whisper_opt": __version__,
            "python": platform.python_version(),
            "onnx": onnx.__version__,
            "cuda": "none" if cuda is None else f"{cuda[0]}.{cuda[1]}",
            "driver": driver,
        }


def _driver_release() -> str:
    """Release of the NVIDIA kernel driver, where the system tells it in a file."""
    try:
        text = Path("/proc/driver/nvidia/version").read_text(encoding="utf-8")
    except OSError:
        return "unknown"
    match = re.search(r"\b\d{3}\.\d+(\.\d+)?\b", text)
    return match.group() if match else "unknown"
