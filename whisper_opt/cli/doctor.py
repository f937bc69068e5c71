"""``whisper-opt doctor``: report installed packages and devices, and how to add missing ones."""

from __future__ import annotations

import importlib
import os
import platform
import re
from collections.abc import Iterator
from typing import Any, TextIO

from whisper_opt.core.cpu import cpu_info, memory_bytes
from whisper_opt.core.errors import EngineError
from whisper_opt.core.options import LoadOptions
from whisper_opt.core.processes import find_program
from whisper_opt.core.remedies import install_hint, quoted, repair_hint
from whisper_opt.core.version import installed_version
from whisper_opt.runtime.cache_contents import cached_engines
from whisper_opt.runtime.devices import GPU_ENGINES, Machine, check_device
from whisper_opt.runtime.encoder_choice import choose_encoder
from whisper_opt.runtime.engine_cache import EngineCache
from whisper_opt.runtime.native import (
    VARIABLE,
    VARIANTS,
    supported_variants,
    variant,
    why_no_kernels,
)
from whisper_opt.runtime.tensorrt.library import LIBRARIES, probe
from whisper_opt.transcription.model_source import engine_precision

__all__ = ["doctor"]

_REQUIRED = ("numpy", "platformdirs", "soundfile", "soxr", "tiktoken", "tqdm")
_OPTIONAL = (
    ("onnxruntime", "runs engines on the CPU", "cpu"),
    ("av", "reads m4a, mp4, webm and aac", "audio"),
    ("onnx", "exports engines", "export"),
    ("huggingface_hub", "downloads checkpoints from the Hugging Face hub", "hf"),
)


def doctor(out: TextIO) -> int:
    """Write the report; returns 0 if this installation can transcribe, else 1."""
    problems: list[str] = []
    for line in _report(problems):
        out.write(line + "\n")
    for problem in problems:
        out.write(f"problem      {problem}\n")
    out.write("result       " + ("cannot transcribe yet\n" if problems else "ready\n"))
    return 1 if problems else 0


def _report(problems: list[str]) -> Iterator[str]:
    yield f"whisper-opt  {installed_version('whisper-opt') or 'not installed as a distribution'}"
    yield f"python       {platform.python_version()} ({platform.platform()})"
    yield f"cpu          {_cpu()}"
    yield f"memory       {_memory()}"
    for name in _REQUIRED:
        version, error = _import(name)
        if error:
            problems.append(f"{name} does not import ({error}); {repair_hint()}")
        yield f"package      {name} {version or 'MISSING'}"
    for name, purpose, extra in _OPTIONAL:
        version, error = _import(name)
        get = install_hint(extra)
        if version:
            yield f"package      {name} {version} ({purpose})"
        else:
            yield f"package      {name} missing: {purpose}; {get}"
            if name == "onnxruntime":
                problems.append(f"ONNX Runtime does not import ({error}); {get}")
    yield from _onnxruntime(problems)
    yield from _devices(Machine())
    yield f"cache        {_cache()}"
    ffmpeg = find_program("ffmpeg")
    yield f"ffmpeg       {ffmpeg or 'not on the PATH (only for formats that no package reads)'}"


def _onnxruntime(problems: list[str]) -> Iterator[str]:
    version, _ = _import("onnxruntime")
    if not version:
        return
    runtime: Any = importlib.import_module("onnxruntime")
    providers = runtime.get_available_providers()
    yield f"providers    {', '.join(providers)}"
    release = tuple(int(part) for part in re.findall(r"\d+", version)[:2])
    dialects = "contrib, standard" if release >= (1, 24) else "contrib (standard needs 1.24)"
    yield f"dialects     {dialects}"
    if release < (1, 19):
        newer = quoted("onnxruntime>=1.19.2")
        problems.append(f"ONNX Runtime {version} is too old; pip install {newer}")
    builds = [name for name in ("onnxruntime", "onnxruntime-gpu") if installed_version(name)]
    if len(builds) > 1:
        problems.append(
            "onnxruntime and onnxruntime-gpu are both installed and overwrite each other's files;"
            " pip uninstall both, then install one"
        )


def _devices(machine: Machine) -> Iterator[str]:
    """GPUs, and for each device whether engines exported for it can run here."""
    driver = machine.driver
    if driver.error:
        yield f"gpu          none: {driver.error}"
    for gpu in driver.gpus:
        cuda = "" if driver.cuda is None else f", driver for CUDA up to {_dotted(driver.cuda)}"
        yield (
            f"gpu          {gpu.index}: {gpu.name}, compute capability {_dotted(gpu.sm)},"
            f" {gpu.memory / (1 << 30):.1f} GiB{cuda}"
        )
    for library in map(probe, LIBRARIES):
        found = f"{library.version} " if library.version else ""
        yield f"library      {library.name} {found}{library.problem or '(runs and builds plans)'}"
    for device in ("tensorrt", "cuda"):
        reason = check_device(device, machine)
        suits = " ".join(GPU_ENGINES[device])
        yield f"device       {device}: {reason or f'usable with {suits} engines'}"
    best = next(
        (name for name in ("tensorrt", "cuda") if check_device(name, machine) is None), None
    )
    gpu_too = f"; {best} for engines exported for it" if best else ""
    yield f"device       auto: cpu{gpu_too}"
    yield f"precision    auto: {_precision(machine)}"
    yield from _encoder(machine)
    yield f"kernels      {_kernels()}"


def _precision(machine: Machine) -> str:
    """What ``precision="auto"`` exports on this machine, and why."""
    cpu, _ = engine_precision(LoadOptions())
    gpus = [name for name in GPU_ENGINES if check_device(name, machine) is None]
    for_gpus = "".join(
        f"; {' '.join(engine_precision(LoadOptions(device=name)))} with device {name}"
        for name in gpus
    )
    return (
        f"{cpu} when a name or checkpoint is loaded, the fastest on CPUs with the word error rate"
        f" of fp32 (fp32 gives the words of openai-whisper){for_gpus}"
    )


def _cache() -> str:
    """The engine cache, its engines and their size."""
    cache = EngineCache()
    try:
        engines = cached_engines(cache)
    except EngineError as error:
        return str(error)
    count = "1 engine" if len(engines) == 1 else f"{len(engines)} engines"
    size = sum(engine.size for engine in engines) / 1e6
    return f"{cache.path} ({count}, {size:,.1f} MB; whisper-opt engines list)"


def _encoder(machine: Machine) -> Iterator[str]:
    """The choice of ``encoder_precision="auto"`` on this CPU."""
    choice = choose_encoder("auto", "fp32", lambda: machine.products)
    library = f" through OpenVINO {machine.openvino}" if choice.precision != "engine" else ""
    yield f"encoder      auto: {choice.precision}{library} with fp32 engines ({choice.reason})"


def _kernels() -> str:
    """Which compiled kernels are used, and what would be faster."""
    problem, used = why_no_kernels(), variant()
    if problem or used is None:
        requested = os.environ.get(VARIABLE)
        return f"none: {f'{VARIABLE} is {requested!r}: ' if requested else ''}{problem}"
    faster = list(VARIANTS)[: list(VARIANTS).index(used)]
    here = [VARIANTS[name] for name in faster if name in supported_variants()]
    said = f"compiled ({VARIANTS[used]}): used with int8 and int4 engines"
    if here:
        return f"{said}; this processor is faster with {here[0]}: unset {VARIABLE}"
    if used in ("avx2", "generic"):
        return f"{said}; processors with AVX-512 VNNI or AVX-VNNI are two to four times as fast"
    return said


def _dotted(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"


def _import(name: str) -> tuple[str | None, str]:
    """Version of an importable package, or None and the error of its import."""
    try:
        module = importlib.import_module(name)
    except Exception as error:  # a broken binary package may raise anything
        return None, f"{type(error).__name__}: {error}"
    return installed_version(name) or str(getattr(module, "__version__", "of unknown version")), ""


def _cpu() -> str:
    found = cpu_info()
    features = " ".join(found.flags) or "features unknown"
    return f"{found.name}, {found.cores} usable cores, {features}"


def _memory() -> str:
    sizes = memory_bytes()
    if not sizes:
        return "unknown"
    total = f"{sizes.get('MemTotal', 0) / (1 << 30):.1f} GiB"
    if "MemAvailable" not in sizes:
        return total
    return f"{total}, {sizes['MemAvailable'] / (1 << 30):.1f} GiB available"
