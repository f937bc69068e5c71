"""Make tests/data/signatures: every argument, with its default, of the functions that users call.

Run it in an environment with the packages whose interfaces the drop-ins have (faster-whisper 1.2.1,
transformers 5.24.0 with torch 2.13.0 for the CPU):

    reference/bin/python tools/goldens/make_signatures.py

openai_whisper.json, in the same form, is made by ``make_whisper_command_golden.py``.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import inspect
import json
from pathlib import Path
from typing import Any

DATA = Path(__file__).parents[2] / "tests" / "data" / "signatures"
INTERFACES = {
    "faster_whisper": (
        "faster-whisper",
        (
            "faster_whisper.transcribe:WhisperModel.__init__",
            "faster_whisper.transcribe:WhisperModel.transcribe",
            "faster_whisper.transcribe:WhisperModel.detect_language",
            "faster_whisper.transcribe:BatchedInferencePipeline.__init__",
            "faster_whisper.transcribe:BatchedInferencePipeline.transcribe",
            "faster_whisper.transcribe:Segment",
            "faster_whisper.transcribe:TranscriptionInfo",
            "faster_whisper.transcribe:TranscriptionOptions",
            "faster_whisper.transcribe:Word",
            "faster_whisper.transcribe:get_suppressed_tokens",
            "faster_whisper.audio:decode_audio",
            "faster_whisper.audio:pad_or_trim",
            "faster_whisper.feature_extractor:FeatureExtractor.__init__",
            "faster_whisper.feature_extractor:FeatureExtractor.__call__",
            "faster_whisper.tokenizer:Tokenizer.__init__",
            "faster_whisper.utils:available_models",
            "faster_whisper.utils:download_model",
            "faster_whisper.utils:format_timestamp",
            "faster_whisper.vad:SpeechTimestampsMap.__init__",
            "faster_whisper.vad:SpeechTimestampsMap.get_chunk_index",
            "faster_whisper.vad:SpeechTimestampsMap.get_original_time",
            "faster_whisper.vad:VadOptions",
            "faster_whisper.vad:collect_chunks",
            "faster_whisper.vad:get_speech_timestamps",
        ),
    ),
    "transformers": (
        "transformers",
        (
            "transformers:pipeline",
            "transformers:AutomaticSpeechRecognitionPipeline.__init__",
            "transformers:AutomaticSpeechRecognitionPipeline.__call__",
            "transformers:AutomaticSpeechRecognitionPipeline.preprocess",
            "transformers:AutomaticSpeechRecognitionPipeline._sanitize_parameters",
            "transformers:AutomaticSpeechRecognitionPipeline.postprocess",
            "transformers:Pipeline.__init__",
            "transformers:Pipeline.__call__",
            "transformers:WhisperForConditionalGeneration.generate",
            "transformers:GenerationConfig",
        ),
    ),
}


def arguments(path: str) -> dict[str, str | None]:
    """Arguments of ``module:name``: the default as ``repr``, None without one."""
    module, _, name = path.partition(":")
    value: Any = importlib.import_module(module)
    for part in name.split("."):
        value = getattr(value, part)
    if name == "GenerationConfig":  # its arguments have no names in the signature
        return {field: repr(default) for field, default in vars(value()).items()}
    parameters = [
        parameter
        for parameter in inspect.signature(value).parameters.values()
        if parameter.name != "self"
    ]
    stars: dict[Any, str] = {
        inspect.Parameter.VAR_POSITIONAL: "*",
        inspect.Parameter.VAR_KEYWORD: "**",
    }
    return {
        stars.get(parameter.kind, "") + parameter.name: None
        if parameter.default is parameter.empty
        else repr(parameter.default)
        for parameter in parameters
    }


def main() -> None:
    """Write one file per package."""
    for name, (package, paths) in INTERFACES.items():
        found = {
            "version": importlib.metadata.version(package),
            "functions": {path: arguments(path) for path in paths},
        }
        partial = DATA / f"{name}.json.partial"
        partial.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", "utf-8")
        partial.replace(DATA / f"{name}.json")


if __name__ == "__main__":
    main()
