"""The pipeline's arguments of a call, and those of ``generate``, as options of this library."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Union

import whisper_opt
from whisper_opt.integrations.transformers.unsupported import check_unused, number

__all__ = ["CALL", "SAMPLE_RATE", "WINDOW", "Settings", "settings"]

SAMPLE_RATE = 16_000
WINDOW = 30 * SAMPLE_RATE
"""Samples of a window of the model."""

CALL = (
    *("chunk_length_s", "stride_length_s", "ignore_warning", "decoder_kwargs"),
    *("return_timestamps", "return_language", "batch_size", "num_workers"),
)
"""Arguments of a call that are not about ``generate``; ``generate_kwargs`` has the others."""
_GENERATE = (
    *("task", "language", "is_multilingual", "prompt_ids", "prompt_condition_type"),
    *("condition_on_prev_tokens", "temperature", "compression_ratio_threshold"),
    *("logprob_threshold", "no_speech_threshold", "num_beams", "length_penalty"),
    *("repetition_penalty", "no_repeat_ngram_size", "max_new_tokens", "max_length"),
    *("suppress_tokens", "begin_suppress_tokens", "max_initial_timestamp_index"),
)
"""Arguments of ``generate`` that are options of this library."""
_NUM_BEAMS = 5
"""``num_beams`` of the pipeline if neither the call nor the model says otherwise."""
_RATIO = 2.4 / 1.35
"""Compression ratio of a text over that of its token ids, which transformers compresses: 1.35, the
threshold that its documentation recommends, stands for openai-whisper's 2.4."""
_TIME = 0.02
"""Seconds between timestamps."""
_PREPENDED = "\"'“¡¿([{-"
_APPENDED = "\"'.。,，!！?？:：”)]}、"  # noqa: RUF001 - full-width marks are meant


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a call asks for.

    Attributes:
        timestamps: which chunks to return: none (False), segments (True) or words (``word``).
        language: whether chunks have their language.
        chunk_length_s: longest part of a longer recording in seconds; None: windows one after
            another.
        batch_size: maximum number of windows decoded together; None: the default.
        values: values of :class:`whisper_opt.TranscribeOptions`.
    """

    timestamps: Union[bool, str]
    language: bool
    chunk_length_s: Union[float, None]
    batch_size: Union[int, None]
    values: Mapping[str, Any]

    def options(self, n_samples: int) -> whisper_opt.TranscribeOptions:
        """How to transcribe a recording of that length."""
        values = dict(self.values)
        chunk = self.chunk_length_s
        if chunk and n_samples > chunk * SAMPLE_RATE:
            values.update(strategy="batched", vad="cut", vad_max_speech_duration=chunk)
            values.update(condition_on_previous_text=False)
        elif n_samples > WINDOW:
            values["without_timestamps"] = False  # they say where the next window begins
        if self.batch_size is not None:
            values["batch_size"] = self.batch_size
        return whisper_opt.TranscribeOptions.tolerant(**values)


def settings(model: whisper_opt.Whisper, *levels: Mapping[str, Any]) -> Settings:
    """What the arguments of the pipeline and of a call mean.

    Args:
        model: the model.
        *levels: arguments of the pipeline, then those of the call, which replace them;
            ``generate_kwargs`` is a dictionary of further ones.

    Raises:
        OptionError: an argument is not supported.
    """
    call: dict[str, Any] = {}
    generate: dict[str, Any] = {}
    for given in levels:
        call.update((name, value) for name, value in given.items() if name in CALL)
        generate.update(given.get("generate_kwargs") or {})
        others = (item for item in given.items() if item[0] not in (*CALL, "generate_kwargs"))
        generate.update(others)
    if call.get("decoder_kwargs") is not None:
        raise whisper_opt.OptionError(
            "decoder_kwargs is given, but it is about a language model for CTC; leave it out"
        )
    timestamps = _timestamps(call.get("return_timestamps"))
    decoded = _timestamps(generate.pop("return_timestamps", None))
    known = {name: value for name, value in generate.items() if name in _GENERATE}
    check_unused({n: v for n, v in generate.items() if n not in known}, model.vocab, _GENERATE)
    return Settings(
        timestamps=timestamps,
        language=bool(call.get("return_language")),
        chunk_length_s=_chunk_length(call.get("chunk_length_s")),
        batch_size=call.get("batch_size"),
        values=_values({n: known.get(n) for n in _GENERATE}, model, timestamps or decoded),
    )


def _timestamps(given: Any) -> bool | str:
    if given in (None, False, True):
        return bool(given)
    if given != "word":
        raise whisper_opt.OptionError(
            f"return_timestamps is {given!r}; expected True for segments, 'word', or False"
        )
    return "word"


def _chunk_length(given: float | None) -> float | None:
    """Seconds; None for 0, which means no chunks in transformers, too."""
    if not given:
        return None
    if not number(given) or not 1 <= given <= 30:
        raise whisper_opt.OptionError(
            f"chunk_length_s is {given!r}; expected 1 to 30 seconds: a model hears 30 s, and"
            " transformers does not transcribe the rest of longer chunks; leave it out for windows"
            " one after another"
        )
    return float(given)


def _values(
    given: Mapping[str, Any], model: whisper_opt.Whisper, timestamps: bool | str
) -> dict[str, Any]:
    ratio = given["compression_ratio_threshold"]
    beams = _NUM_BEAMS if given["num_beams"] is None else given["num_beams"]
    temperature = given["temperature"]
    latest = given["max_initial_timestamp_index"]
    return {
        "vad": "off",
        "without_timestamps": not timestamps,
        "word_timestamps": timestamps == "word",
        "prepend_punctuations": _PREPENDED,
        "append_punctuations": _APPENDED,
        "max_initial_timestamp": 1.0 if latest is None else latest * _TIME,
        "temperature": 0.0 if temperature is None else temperature,
        "beam_size": None if beams == 1 else beams,
        "length_penalty": _length_penalty(given["length_penalty"]),
        "compression_ratio_threshold": ratio * _RATIO if number(ratio) else ratio,
        "logprob_threshold": given["logprob_threshold"],
        "no_speech_threshold": given["no_speech_threshold"],
        "repetition_penalty": _or(given["repetition_penalty"], 1.0),
        "no_repeat_ngram_size": _or(given["no_repeat_ngram_size"], 0),
        "max_new_tokens": _max_new_tokens(given, model),
        **_suppression(given, model),
        **_language(given, model),
        **_prompt(given, model),
    }


def _or(value: Any, default: Any) -> Any:
    return default if value is None else value


def _length_penalty(given: float | None) -> float | None:
    """1: divide by the length; 0: do not. Between them the formulas of both libraries differ."""
    if given not in (None, 0, 1):
        raise whisper_opt.OptionError(
            f"length_penalty is {given}; expected 1 or 0: transformers divides by a power of the"
            " length, this library by Google NMT's penalty; whisper_opt.Whisper.transcribe"
            " accepts its exponent"
        )
    return 0.0 if given == 0 else None


def _max_new_tokens(given: Mapping[str, Any], model: whisper_opt.Whisper) -> Any:
    """Tokens per window; by default as many as the context has room for.

    ``max_length`` is about the same: transformers adds the length of the prompt to it.
    """
    for name in ("max_new_tokens", "max_length"):
        if given[name] is not None:
            return given[name]
    return model.dims.n_text_ctx


def _suppression(given: Mapping[str, Any], model: whisper_opt.Whisper) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if given["suppress_tokens"] is not None:
        found["suppress_tokens"] = tuple(given["suppress_tokens"])
    first = given["begin_suppress_tokens"]
    if first is not None:
        blank = {*model.vocab.encode(" "), model.vocab.eot}
        if set(first) not in (set(), blank):
            raise whisper_opt.OptionError(
                f"begin_suppress_tokens is {list(first)}; expected {sorted(blank)}, a blank and the"
                " end of text, or an empty list; use suppress_tokens for others"
            )
        found["suppress_blank"] = bool(first)
    return found


def _language(given: Mapping[str, Any], model: whisper_opt.Whisper) -> dict[str, Any]:
    """Language and task; an English-only model accepts its own."""
    multilingual, language = given["is_multilingual"], given["language"]
    if multilingual not in (None, model.is_multilingual):
        raise whisper_opt.OptionError(
            f"is_multilingual is {multilingual}, but this model is"
            f" {'multilingual' if model.is_multilingual else 'English-only'}; leave it out"
        )
    if isinstance(language, (list, tuple)):
        raise whisper_opt.OptionError(
            f"language is a list ({language!r}); call once per language, or leave it out to detect"
            " the language of each recording"
        )
    if isinstance(language, str) and language.startswith("<|") and language.endswith("|>"):
        language = language[2:-2]
    return {"language": language, "task": _or(given["task"], "transcribe")}


def _prompt(given: Mapping[str, Any], model: whisper_opt.Whisper) -> dict[str, Any]:
    conditions = bool(given["condition_on_prev_tokens"])
    kind = given["prompt_condition_type"]
    if kind not in (None, "first-segment", "all-segments"):
        raise whisper_opt.OptionError(
            f"prompt_condition_type is {kind!r}; expected 'first-segment' or 'all-segments'"
        )
    if kind == "all-segments" and not conditions:
        raise whisper_opt.OptionError(
            "prompt_condition_type is 'all-segments', which needs condition_on_prev_tokens; turn"
            " that on, or leave it out: without it all windows have the prompt"
        )
    return {
        "condition_on_previous_text": conditions,
        "initial_prompt": _prompt_text(given["prompt_ids"], model.vocab),
        "carry_initial_prompt": kind == "all-segments" or not conditions,
    }


def _prompt_text(given: Any, vocab: Any) -> str | None:
    """The prompt as text; ids must be those of a text, as ``get_prompt_ids`` makes them."""
    if given is None or isinstance(given, str):
        return given or None
    ids: Sequence[int] = given.tolist() if hasattr(given, "tolist") else list(given)
    ids = ids[1:] if ids[:1] == [vocab.sot_prev] else ids
    text: str = vocab.decode(ids)
    if vocab.encode(" " + text.strip()) != ids:
        raise whisper_opt.OptionError(
            "prompt_ids is not what get_prompt_ids returns, a text after a space; give the text"
        )
    return text
