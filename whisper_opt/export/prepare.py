"""Export checkpoints into the engine cache, once."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, Callable

import filelock

from whisper_opt.export.build import ExportProgress, export
from whisper_opt.export.checkpoints.checkpoint import Checkpoint
from whisper_opt.export.checkpoints.hub import find
from whisper_opt.export.checkpoints.load import load_checkpoint, load_from_hub
from whisper_opt.runtime.engine_cache import EngineCache

__all__ = ["prepare", "prepare_hub"]

_log = logging.getLogger(__name__)


def prepare_hub(
    hub_id: str,
    revision: str | None,
    cache: EngineCache,
    precision: str,
    dialect: str,
    *,
    graphs: str = "auto",
    local_files_only: bool = False,
    on_progress: ExportProgress | None = None,
) -> Path:
    """The cached engine of a model of the Hugging Face hub; it is exported if there is none.

    A model that has no checkpoint, but graphs of Optimum, is fetched and opened as it is. Without a
    network the commit that the revision had before is used.

    Args:
        hub_id: ``organisation/model``.
        revision: branch, tag or commit; None: the default branch.
        cache: where engines are kept.
        precision: of the engine.
        dialect: of the engine.
        graphs: precision of graphs of Optimum, or ``auto``.
        local_files_only: use no network.
        on_progress: as for :func:`whisper_opt.export.export`.

    Raises:
        WhisperOptError: the model cannot be fetched or exported.
    """
    known = cache.commit(hub_id, revision)
    model = find(hub_id, revision, local_files_only=local_files_only, known=known)
    if model.commit not in (known, revision):
        cache.record_commit(hub_id, revision, model.commit)
    engine = cache.engine(hub_id, f"{hub_id}@{model.commit}", precision, dialect)
    if not cache.has(engine) and model.is_optimum():
        return model.graphs(graphs)

    def checkpoint() -> Checkpoint:
        return load_from_hub(model, local_files_only=local_files_only)

    return _exported(checkpoint, engine, cache, precision, dialect, on_progress)


def prepare(
    source: Any,
    cache: EngineCache,
    precision: str,
    dialect: str,
    *,
    on_progress: ExportProgress | None = None,
) -> Path:
    """The cached engine of a local checkpoint or a model in memory; exported if there is none.

    The weights are read to find out whether their engine is in the cache.

    Args are those of :func:`prepare_hub`; ``source`` is that of
    :func:`whisper_opt.export.checkpoints.load_checkpoint`.

    Raises:
        WhisperOptError: the checkpoint cannot be read or exported.
    """
    checkpoint = load_checkpoint(source)
    name = checkpoint.source.name
    engine = cache.engine(name, _identity(checkpoint), precision, dialect)
    return _exported(lambda: checkpoint, engine, cache, precision, dialect, on_progress)


def _identity(checkpoint: Checkpoint) -> list[Any]:
    """All of a checkpoint that an engine depends on, as JSON types."""
    return [
        sorted(checkpoint.source.sha256.items()),
        sorted(checkpoint.dims.to_dict().items()),
        checkpoint.configuration_sha256(),
    ]


def _exported(
    checkpoint: Callable[[], Checkpoint],
    engine: Path,
    cache: EngineCache,
    precision: str,
    dialect: str,
    on_progress: ExportProgress | None,
) -> Path:
    if cache.has(engine):
        return engine
    cache.create()
    with _lock(engine):
        if not cache.has(engine):  # another process may have exported it meanwhile
            _log.info("exporting %s", engine)
            export(
                checkpoint(), engine, precision=precision, dialect=dialect, on_progress=on_progress
            )
    return engine


def _lock(engine: Path) -> Any:
    lock = filelock.FileLock(engine.with_name(f".{engine.name}.lock"))
    try:
        return lock.acquire(timeout=1)
    except filelock.Timeout:
        _log.warning("waiting for another process that exports %s", engine)
        return lock.acquire()
