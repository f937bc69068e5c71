"""Make tests/data/vad/: results of the package silero-vad for the project's clips.

    python tools/goldens/make_vad_golden.py

Needs silero-vad (pinned in make_vad_model.py), which needs torch, and onnxruntime; the tests need
neither silero-vad nor torch. Two files:

    probabilities.json.gz  clip -> speech probability per frame, times 1e6, from the package's
                           streaming graph (silero_vad.onnx), one frame per call
    spans.json.gz          options and probabilities (thousandths) -> spans of the package's
                           get_speech_timestamps_from_probs; and the same if a split at the longest
                           silence keeps later silences as candidates, as whisper_opt does
                           ("kept")
"""

from __future__ import annotations

import argparse
import gzip
import importlib
import inspect
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from make_vad_model import CONTEXT, FRAME, ROOT, VERSION

from whisper_opt.audio.decode import load_audio
from whisper_opt.core.arrays import F32

SPEECH = ROOT / "tests" / "data" / "speech"
OUT = ROOT / "tests" / "data" / "vad"
# lossless, and all but one at 16 kHz: all versions of the decoders give the same samples
CLIPS = (
    "formats/jfk-16k-mono-s16.wav",
    "en/en-leopard-test.wav",
    "multilingual/ko-leopard-test-ko.wav",
    "multilingual/ru-deepspeech-ru.wav",
    "telephone-8k/en-ast-demo-congrats.wav",
    "derived/en-derived-quiet.flac",
    "derived/en-derived-pink0dB.flac",
    "derived/en-derived-pad-silence.flac",
    "nonspeech/ns-white-12s.flac",
    "nonspeech/ns-silence-10s.wav",
    "nonspeech/edge-50ms.wav",
)
N_CASES = 120


def write(name: str, content: Any) -> None:
    OUT.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"silero_vad": VERSION, **content}, separators=(",", ":"))
    (OUT / name).write_bytes(gzip.compress(text.encode(), mtime=0))


def probabilities(session: Any, samples: F32) -> list[int]:
    """One call per frame with explicit state and context, in millionths."""
    state, context = np.zeros((2, 1, 128), np.float32), np.zeros(CONTEXT, np.float32)
    found = []
    for start in range(0, len(samples), FRAME):
        frame = np.zeros(FRAME, np.float32)
        piece = samples[start : start + FRAME]
        frame[: len(piece)] = piece
        feeds = {"input": np.concatenate([context, frame])[None], "state": state}
        probability, state = session.run(None, {**feeds, "sr": np.array(16_000, np.int64)})
        context = frame[-CONTEXT:]
        found.append(round(float(probability[0, 0]) * 1_000_000))
    return found


def keeping_pauses(utils: Any) -> Any:
    """get_speech_timestamps_from_probs with the exception of whisper_opt."""
    source = inspect.getsource(utils.get_speech_timestamps_from_probs)
    begin = source.index("if use_max_poss_sil_at_max_speech and possible_ends:")
    end = source.index("else:\n                # Legacy")
    branch = source[begin:end]
    kept = branch.replace(
        "possible_ends = []",
        "possible_ends = [p for p in possible_ends if p[0] > speeches[-1]['end']]",
    )
    if branch == kept or branch.count("possible_ends = []") != 1:
        raise SystemExit("the rules of the package have changed; review them")
    space = dict(vars(utils))
    exec(source[:begin] + kept + source[end:], space)
    return space["get_speech_timestamps_from_probs"]


def random_probabilities(rng: np.random.Generator) -> list[int]:
    """Probabilities in thousandths: speech and silence of random lengths, some of it ambiguous."""
    pieces: list[F32] = []
    n_frames = int(rng.integers(1, 900))
    while sum(len(piece) for piece in pieces) < n_frames:
        level = rng.choice([0.02, 0.3, 0.5, 0.97], p=[0.3, 0.1, 0.1, 0.5])
        length = int(rng.geometric(1 / rng.choice([2, 5, 30])))
        pieces.append(np.clip(level + rng.normal(0, 0.08, length), 0, 1))
    levels = np.concatenate(pieces)[:n_frames]
    return [round(float(level) * 1000) for level in levels]


def cases(utils: Any) -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    kept_rules = keeping_pauses(utils)
    found = []
    for number in range(N_CASES):
        levels = random_probabilities(rng)
        n_samples = len(levels) * FRAME - int(rng.integers(0, FRAME))
        options = {
            "threshold": float(rng.choice([0.5, 0.35, 0.8, 0.1])),
            "min_speech_duration_ms": int(rng.choice([0, 100, 250, 600])),
            "min_silence_duration_ms": int(rng.choice([0, 100, 300, 500, 2000])),
            "speech_pad_ms": int(rng.choice([0, 20, 30, 200, 400])),
        }
        if number % 3:
            options["max_speech_duration_s"] = float(rng.choice([2, 5, 10]))
        given = [level / 1000 for level in levels]
        plain, kept = (
            [
                [span["start"], span["end"]]
                for span in rules(given, audio_length_samples=n_samples, **options)
            ]
            for rules in (utils.get_speech_timestamps_from_probs, kept_rules)
        )
        case = {"options": options, "n_samples": n_samples, "probabilities": levels}
        found.append({**case, "spans": plain, "kept": kept})
    return found


def main() -> None:
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    package = importlib.import_module("silero_vad")
    utils = importlib.import_module("silero_vad.utils_vad")
    graph = Path(str(package.__file__)).parent / "data" / "silero_vad.onnx"
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    clips = {name: probabilities(session, load_audio(SPEECH / name)) for name in CLIPS}
    write("probabilities.json.gz", {"clips": clips})
    made = cases(utils)
    write("spans.json.gz", {"cases": made})
    n_frames, n_differ = sum(map(len, clips.values())), sum(c["spans"] != c["kept"] for c in made)
    print(f"{len(clips)} clips, {n_frames} frames; {len(made)} cases, {n_differ} differ in 'kept'")


if __name__ == "__main__":
    main()
