"""Helpers of the tests of exports: a model that is exported quickly, and ways to damage it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Callable

import numpy as np
import pytest

from tests.support.models import random_dims
from whisper_opt.core.arrays import F32
from whisper_opt.export import build
from whisper_opt.export.graphs.builder import OnnxGraph, Weight
from whisper_opt.export.graphs.graph import build_decoder, build_encoder

SMALL = random_dims(
    n_vocab=2000, n_audio_state=64, n_text_state=64, n_audio_layer=1, n_text_layer=1
)
BUILDERS: dict[str, Callable[..., Any]] = {"encoder": build_encoder, "decoder": build_decoder}


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.*")}


def change_weight(monkeypatch: pytest.MonkeyPatch, name: str, change: Callable[[F32], F32]) -> None:
    """Change a weight in the graph of an export, but not in the checkpoint."""

    def damage(weight: Weight) -> Weight:
        if weight.name != name:
            return weight
        return dataclasses.replace(weight, read=lambda: change(weight.read()))

    def damaged(make: Callable[..., Any]) -> Callable[..., Any]:
        def build_damaged(*arguments: Any, **named: Any) -> tuple[OnnxGraph, Any]:
            graph, cuts = make(*arguments, **named)
            return OnnxGraph(graph.model, tuple(map(damage, graph.weights))), cuts

        return build_damaged

    for stem, make in BUILDERS.items():
        monkeypatch.setattr(build, f"build_{stem}", damaged(make))


def nan_first(values: F32) -> F32:
    values = values.copy()
    values.flat[0] = np.nan
    return values


def half(values: F32) -> F32:
    halved: F32 = values * np.float32(0.5)
    return halved
