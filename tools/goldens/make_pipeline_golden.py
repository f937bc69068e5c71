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
SHORT_S = {True: 6.0, False: 3.5}
"""Below so many seconds, recordings of English-only and other models are stored in all modes."""
LONGEST_S = {True: 100.0, False: 6.0}


def modes_of(model: str, clip: golden.Clip) -> list[str]:
    """The modes in which a clip is stored."""
    english = model.endswith(".en")
    if clip.duration_s > 30:
        return ["chunks", "chunked"]
    if clip.duration_s < SHORT_S[english]:
        # the conversion does not say that tokens of languages are special: they are in the text
        left_out = ("chunked",) if english else ("chunked", "language")
        return [mode for mode in MODES if mode not in left_out]
    return ["text", "chunks", "words"] if english else ["text", "chunks"]


def clips_of(model: str) -> list[golden.Clip]:
    """Clips of speech and noise, not copies of one clip in other formats.

    English ones for English-only models, else the shortest of every language.
    """
    english = model.endswith(".en")
    found = [
        clip
        for clip in golden.clips()
        if clip.kind not in ("format-variant", "edge") and clip.duration_s < LONGEST_S[english]
    ]
    if english:
        return [clip for clip in found if clip.language in ("en", None)]
    shortest: dict[str | None, golden.Clip] = {}
    for clip in sorted(found, key=lambda clip: clip.duration_s):
        shortest.setdefault(clip.language, clip)
    return list(shortest.values())


def loaded(folder: Path) -> Any:
    """The pipeline, with the generation configuration of OpenAI's models on the hub."""
    transformers = importlib.import_module("transformers")
    model = transformers.WhisperForConditionalGeneration.from_pretrained(folder, dtype="float32")
    config = model.generation_config
    config.return_timestamps = False  # a pipeline reads it when it is made
    if config.is_multilingual:
        config.forced_decoder_ids = [[1, None], [2, config.task_to_id["transcribe"]]]
    else:
        config.forced_decoder_ids = [[1, config.no_timestamps_token_id]]
    parts = transformers.WhisperProcessor.from_pretrained(folder)
    return transformers.pipeline(
        "automatic-speech-recognition",
        model,
        tokenizer=parts.tokenizer,
        feature_extractor=parts.feature_extractor,
    )


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
            outputs[clip.id] = {}
            for mode in modes_of(name, clip):
                log.info("%s %s %s", name, clip.id, mode)
                arguments = copy.deepcopy(MODES[mode])
                outputs[clip.id][mode] = pipeline(golden.clip_pcm(clip.id), **arguments)
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
