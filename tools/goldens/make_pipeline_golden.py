"""Make tests/data/pipeline: what transformers' speech recognition pipeline returns for clips.

The reference runs in its own environment (transformers 5.24.0 with torch 2.13.0 for the CPU,
soundfile, soxr):

    python benchmarks/peers/convert.py models/tiny.en build/peers/tiny.en --forms huggingface
    PYTHONPATH=. reference/bin/python tools/goldens/make_pipeline_golden.py \
        --model tiny.en=build/peers/tiny.en/huggingface --model base=...

Weights are computed in fp32. The generation configuration gets the values that OpenAI publishes
for its models and that the conversion does not write. Each model is one file, with the output of
every clip and every mode of ``MODES``.
"""

from __future__ import annotations

import argparse
import copy
import gzip
import importlib
import importlib.metadata
import json
import logging
import sys
from pathlib import Path
from typing import Any

from tests.support import golden

log = logging.getLogger("make_pipeline_golden")

DATA = Path(__file__).parents[2] / "tests" / "data" / "pipeline"
GREEDY = {"num_beams": 1}
MODES: dict[str, dict[str, Any]] = {
    "text": {"generate_kwargs": GREEDY},
    "chunks": {"generate_kwargs": GREEDY, "return_timestamps": True},
    "words": {"generate_kwargs": GREEDY, "return_timestamps": "word"},
    "language": {"generate_kwargs": GREEDY, "return_language": True},
    "beams": {},
    "beams-chunks": {"return_timestamps": True},
    "chunked": {"generate_kwargs": GREEDY, "return_timestamps": True, "chunk_length_s": 30},
}
"""Arguments of a call, by name of the mode."""
LONG = ("chunks", "chunked")
"""Modes of recordings of more than 30 s."""
FEW = ("language", "beams", "beams-chunks")
"""Modes of the shortest recordings only: beam search takes as long as all others together."""
ENGLISH_SHORT_S, SHORT_S = 6.0, 4.5
LONGEST_S = 100.0


def modes_of(model: str, clip: golden.Clip) -> list[str]:
    """The modes in which a clip is stored."""
    if clip.duration_s > 30:
        return list(LONG)
    short = clip.duration_s < (ENGLISH_SHORT_S if model.endswith(".en") else SHORT_S)
    return [mode for mode in MODES if mode != "chunked" and (short or mode not in FEW)]


def clips_of(model: str) -> list[golden.Clip]:
    """Clips of speech and noise below ``LONGEST_S``, not copies of one clip in other formats.

    English ones for English-only models; else the shortest of every language and kind.
    """
    found = [
        clip
        for clip in golden.clips()
        if clip.kind not in ("format-variant", "edge") and clip.duration_s < LONGEST_S
    ]
    if model.endswith(".en"):
        return [clip for clip in found if clip.language in ("en", None)]
    shortest: dict[tuple[str | None, str, bool], golden.Clip] = {}
    for clip in sorted(found, key=lambda clip: clip.duration_s):
        shortest.setdefault((clip.language, clip.kind, clip.duration_s > 30), clip)
    return list(shortest.values())


def loaded(folder: Path) -> Any:
    """The pipeline, with the generation configuration of OpenAI's models on the hub."""
    transformers = importlib.import_module("transformers")
    found = transformers.pipeline("automatic-speech-recognition", str(folder), dtype="float32")
    config = found.model.generation_config
    config.return_timestamps = False
    if config.is_multilingual:
        config.forced_decoder_ids = [[1, None], [2, config.task_to_id["transcribe"]]]
    else:
        config.forced_decoder_ids = [[1, config.no_timestamps_token_id]]
    return found


def main() -> None:
    """Write one file per model."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", action="append", required=True, metavar="NAME=DIR")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    importlib.import_module("torch").set_num_threads(args.threads)
    DATA.mkdir(parents=True, exist_ok=True)
    for name, _, folder in (given.partition("=") for given in args.model):
        pipeline = loaded(Path(folder))
        outputs: dict[str, dict[str, Any]] = {}
        for clip in clips_of(name):
            log.info("%s %s", name, clip.id)
            outputs[clip.id] = {
                mode: pipeline(golden.clip_pcm(clip.id), **copy.deepcopy(MODES[mode]))
                for mode in modes_of(name, clip)
            }
        found = {
            "versions": {
                package: importlib.metadata.version(package)
                for package in ("transformers", "torch", "numpy")
            },
            "modes": MODES,
            "clips": outputs,
        }
        data = json.dumps(found, ensure_ascii=False, separators=(",", ":")).encode()
        partial = DATA / f"{name}.json.gz.partial"
        partial.write_bytes(gzip.compress(data, mtime=0))
        partial.replace(DATA / f"{name}.json.gz")


if __name__ == "__main__":
    main()
