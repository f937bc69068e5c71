"""Export checkpoints into the engine cache, once."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any, Callable

from whisper_opt.export.build import ExportProgress, export
from whisper_opt.export.checkpoints.checkpoint import Checkpoint
from whisper_opt.export.checkpoints.hub import find
from whisper_opt.export.checkpoints.load import load_checkpoint, load_from_hub
from whisper_opt.runtime.engine_cache import EngineCache, fingerprint

__all__ = ["place", "prepare", "prepare_hub"]

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

    The weights are read to find out whether their engine is in the cache. What was found of local
    files is recorded there, so that they need not be read again (:meth:`EngineCache.known_source`).

    Args are those of :func:`prepare_hub`; ``source`` is that of
    :func:`whisper_opt.export.checkpoints.load_checkpoint`.

    Raises:
        WhisperOptError: the checkpoint cannot be read or exported.
    """
    path = Path(source) if isinstance(source, (str, os.PathLike)) else None
    before = None if path is None else fingerprint(path)
    checkpoint = load_checkpoint(source)
    name, identity = checkpoint.source.name, _identity(checkpoint)
    engine = cache.engine(name, identity, precision, dialect)
    _exported(lambda: checkpoint, engine, cache, precision, dialect, on_progress)
    if path is not None:
        cache.record_source(path, before, name, identity)
    return engine


def place(source: Path, cache: EngineCache, precision: str, dialect: str) -> Path:
    """The directory of :func:`prepare` for a local checkpoint, whether it exists or not.

    Raises:
        CheckpointError: the checkpoint cannot be read.
    """
    before = fingerprint(source)
    checkpoint = load_checkpoint(source)
    name, identity = checkpoint.source.name, _identity(checkpoint)
    cache.record_source(source, before, name, identity)
    return cache.engine(name, identity, precision, dialect)


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

    def on_wait() -> None:
        _log.warning("waiting for another process that exports %s", engine)

    with cache.lock(engine, on_wait):
        if not cache.has(engine):  # another process may have exported it meanwhile
            _log.info("exporting %s", engine)
            export(
                checkpoint(), engine, precision=precision, dialect=dialect, on_progress=on_progress
            )
    return engine
