"""``whisper.transcribe``: recordings of any length."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

import whisper_opt
from whisper_opt.compat.prompts import text_of_prompt
from whisper_opt.compat.whisper.arrays import as_array
from whisper_opt.compat.whisper.audio import FRAMES_PER_SECOND
from whisper_opt.compat.whisper.decoding import DecodingOptions, option_values
from whisper_opt.compat.whisper.tokenizer import LANGUAGES
from whisper_opt.compat.whisper.utils import format_timestamp, make_safe

if TYPE_CHECKING:
    from whisper_opt.compat.whisper.model import Whisper

__all__ = ["transcribe"]


def transcribe(
    model: Whisper,
    audio: Any,
    *,
    verbose: bool | None = None,
    temperature: float | tuple[float, ...] = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0),
    compression_ratio_threshold: float | None = 2.4,
    logprob_threshold: float | None = -1.0,
    no_speech_threshold: float | None = 0.6,
    condition_on_previous_text: bool = True,
    initial_prompt: str | None = None,
    carry_initial_prompt: bool = False,
    word_timestamps: bool = False,
    prepend_punctuations: str = "\"'“¿([{-",
    append_punctuations: str = "\"'.。,，!！?？:：”)]}、",  # noqa: RUF001 - full-width marks
    clip_timestamps: str | Sequence[float] = "0",
    hallucination_silence_threshold: float | None = None,
    **decode_options: Any,
) -> dict[str, Any]:
    """Transcribe a recording.

    Args:
        model: a loaded model.
        audio: path, or samples at 16 kHz as an array or a tensor.
        verbose: True: print the segments; False: show a progress bar; None: neither.
        temperature: one or several, tried in turn until a result passes the thresholds.
        compression_ratio_threshold: try the next temperature if the text repeats itself more.
        logprob_threshold: try the next temperature if the tokens are less probable.
        no_speech_threshold: skip a window if no speech is more probable.
        condition_on_previous_text: prompt windows with the text before them.
        initial_prompt: prompt of the first window.
        carry_initial_prompt: prompt every window with it.
        word_timestamps: find the times of words.
        prepend_punctuations: punctuation to merge with the next word.
        append_punctuations: punctuation to merge with the previous word.
        clip_timestamps: ``start,end,start,...`` in seconds, as text or a list.
        hallucination_silence_threshold: skip longer silences around probable hallucinations.
        **decode_options: fields of :class:`DecodingOptions`, except ``prompt``.

    Returns:
        ``text``, ``segments`` and ``language``, as in openai-whisper. Options without effect are
        ignored, as there.

    Raises:
        AudioError: the recording cannot be read or used.
        OptionError: an option is not supported.
        TypeError: an option is unknown.
    """
    if decode_options.get("prompt"):
        raise whisper_opt.OptionError(
            "prompt is given, which openai-whisper replaces by the text of earlier windows; use"
            " initial_prompt"
        )
    chosen = DecodingOptions(**decode_options)
    values = option_values(chosen)
    values["prefix"] = text_of_prompt("prefix", chosen.prefix, model.model)
    _warn(model, values, word_timestamps, decode_options.get("fp16", True))
    language = values["language"]
    if not model.is_multilingual:
        values.update(language=None, task="transcribe")
    options = whisper_opt.TranscribeOptions.tolerant(
        **{
            **values,
            "temperature": temperature,
            "compression_ratio_threshold": compression_ratio_threshold,
            "logprob_threshold": logprob_threshold,
            "no_speech_threshold": no_speech_threshold,
            "condition_on_previous_text": condition_on_previous_text,
            "initial_prompt": initial_prompt,
            "carry_initial_prompt": carry_initial_prompt,
            "word_timestamps": word_timestamps,
            "prepend_punctuations": prepend_punctuations,
            "append_punctuations": append_punctuations,
            "clip_timestamps": _clips(clip_timestamps),
            "hallucination_silence_threshold": hallucination_silence_threshold,
            "vad": "off",
        }
    )
    source = audio if isinstance(audio, (str, os.PathLike)) else as_array(audio)
    transcript = _run(model, source, options, verbose)
    return {
        "text": transcript.text,
        "segments": [_entry(segment) for segment in transcript],
        "language": language or transcript.language,
    }


def _warn(model: Whisper, values: dict[str, Any], word_timestamps: bool, fp16: bool) -> None:
    """The warnings of openai-whisper."""
    if fp16 and model.device == "cpu":
        warnings.warn("FP16 is not supported on CPU; using FP32 instead", stacklevel=3)
    if word_timestamps and values["task"] == "translate":
        warnings.warn("Word-level timestamps on translations may not be reliable.", stacklevel=3)


def _clips(given: str | Sequence[float]) -> tuple[float, ...]:
    """Starts and ends in seconds; empty for the whole recording."""
    if isinstance(given, str):
        given = [float(part) for part in given.split(",")] if given else []
    clips = tuple(float(second) for second in given)
    return () if clips == (0.0,) else clips


def _run(
    model: Whisper, source: Any, options: whisper_opt.TranscribeOptions, verbose: bool | None
) -> whisper_opt.Transcript:
    detects = options.language is None and model.is_multilingual
    if detects and verbose:
        print(
            "Detecting language using up to the first 30 seconds. Use `--language` to specify the"
            " language"
        )
    with tqdm(unit="frames", disable=verbose is not False) as bar:
        stream = model.model.stream(source, options=options, on_progress=_progress(bar))
        if detects and verbose is not None:
            print(f"Detected language: {LANGUAGES[stream.language].title()}")
        for segment in stream:
            if verbose and segment.text:
                times = (format_timestamp(second) for second in (segment.start, segment.end))
                print(make_safe(f"[{' --> '.join(times)}] {segment.text}"))
        return stream.transcript()


def _progress(bar: Any) -> Callable[[float, float], None]:
    def show(done: float, total: float) -> None:
        bar.total = round(total * FRAMES_PER_SECOND)
        bar.update(round(done * FRAMES_PER_SECOND) - bar.n)

    return show


def _entry(segment: whisper_opt.Segment) -> dict[str, Any]:
    """A segment under openai-whisper's keys; one without text has no words there either."""
    entry = segment.to_dict()
    for name in ("language", "truncated"):
        entry.pop(name, None)
    if not segment.tokens:
        entry["words"] = []
    return entry
