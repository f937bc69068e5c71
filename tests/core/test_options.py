"""Options: defaults of openai-whisper, and checks of every value."""

from __future__ import annotations

import dataclasses
import io
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from whisper_opt.core.errors import OptionError
from whisper_opt.core.options import (
    CHANNELS,
    KINDS,
    STRATEGIES,
    TASKS,
    VAD_MODES,
    SubtitleOptions,
    TranscribeOptions,
    VadOptions,
)

NAMES = [field.name for field in dataclasses.fields(TranscribeOptions)]
VAD_NAMES = [field.name for field in dataclasses.fields(VadOptions)]
SUBTITLE_NAMES = [field.name for field in dataclasses.fields(SubtitleOptions)]


def test_defaults_are_openai_whispers() -> None:
    """Those of ``transcribe`` and ``DecodingOptions`` (suppress_tokens "-1", sample_len None).

    Those from ``transcript_prefix``, ``draft``, ``prompt_lookup_num_tokens``,
    ``repetition_penalty``, ``no_repeat_ngram_size``, ``seed``, ``multilingual`` and
    ``token_logprobs`` on, which it does not have, change nothing but by being set; speech is looked
    for unless that is turned off.
    """
    assert dataclasses.asdict(TranscribeOptions()) == {
        "language": None,
        "task": "transcribe",
        "without_timestamps": False,
        "max_initial_timestamp": 1.0,
        "condition_on_previous_text": None,
        "initial_prompt": None,
        "carry_initial_prompt": False,
        "prefix": None,
        "transcript_prefix": None,
        "hotwords": None,
        "draft": None,
        "prompt_lookup_num_tokens": None,
        "suppress_tokens": (-1,),
        "suppress_blank": True,
        "max_new_tokens": None,
        "repetition_penalty": 1.0,
        "no_repeat_ngram_size": 0,
        "temperature": (0.0, 0.2, 0.4, 0.6, 0.8, 1.0),
        "beam_size": None,
        "patience": None,
        "length_penalty": None,
        "best_of": None,
        "seed": 0,
        "compression_ratio_threshold": 2.4,
        "no_speech_threshold": 0.6,
        "logprob_threshold": -1.0,
        "clip_timestamps": (),
        "word_timestamps": False,
        "prepend_punctuations": "\"'“¿([{-",
        "append_punctuations": "\"'.。,，!！?？:：”)]}、",  # noqa: RUF001 - full-width marks
        "hallucination_silence_threshold": None,
        "token_logprobs": False,
        "multilingual": False,
        "language_detection_segments": None,
        "language_detection_threshold": 0.5,
        "strategy": "sequential",
        "batch_size": 8,
        "vad": None,
        "vad_threshold": 0.35,
        "vad_min_speech_duration": 0.1,
        "vad_min_silence_duration": 0.5,
        "vad_speech_pad": 0.2,
        "vad_max_speech_duration": 30.0,
        "channels": "mix",
        "diarize": False,
        "num_speakers": None,
        "min_speakers": None,
        "max_speakers": None,
        "known_speakers": (),
        "max_duration": 86_400.0,
        "max_audio_bytes": 2 << 30,
        "strict_audio": False,
    }
    assert TranscribeOptions().conditions is True


def test_subtitle_defaults_are_openai_whispers() -> None:
    assert dataclasses.asdict(SubtitleOptions()) == {
        "highlight_words": False,
        "max_line_width": None,
        "max_line_count": None,
        "max_words_per_line": None,
    }


WITH: dict[str, dict[str, Any]] = {
    "carry_initial_prompt": {"initial_prompt": "Ann"},
    "patience": {"beam_size": 5},
    "prepend_punctuations": {"word_timestamps": True},
    "append_punctuations": {"word_timestamps": True},
    "hallucination_silence_threshold": {"word_timestamps": True},
    "max_line_count": {"max_line_width": 40},
    "length_penalty": {"beam_size": 5},
    "num_speakers": {"diarize": True},
    "min_speakers": {"diarize": True},
    "max_speakers": {"diarize": True},
    "known_speakers": {"diarize": True},
    "vad_speech_pad": {"vad": "cut"},
    "vad_max_speech_duration": {"vad": "cut"},
}
"""Options that another option requires."""

GOOD: dict[str, list[Any]] = {
    "language": [None, "en", "German"],
    "task": ["transcribe", "translate"],
    "without_timestamps": [True, False],
    "max_initial_timestamp": [None, 0.001, 1, 30.0],
    "condition_on_previous_text": [None, True, False],
    "initial_prompt": [None, "", "Ann and Bob"],
    "carry_initial_prompt": [True, False],
    "prefix": [None, "", "So"],
    "transcript_prefix": [None, "", "So"],
    "hotwords": [None, "", "Ann Bob"],
    "draft": [
        None,
        "",
        "So it is",
        ["So", "it is"],
        [{"text": "So", "start": 0, "end": 1.5}],
        {"segments": [{"text": "So", "start": 0.0}]},
        [],
    ],
    "prompt_lookup_num_tokens": [None, 1, 10],
    "suppress_tokens": [(), (-1,), (0, 5, -1)],
    "suppress_blank": [True, False],
    "max_new_tokens": [None, 1, 448],
    "repetition_penalty": [0.01, 1, 1.2, 100],
    "no_repeat_ngram_size": [0, 1, 3],
    "temperature": [(0.0,), (0.0, 0.4), (1.0,)],
    "beam_size": [None, 1, 5],
    "patience": [None, 0.2, 1, 2.0],
    "length_penalty": [None, 0, 0.6, 1],
    "best_of": [None, 1, 5],
    "seed": [0, 7],
    "compression_ratio_threshold": [None, 0, 2.4, math.inf],
    "no_speech_threshold": [None, 0, 0.5, 1],
    "logprob_threshold": [None, -math.inf, -1, 0.0],
    "clip_timestamps": [(), (0.0,), (1.0, 2.0), (1.0, 2.0, 0.5)],
    "word_timestamps": [True, False],
    "prepend_punctuations": ["", "("],
    "append_punctuations": ["", ")."],
    "hallucination_silence_threshold": [None, 0, 2.0, math.inf],
    "token_logprobs": [True, False],
    "multilingual": [True, False],
    "language_detection_segments": [None, 1, 10],
    "language_detection_threshold": [0, 0.5, 1],
    "strategy": ["sequential", "batched"],
    "batch_size": [1, 64],
    "vad": [None, "off", "check", "cut"],
    "vad_threshold": [0, 0.35, 1],
    "vad_min_speech_duration": [0, 0.25, 30],
    "vad_min_silence_duration": [0, 2.0, 30],
    "vad_speech_pad": [0, 0.4, 5],
    "vad_max_speech_duration": [1, 29.5, math.inf],
    "channels": ["mix", "split"],
    "diarize": [True, False],
    "num_speakers": [None, 1, 64],
    "min_speakers": [None, 1, 64],
    "max_speakers": [None, 1, 64],
    "known_speakers": [(), (("Ann", "ann.wav"), ("Bob", b"wav"))],
    "max_duration": [0, 60, 1.5, math.inf],
    "max_audio_bytes": [1, 1 << 40],
    "strict_audio": [True, False],
}
GOOD_SUBTITLES: dict[str, list[Any]] = {
    "highlight_words": [True, False],
    "max_line_width": [None, 1, 42],
    "max_line_count": [None, 1, 2],
    "max_words_per_line": [None, 1, 7],
}
TEXT, FLAG = "expected a string or None", "expected True or False"
BAD: dict[str, tuple[list[Any], str]] = {
    "language": ([1, b"en", ["en"], True], TEXT),
    "task": (["", "Translate", None, 1, ["translate"]], "expected one of transcribe, translate"),
    "without_timestamps": ([None, 1, 0, "yes"], FLAG),
    "max_initial_timestamp": (
        [-0.1, 30.1, math.nan, math.inf, "1", True, [1.0]],
        "expected a number from 0 to 30, or None",
    ),
    "condition_on_previous_text": ([1, 0, "no"], "expected True, False or None"),
    "initial_prompt": ([1, b"text", ["text"]], TEXT),
    "carry_initial_prompt": ([None, 1], FLAG),
    "prefix": ([1, b"text", ("text",)], TEXT),
    "transcript_prefix": ([1, b"text", ["text"]], TEXT),
    "hotwords": ([1, b"text", ["text"]], TEXT),
    "draft": (
        [1, b"text", {"text": "So"}, [1], [{"text": 1}], [{"text": "So", "start": "0"}]],
        "expected text, or segments with text, and start and end in seconds",
    ),
    "prompt_lookup_num_tokens": ([0, -1, 1.5, "3", True], "expected a positive integer or None"),
    "suppress_tokens": (
        ["-1", b"1", [1.5], [True], [-2], ["1"], 5, [None], [[1]]],
        "expected a sequence of token ids, where -1 stands",
    ),
    "suppress_blank": ([None, 1, "on"], FLAG),
    "max_new_tokens": ([0, -1, 1.5, "3", True], "expected a positive integer or None"),
    "repetition_penalty": (
        [0, -1, 101, math.nan, math.inf, None, "1", True],
        "expected a number from 0.01 to 100",
    ),
    "no_repeat_ngram_size": ([-1, 1.5, None, "3", True], "expected an integer of 0 or more"),
    "temperature": (
        [-0.1, "0", None, (), (0.0, -1), True, [True], 11, math.nan, (0.0, math.nan)],
        "expected numbers from 0 to 10",
    ),
    "beam_size": ([0, -1, 101, 1.5, "5", True], "expected an integer from 1 to 100 or None"),
    "patience": ([-0.1, math.nan, "1", True], "expected a number from 0 to "),
    "length_penalty": ([-0.1, 1.1, "1", True], "expected a number from 0 to 1, or None"),
    "best_of": ([0, -1, 10**9, 1.5, "5", True], "expected an integer from 1 to 100 or None"),
    "seed": ([-1, 1.5, None, "0", True], "expected an integer of 0 or more"),
    "compression_ratio_threshold": (
        [-0.1, math.nan, "2.4", False],
        "expected a number from 0 to inf, or None",
    ),
    "no_speech_threshold": (
        [-0.1, 1.1, math.nan, "0.6", False],
        "expected a number from 0 to 1, or None",
    ),
    "logprob_threshold": (
        [0.1, math.nan, math.inf, "-1", False],
        "expected a number from -inf to 0, or None",
    ),
    "clip_timestamps": (
        ["0", b"0", ["0"], [None], [True], 5, None, [[0, 1]]],
        "expected a sequence of seconds",
    ),
    "word_timestamps": ([None, 1, "yes"], FLAG),
    "prepend_punctuations": ([None, 1, ["("]], "expected a string"),
    "append_punctuations": ([None, 1, ["."]], "expected a string"),
    "hallucination_silence_threshold": (
        [-0.1, math.nan, "2", True],
        "expected a number from 0 to inf, or None",
    ),
    "token_logprobs": ([None, 1, "yes"], FLAG),
    "multilingual": ([None, 1, "yes"], FLAG),
    "language_detection_segments": ([0, -1, 1.5, "1", True], "expected a positive integer"),
    "language_detection_threshold": (
        [-0.1, 1.1, math.nan, None, "0.5", True],
        "expected a number from 0 to 1",
    ),
    "strategy": (["", "Batched", None, 1], "expected one of sequential, batched"),
    "batch_size": ([0, -1, 1.5, None, "8", True], "expected a positive integer"),
    "vad": (["", "on", True, False, 1], "expected one of off, check, cut, or None"),
    "vad_threshold": (
        [-0.1, 1.1, math.nan, None, "0.5", True],
        "expected a number from 0 to 1",
    ),
    "vad_min_speech_duration": (
        [-0.1, 31, math.nan, None, "1", True],
        "expected a number from 0 to 30",
    ),
    "vad_min_silence_duration": (
        [-0.1, 31, math.nan, None, "1", True],
        "expected a number from 0 to 30",
    ),
    "vad_speech_pad": ([-0.1, 5.1, math.nan, None, "1", True], "expected a number from 0 to 5"),
    "vad_max_speech_duration": (
        [0, 0.9, math.nan, None, "1", True],
        "expected a number from 1 to inf",
    ),
    "channels": (["", "left", 0, None, True], "expected one of mix, split"),
    "diarize": (["yes", 1, None], "expected True or False"),
    "num_speakers": ([0, 65, 2.0, True, "2"], "expected an integer from 1 to 64 or None"),
    "min_speakers": ([0, 65, 2.0, True, "2"], "expected an integer from 1 to 64 or None"),
    "max_speakers": ([0, 65, 2.0, True, "2"], "expected an integer from 1 to 64 or None"),
    "known_speakers": (
        ["ann.wav", 3, ("ann.wav",), (("", "ann.wav"),), ((1, "ann.wav"),)],
        "expected a dictionary: the name of each",
    ),
    "max_duration": ([-1, math.nan, None, "60", True], "expected a number from 0 to inf"),
    "max_audio_bytes": ([0, -1, 1.5, None, True], "expected a positive integer"),
    "strict_audio": ([None, 1, "yes"], "expected True or False"),
}
POSITIVE = "expected a positive integer or None"
BAD_SUBTITLES: dict[str, tuple[list[Any], str]] = {
    "highlight_words": ([None, 1, "yes"], FLAG),
    "max_line_width": ([0, -1, 1.5, "42", True], POSITIVE),
    "max_line_count": ([0, -1, 1.5, "2", True], POSITIVE),
    "max_words_per_line": ([0, -1, 1.5, "7", True], POSITIVE),
}


def test_every_option_is_tried() -> None:
    assert list(GOOD) == list(BAD) == NAMES
    assert list(GOOD_SUBTITLES) == list(BAD_SUBTITLES) == SUBTITLE_NAMES


def _each_good() -> Iterator[tuple[type[Any], str, Any]]:
    for name, values in GOOD.items():
        yield from ((TranscribeOptions, name, value) for value in values)
        short = name[len("vad_") :]
        if short in VAD_NAMES and name.startswith("vad_"):
            yield from ((VadOptions, short, value) for value in values)
    for name, values in GOOD_SUBTITLES.items():
        yield from ((SubtitleOptions, name, value) for value in values)


def _each_bad() -> Iterator[tuple[type[Any], str, Any, str]]:
    for name, (values, expected) in BAD.items():
        yield from ((TranscribeOptions, name, value, expected) for value in values)
        short = name[len("vad_") :]
        if short in VAD_NAMES and name.startswith("vad_"):
            yield from ((VadOptions, short, value, expected) for value in values)
    for name, (values, expected) in BAD_SUBTITLES.items():
        yield from ((SubtitleOptions, name, value, expected) for value in values)


@pytest.mark.parametrize(("kind", "name", "value"), list(_each_good()))
def test_good_values_are_kept(kind: type[Any], name: str, value: Any) -> None:
    found = getattr(kind(**{**WITH.get(name, {}), name: value}), name)
    assert found == value


@pytest.mark.parametrize(("kind", "name", "value", "expected"), list(_each_bad()))
def test_bad_values_are_refused(kind: type[Any], name: str, value: Any, expected: str) -> None:
    with pytest.raises(OptionError) as raised:
        kind(**{**WITH.get(name, {}), name: value})
    message = str(raised.value)
    assert message.startswith(f"{name} is {value!r}; ")
    assert expected in message


@pytest.mark.parametrize(
    "clips", [[-1.0], [math.nan], [math.inf], [2.0, 1.0], [1.0, 1.0], [0, 1, 5, 5], [1, math.nan]]
)
def test_invalid_clips(clips: list[float]) -> None:
    expected = r"clip_timestamps is \[.*expected non-negative seconds, every end after its start"
    with pytest.raises(OptionError, match=expected):
        TranscribeOptions(clip_timestamps=clips)


def test_carrying_a_prompt_requires_one() -> None:
    with pytest.raises(OptionError, match="without an initial_prompt to carry; give one"):
        TranscribeOptions(carry_initial_prompt=True)
    assert TranscribeOptions(carry_initial_prompt=True, initial_prompt="Ann").carry_initial_prompt


PUNCTUATION = {"prepend_punctuations": "("}
CLIPS = {"clip_timestamps": (1.0, 2.0)}
CONTRADICTIONS: list[tuple[dict[str, Any], str]] = [
    ({"patience": 1.0}, "patience is 1.0; without beam_size"),
    ({"patience": 0, "beam_size": 5}, "patience is 0; .*beam_size 5 .* end before any hypothesis"),
    ({"patience": 0.1, "beam_size": 5}, "patience is 0.1; .* end before any hypothesis"),
    ({"patience": math.inf, "beam_size": 5}, "patience is inf"),
    ({"beam_size": 5, "temperature": 0.5}, "beam_size is given, but no temperature is 0"),
    ({"beam_size": 5, "temperature": (0.2, 0.4)}, "beam_size is given, but no temperature is 0"),
    ({"best_of": 5, "temperature": 0}, "best_of is given, but every temperature is 0"),
    ({"best_of": 5, "temperature": (0.0,)}, "best_of is given, but every temperature is 0"),
    (PUNCTUATION, "prepend_punctuations is given, but it needs word_timestamps"),
    ({"append_punctuations": ")"}, "append_punctuations is given, but it needs word_timestamps"),
    (
        {"hallucination_silence_threshold": 2.0},
        "hallucination_silence_threshold is given, but it needs word_timestamps",
    ),
    ({"language": "en", "multilingual": True}, r"multilingual is given, but so is language \('en"),
    (
        {"language": "en", "language_detection_segments": 2},
        "language_detection_segments is given, but so is language",
    ),
    (
        {"language": "en", "language_detection_threshold": 0.9},
        "language_detection_threshold is given, but so is language",
    ),
    (
        {"strategy": "batched", "condition_on_previous_text": True},
        "condition_on_previous_text is on, but in batched mode",
    ),
    ({"num_speakers": 2}, "num_speakers is given, but it needs diarize"),
    ({"known_speakers": {"Ann": "a.wav"}}, "known_speakers is given, but it needs diarize"),
    ({"diarize": True, "channels": "split"}, "diarize is on and channels is 'split'"),
    (
        {"diarize": True, "num_speakers": 2, "max_speakers": 3},
        "num_speakers and max_speakers are both given",
    ),
    (
        {"diarize": True, "min_speakers": 4, "max_speakers": 3},
        "min_speakers is 4; expected at most max_speakers, which is 3",
    ),
    (
        {"diarize": True, "known_speakers": {"Ann": io.BytesIO(b"")}},
        "a file object for 'Ann', which can be read only once",
    ),
    (
        {"diarize": True, "known_speakers": (("Ann", "a.wav"), (" Ann", "b.wav"))},
        "has a name twice",
    ),
    ({"strategy": "batched", "vad": "off"}, "vad is 'off', but batched mode needs .*'cut'"),
    ({"strategy": "batched", "vad": "check"}, "vad is 'check', but batched mode needs .*'cut'"),
    ({"vad": "cut", **CLIPS}, "vad is 'cut' and clip_timestamps are given"),
    (
        {"strategy": "batched", "vad": "cut", **CLIPS},
        "vad is 'cut' and clip_timestamps are given",
    ),
    *(
        ({"vad": "off", f"vad_{name}": 1}, f"vad_{name} is given, but vad is 'off'")
        for name in VAD_NAMES
    ),
]


@pytest.mark.parametrize(("given", "expected"), CONTRADICTIONS)
def test_contradictions_are_refused(given: dict[str, Any], expected: str) -> None:
    with pytest.raises(OptionError, match=expected):
        TranscribeOptions(**given)


@pytest.mark.parametrize(
    "given",
    [
        {"beam_size": 5, "temperature": (0.2, 0.0)},
        {"beam_size": 5, "best_of": 3},
        {"language": "en", "language_detection_segments": None, "multilingual": False},
        {"multilingual": True, "language_detection_segments": 3},
        {"strategy": "batched", "condition_on_previous_text": False},
        {"strategy": "batched", "vad": "cut"},
        {"strategy": "batched", "vad": "off", **CLIPS},
        {"strategy": "batched", "vad": "check", **CLIPS},
        {"vad": "cut", "clip_timestamps": ()},
        {"vad": "off", "vad_threshold": 0.35},
        {"prepend_punctuations": TranscribeOptions().prepend_punctuations},
    ],
)
def test_compatible_options_are_accepted(given: dict[str, Any]) -> None:
    options = TranscribeOptions(**given)
    assert {name: getattr(options, name) for name in given} == given


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, True),
        ({"condition_on_previous_text": True}, True),
        ({"condition_on_previous_text": False}, False),
        ({"strategy": "batched"}, True),
        ({"strategy": "batched", "condition_on_previous_text": False}, False),
    ],
)
def test_conditioning_default(given: dict[str, Any], expected: bool) -> None:
    assert TranscribeOptions(**given).conditions is expected


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, "check"),
        (CLIPS, "check"),
        ({"strategy": "batched"}, "cut"),
        ({"strategy": "batched", **CLIPS}, "check"),
        ({"vad": "off"}, "off"),
        ({"vad": "cut"}, "cut"),
        ({"vad": "check"}, "check"),
        ({"vad": "off", "strategy": "batched", **CLIPS}, "off"),
    ],
)
def test_vad_default(given: dict[str, Any], expected: str) -> None:
    assert TranscribeOptions(**given).vad_mode == expected


def test_vad_options_are_those_of_vad() -> None:
    assert TranscribeOptions().vad_options == VadOptions()
    given = VadOptions(0.3, 0.2, 1.0, 0.1, 12.0)
    assert dataclasses.astuple(given) == (0.3, 0.2, 1.0, 0.1, 12.0)
    assert len(set(dataclasses.astuple(given))) == len(VAD_NAMES)
    values = {f"vad_{name}": getattr(given, name) for name in VAD_NAMES}
    assert TranscribeOptions(vad="cut", **values).vad_options == given
    for name in VAD_NAMES:
        ours = TranscribeOptions.__dataclass_fields__[f"vad_{name}"]
        theirs = VadOptions.__dataclass_fields__[name]
        assert (ours.default, ours.metadata) == (theirs.default, theirs.metadata)


def test_options_for_speech_differ_only_in_vad() -> None:
    given = TranscribeOptions(
        strategy="batched", vad="cut", vad_threshold=0.3, beam_size=5, batch_size=2, language="de"
    )
    found = given.for_speech((1.0, 2.0))
    assert found.vad_mode == "off"
    assert (found.strategy, found.conditions, found.clip_timestamps) == (
        "sequential",
        True,
        (1.0, 2.0),
    )
    assert (found.beam_size, found.batch_size, found.language) == (5, 2, "de")
    assert TranscribeOptions(clip_timestamps=[3.0]).for_speech() == TranscribeOptions(
        condition_on_previous_text=True, vad="off"
    )


@pytest.mark.parametrize(
    ("given", "expected"),
    [(0, (0.0,)), (0.5, (0.5,)), ((0, 1), (0.0, 1.0)), ([0.2], (0.2,)), (iter([0, 1]), (0.0, 1.0))],
)
def test_temperatures_are_a_tuple(given: Any, expected: tuple[float, ...]) -> None:
    options = TranscribeOptions(temperature=given)
    assert options.temperatures == options.temperature == expected
    assert all(type(value) is float for value in options.temperatures)
    assert options == dataclasses.replace(options)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"max_line_count": 2}, "max_line_count is 2, but it needs max_line_width"),
        (
            {"max_words_per_line": 4, "max_line_width": 40},
            "max_words_per_line and max_line_width are both given",
        ),
    ],
)
def test_subtitle_contradictions_are_refused(given: dict[str, Any], expected: str) -> None:
    with pytest.raises(OptionError, match=expected):
        SubtitleOptions(**given)


def test_subtitle_options_need_words_when_any_is_set() -> None:
    assert not SubtitleOptions().needs_words
    assert not SubtitleOptions(highlight_words=False).needs_words
    for name, value in (
        ("highlight_words", True),
        ("max_line_width", 1),
        ("max_words_per_line", 1),
    ):
        given: dict[str, Any] = {name: value}
        assert SubtitleOptions(**given).needs_words


@pytest.mark.parametrize("make", [list, tuple, iter, lambda values: (value for value in values)])
def test_sequences_become_tuples(make: Any) -> None:
    options = TranscribeOptions(suppress_tokens=make([3, -1]), clip_timestamps=make([1, 2.5]))
    assert options.suppress_tokens == (3, -1)
    assert options.clip_timestamps == (1.0, 2.5)
    assert all(type(second) is float for second in options.clip_timestamps)
    assert options == dataclasses.replace(options)
    assert hash(options) == hash(dataclasses.replace(options))


def test_none_is_an_empty_sequence() -> None:
    assert TranscribeOptions(suppress_tokens=None).suppress_tokens == ()


def test_numpy_floats_are_numbers() -> None:
    assert TranscribeOptions(no_speech_threshold=np.float64(0.25)).no_speech_threshold == 0.25


@pytest.mark.parametrize("options", [TranscribeOptions(), VadOptions(), SubtitleOptions()])
def test_options_are_frozen(options: Any) -> None:
    for field in dataclasses.fields(options):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(options, field.name, getattr(options, field.name))


def test_replacing_checks_again() -> None:
    options = TranscribeOptions(initial_prompt="Ann", carry_initial_prompt=True)
    with pytest.raises(OptionError, match="carry"):
        dataclasses.replace(options, initial_prompt=None)
    with pytest.raises(OptionError, match="task"):
        dataclasses.replace(options, task="sing")


def test_unknown_options_are_refused() -> None:
    unknown: dict[str, Any] = {"langage": "en"}
    with pytest.raises(TypeError, match="langage"):
        TranscribeOptions(**unknown)


def test_every_option_has_a_help_text() -> None:
    fields = [*dataclasses.fields(TranscribeOptions), *dataclasses.fields(SubtitleOptions)]
    explained = {field.name: field.metadata["help"] for field in fields}
    for name, text in explained.items():
        assert len(text) > 20, name
        assert not text.endswith("."), name
        assert text[0].islower() or text[0] == "-", name
        assert "%" not in text, name  # argparse would parse it as a format
    assert len(set(explained.values())) == len(NAMES) + len(SUBTITLE_NAMES)


@pytest.mark.parametrize("options", [TranscribeOptions(), VadOptions(), SubtitleOptions()])
def test_every_option_has_a_kind_that_fits_its_default(options: Any) -> None:
    for field in dataclasses.fields(options):
        kind, value = field.metadata["kind"], field.default
        assert kind in KINDS
        if value is None:
            assert field.metadata["optional"], field.name
            continue
        assert (kind == "flag") == isinstance(value, bool), field.name
        assert (kind == "integer") == (type(value) is int), field.name
        assert (kind == "number") == isinstance(value, float), field.name
        assert (kind == "text") == isinstance(value, str), field.name
        assert (kind in ("integers", "numbers", "clips")) == isinstance(value, tuple), field.name
    kinds = {field.metadata["kind"] for field in dataclasses.fields(TranscribeOptions)}
    assert kinds == set(KINDS)


def test_choices() -> None:
    fields = [*dataclasses.fields(TranscribeOptions), *dataclasses.fields(SubtitleOptions)]
    choices = {f.name: f.metadata["choices"] for f in fields if "choices" in f.metadata}
    assert choices == {
        "task": TASKS,
        "strategy": STRATEGIES,
        "vad": VAD_MODES,
        "channels": CHANNELS,
    }


def test_one_detection_window_only_without_vad() -> None:
    assert TranscribeOptions().detection_windows == 4
    assert TranscribeOptions(strategy="batched").detection_windows == 4
    assert TranscribeOptions(vad="off").detection_windows == 1
    assert TranscribeOptions(vad="off", language_detection_segments=3).detection_windows == 3


# options without effect


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ({"patience": 2.0}, {}),
        ({"beam_size": 5, "temperature": 0.5}, {"temperature": 0.5}),
        ({"best_of": 5, "seed": 3, "temperature": (0.0,)}, {"temperature": (0.0,)}),
        ({"length_penalty": 0.5}, {}),
        ({"length_penalty": 0.5, "beam_size": 5}, {"length_penalty": 0.5, "beam_size": 5}),
        (
            {"length_penalty": 0.5, "beam_size": 5, "temperature": 1.0},
            {"temperature": 1.0},
        ),
        ({"compression_ratio_threshold": 2.0, "temperature": 0}, {"temperature": 0}),
        ({"compression_ratio_threshold": 2.0}, {"compression_ratio_threshold": 2.0}),
        (
            {"logprob_threshold": -2.0, "no_speech_threshold": None, "temperature": 0},
            {"no_speech_threshold": None, "temperature": 0},
        ),
        ({"max_initial_timestamp": 0}, {"max_initial_timestamp": None}),
        (
            {"without_timestamps": True, "max_initial_timestamp": 0.5},
            {"without_timestamps": True},
        ),
        ({"append_punctuations": ".", "hallucination_silence_threshold": 2.0}, {}),
        ({"carry_initial_prompt": True}, {}),
        ({"language": "de", "language_detection_segments": 2}, {"language": "de"}),
    ],
)
def test_tolerant_options_leave_out_what_has_no_effect(
    given: dict[str, Any], kept: dict[str, Any]
) -> None:
    assert TranscribeOptions.tolerant(**given) == TranscribeOptions(**kept)


def test_tolerant_options_are_checked() -> None:
    with pytest.raises(OptionError, match="temperature is 'hot'"):
        TranscribeOptions.tolerant(temperature="hot")
    with pytest.raises(OptionError, match="temperature is \\(\\)"):
        TranscribeOptions.tolerant(temperature=())


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ({"max_line_count": 2}, {}),
        ({"max_line_width": 40, "max_words_per_line": 2}, {"max_line_width": 40}),
        ({"max_words_per_line": 2}, {"max_words_per_line": 2}),
    ],
)
def test_tolerant_subtitles(given: dict[str, Any], kept: dict[str, Any]) -> None:
    assert SubtitleOptions.tolerant(**given) == SubtitleOptions(**kept)
