"""Voice activity detection, and packing of speech spans into chunks.

The model is Silero VAD (Silero Team, MIT licence; ``LICENSE.silero-vad``), a small recurrent
network that computes a speech probability for each frame of 512 samples (32 ms). It runs on ONNX
Runtime, on one thread. All of it works on streams: a span is returned as soon as no later sample
can change it, and the spans do not depend on the block size.

>>> from whisper_opt.audio.vad import detect_speech
>>> for span in detect_speech("talk.mp3"):  # doctest: +SKIP
...     print(span.seconds)
"""

from __future__ import annotations

from whisper_opt.audio.vad.detect import SpanStream, SpeechDetector, detect_speech
from whisper_opt.audio.vad.network import FRAME, require_model
from whisper_opt.audio.vad.packing import cut, merge, pack
from whisper_opt.audio.vad.rules import Span
from whisper_opt.core.options import VadOptions

__all__ = [
    "FRAME",
    "Span",
    "SpanStream",
    "SpeechDetector",
    "VadOptions",
    "cut",
    "detect_speech",
    "merge",
    "pack",
    "require_model",
]
