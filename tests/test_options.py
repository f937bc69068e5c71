"""Options: defaults of openai-whisper, and every value checked where it is given."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest

from whisper_opt.errors import OptionError
from whisper_opt.options import KINDS, TASKS, TranscribeOptions, option_help

NAMES = [field.name for field in dataclasses.fields(TranscribeOptions)]


def test_defaults_are_openai_whispers() -> None:
    """Those of ``transcribe`` and ``DecodingOptions`` (suppress_tokens "-1", sample_len None)."""
    assert dataclasses.asdict(TranscribeOptions()) == {
        "language": None,
        "task": "transcribe",
        "without_timestamps": False,
        "max_initial_timestamp": 1.0,
        "condition_on_previous_text": True,
        "initial_prompt": None,
        "carry_initial_prompt": False,
        "prefix": None,
        "suppress_tokens": (-1,),
        "suppress_blank": True,
        "max_new_tokens": None,
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
    }


GOOD: dict[str, list[Any]] = {
    "language": [None, "en", "German"],
    "task": ["transcribe", "translate"],
    "without_timestamps": [True, False],
    "max_initial_timestamp": [None, 0, 0.0, 1, 30.0],
    "condition_on_previous_text": [True, False],
    "initial_prompt": [None, "", "Ann and Bob"],
    "carry_initial_prompt": [False],
    "prefix": [None, "", "So"],
    "suppress_tokens": [(), (-1,), (0, 5, -1)],
    "suppress_blank": [True, False],
    "max_new_tokens": [None, 1, 448],
    "temperature": [(0.0,), (0.0, 0.4), (1.0,)],
    "beam_size": [None, 1, 5],
    "patience": [None],
    "length_penalty": [None, 0, 0.6, 1],
    "best_of": [None, 1, 5],
    "seed": [0, 7],
    "compression_ratio_threshold": [None, 0, 2.4, math.inf],
    "no_speech_threshold": [None, 0, 0.5, 1],
    "logprob_threshold": [None, -math.inf, -1, 0.0],
    "clip_timestamps": [(), (0.0,), (1.0, 2.0), (1.0, 2.0, 0.5)],
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
    "condition_on_previous_text": ([None, 1, "no"], FLAG),
    "initial_prompt": ([1, b"text", ["text"]], TEXT),
    "carry_initial_prompt": ([None, 1], FLAG),
    "prefix": ([1, b"text", ("text",)], TEXT),
    "suppress_tokens": (
        ["-1", b"1", [1.5], [True], [-2], ["1"], 5, [None], [[1]]],
        "expected a sequence of token ids, where -1 stands",
    ),
    "suppress_blank": ([None, 1, "on"], FLAG),
    "max_new_tokens": ([0, -1, 1.5, "3", True], "expected a positive integer or None"),
    "temperature": (
        [-0.1, "0", None, (), (0.0, -1), [True], 11, math.nan],
        "expected numbers from 0 to 10",
    ),
    "beam_size": ([0, -1, 1.5, "5", True], "expected a positive integer or None"),
    "patience": ([1.0], "without beam_size"),
    "length_penalty": ([-0.1, 1.1, "1", True], "expected a number from 0 to 1, or None"),
    "best_of": ([0, -1, 1.5, "5", True], "expected a positive integer or None"),
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
}


def test_every_option_is_tried() -> None:
    assert list(GOOD) == list(BAD) == NAMES


@pytest.mark.parametrize(("name", "value"), [(n, v) for n, values in GOOD.items() for v in values])
def test_good_values_are_kept(name: str, value: Any) -> None:
    found = getattr(TranscribeOptions(**{name: value}), name)
    assert found == value


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [(name, value, expected) for name, (values, expected) in BAD.items() for value in values],
)
def test_bad_values_are_refused(name: str, value: Any, expected: str) -> None:
    with pytest.raises(OptionError) as raised:
        TranscribeOptions(**{name: value})
    message = str(raised.value)
    assert message.startswith(f"{name} is {value!r}; ")
    assert expected in message


@pytest.mark.parametrize(
    "clips", [[-1.0], [math.nan], [math.inf], [2.0, 1.0], [1.0, 1.0], [0, 1, 5, 5], [1, math.nan]]
)
def test_clips_that_are_no_clips(clips: list[float]) -> None:
    expected = r"clip_timestamps is \[.*expected non-negative seconds, every end after its start"
    with pytest.raises(OptionError, match=expected):
        TranscribeOptions(clip_timestamps=clips)


def test_a_prompt_to_carry_must_be_there() -> None:
    with pytest.raises(OptionError, match="without an initial_prompt to carry; give one"):
        TranscribeOptions(carry_initial_prompt=True)
    assert TranscribeOptions(carry_initial_prompt=True, initial_prompt="Ann").carry_initial_prompt


@pytest.mark.parametrize("make", [list, tuple, iter, lambda values: (value for value in values)])
def test_sequences_become_tuples(make: Any) -> None:
    options = TranscribeOptions(suppress_tokens=make([3, -1]), clip_timestamps=make([1, 2.5]))
    assert options.suppress_tokens == (3, -1)
    assert options.clip_timestamps == (1.0, 2.5)
    assert all(type(second) is float for second in options.clip_timestamps)
    assert options == dataclasses.replace(options)
    assert hash(options) == hash(dataclasses.replace(options))


def test_no_list_is_an_empty_one() -> None:
    assert TranscribeOptions(suppress_tokens=None).suppress_tokens == ()


def test_numpy_floats_are_numbers() -> None:
    assert TranscribeOptions(no_speech_threshold=np.float64(0.25)).no_speech_threshold == 0.25


def test_options_are_frozen() -> None:
    options = TranscribeOptions()
    for name in NAMES:
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(options, name, getattr(options, name))


def test_replacing_checks_again() -> None:
    options = TranscribeOptions(initial_prompt="Ann", carry_initial_prompt=True)
    with pytest.raises(OptionError, match="carry"):
        dataclasses.replace(options, initial_prompt=None)
    with pytest.raises(OptionError, match="task"):
        dataclasses.replace(options, task="sing")


def test_unknown_options_are_no_options() -> None:
    unknown: dict[str, Any] = {"langage": "en"}
    with pytest.raises(TypeError, match="langage"):
        TranscribeOptions(**unknown)


def test_every_option_is_explained() -> None:
    explained = option_help()
    assert list(explained) == NAMES
    for name, text in explained.items():
        assert len(text) > 20, name
        assert not text.endswith("."), name
        assert text[0].islower() or text[0] == "-", name
    assert len(set(explained.values())) == len(NAMES)


def test_every_option_has_a_kind_that_fits_its_default() -> None:
    kinds = {field.name: field.metadata["kind"] for field in dataclasses.fields(TranscribeOptions)}
    assert set(kinds.values()) == set(KINDS)
    for name, value in dataclasses.asdict(TranscribeOptions()).items():
        assert (kinds[name] == "flag") == isinstance(value, bool)
        assert (kinds[name] in ("integers", "numbers")) == isinstance(value, tuple)
    choices = {f.name: f.metadata.get("choices") for f in dataclasses.fields(TranscribeOptions)}
    assert choices.pop("task") == TASKS
    assert not any(choices.values())
