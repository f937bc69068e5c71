"""Engines that are loaded by name, in a cache of their own, made from a hub on this machine."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.support.loopback_hub import LoopbackHub
from whisper_opt.core.model_names import MODEL_NAMES
from whisper_opt.core.options import LoadOptions
from whisper_opt.transcription.model_source import engine_directory

__all__ = ["named_engines"]


@contextlib.contextmanager
def named_engines(
    root: Path,
    checkpoints: Mapping[str, Path],
    precisions: Mapping[str, tuple[str, ...]] | None = None,
) -> Iterator[dict[str, Path]]:
    """Engines by name; within, this process and those it starts find them in their cache.

    Args:
        root: directory of the cache.
        checkpoints: directory of the checkpoint of each name.
        precisions: engines to make of a name, the first of which is returned; default: the default.
    """
    with LoopbackHub() as hub, hub.client(root / "hub"), pytest.MonkeyPatch.context() as patch:
        patch.setenv("WHISPER_OPT_CACHE", str(root / "cache"))
        found = {}
        for name, folder in checkpoints.items():
            known = MODEL_NAMES[name]
            hub.add(known.hub_id, folder, commit=str(known.revision))
            chosen = (precisions or {}).get(name, (LoadOptions().precision,))
            paths = [engine_directory(name, LoadOptions(precision=one)) for one in chosen]
            found[name] = paths[0]
        yield found
