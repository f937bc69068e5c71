"""What the engine cache holds: listing, removing, and pruning what is no longer of use.

Engines are removed under the lock of their export, and renamed before they are deleted: no process
sees half an engine. One that is in use keeps running where open files can be renamed; on Windows
its removal fails.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Union

from whisper_opt.core.errors import EngineError
from whisper_opt.core.json_files import read_text
from whisper_opt.core.model_names import find_name
from whisper_opt.core.options import PRECISIONS
from whisper_opt.core.version import __version__
from whisper_opt.runtime.engine import FORMAT_VERSION, MANIFEST, read_engine
from whisper_opt.runtime.engine_cache import LAST_USED, SOURCES, EngineCache

__all__ = ["CachedEngine", "Pruned", "cached_engines", "engines_named", "prune", "remove_engine"]

_ENGINE = re.compile(
    rf"(?P<name>.+)-(?P<precision>{'|'.join(sorted(PRECISIONS, key=len, reverse=True))})"
    r"-(?P<dialect>contrib|standard)-[0-9a-f]{16}"
)
_LEFTOVER = re.compile(rf"\.(?P<engine>{_ENGINE.pattern})\.(?P<kind>lock|partial|removed)\b.*")
_TEMPORARY = ".whisper-opt-*.tmp"
_STALE_SECONDS = 3600.0
"""Age from which a temporary file belongs to no running process."""
_DAY = 86_400.0


@dataclasses.dataclass(frozen=True)
class CachedEngine:
    """An engine of the cache.

    Attributes:
        path: its directory.
        name: hub id, or name of the local checkpoint's file or directory.
        revision: commit of a hub id; None: a local checkpoint.
        precision: of its arithmetic.
        dialect: of its operators.
        size: bytes of all its files.
        last_used: time when it was last loaded, else exported, in seconds since 1970.
        whisper_opt: version of the package that exported it, or None if unknown.
        problem: why this version cannot read it, or None.
        format_version: version of the layout, or None if unknown.
    """

    path: Path
    name: str
    revision: Union[str, None]
    precision: str
    dialect: str
    size: int
    last_used: float
    whisper_opt: Union[str, None]
    problem: Union[str, None]
    format_version: Union[int, None]

    @property
    def superseded(self) -> bool:
        """Whether names and checkpoints are exported again instead of using it."""
        return self.whisper_opt != __version__ or self.format_version != FORMAT_VERSION


@dataclasses.dataclass(frozen=True)
class Pruned:
    """A file or directory that was removed from the cache.

    Attributes:
        path: where it was.
        size: bytes of all its files.
        reason: why it was removed.
        problem: why it could not be removed, or None.
    """

    path: Path
    size: int
    reason: str
    problem: Union[str, None] = None


def cached_engines(cache: EngineCache) -> list[CachedEngine]:
    """The engines of a cache, by name; other files and directories are ignored.

    Raises:
        EngineError: the directory cannot be listed.
    """
    found = []
    for path in _entries(cache):
        match = _ENGINE.fullmatch(path.name)
        if match and path.is_dir():
            found.append(_described(path, match))
    return sorted(found, key=lambda engine: (engine.name, engine.precision, engine.path))


def engines_named(engines: Iterable[CachedEngine], name: str) -> list[CachedEngine]:
    """The engines that a name stands for, in all precisions.

    Args:
        engines: to choose from.
        name: short name, hub id with or without ``@revision``, name of a local checkpoint as
            :attr:`CachedEngine.name` has it, or name of the engine's directory.
    """
    known = find_name(name)
    hub_id, _, revision = name.partition("@")
    return [
        engine
        for engine in engines
        if name in (engine.name, engine.path.name)
        or (known is not None and engine.name == known.hub_id)
        or (hub_id == engine.name and (engine.revision or "").startswith(revision))
    ]


def _entries(cache: EngineCache) -> list[Path]:
    try:
        return sorted(cache.path.iterdir())
    except FileNotFoundError:
        return []
    except OSError as error:
        raise EngineError(
            f"the engine cache {cache.path} cannot be listed: {error.strerror}"
        ) from error


def _described(path: Path, match: re.Match[str]) -> CachedEngine:
    problem = None
    try:
        read_engine(path)
    except EngineError as error:
        problem = str(error)
    values = _manifest(path)
    source, tools = (
        found if isinstance(found := values.get(key), dict) else {} for key in ("source", "tools")
    )
    name, revision = str(source.get("name") or match["name"]), ""
    if "/" in name:  # a hub id
        name, _, revision = name.partition("@")
    version = values.get("format_version")
    return CachedEngine(
        path=path,
        name=name,
        revision=revision or None,
        precision=match["precision"],
        dialect=match["dialect"],
        size=_size(path),
        last_used=_last_used(path),
        whisper_opt=str(tools["whisper_opt"]) if "whisper_opt" in tools else None,
        problem=problem,
        format_version=version if isinstance(version, int) else None,
    )


def _manifest(path: Path) -> dict[str, Any]:
    """The manifest, of whatever version; nothing is checked."""
    try:
        values = json.loads(read_text(path / MANIFEST))
    except (OSError, ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}


def _size(path: Path) -> int:
    """Bytes of a file, or of all files of a directory; those that disappear meanwhile are 0."""
    files = path.rglob("*") if path.is_dir() else [path]
    total = 0
    with contextlib.suppress(OSError):
        for file in files:
            with contextlib.suppress(OSError):
                total += file.lstat().st_size if not file.is_dir() else 0
    return total


def _last_used(path: Path) -> float:
    for file in (path / LAST_USED, path / MANIFEST, path):
        with contextlib.suppress(OSError):
            return file.stat().st_mtime
    return 0.0


def remove_engine(cache: EngineCache, path: Path) -> None:
    """Remove an engine of the cache; it disappears at once.

    Raises:
        EngineError: another process is exporting it, or it cannot be removed.
    """
    doomed = path.with_name(f".{path.name}.removed-{secrets.token_hex(8)}")
    with cache.lock(path, timeout=0):
        try:
            os.rename(path, doomed)
        except FileNotFoundError:  # removed by another process
            return
        except OSError as error:
            raise EngineError(
                f"{path} cannot be removed: {error.strerror}; end the processes that use it, and"
                " check the permissions of the directory it is in"
            ) from error
        shutil.rmtree(doomed, ignore_errors=True)


def prune(
    cache: EngineCache, *, unused_days: float | None = None, dry_run: bool = False
) -> Iterator[Pruned]:
    """Remove what is no longer of use, and yield each thing after its removal.

    These are engines that other versions of the format or of this package exported, engines that
    cannot be read, what killed exports and removals left, and what is known of local checkpoints
    that no longer exist. What another process is exporting is left alone.

    Args:
        cache: the cache.
        unused_days: also remove engines that were not used for this long.
        dry_run: remove nothing.

    Raises:
        EngineError: the cache cannot be listed.
    """
    for engine in cached_engines(cache):
        reason = _why_prune(engine, unused_days)
        if reason is not None:
            problem = None
            try:
                if not dry_run:
                    remove_engine(cache, engine.path)
            except EngineError as error:
                problem = str(error)
            yield Pruned(engine.path, engine.size, reason, problem)
    for path in _entries(cache):
        match = _LEFTOVER.fullmatch(path.name)
        if match:
            yield from _without_leftover(cache, path, match, dry_run)
    yield from _without_files(cache, dry_run)


def _why_prune(engine: CachedEngine, unused_days: float | None) -> str | None:
    if engine.superseded and engine.whisper_opt is not None:
        return (
            f"exported by whisper-opt {engine.whisper_opt}, format {engine.format_version}; this is"
            f" {__version__}, format {FORMAT_VERSION}"
        )
    if engine.problem is not None:
        return "cannot be read"
    days = (time.time() - engine.last_used) / _DAY
    if unused_days is not None and days >= unused_days:
        return f"not used for {days:.0f} days"
    return None


def _without_leftover(
    cache: EngineCache, path: Path, match: re.Match[str], dry_run: bool
) -> Iterator[Pruned]:
    """Remove a leftover of a process that was killed; the lock shows whether it was."""
    engine = path.with_name(match["engine"])
    reasons = {"lock": "stale lock", "partial": "interrupted export", "removed": "half removed"}
    size = _size(path)
    keep = dry_run and cache.lock_file(engine).exists()
    try:
        with cache.lock(engine, timeout=0, keep=keep):  # else it removes its file
            if not dry_run and path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
    except EngineError:  # in use
        return
    yield Pruned(path, size, reasons[match["kind"]])


def _without_files(cache: EngineCache, dry_run: bool) -> Iterator[Pruned]:
    """Remove files that killed processes left, and those about checkpoints that are gone."""
    found = {
        path: "left by a killed process"
        for folder in (cache.path, cache.path / SOURCES)
        for path in folder.glob(_TEMPORARY)
        if time.time() - _last_used(path) > _STALE_SECONDS
    }
    for path in sorted((cache.path / SOURCES).glob("*.json")):
        if not _has_source(path):
            found[path] = "its checkpoint is gone"
    for path, reason in found.items():
        size = _size(path)
        if not dry_run:
            with contextlib.suppress(OSError):
                path.unlink()
        yield Pruned(path, size, reason)


def _has_source(path: Path) -> bool:
    """Whether the checkpoint exists that a file of :data:`SOURCES` is about."""
    try:
        values = json.loads(read_text(path))
        return Path(values["path"]).exists()
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False
