"""transformers' speech recognition pipeline on ONNX engines, without torch or transformers.

>>> from whisper_opt.integrations.transformers import pipeline
>>> transcriber = pipeline("automatic-speech-recognition", "openai/whisper-base")  # doctest: +SKIP
>>> transcriber("talk.mp3", return_timestamps=True)["chunks"]  # doctest: +SKIP

Arguments and results are those of transformers 5.24.0. Every argument is honoured or refused by
name; docs/compat.md lists them. Errors are those of :mod:`whisper_opt`; ``OptionError`` is a
``ValueError``.
"""

from __future__ import annotations

from whisper_opt.integrations.transformers.pipelines import (
    AutomaticSpeechRecognitionPipeline,
    pipeline,
)

__all__ = ["AutomaticSpeechRecognitionPipeline", "pipeline"]
