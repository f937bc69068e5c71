"""Make tests/data/whisper_command.json and tests/data/signatures/openai_whisper.json.

The first has the files that openai-whisper's own command writes for one recording; the second has
every flag of that command and every argument of the functions that users call. Run it in the
environment of ``make_golden.py`` with onnx added:

    PYTHONPATH=.:tools/goldens reference/bin/python \
        tools/goldens/make_whisper_command_golden.py --model tiny.en=TINY_EN_DIR

The command is called unchanged, but for two functions: ``load_model`` returns the weights of the
directory (in fp32 on the CPU, as the command computes there), and ``load_audio`` reads the
recording, which is lossless and has 16 kHz, with soundfile instead of ffmpeg.
"""

from __future__ import annotations

import argparse
import contextlib
import inspect
import io
import json
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any
from unittest import mock

import soundfile
from make_golden import load_model, write_atomically

DATA = Path(__file__).parents[2] / "tests" / "data"
RECORDING = DATA / "speech" / "en" / "en-ls-1998-15444-0000.flac"
FUNCTIONS = (
    *("DecodingOptions", "available_models", "decode", "detect_language", "load_audio"),
    *("load_model", "log_mel_spectrogram", "pad_or_trim", "transcribe"),
)
CASES = (
    "",
    "--output_format srt --word_timestamps True --max_line_width 30 --max_line_count 2",
    "-f vtt --word_timestamps True --highlight_words True --beam_size None --best_of None"
    " --temperature_increment_on_fallback None",
    "--output_format json --language English --initial_prompt Quilter. --clip_timestamps 2,9"
    " --word_timestamps True --append_punctuations . --suppress_tokens=-1,11 --fp16 False"
    " --condition_on_previous_text False --threads 1",
)


class _ParsedError(Exception):
    """Carries the parser of the command."""


def flags() -> list[dict[str, Any]]:
    """Every flag of the command: its spellings, default, choices and an accepted value."""
    from whisper import transcribe

    def caught(parser: argparse.ArgumentParser, *_: Any) -> Any:
        raise _ParsedError(parser)

    module = sys.modules[transcribe.__module__]
    with mock.patch.object(argparse.ArgumentParser, "parse_args", caught):
        try:
            module.cli()
        except _ParsedError as found:
            (parser,) = found.args
    return [
        {
            "flags": action.option_strings,
            "name": action.dest,
            "default": None if action.dest == "device" else action.default,
            "choices": None if action.choices is None else list(action.choices),
        }
        for action in parser._actions
        if action.dest not in ("help", "audio")
    ]


def signatures() -> dict[str, dict[str, Any]]:
    """Arguments and defaults (as ``repr``) of the functions, and fields of the options."""
    import whisper
    import whisper.tokenizer
    import whisper.utils

    functions = {name: getattr(whisper, name) for name in FUNCTIONS}
    functions["get_writer"] = whisper.utils.get_writer
    functions["get_tokenizer"] = whisper.tokenizer.get_tokenizer.__wrapped__
    return {
        name: {
            parameter.name: None
            if parameter.default is parameter.empty or parameter.name == "options"
            else repr(parameter.default)
            for parameter in inspect.signature(function).parameters.values()
        }
        for name, function in functions.items()
    }


def outputs(model: Any, options: str) -> dict[str, str]:
    """The files that the command writes, by extension."""
    import whisper

    module = sys.modules[whisper.transcribe.__module__]
    audio = sys.modules["whisper.audio"]
    samples, _ = soundfile.read(RECORDING, dtype="float32")
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(whisper, "load_model", return_value=model))
        stack.enter_context(mock.patch.object(audio, "load_audio", return_value=samples))
        command = ["whisper", str(RECORDING), "--model", "tiny.en", "-o", folder, *options.split()]
        stack.enter_context(mock.patch.object(sys, "argv", command))
        stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        module.cli()
        return {path.suffix[1:]: path.read_text("utf-8") for path in sorted(Path(folder).iterdir())}


def main() -> None:
    """Write both files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", metavar="tiny.en=DIR", required=True)
    name, _, path = parser.parse_args().model.partition("=")
    model, digests = load_model(name, Path(path))
    found = {
        "recording": str(RECORDING.relative_to(DATA)),
        "model": digests,
        "cases": [{"options": options, "files": outputs(model, options)} for options in CASES],
    }
    for target, content in (
        (DATA / "whisper_command.json", found),
        (
            DATA / "signatures" / "openai_whisper.json",
            {"functions": signatures(), "flags": flags()},
        ),
    ):
        text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
        write_atomically(target, text.encode())


if __name__ == "__main__":
    main()
