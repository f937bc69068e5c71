"""The engine cache: engines exported from names and checkpoints, one directory per key.

WHISPER_OPT_CACHE, else whisper_opt in the user's cache directory (platformdirs)
NAME-PRECISION-DIALECT-DIGEST/          an engine directory; .last-used in it: when it was last used
.NAME-PRECISION-DIALECT-DIGEST.lock     held during the export
.NAME-PRECISION-DIALECT-DIGEST.partial-PID/  an export in progress, or one that was killed
revisions.json                          commits of hub ids, for use without a network
sources/DIGEST.json                     what is known of a local checkpoint (known_source)
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable, NamedTuple, Union

from whisper_opt.core.errors import EngineError
from whisper_opt.core.files import replace_file
from whisper_opt.core.locks import LockHeldError, file_lock
from whisper_opt.core.version import __version__
from whisper_opt.runtime.engine import FORMAT_VERSION, MANIFEST

__all__ = ["LAST_USED", "SOURCES", "EngineCache", "Fingerprint", "fingerprint"]

LAST_USED = ".last-used"
"""File in an engine directory; its time of change is that of the last use."""
SOURCES = "sources"
"""Directory of what is known of local checkpoints."""

_REVISIONS = "revisions.json"
_ADAPTER = "adapter_config.json"
_SETTLED = 0.05
"""Seconds after which a further change of a file surely has another time of change."""
_SETTLED_COARSE = 2.0
"""The same on file systems that store whole or even seconds."""


class Fingerprint(NamedTuple):
    """The state of the files of a local checkpoint.

    Attributes:
        files: name, size in bytes, times of change of contents and of status in nanoseconds, and
            inode of each file.
        when: time at which this was found.
    """

    files: list[list[Any]]
    when: float

    @property
    def settled(self) -> bool:
        """Whether a change after ``when`` changes ``files``, however soon it came."""
        changed = [max(entry[2], entry[3]) for entry in self.files]
        coarse = all(time % 1_000_000_000 == 0 for time in changed)
        margin = _SETTLED_COARSE if coarse else _SETTLED
        latest: float = max(changed) / 1e9
        return latest < self.when - margin


def fingerprint(source: Path) -> Fingerprint | None:
    """The state of all files that a local checkpoint can consist of.

    Args:
        source: its directory, or its file, to which a ``tokenizer.json`` beside it belongs. The
            base of an adapter belongs to it if it is a local path.

    Returns:
        None if the files are not known without reading it: the base of the adapter is on the hub.
    """
    when = time.time()
    if not source.exists():
        return None
    try:
        paths = [source, source.with_name("tokenizer.json")]
        if source.is_dir():
            paths = [path for path in source.iterdir() if path.is_file()]
        found = [(path.name, path.stat()) for path in sorted(paths) if path.exists()]
    except OSError:
        return None
    files = [[name, s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_ino] for name, s in found]
    if (source / _ADAPTER).exists():
        base = _local_base(source / _ADAPTER)
        below = None if base is None else fingerprint(base)
        if below is None:
            return None
        files += [[f"base/{name}", *state] for name, *state in below.files]
    return Fingerprint(files, when) if files else None


def _local_base(config: Path) -> Path | None:
    """The base of an adapter, if it is a local path; it has no base itself."""
    try:
        base = Path(json.loads(config.read_text("utf-8"))["base_model_name_or_path"])
        return None if (base / _ADAPTER).exists() or not base.exists() else base
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


class EngineCache:
    """A directory of exported engines."""

    def __init__(self, path: Union[str, Path, None] = None) -> None:
        """Use ``path``; default: ``WHISPER_OPT_CACHE``, else the user's cache directory."""
        self._chosen = path or os.environ.get("WHISPER_OPT_CACHE")

    @functools.cached_property
    def path(self) -> Path:
        """The directory; it need not exist."""
        if self._chosen:
            return Path(self._chosen).expanduser()
        import platformdirs  # not to load an engine by its directory

        return Path(platformdirs.user_cache_dir("whisper_opt", appauthor=False))

    def engine(self, name: str, identity: Any, precision: str, dialect: str) -> Path:
        """Directory of an engine, whether it exists or not.

        Args:
            name: for people; part of the directory's name.
            identity: what determines the weights and the vocabulary; made of JSON types.
            precision: of the engine.
            dialect: of the engine.
        """
        key = [identity, precision, dialect, FORMAT_VERSION, __version__]
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
        readable = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.")[:80] or "model"
        return self.path / f"{readable}-{precision}-{dialect}-{digest}"

    def has(self, engine: Path) -> bool:
        """Whether an engine of this cache was exported; directories appear complete."""
        return (engine / MANIFEST).is_file()

    def record_use(self, engine: Path, *, is_here: bool = True) -> None:
        """Record that an engine is used now; without effect if that is impossible.

        Args:
            engine: its directory.
            is_here: whether it is known to be in this cache; else only an engine is recorded that
                was used as one of a cache before.
        """
        with contextlib.suppress(OSError):
            if is_here:
                (engine / LAST_USED).touch()
            else:
                os.utime(engine / LAST_USED)

    def lock_file(self, engine: Path) -> Path:
        """The file of :meth:`lock`; it exists during an export, and after one that was killed."""
        return engine.with_name(f".{engine.name}.lock")

    @contextlib.contextmanager
    def lock(
        self,
        engine: Path,
        on_wait: Callable[[], None] | None = None,
        timeout: float | None = None,
        *,
        keep: bool = False,
    ) -> Iterator[None]:
        """Hold the lock under which an engine is exported or removed; the cache is created.

        Args:
            engine: its directory.
            on_wait: called once, if another process has the lock.
            timeout: seconds to wait (default: no limit).
            keep: leave the file of the lock.

        Raises:
            EngineError: the cache cannot be written, or another process has the lock.
        """
        self.create()
        with contextlib.ExitStack() as held:
            try:
                file = self.lock_file(engine)
                held.enter_context(file_lock(file, on_wait, timeout, remove=not keep))
            except LockHeldError as error:
                raise EngineError(
                    f"another process is exporting {engine}; wait for it, or end it"
                ) from error
            except OSError as error:
                raise EngineError(self._unusable(error)) from error
            yield

    def commit(self, hub_id: str, revision: Union[str, None]) -> Union[str, None]:
        """The commit that a revision of a hub id had when it was last resolved, or None."""
        found = self._read(_REVISIONS).get(f"{hub_id}@{revision or ''}")
        return found if isinstance(found, str) else None

    def record_commit(self, hub_id: str, revision: Union[str, None], commit: str) -> None:
        """Record the commit of a revision of a hub id.

        Raises:
            EngineError: the cache cannot be written.
        """
        commits = {**self._read(_REVISIONS), f"{hub_id}@{revision or ''}": commit}
        self.create()
        try:
            replace_file(self.path / _REVISIONS, json.dumps(commits, indent=1).encode())
        except OSError as error:
            raise EngineError(self._unusable(error)) from error

    def known_source(self, source: Path) -> tuple[str, Any] | None:
        """Name and identity of a local checkpoint, without reading it.

        They are those of :meth:`record_source`, if since then no file of the checkpoint has changed
        its size, times or inode, and none was added or removed.
        """
        found = self._read(f"{SOURCES}/{_source_file(source)}")
        now = fingerprint(source)
        if now is None or found.get("files") != now.files or found.get("version") != __version__:
            return None
        name = found.get("name")
        return (name, found.get("identity")) if isinstance(name, str) else None

    def record_source(
        self, source: Path, before: Fingerprint | None, name: str, identity: Any
    ) -> None:
        """Record what was read from a local checkpoint; without effect if that is impossible.

        Nothing is recorded if the checkpoint may have changed while it was read.

        Args:
            source: the checkpoint.
            before: its fingerprint before it was read.
            name: see :meth:`engine`.
            identity: see :meth:`engine`.
        """
        after = fingerprint(source)
        if before is None or after is None or before.files != after.files or not before.settled:
            return
        values = {
            "path": os.path.abspath(source),
            "version": __version__,
            "name": name,
            "identity": identity,
            "files": before.files,
        }
        target = self.path / SOURCES / _source_file(source)
        with contextlib.suppress(OSError):
            target.parent.mkdir(exist_ok=True)
            replace_file(target, json.dumps(values, indent=1).encode())

    def create(self) -> None:
        """Create the directory; raises EngineError if that is impossible."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise EngineError(self._unusable(error)) from error

    def _unusable(self, error: OSError) -> str:
        return (
            f"the engine cache {self.path} cannot be written: {error.strerror}; name another"
            " directory by the option cache_dir or the environment variable WHISPER_OPT_CACHE"
        )

    def _read(self, name: str) -> dict[str, Any]:
        try:
            values = json.loads((self.path / name).read_text("utf-8"))
        except (OSError, ValueError, RecursionError):  # none yet, or damaged: made again
            return {}
        return values if isinstance(values, dict) else {}


def _source_file(source: Path) -> str:
    """Name of the file about a local checkpoint."""
    return hashlib.sha256(os.fsencode(os.path.abspath(source))).hexdigest()[:32] + ".json"
