"""Small speaker networks: random weights in the published layout, and one made by hand."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from tests.support.models_write import write_torch
from whisper_opt.audio.speakers import SpeakerNetworks
from whisper_opt.audio.speakers.windows import FRAME, FRAMES
from whisper_opt.core.arrays import F32

__all__ = ["TONES", "ToneNetworks", "embedding_state", "segmentation_state", "tones", "write_wheel"]

TONES = (300.0, 900.0, 2000.0, 4000.0)
"""Hz of each speaker of :class:`ToneNetworks`."""


class _Random:
    """Named random tensors."""

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        self.state: dict[str, Any] = {}

    def add(self, key: str, *shape: int, scale: float = 0.5) -> None:
        self.state[key] = (self._rng.standard_normal(shape) * scale).astype(np.float32)

    def norm(self, key: str, size: int, *, affine: bool = True) -> None:
        if affine:
            self.add(f"{key}.weight", size)
            self.add(f"{key}.bias", size)
        self.add(f"{key}.running_mean", size)
        self.state[f"{key}.running_var"] = self._rng.uniform(0.5, 2, size).astype(np.float32)
        self.state[f"{key}.num_batches_tracked"] = np.array(7, np.int64)


def segmentation_state(seed: int = 0, filters_of: int = 21) -> dict[str, Any]:
    """Four filters of 21 samples, two layers of four cells; those of the real network have 251.

    With 251 a window has the frames of the real network, which turns of speakers are made of.
    """
    half = filters_of // 2
    net = _Random(seed)
    for name in ("weight", "bias"):
        net.add(f"sincnet.wav_norm1d.{name}", 1)
    filters = "sincnet.conv1d.0.filterbank"
    net.state[f"{filters}.low_hz_"] = np.array([[100.0], [-900.0]], np.float32)
    net.state[f"{filters}.band_hz_"] = np.array([[300.0], [9000.0]], np.float32)
    net.state[f"{filters}.window_"] = np.hamming(filters_of)[:half].astype(np.float32)
    times = 2 * np.pi * np.arange(-half, 0) / 16000
    net.state[f"{filters}.n_"] = times[None].astype(np.float32)
    for i, (n_in, n_out) in enumerate(((0, 4), (4, 3), (3, 3))):
        if i:
            net.add(f"sincnet.conv1d.{i}.weight", n_out, n_in, 5)
            net.add(f"sincnet.conv1d.{i}.bias", n_out)
        for name in ("weight", "bias"):
            net.add(f"sincnet.norm1d.{i}.{name}", n_out)
    for number, n_in in enumerate((3, 8)):
        for suffix in (f"l{number}", f"l{number}_reverse"):
            net.add(f"lstm.weight_ih_{suffix}", 16, n_in)
            net.add(f"lstm.weight_hh_{suffix}", 16, 4)
            net.add(f"lstm.bias_ih_{suffix}", 16)
            net.add(f"lstm.bias_hh_{suffix}", 16)
    for layer_name, n_out, n_in in (("linear.0", 5, 8), ("linear.1", 5, 5), ("classifier", 7, 5)):
        net.add(f"{layer_name}.weight", n_out, n_in)
        net.add(f"{layer_name}.bias", n_out)
    return net.state


def embedding_state(seed: int = 0) -> dict[str, Any]:
    """Two channels, growth of three, embeddings of five numbers."""
    net = _Random(seed)

    def plane(key: str, norm: str, n_out: int, n_in: int, size: int) -> None:
        net.add(f"{key}.weight", n_out, n_in, size, size)
        net.norm(norm, n_out)

    plane("head.conv1", "head.bn1", 2, 1, 3)
    for layer in ("layer1", "layer2"):
        for block in range(2):
            key = f"head.{layer}.{block}"
            plane(f"{key}.conv1", f"{key}.bn1", 2, 2, 3)
            plane(f"{key}.conv2", f"{key}.bn2", 2, 2, 3)
        key = f"head.{layer}.0.shortcut"
        plane(f"{key}.0", f"{key}.1", 2, 2, 1)
    plane("head.conv2", "head.bn2", 2, 2, 3)
    net.add("xvector.tdnn.linear.weight", 4, 20, 5, scale=0.2)
    net.norm("xvector.tdnn.nonlinear.batchnorm", 4)
    channels = 4
    for stage in (1, 2, 3):
        for number in (1, 2):
            key = f"xvector.block{stage}.tdnnd{number}"
            net.norm(f"{key}.nonlinear1.batchnorm", channels)
            net.add(f"{key}.linear1.weight", 6, channels, 1)
            net.norm(f"{key}.nonlinear2.batchnorm", 6)
            net.add(f"{key}.cam_layer.linear_local.weight", 3, 6, 3)
            for name, n_out, n_in in (("linear1", 3, 6), ("linear2", 3, 3)):
                net.add(f"{key}.cam_layer.{name}.weight", n_out, n_in, 1)
                net.add(f"{key}.cam_layer.{name}.bias", n_out)
            channels += 3
        net.norm(f"xvector.transit{stage}.nonlinear.batchnorm", channels)
        net.add(f"xvector.transit{stage}.linear.weight", channels // 2, channels, 1)
        channels //= 2
    net.norm("xvector.out_nonlinear.batchnorm", channels)
    net.add("xvector.dense.linear.weight", 5, 2 * channels, 1)
    net.norm("xvector.dense.nonlinear.batchnorm", 5, affine=False)
    return net.state


def write_wheel(folder: Path, *, speaking: bool = False) -> Path:
    """A directory with both checkpoints, a licence, and files that are none of these.

    Args:
        folder: it is created.
        speaking: the network hears one person speak all the time; else nobody ever.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_torch(folder / "voice.pt", embedding_state(), "float32")
    tensors = segmentation_state(filters_of=251 if speaking else 21)
    if speaking:
        tensors["classifier.bias"] = np.array([0, 99, 0, 0, 0, 0, 0], np.float32)
    state = {"format_version": 1, "state_dict": tensors}
    write_torch(folder / "who.bin", state, "float32")
    write_torch(folder / "other.pt", {"weight": np.zeros(3, np.float32)}, "float32")
    (folder / "broken.pt").write_bytes(b"PK nothing")
    (folder / "LICENSE").write_text("You may.\n", encoding="utf-8")
    return folder


def tones(turns: list[tuple[float, float, int]], seconds: float) -> F32:
    """Each speaker is a tone: (start, end, speaker)."""
    time = np.arange(round(seconds * 16000)) / 16000
    sound = np.random.default_rng(0).standard_normal(len(time)).astype(np.float32)
    sound *= np.float32(1e-4)
    for start, end, speaker in turns:
        inside = (time >= start) & (time < end)
        tone = np.sin(2 * np.pi * TONES[speaker] * time).astype(np.float32)
        sound += inside * tone * np.float32(0.1)
    return sound


class ToneNetworks:
    """Tells the tones apart; in every window the speakers have other numbers."""

    def __init__(self) -> None:
        self.n_windows = 0
        self.lengths: list[int] = []

    @classmethod
    def networks(cls) -> SpeakerNetworks:
        return cast(SpeakerNetworks, cls())

    def segment(self, samples: F32) -> F32:
        scores = np.zeros((len(samples), FRAMES, 7), np.float32)
        pairs = {(): 0, (0,): 1, (1,): 2, (2,): 3, (0, 1): 4, (0, 2): 5, (1, 2): 6}
        for i, window in enumerate(samples):
            found = np.stack([_strength(window, hertz) for hertz in TONES]) > 0.02
            present = [speaker for speaker in range(len(TONES)) if found[speaker].any()]
            order = np.roll(present, self.n_windows % 3)[:3]
            self.n_windows += 1
            for frame in range(FRAMES):
                active = tuple(j for j, speaker in enumerate(order) if found[speaker, frame])
                scores[i, frame, pairs[active[:2]]] = 1
        return scores

    def embed(self, features: F32) -> F32:
        self.lengths.append(features.shape[1])
        edges = np.linspace(0, 1127 * np.log1p(8000 / 700), 82)[1:-1]
        marks = 1127 * np.log1p(np.array(TONES) / 700)
        peaks = edges[features.mean(axis=1).argmax(axis=1)]
        nearest = np.abs(peaks[:, None] - marks).argmin(axis=1)
        found: F32 = np.eye(len(TONES), dtype=np.float32)[nearest]
        return found


@functools.cache
def _turning(n: int, hertz: float) -> npt.NDArray[np.complex64]:
    time = np.arange(n) / 16000
    found: npt.NDArray[np.complex64] = np.exp(-2j * np.pi * hertz * time).astype(np.complex64)
    return found


def _strength(window: F32, hertz: float) -> F32:
    """Amplitude of a tone in every frame, over 270 samples."""
    sums = np.add.reduceat(window * _turning(len(window), hertz), _EDGES)[:-1:2]
    strength: F32 = np.abs(sums).astype(np.float32) * np.float32(2 / FRAME)
    return strength


_EDGES = np.array([(360 + i * FRAME, 360 + (i + 1) * FRAME) for i in range(FRAMES)]).ravel()
