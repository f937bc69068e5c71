"""What a verification holds in memory at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support.engines import sharp_checkpoint
from tests.support.models import random_dims
from whisper_opt.export import export
from whisper_opt.export.checkpoints import Checkpoint
from whisper_opt.export.verification import verify as module
from whisper_opt.export.verification.partitioned import PartitionedGraph

DIMS = random_dims(n_vocab=2000, n_audio_layer=1, n_text_layer=2)


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return sharp_checkpoint(DIMS)


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Graphs that run or are closed, and calls of openai-whisper."""
    found: list[str] = []
    run, close = PartitionedGraph.run, PartitionedGraph.close

    def running(self: PartitionedGraph, feeds: Any) -> Any:
        found.append(f"run {self._stem}")
        return run(self, feeds)

    def closing(self: PartitionedGraph) -> None:
        found.append(f"close {self._stem}")
        close(self)
        assert self._single is None

    monkeypatch.setattr(PartitionedGraph, "run", running)
    monkeypatch.setattr(PartitionedGraph, "close", closing)
    monkeypatch.setattr(module, "openai_logits", lambda *given: found.append("openai-whisper"))
    return found


def test_packed_graphs_are_loaded_after_the_plain_ones_are_closed(
    checkpoint: Checkpoint, events: list[str], tmp_path: Path
) -> None:
    export(checkpoint, tmp_path / "engine", precision="int8")
    packed = events.index("run encoder.packed")
    for stem in ("encoder", "decoder"):
        assert f"close {stem}" in events[:packed]
        assert f"run {stem}" not in events[packed:]
    assert {"close encoder.packed", "close decoder.packed"} <= {*events[packed:]}


def test_openai_whisper_is_asked_about_floating_point_only(
    checkpoint: Checkpoint, events: list[str], tmp_path: Path
) -> None:
    export(checkpoint, tmp_path / "int8", precision="int8")
    assert "openai-whisper" not in events
    export(checkpoint, tmp_path / "fp32")
    assert events[-2:] == ["close decoder", "openai-whisper"]
    assert "close encoder" in events[events.index("run encoder") : events.index("run decoder")]


def test_one_graph_is_loaded_at_a_time(
    checkpoint: Checkpoint, events: list[str], tmp_path: Path
) -> None:
    export(checkpoint, tmp_path / "engine", precision="int8")
    loaded: set[str] = set()
    for event in events:
        what, _, stem = event.partition(" ")
        (loaded.add if what == "run" else loaded.discard)(stem)
        assert len(loaded) <= 1, events
