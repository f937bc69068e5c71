"""Results that begin with a given text: what ``tools/goldens/make_prefix_golden.py`` runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

__all__ = ["CLIPS", "DECODED", "GOLDEN", "TRANSCRIBED"]

GOLDEN = Path(__file__).parents[1] / "data" / "golden" / "prefix.json"
CLIPS = (
    "en-jfk",
    "en-leopard-test",
    "en-ls-1272-141231-0002",
    "en-ls-1998-15444-0000",
    "en-ls-1998-15444-0003",
)
LONG = "Well, as I have said before, and as I say again, to all of you"
_TEXT: dict[str, Any] = {"fp16": False, "language": "en", "without_timestamps": True}
DECODED: tuple[dict[str, Any], ...] = (
    {**_TEXT, "prefix": "Well, I say"},
    {**_TEXT, "prefix": [3894, 11, 314, 910]},
    {**_TEXT, "prefix": "Well, I say", "prompt": "A glossary: Kennedy, Quilter."},
    {**_TEXT, "prefix": LONG, "sample_len": 220},
    {**_TEXT, "prefix": LONG, "sample_len": 223},
    {**_TEXT, "prefix": "Well, I say", "beam_size": 3},
    {**_TEXT, "prefix": "Well, I say", "without_timestamps": False},
)
"""Options of openai-whisper's ``decode``. Of the long text, 4 tokens and 1 token have room."""
_GREEDY: dict[str, Any] = {"beam_size": 1, "temperature": 0.0}
TRANSCRIBED: tuple[dict[str, Any], ...] = (
    {**_GREEDY, "prefix": "Well, I say"},
    {**_GREEDY, "prefix": "Well, I say", "without_timestamps": True},
    {**_GREEDY, "prefix": "Well, I say", "initial_prompt": "A glossary: Kennedy, Quilter."},
    {**_GREEDY, "prefix": "Well, I say", "clip_timestamps": "0,2.5,2.5"},
    {**_GREEDY, "prefix": "Well, I say", "clip_timestamps": "1"},
)
"""Options of faster-whisper's ``transcribe``. The last one has no effect: no window begins at 0."""
