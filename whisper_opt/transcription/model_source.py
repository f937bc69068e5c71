"""What ``Whisper.load`` opens: an engine directory, or a model that is exported to one."""

from __future__ import annotations

import importlib
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, Union

from whisper_opt.core.errors import BackendUnavailable, OptionError, WhisperOptError
from whisper_opt.core.model_names import ModelName, find_name, is_hub_id, similar_names
from whisper_opt.core.options import LoadOptions
from whisper_opt.core.remedies import install_hint
from whisper_opt.runtime.devices import GPU_ENGINES
from whisper_opt.runtime.engine import is_engine_directory
from whisper_opt.runtime.engine_cache import EngineCache

__all__ = ["cached_engine", "engine_directory", "engine_precision", "opened"]

_T = TypeVar("_T")
_log = logging.getLogger(__name__)

Progress = Callable[[str, float, float], None]
"""Called with (stage, done, total) during an export."""


def engine_precision(options: LoadOptions) -> tuple[str, str]:
    """(precision, dialect) of the engine that is exported for these options.

    ``auto`` is int8 on the CPU, the fastest whose word error rates are those of fp32
    (docs/accuracy.md); OpenVINO's encoders need fp32. GPUs run one kind of engine each.
    """
    dialect = "contrib"
    default = "int8" if options.encoder_precision == "engine" else "fp32"
    if options.device in GPU_ENGINES:
        default, dialect = GPU_ENGINES[options.device]
    return (default if options.precision == "auto" else options.precision), dialect


def engine_directory(
    source: Any, options: LoadOptions, on_progress: Progress | None = None
) -> Path:
    """The engine directory of a source; a model is exported to the engine cache if need be.

    Args:
        source: an engine directory, a directory of Optimum, a short name, a hub id, a local
            checkpoint, or a model in memory.
        options: how to run it.
        on_progress: called during an export.

    Returns:
        The directory. A path at which there is nothing is returned as it is.

    Raises:
        WhisperOptError: the model cannot be fetched or exported.
        OptionError: ``revision`` is given for something local, or a name is misspelled.
    """
    cache = EngineCache(options.cache_dir)
    found = _found(source, options, cache)
    if isinstance(found, Path):
        engine = found
    elif isinstance(found, ModelName):
        engine = _cached_hub(found, options, cache) or _prepared_hub(
            found, options, cache, on_progress
        )
    else:
        engine = _prepared(source, options, cache, on_progress)
    named_itself = isinstance(source, (str, os.PathLike)) and engine == Path(source)
    cache.record_use(engine, is_here=not named_itself)
    return engine


def opened(
    source: Any,
    options: LoadOptions,
    on_progress: Progress | None,
    open_engine: Callable[[Path], _T],
) -> _T:
    """Open the engine directory of a source; one that is removed meanwhile is exported again.

    Args are those of :func:`engine_directory`, and the function that opens the directory.

    Raises:
        WhisperOptError: as :func:`engine_directory` and ``open_engine``.
    """
    engine = engine_directory(source, options, on_progress)
    try:
        return open_engine(engine)
    except (WhisperOptError, OSError):
        if engine.exists() or engine.parent != EngineCache(options.cache_dir).path:
            raise
    _log.info("%s was removed while it was opened", engine)
    return open_engine(engine_directory(source, options, on_progress))


def cached_engine(source: Union[str, Path], options: LoadOptions) -> Path | None:
    """The directory that :func:`engine_directory` returns if nothing need be exported, or None.

    No network is used: for a hub id it is the engine of the commit that was last resolved. A local
    checkpoint is read if that was not done before.

    Args are those of :func:`engine_directory`.

    Raises:
        CheckpointError: a local checkpoint cannot be read.
        OptionError: as for :func:`engine_directory`.
    """
    cache = EngineCache(options.cache_dir)
    found = _found(source, options, cache)
    if isinstance(found, Path):
        return found
    if isinstance(found, ModelName):
        commit = cache.commit(found.hub_id, found.revision) or found.revision
        return _cached_hub(ModelName(found.hub_id, commit), options, cache)
    engine: Path = _exporter(str(source)).place(Path(source), cache, *engine_precision(options))
    return engine if cache.has(engine) else None


def _found(source: Any, options: LoadOptions, cache: EngineCache) -> Union[Path, ModelName, None]:
    """An engine directory; or a model of the hub; or None for what must be read: a checkpoint."""
    if not isinstance(source, (str, os.PathLike)):
        _refuse_revision(options, f"a {type(source).__name__} in memory")
        return None
    path = Path(source)
    if path.exists():
        _refuse_revision(options, f"{path.name!r}, a local path")
        if path.is_dir() and (is_engine_directory(path) or not _may_be_checkpoint(path)):
            return path
        known = cache.known_source(path)
        engine = None if known is None else cache.engine(*known, *engine_precision(options))
        return engine if engine is not None and cache.has(engine) else None
    return _hub_model(str(source), options) or path


def _may_be_checkpoint(path: Path) -> bool:
    """Whether a directory has files of a checkpoint, whole or not."""
    return any((path / name).is_file() for name in ("config.json", "adapter_config.json"))


def _refuse_revision(options: LoadOptions, what: str) -> None:
    if options.revision is not None:
        raise OptionError(
            f"revision is {options.revision!r}, but the model is {what}; a revision belongs to a"
            " model of the hub: leave it out"
        )


def _hub_model(name: str, options: LoadOptions) -> Union[ModelName, None]:
    """The repository that a name stands for; None if the name is that of a missing path."""
    known = find_name(name)
    if known is not None:
        return ModelName(known.hub_id, options.revision or known.revision)
    hub_id, at, revision = name.partition("@")
    if not is_hub_id(hub_id) or (at and not revision):
        near = similar_names(name)
        if near and not {"/", os.sep} & set(name):
            raise OptionError(
                f"{name!r} is neither a path nor the name of a model; did you mean"
                f" {' or '.join(near)}? whisper_opt.available_models() lists the names"
            )
        return None
    if revision and options.revision not in (None, revision):
        raise OptionError(
            f"{name!r} names the revision {revision!r}, but revision is {options.revision!r};"
            " leave one of them out"
        )
    return ModelName(hub_id, revision or options.revision)


def _cached_hub(model: ModelName, options: LoadOptions, cache: EngineCache) -> Path | None:
    """The engine of a model of the hub, if it is found without a network."""
    commit = model.revision
    if options.local_files_only or _is_offline():
        commit = cache.commit(model.hub_id, model.revision) or commit
    if commit is None:
        return None
    identity = f"{model.hub_id}@{commit}"
    engine = cache.engine(model.hub_id, identity, *engine_precision(options))
    return engine if cache.has(engine) else None


def _prepared_hub(
    model: ModelName, options: LoadOptions, cache: EngineCache, on_progress: Progress | None
) -> Path:
    precision, dialect = engine_precision(options)
    path: Path = _exporter(model.hub_id).prepare_hub(
        model.hub_id,
        model.revision,
        cache,
        precision,
        dialect,
        graphs=options.precision,
        local_files_only=options.local_files_only,
        on_progress=on_progress,
    )
    if path.parent == cache.path:  # not graphs of Optimum
        _tell(model.hub_id, options, precision)
    return path


def _is_offline() -> bool:
    """Whether the client of the hub is told to use no network, by its own variables."""
    values = (os.environ.get(name, "") for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"))
    return any(value.upper() in ("1", "ON", "YES", "TRUE") for value in values)


def _prepared(
    source: Any, options: LoadOptions, cache: EngineCache, on_progress: Progress | None
) -> Path:
    if isinstance(source, (str, os.PathLike)):
        source = Path(source)
    precision, dialect = engine_precision(options)
    name = str(source) if isinstance(source, Path) else type(source).__name__
    _tell(name, options, precision)
    path: Path = _exporter(name).prepare(source, cache, precision, dialect, on_progress=on_progress)
    return path


def _tell(name: str, options: LoadOptions, precision: str) -> None:
    if options.precision == "auto":
        _log.info(
            "%s: %s engine; precision='fp32' gives the words of openai-whisper", name, precision
        )


def _exporter(name: str) -> Any:
    try:
        return importlib.import_module("whisper_opt.export.prepare")
    except ImportError as error:
        raise BackendUnavailable(
            f"{name!r} is no engine directory, and there is no engine of it in the cache;"
            f" exporting it needs packages that are missing ({error}): {install_hint('export')}"
        ) from error
