"""Regenerate tests/data/mel from openai-whisper.

Run from the repository root, in an environment with openai-whisper and soundfile:

    python tools/goldens/make_mel_golden.py path/to/jfk.wav     # any recording at 16 kHz, mono

Each ``<signal>.npz`` holds the samples (int16, to be divided by 32768) and, for 80 and 128 bins,
the frames of ``log_mel_spectrogram(samples, n_mels, padding=480000)`` that differ from silence,
and the value of all later frames.
"""

from __future__ import annotations

import argparse
import pathlib
from typing import Any

import numpy as np
import soundfile
import torch
from whisper.audio import N_SAMPLES, log_mel_spectrogram, mel_filters

OUT = pathlib.Path(__file__).resolve().parents[2] / "tests" / "data" / "mel"


def signals(speech: np.ndarray) -> dict[str, np.ndarray]:
    """The test signals, int16."""
    rng = np.random.default_rng(20220921)
    noise = np.clip(rng.standard_normal(16_000) * 0.2, -1, 1) * 32767
    gap = speech[16_000:40_123].copy()  # not a whole number of hops
    gap[8_000:12_000] = 0
    return {
        "speech": gap,
        "noise": noise.astype(np.int16),
        "short": speech[24_000:24_800],  # 0.05 s
        "tiny": speech[24_000:24_150],  # shorter than the reflected edge and than one hop
        "quiet": speech[20_000:36_000] // 512,
    }


def main() -> None:
    """Write the golden files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("speech", help="16 kHz mono recording of at least 2.6 s")
    speech, rate = soundfile.read(parser.parse_args().speech, dtype="int16")
    if rate != 16_000 or speech.ndim != 1 or len(speech) < 41_000:
        parser.error("expected a 16 kHz mono recording of at least 2.6 s")
    OUT.mkdir(parents=True, exist_ok=True)
    for name, samples in signals(speech).items():
        arrays: dict[str, Any] = {"samples": samples}
        waveform = samples.astype(np.float32) / np.float32(32768)
        for n_mels in (80, 128):
            mel = log_mel_spectrogram(waveform, n_mels, padding=N_SAMPLES).numpy()
            silence = mel[:, -1].max()
            used = np.flatnonzero((mel != silence).any(axis=0))
            n_used = int(used[-1]) + 1
            if not (mel[:, n_used:] == silence).all():
                raise SystemExit(f"{name}: the frames of the padding differ")
            arrays[f"frames_{n_mels}"] = mel[:, :n_used]
            arrays[f"silence_{n_mels}"] = silence
        np.savez_compressed(OUT / f"{name}.npz", **arrays)
    filters: dict[str, Any] = {
        f"mel_{n}": mel_filters(torch.device("cpu"), n).numpy() for n in (80, 128)
    }
    np.savez_compressed(OUT / "filters.npz", **filters)


if __name__ == "__main__":
    main()
