"""Make tests/data/golden/prefix.json: results that begin with a given text.

Run from the repository root, in an environment with openai-whisper and faster-whisper (and onnx):

    PYTHONPATH=.:tools/goldens python tools/goldens/make_prefix_golden.py TINY_EN_DIR

The directory is a CTranslate2 checkpoint. Sections of the file, whose keys are ids of clips:

    decode       tokens of openai-whisper's ``decode`` in fp32, for each of ``DECODED``
    transcribe   tokens of the segments of faster-whisper's ``WhisperModel.transcribe`` in fp32,
                 for each of ``TRANSCRIBED``
"""

from __future__ import annotations

import json
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import faster_whisper
import whisper
from make_golden import load_model, write_atomically

from tests.support.golden import clip_pcm
from tests.support.prefix_cases import CLIPS, DECODED, GOLDEN, TRANSCRIBED


def decoded(model: Any, clip_id: str) -> list[list[int]]:
    """Tokens per case of ``DECODED``."""
    mel = whisper.log_mel_spectrogram(whisper.pad_or_trim(clip_pcm(clip_id)))
    return [list(model.decode(mel, whisper.DecodingOptions(**case)).tokens) for case in DECODED]


def transcribed(model: Any, clip_id: str) -> list[list[list[int]]]:
    """Tokens of the segments per case of ``TRANSCRIBED``."""
    found = []
    for case in TRANSCRIBED:
        segments, _ = model.transcribe(clip_pcm(clip_id), **case)
        found.append([segment.tokens for segment in segments])
    return found


def main() -> None:
    """Write the file."""
    path = Path(sys.argv[1])
    reference, _ = load_model("tiny.en", path)
    other = faster_whisper.WhisperModel(str(path), device="cpu", compute_type="float32")
    result = {
        "versions": {name: version(name) for name in ("openai-whisper", "faster-whisper")},
        "decode": {clip_id: decoded(reference, clip_id) for clip_id in CLIPS},
        "transcribe": {clip_id: transcribed(other, clip_id) for clip_id in CLIPS},
    }
    write_atomically(GOLDEN, (json.dumps(result) + "\n").encode())


if __name__ == "__main__":
    main()
