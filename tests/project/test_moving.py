"""docs/moving.md names every option of the programs it is about."""

from __future__ import annotations

import re

import pytest

from tests.conftest import ROOT
from tests.support.signatures import originals
from whisper_opt import LoadOptions, SubtitleOptions, TranscribeOptions

# whisper-cli --help of whisper.cpp v1.9.3-50
WHISPER_CPP = """
--audio-ctx --beam-size --best-of --carry-initial-prompt --debug-mode --detect-language --device
--diarize --dtw --duration --entropy-thold --file --flash-attn --font-path --grammar
--grammar-penalty --grammar-rule --help --language --log-score --logprob-thold --max-context
--max-len --model --no-fallback --no-flash-attn --no-gpu --no-prints --no-speech-thold
--no-timestamps --offset-n --offset-t --output-csv --output-file --output-json --output-json-full
--output-lrc --output-srt --output-txt --output-vtt --output-words --ov-e-device --print-colors
--print-confidence --print-progress --print-special --processors --prompt --split-on-word
--suppress-nst --suppress-regex --temperature --temperature-inc --threads --tinydiarize
--translate --vad --vad-max-speech-duration-s --vad-min-silence-duration-ms
--vad-min-speech-duration-ms --vad-model --vad-samples-overlap --vad-speech-pad-ms
--vad-threshold --version --word-thold
"""

FUNCTIONS = {
    "faster-whisper": (
        "faster_whisper",
        (
            "WhisperModel.__init__",
            "WhisperModel.transcribe",
            "BatchedInferencePipeline.transcribe",
        ),
    ),
    "openai-whisper": ("openai_whisper", ("load_model", "transcribe", "DecodingOptions")),
    "transformers": (
        "transformers",
        (
            "AutomaticSpeechRecognitionPipeline.__init__",
            "AutomaticSpeechRecognitionPipeline.preprocess",
        ),
    ),
}
GENERATION = (
    "return_timestamps prompt_ids prompt_condition_type condition_on_prev_tokens temperature"
    " compression_ratio_threshold logprob_threshold no_speech_threshold language task num_beams"
    " length_penalty repetition_penalty no_repeat_ngram_size max_new_tokens suppress_tokens"
    " begin_suppress_tokens do_sample"
)
"""What people give to transformers' ``generate`` about speech; docs/compat.md has the rest."""
NOT_OPTIONS = {"model", "decoder", "**kwargs", "**model_kwargs"}


def section(peer: str) -> str:
    text = (ROOT / "docs" / "moving.md").read_text(encoding="utf-8")
    found: str = re.split(r"^## ", text.split(f"## From {peer}\n")[1], flags=re.M)[0]
    return found


def options(peer: str) -> list[str]:
    """Names of the options of a program."""
    if peer == "whisper.cpp":
        return WHISPER_CPP.split()
    package, functions = FUNCTIONS[peer]
    signatures = originals(package)
    names = [
        name
        for function, arguments in signatures.items()
        if function.split(":")[-1] in functions
        for name in arguments
    ]
    assert len(names) > 4
    generation = GENERATION.split() if peer == "transformers" else []
    return sorted({*names, *generation} - NOT_OPTIONS)


@pytest.mark.parametrize("peer", [*FUNCTIONS, "whisper.cpp"])
def test_every_option_is_in_the_table(peer: str) -> None:
    named = set(re.findall(r"[`(]([-\w]+)(?:=[^`]*)?`", section(peer)))
    assert sorted({*options(peer)} - named) == []


def test_every_argument_of_generate_is_here_or_among_the_drop_ins() -> None:
    drop_ins = (ROOT / "docs" / "compat.md").read_text(encoding="utf-8")
    text = section("transformers") + drop_ins.split("### `generate_kwargs`")[1]
    arguments = originals("transformers")["transformers:WhisperForConditionalGeneration.generate"]
    missing = [name for name in arguments if not re.search(rf"`{re.escape(name)}[`=]", text)]
    assert missing == ["**kwargs"]
    assert set(GENERATION.split()) <= {
        *arguments,
        *originals("transformers")["transformers:GenerationConfig"],
    }


@pytest.mark.parametrize("peer", [*FUNCTIONS])
def test_names_that_are_the_same_are(peer: str) -> None:
    (row,) = re.findall(r"^\| the same names \|(.*)\|$", section(peer), re.M)
    ours = {*TranscribeOptions.__dataclass_fields__, "audio"}
    assert {*re.findall(r"`(\w+)`", row)} <= ours


def test_flags_of_this_library_exist() -> None:
    rows = re.findall(r"^\|[^|]*\|(.*)\|$", section("whisper.cpp"), re.M)
    fields = {
        *TranscribeOptions.__dataclass_fields__,
        *LoadOptions.__dataclass_fields__,
        *SubtitleOptions.__dataclass_fields__,
        *("format", "output_dir", "no_condition_on_previous_text"),
    }
    flags = {
        flag.replace("-", "_") for row in rows for flag in re.findall(r"--([a-z][\w-]*\w)", row)
    }
    assert flags - fields == set()
