"""openai-whisper's flags on ``whisper-opt transcribe``."""

from __future__ import annotations

import argparse
import json
import math
import shlex
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Engines
from whisper_opt.cli.main import _parser, main
from whisper_opt.cli.options import options_from
from whisper_opt.cli.whisper_flags import adopt, normalized
from whisper_opt.core.errors import OptionError
from whisper_opt.core.options import LoadOptions, SubtitleOptions, TranscribeOptions
from whisper_opt.text.languages import language_code

DATA = Path(__file__).parents[1] / "data"
FLAGS = {
    entry["name"]: entry
    for entry in json.loads((DATA / "signatures" / "openai_whisper.json").read_text("utf-8"))[
        "flags"
    ]
}


PARSER = _parser()


def parsed(*arguments: str) -> argparse.Namespace:
    return PARSER.parse_args(normalized(["transcribe", *arguments]))


def adopted(text: str) -> argparse.Namespace:
    """Arguments of a call of ``whisper talk.mp3`` with options."""
    args = parsed(*shlex.split(f"talk.mp3 --model base {text}"))
    adopt(args)
    return args


# spelling


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("--beam_size 5 --no_speech_threshold=0.5", "--beam-size 5 --no-speech-threshold=0.5"),
        ("--word_timestamps True a_b.wav", "--word-timestamps a_b.wav"),
        ("--word_timestamps=False --build-plans", "--no-word-timestamps --build-plans"),
        ("--word-timestamps talk.mp3", "--word-timestamps talk.mp3"),
        ("--suppress_tokens -1,220", "--suppress-tokens=-1,220"),
        ("--device cuda:1", "--device cuda --device-index 1"),
        ("--device=cpu", "--device cpu"),
        ("--initial_prompt=--a_b", "--initial-prompt=--a_b"),
        ("-- --word_timestamps True", "-- --word_timestamps True"),
        ("--overwrite True", "--overwrite True"),
    ],
)
def test_underscores_and_values_of_flags(given: str, expected: str) -> None:
    assert normalized(given.split()) == expected.split()


def test_every_option_may_be_spelled_with_underscores(tmp_path: Path) -> None:
    script = tmp_path / "script.txt"
    script.write_text("words", encoding="utf-8")
    values = {"transcript": str(script), "clips": "Ann=ann.wav"}
    for options in (LoadOptions, TranscribeOptions, SubtitleOptions):
        for name, field in options.__dataclass_fields__.items():
            if field.metadata["kind"] == "flag":
                args = parsed("base", "talk.mp3", f"--{name}", "True")
                assert getattr(args, name) is True
                assert getattr(parsed("base", "a", f"--{name}", "False"), name) is False
            else:
                choices = field.metadata.get("choices")
                value = choices[0] if choices else values.get(field.metadata["kind"], "1")
                assert hasattr(parsed("base", "a", f"--{name}", value), name)


@pytest.mark.parametrize("given", ["--model base a.mp3 b.mp3", "a.mp3 b.mp3 --model=base"])
def test_with_a_model_all_positionals_are_recordings(given: str) -> None:
    args = parsed(*given.split())
    assert (str(args.engine), args.audio) == ("base", ["a.mp3", "b.mp3"])


def test_without_a_model_the_first_one_is_the_engine() -> None:
    args = parsed("base", "a.mp3", "--output_format", "srt")
    adopt(args)
    assert (str(args.engine), args.audio, args.format) == ("base", ["a.mp3"], ("srt",))


# conventions

VALUES: dict[str, tuple[str, str, Any]] = {
    "model": ("base", "engine", "base"),
    "model_dir": ("cache", "cache_dir", "cache"),
    "device": ("cuda:1", "device_index", 1),
    "output_dir": ("out", "output_dir", Path("out")),
    "output_format": ("vtt", "format", ("vtt",)),
    "verbose": ("False", "verbose", False),
    "task": ("translate", "task", "translate"),
    "language": ("English", "language", "English"),
    "temperature": ("0.9", "temperature", (0.9,)),
    "best_of": ("3", "best_of", 3),
    "beam_size": ("3", "beam_size", 3),
    "patience": ("2.0", "patience", 2.0),
    "length_penalty": ("0.5", "length_penalty", 0.5),
    "suppress_tokens": ("-1", "suppress_tokens", (-1,)),
    "initial_prompt": ("Hello", "initial_prompt", "Hello"),
    "carry_initial_prompt": ("True --initial_prompt A", "carry_initial_prompt", True),
    "condition_on_previous_text": ("False", "condition_on_previous_text", False),
    "fp16": ("False", "precision", "fp32"),
    "temperature_increment_on_fallback": ("0.5", "temperature", (0.0, 0.5, 1.0)),
    "compression_ratio_threshold": ("None", "compression_ratio_threshold", None),
    "logprob_threshold": ("-0.5", "logprob_threshold", -0.5),
    "no_speech_threshold": ("0.5", "no_speech_threshold", 0.5),
    "word_timestamps": ("True", "word_timestamps", True),
    "prepend_punctuations": ("( --word_timestamps True", "prepend_punctuations", "("),
    "append_punctuations": (". --word_timestamps True", "append_punctuations", "."),
    "highlight_words": ("True --word_timestamps True", "highlight_words", True),
    "max_line_width": ("40", "max_line_width", 40),
    "max_line_count": ("2 --max_line_width 40", "max_line_count", 2),
    "max_words_per_line": ("3", "max_words_per_line", 3),
    "threads": ("2", "threads", 2),
    "clip_timestamps": ("1,2.5", "clip_timestamps", (1.0, 2.5)),
    "hallucination_silence_threshold": (
        "2 --word_timestamps True",
        "hallucination_silence_threshold",
        2.0,
    ),
}


@pytest.mark.parametrize("name", FLAGS)
def test_every_flag_of_the_original_arrives(name: str) -> None:
    text, target, expected = VALUES[name]
    assert FLAGS[name]["flags"][0] == f"--{name}"
    for flag in FLAGS[name]["flags"]:
        found = adopted(" ".join([flag, shlex.quote(text) if "--" not in text else text]))
        assert getattr(found, target) == expected


DEFAULTS = {
    **dict.fromkeys(("model", "model_dir", "device", "threads"), "chosen by this library"),
    "suppress_tokens": (-1,),
    "clip_timestamps": (),
    "temperature": pytest.approx((0.0, 0.2, 0.4, 0.6, 0.8, 1.0)),
    "condition_on_previous_text": None,  # the default means True
}


@pytest.mark.parametrize("name", FLAGS)
def test_defaults_are_those_of_the_original(name: str) -> None:
    options = {**vars(options_from(adopted(""), TranscribeOptions)), **vars(SubtitleOptions())}
    if name in options:
        assert options[name] == DEFAULTS.get(name, FLAGS[name]["default"])
    else:
        others = ("output_dir", "output_format", "verbose", "fp16", _INCREMENT)
        assert name in {*others, *DEFAULTS}


_INCREMENT = "temperature_increment_on_fallback"


def test_files_are_written_to_the_current_directory_in_all_formats() -> None:
    found = adopted("")
    assert (found.output_dir, found.format) == (
        Path(),
        ("txt", "vtt", "srt", "tsv", "json"),
    )
    assert found.vad == "off"
    assert found.verbose is True


def test_every_choice_of_the_original_is_accepted() -> None:
    for language in FLAGS["language"]["choices"]:
        assert adopted(f"--language '{language}'").language == language
    for form in FLAGS["output_format"]["choices"]:
        assert adopted(f"--output_format {form}").format


@pytest.mark.parametrize(
    ("text", "temperatures"),
    [
        ("--temperature 0.5", (0.5, 0.7, 0.9)),
        (f"--{_INCREMENT} None", (0.0,)),
        (f"--temperature 0,0.5 --{_INCREMENT} 0.1", (0.0, 0.5)),
        (f"--temperature 2 --{_INCREMENT} 0.2", (2.0,)),
    ],
)
def test_temperatures(text: str, temperatures: tuple[float, ...]) -> None:
    assert adopted(text).temperature == pytest.approx(temperatures)


@pytest.mark.parametrize(
    "text",
    [
        f"--{_INCREMENT} None --compression_ratio_threshold 2",
        "--temperature 1 --patience 2",
        "--carry_initial_prompt True --append_punctuations .",
        "--max_line_width 20 --max_words_per_line 3 --word_timestamps True",
        "--output_format txt --highlight_words True",
        "--threads 0",
    ],
)
def test_options_without_effect_are_ignored(text: str) -> None:
    args = adopted(text)
    for options in (LoadOptions, TranscribeOptions, SubtitleOptions):
        options_from(args, options)  # raises if one is refused


def test_an_english_model_transcribes_english(capsys: pytest.CaptureFixture[str]) -> None:
    args = parsed("talk.mp3", "--model", "tiny.en", "--language", "French")
    adopt(args)
    assert args.language == "en"
    assert "tiny.en is English-only, but --language is French" in capsys.readouterr().err


def test_contradictions_are_refused() -> None:
    with pytest.raises(OptionError, match="--format and --output-format are both given"):
        adopted("--format srt --output_format vtt")
    with pytest.raises(SystemExit):
        adopted("--verbose yes")


def test_other_calls_keep_the_defaults_of_this_library() -> None:
    args = parsed("base", "talk.mp3", "--temperature", "0", "--output_dir", "out")
    before = dict(vars(args))
    adopt(args)
    assert vars(args) == before


# files

COMMAND = json.loads((DATA / "whisper_command.json").read_text("utf-8"))


def same(found: Any, expected: Any) -> bool:
    """Whether two JSON values are equal but for rounding."""
    if isinstance(expected, dict):
        return list(found) == list(expected) and all(map(same, found.values(), expected.values()))
    if isinstance(expected, list):
        return len(found) == len(expected) and all(map(same, found, expected))
    if isinstance(expected, float):
        return math.isclose(found, expected, abs_tol=1e-3)
    return bool(found == expected)


@pytest.mark.slow
@pytest.mark.parametrize("case", COMMAND["cases"], ids=lambda case: case["options"][:30] or "plain")
def test_files_are_those_of_the_original(
    case: dict[str, Any], engines: Engines, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    engine, recording = engines.engine("tiny.en").path, DATA / COMMAND["recording"]
    options = ["--model", str(engine), "-o", str(tmp_path), *case["options"].split()]
    assert main(["transcribe", str(recording), *options]) == 0
    found = {path.suffix[1:]: path.read_text("utf-8") for path in tmp_path.iterdir()}
    assert found.keys() == case["files"].keys()
    for form, text in case["files"].items():
        if form == "json":
            expected = json.loads(text)
            expected["language"] = language_code(expected["language"])
            assert same(json.loads(found[form]), expected)
        else:
            assert found[form] == text
    assert " --> " in capsys.readouterr().out
