"""Engines that are loaded by name, in a cache of their own, made from a hub on this machine."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Callable

import pytest

from tests.support.loopback_hub import LoopbackHub
from whisper_opt.core.model_names import MODEL_NAMES
from whisper_opt.core.options import LoadOptions
from whisper_opt.runtime.engine_cache import EngineCache
from whisper_opt.transcription.model_source import engine_directory, engine_precision

__all__ = ["named_engines"]


@contextlib.contextmanager
def named_engines(
    root: Path,
    checkpoints: Mapping[str, Path],
    precisions: Mapping[str, tuple[str, ...]] | None = None,
    made: Callable[[str, str], Path] | None = None,
) -> Iterator[dict[str, Path]]:
    """Engines by name; within, this process and those it starts find them in their cache.

    Args:
        root: directory of the cache.
        checkpoints: directory of the checkpoint of each name.
        precisions: engines to make of a name, the first of which is returned; default: the default.
        made: gives the engine of a name and a precision, which is put into the cache: these are
            not exported once more. Default: the checkpoints are fetched and exported.
    """
    with LoopbackHub() as hub, hub.client(root / "hub"), pytest.MonkeyPatch.context() as patch:
        patch.setenv("WHISPER_OPT_CACHE", str(root / "cache"))
        found = {}
        for name, folder in checkpoints.items():
            known = MODEL_NAMES[name]
            hub.add(known.hub_id, folder, commit=str(known.revision))
            chosen = (precisions or {}).get(name, (LoadOptions().precision,))
            options = [LoadOptions(precision=one) for one in chosen]
            if made is not None:
                for one in options:
                    precision, dialect = engine_precision(one)
                    identity = f"{known.hub_id}@{known.revision}"
                    place = EngineCache().engine(known.hub_id, identity, precision, dialect)
                    shutil.copytree(made(name, precision), place, copy_function=os.link)
            found[name], *_ = [engine_directory(name, one) for one in options]
        yield found
