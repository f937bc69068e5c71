"""The engine cache: engines exported from names and checkpoints, one directory per key.

WHISPER_OPT_CACHE, else XDG_CACHE_HOME/whisper_opt, else ~/.cache/whisper_opt
NAME-PRECISION-DIALECT-DIGEST/    an engine directory
revisions.json                    commits of hub ids, for use without a network
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any, Union

from whisper_opt.core.errors import EngineError
from whisper_opt.core.files import replace_file
from whisper_opt.core.version import __version__
from whisper_opt.runtime.engine import FORMAT_VERSION, MANIFEST

__all__ = ["EngineCache"]

_REVISIONS = "revisions.json"


class EngineCache:
    """A directory of exported engines.

    Attributes:
        path: the directory; it need not exist.
    """

    def __init__(self, path: Union[str, Path, None] = None) -> None:
        """Use ``path``; default: ``WHISPER_OPT_CACHE``, else the user's cache directory."""
        chosen = path or os.environ.get("WHISPER_OPT_CACHE")
        if chosen:
            self.path = Path(chosen).expanduser()
        else:
            caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
            self.path = Path(caches) / "whisper_opt"

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

    def commit(self, hub_id: str, revision: Union[str, None]) -> Union[str, None]:
        """The commit that a revision of a hub id had when it was last resolved, or None."""
        found = self._commits().get(f"{hub_id}@{revision or ''}")
        return found if isinstance(found, str) else None

    def record_commit(self, hub_id: str, revision: Union[str, None], commit: str) -> None:
        """Record the commit of a revision of a hub id.

        Raises:
            EngineError: the cache cannot be written.
        """
        commits = {**self._commits(), f"{hub_id}@{revision or ''}": commit}
        self.create()
        try:
            replace_file(self.path / _REVISIONS, json.dumps(commits, indent=1).encode())
        except OSError as error:
            raise EngineError(self._unusable(error)) from error

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

    def _commits(self) -> dict[str, Any]:
        try:
            values = json.loads((self.path / _REVISIONS).read_text("utf-8"))
        except (OSError, ValueError):  # none yet, or damaged: resolved again
            return {}
        return values if isinstance(values, dict) else {}
