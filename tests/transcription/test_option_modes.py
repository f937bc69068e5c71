"""Every option in every mode: it has an effect, or it is refused with the reason.

``EFFECTS`` has a line for each option: a value that is not the default, the test that sees what it
does, and the modes in which it is refused. An option without a line fails here.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Callable

import pytest

from whisper_opt.core.errors import OptionError
from whisper_opt.core.options import LoadOptions, SubtitleOptions, TranscribeOptions
from whisper_opt.text.results import Segment, Transcript, Word
from whisper_opt.text.writers import FORMATS, SUBTITLE_FORMATS

TESTS = Path(__file__).parents[1]


@dataclasses.dataclass(frozen=True)
class Mode:
    """One way to transcribe."""

    multilingual_model: bool
    given: Mapping[str, Any]

    def __getitem__(self, name: str) -> Any:
        return getattr(self.options, name)

    @functools.cached_property
    def options(self) -> TranscribeOptions:
        return TranscribeOptions(**self.given)

    def __str__(self) -> str:
        model = "multilingual" if self.multilingual_model else "English"
        return f"{model} {dict(self.given)}"


CHOICES: tuple[tuple[dict[str, Any], ...], ...] = (
    (
        {},
        {"temperature": 0.0},
        {"temperature": 0.7},
        {"temperature": 0.0, "beam_size": 3},
        {"temperature": (0.0, 0.5), "beam_size": 1, "best_of": 1},
        {"best_of": 4},
    ),
    ({}, {"strategy": "batched"}),
    ({}, {"without_timestamps": True}),
    ({}, {"word_timestamps": True}),
    ({}, {"vad": "off"}, {"vad": "check"}, {"vad": "cut"}),
    ({}, {"clip_timestamps": (0.0, 4.0)}),
    ({}, {"language": "en"}),
    ({}, {"no_speech_threshold": None}),
)


def modes() -> Iterator[Mode]:
    for parts in itertools.product(*CHOICES):
        given = {name: value for part in parts for name, value in part.items()}
        try:
            TranscribeOptions(**given)
        except OptionError:
            continue  # batched without parts, or parts given twice
        for multilingual in (False, True):
            yield Mode(multilingual, given)


MODES = list(modes())
"""All combinations."""


def never(mode: Mode) -> bool:
    return False


def one_temperature(mode: Mode) -> bool:
    return len(mode["temperatures"]) == 1


def detects_nothing(mode: Mode) -> bool:
    return mode["language"] is not None or not mode.multilingual_model


def never_greedy(mode: Mode) -> bool:
    return mode["beam_size"] is not None or 0 not in mode["temperatures"]


def without_words(mode: Mode) -> bool:
    return not mode.options.word_timestamps


def looks_for_no_speech(mode: Mode) -> bool:
    return mode.options.vad_mode == "off"


def checks_only(mode: Mode) -> bool:
    return mode.options.vad_mode != "cut"


@dataclasses.dataclass(frozen=True)
class Effect:
    """Effect of an option.

    Attributes:
        value: one that is not the default.
        seen: name of the test of the effect.
        refused: whether it is refused in a mode.
        needs: other options that the value needs in every mode.
    """

    value: Any
    seen: str
    refused: Callable[[Mode], bool] = never
    needs: Mapping[str, Any] = dataclasses.field(default_factory=dict)


DIARIZE = {"diarize": True}
REFERENCE = "test_whole_recordings_equal_the_reference"
EFFECTS: dict[str, Effect] = {
    "language": Effect("en", "test_a_language_that_is_given_is_not_detected"),
    "task": Effect("translate", "test_the_start_of_a_transcript"),
    "without_timestamps": Effect(True, REFERENCE),
    "max_initial_timestamp": Effect(0.5, REFERENCE, lambda mode: mode["without_timestamps"]),
    "condition_on_previous_text": Effect(False, "test_text_is_passed_on_or_not"),
    "initial_prompt": Effect("Ann", "test_an_initial_prompt_comes_first_and_is_carried_when_asked"),
    "carry_initial_prompt": Effect(
        True,
        "test_an_initial_prompt_comes_first_and_is_carried_when_asked",
        needs={"initial_prompt": "Ann"},
    ),
    "prefix": Effect("So", "test_a_prefix_ends_the_prompt_of_every_window"),
    "transcript_prefix": Effect("So", "test_a_transcript_prefix_begins_the_first_window"),
    "hotwords": Effect("Ann", "test_hotwords_come_first_in_every_window"),
    "draft": Effect("So it is", "test_drafts_change_the_number_of_steps_only", never_greedy),
    "prompt_lookup_num_tokens": Effect(
        4, "test_drafts_change_the_number_of_steps_only", never_greedy
    ),
    "suppress_tokens": Effect((300,), REFERENCE),
    "suppress_blank": Effect(False, REFERENCE),
    "max_new_tokens": Effect(5, REFERENCE),
    "repetition_penalty": Effect(1.5, "test_the_repetition_penalty"),
    "no_repeat_ngram_size": Effect(3, "test_no_ngram_occurs_twice"),
    "temperature": Effect((0.0, 0.3), "test_windows_fall_back_one_by_one"),
    "beam_size": Effect(
        2, "test_beam_search_is_the_references", lambda mode: 0 not in mode["temperatures"]
    ),
    "patience": Effect(
        3.0, "test_beam_search_is_the_references", lambda mode: mode["beam_size"] is None
    ),
    "length_penalty": Effect(
        0.6,
        "test_rank_as_the_reference_does",
        lambda mode: max(mode["beam_size"] or 1, mode["best_of"] or 1) == 1,
    ),
    "best_of": Effect(
        3, "test_draws_follow_the_probabilities", lambda mode: not any(mode["temperatures"])
    ),
    "seed": Effect(
        7, "test_sampling_repeats_with_its_seed_only", lambda mode: not any(mode["temperatures"])
    ),
    "compression_ratio_threshold": Effect(
        1.9, "test_windows_fall_back_one_by_one", one_temperature
    ),
    "no_speech_threshold": Effect(0.3, "test_a_silent_window_leaves_no_segment"),
    "logprob_threshold": Effect(
        -0.5,
        "test_windows_fall_back_one_by_one",
        lambda mode: one_temperature(mode) and mode["no_speech_threshold"] is None,
    ),
    "clip_timestamps": Effect((1.0, 2.0), "test_clips", lambda mode: mode["vad"] == "cut"),
    "word_timestamps": Effect(True, "test_windows_equal_the_reference"),
    "prepend_punctuations": Effect("(", "test_punctuation_joins_its_word", without_words),
    "append_punctuations": Effect(")", "test_punctuation_joins_its_word", without_words),
    "hallucination_silence_threshold": Effect(
        2.0, "test_silence_before_doubtful_text_is_skipped", without_words
    ),
    "token_logprobs": Effect(True, "test_log_probabilities_of_tokens"),
    "multilingual": Effect(True, "test_every_window_has_its_language", detects_nothing),
    "language_detection_segments": Effect(
        3, "test_windows_are_averaged_until_one_is_sure", detects_nothing
    ),
    "language_detection_threshold": Effect(
        0.8, "test_windows_are_averaged_until_one_is_sure", detects_nothing
    ),
    "strategy": Effect(
        "batched",
        "test_batched_chunks_are_the_packed_speech",
        lambda mode: mode["vad"] in ("off", "check") and not mode["clip_timestamps"],
    ),
    "batch_size": Effect(
        3, "test_the_batch_is_full_and_never_fuller", lambda mode: mode["strategy"] == "sequential"
    ),
    "vad": Effect(
        "check",
        "test_text_without_speech_is_dropped",
        lambda mode: mode["strategy"] == "batched" and not mode["clip_timestamps"],
    ),
    "vad_threshold": Effect(0.7, "test_spans_are_those_of_the_package", looks_for_no_speech),
    "vad_min_speech_duration": Effect(
        1.0, "test_spans_are_those_of_the_package", looks_for_no_speech
    ),
    "vad_min_silence_duration": Effect(
        1.0, "test_spans_are_those_of_the_package", looks_for_no_speech
    ),
    "vad_speech_pad": Effect(0.4, "test_spans_are_those_of_the_package", checks_only),
    "vad_max_speech_duration": Effect(9.0, "test_spans_are_those_of_the_package", checks_only),
    "channels": Effect("split", "test_each_channel_is_transcribed_by_itself"),
    "diarize": Effect(True, "test_segments_have_the_speakers_of_their_words"),
    "num_speakers": Effect(2, "test_the_number_of_speakers_may_be_limited", needs=DIARIZE),
    "min_speakers": Effect(2, "test_the_number_of_speakers_may_be_limited", needs=DIARIZE),
    "max_speakers": Effect(2, "test_the_number_of_speakers_may_be_limited", needs=DIARIZE),
    "known_speakers": Effect((("Ann", "ann.wav"),), "test_known_speakers_are_named", needs=DIARIZE),
    "max_duration": Effect(60.0, "test_duration_is_limited_for_every_source"),
    "max_audio_bytes": Effect(1 << 20, "test_memory_is_limited"),
    "strict_audio": Effect(True, "test_damage_is_skipped_and_times_stay"),
}


def refusal(mode: Mode, name: str, effect: Effect) -> str | None:
    """The error for an option in a mode; None if it is accepted."""
    try:
        options = TranscribeOptions(**{**mode.given, **effect.needs, name: effect.value})
        options.check_model(is_multilingual=mode.multilingual_model, n_audio_ctx=1500)
        options.check_alone()
    except OptionError as error:
        return str(error)
    return None


def test_every_option_is_listed() -> None:
    assert list(EFFECTS) == [field.name for field in dataclasses.fields(TranscribeOptions)]
    for name, effect in EFFECTS.items():
        assert effect.value != TranscribeOptions.__dataclass_fields__[name].default, name


def test_the_tests_of_effects_exist() -> None:
    tests = set()
    for path in TESTS.rglob("test_*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        tests |= {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    seen = {name: effect.seen for name, effect in EFFECTS.items()}
    seen.update({name: effect.seen for name, effect in LOAD_EFFECTS.items()})
    missing = {name: test for name, test in seen.items() if test not in tests}
    assert not missing


def test_modes_are_of_every_kind() -> None:
    assert len(MODES) > 400
    for part in itertools.chain(*CHOICES):
        assert any(part.items() <= mode.given.items() for mode in MODES), part


@pytest.mark.parametrize("name", EFFECTS)
def test_an_option_without_effect_is_refused(name: str) -> None:
    effect = EFFECTS[name]
    for mode in MODES:
        if name in mode.given:
            continue
        said = refusal(mode, name, effect)
        assert (said is not None) == effect.refused(mode), f"{mode}: {said}"
        if said is not None:
            named = "batched" if name == "strategy" else name
            assert named in said, f"{mode}: {said}"


@pytest.mark.parametrize("name", EFFECTS)
def test_defaults_are_never_refused(name: str) -> None:
    default = TranscribeOptions.__dataclass_fields__[name].default
    effect = dataclasses.replace(EFFECTS[name], value=default, needs={})
    for mode in MODES:
        if name not in mode.given:
            assert refusal(mode, name, effect) is None, str(mode)


@pytest.mark.parametrize(
    "given",
    [
        {"max_initial_timestamp": None, "without_timestamps": True},
        {"compression_ratio_threshold": None, "temperature": 0.0},
        {"logprob_threshold": None, "no_speech_threshold": None, "temperature": 0.0},
        {"seed": 3, "temperature": (0.0, 0.2)},
        {"length_penalty": 0.6, "beam_size": 1, "patience": 2.0},
        {"batch_size": 1},
    ],
)
def test_options_that_change_nothing_are_accepted(given: dict[str, Any]) -> None:
    options = TranscribeOptions(**given)
    options.check_alone()
    assert options == dataclasses.replace(options)


def test_a_beam_is_no_wider_than_there_are_timestamps() -> None:
    TranscribeOptions(beam_size=30).check_model(is_multilingual=True, n_audio_ctx=30)
    with pytest.raises(OptionError, match=r"beam_size is 31; expected at most 30.*31 timestamps"):
        TranscribeOptions(beam_size=31).check_model(is_multilingual=True, n_audio_ctx=30)


def test_no_limit_is_none() -> None:
    with pytest.raises(OptionError, match=r"expected more than 0, or None for no limit"):
        TranscribeOptions(max_initial_timestamp=0)


# loading


@dataclasses.dataclass(frozen=True)
class LoadEffect:
    """Like :class:`Effect`, by device."""

    value: Any
    seen: str
    refused: tuple[str, ...] = ()


ONLY_TENSORRT = ("auto", "cpu", "cuda")
"""Devices that refuse what is for ``tensorrt``."""
GPU = ("cuda", "tensorrt")
LOAD_EFFECTS: dict[str, LoadEffect] = {
    "device": LoadEffect("cpu", "test_a_device_by_name_never_falls_back"),
    "device_index": LoadEffect(1, "test_auto_takes_the_gpu_for_an_engine_made_for_it", ("cpu",)),
    # with auto, threads are those of the CPU if that is what is chosen
    "threads": LoadEffect(2, "test_options_are_checked", ("tensorrt",)),
    "precision": LoadEffect("fp32", "test_each_precision_has_an_engine"),
    "revision": LoadEffect("main", "test_hub_id_is_exported_once_per_commit"),
    "cache_dir": LoadEffect("engines", "test_place_of_the_cache"),
    "local_files_only": LoadEffect(True, "test_without_a_network_the_last_commit_is_used"),
    "encoder_precision": LoadEffect("int8", "test_load_says_what_computes", GPU),
    "padding": LoadEffect("whole", "test_attention_covers_all_positions", GPU),
    "kernels": LoadEffect("off", "test_load_says_what_computes", GPU),
    "speakers": LoadEffect("speakers", "test_load_opens_the_networks"),
    "draft_model": LoadEffect("tiny", "test_a_draft_model_saves_steps", GPU),
    "cuda_graphs": LoadEffect(False, "test_options_are_checked", ONLY_TENSORRT),
    "tensorrt_library": LoadEffect("tensorrt", "test_options_are_checked", ONLY_TENSORRT),
    "build_plans": LoadEffect(True, "test_options_are_checked", ONLY_TENSORRT),
    "tensorrt_provider": LoadEffect(True, "test_options_are_checked", ("auto", "cpu", "tensorrt")),
}


@pytest.mark.parametrize("device", ["auto", "cpu", "cuda", "tensorrt"])
def test_load_options_have_an_effect_or_are_refused(device: str) -> None:
    assert list(LOAD_EFFECTS) == [field.name for field in dataclasses.fields(LoadOptions)]
    for name, effect in LOAD_EFFECTS.items():
        if name == "device":
            continue
        given: dict[str, Any] = {"device": device, name: effect.value}
        try:
            LoadOptions(**given)
            said = None
        except OptionError as error:
            said = str(error)
        assert (said is not None) == (device in effect.refused), (device, name, said)
        assert said is None or name in said


# subtitles

SUBTITLE_VALUES: dict[str, dict[str, Any]] = {
    "highlight_words": {"highlight_words": True},
    "max_line_width": {"max_line_width": 8},
    "max_line_count": {"max_line_count": 1, "max_line_width": 8},
    "max_words_per_line": {"max_words_per_line": 1},
}


@pytest.mark.parametrize("form", FORMATS)
def test_subtitle_options_show_in_every_format_or_are_refused(form: str) -> None:
    assert list(SUBTITLE_VALUES) == [field.name for field in dataclasses.fields(SubtitleOptions)]
    texts = (" one", " two,", " three", " four")
    words = tuple(Word(float(i), i + 0.8, text, 1.0) for i, text in enumerate(texts))
    segment = Segment(0, 0.0, 4.0, "".join(texts), (), -0.1, 0.0, 1.0, 0.0, 0, words, speaker="A")
    transcript = Transcript((segment,), "en", 4.0, segment.text)
    seen = [FORMATS[form](transcript)]
    for name, given in SUBTITLE_VALUES.items():
        options = SubtitleOptions(**given)
        if form not in SUBTITLE_FORMATS:
            with pytest.raises(OptionError, match=f"{name}.*{form} has no subtitles"):
                FORMATS[form](transcript, options)
            continue
        text = FORMATS[form](transcript, options)
        if form != "lrc" or name != "max_line_count":  # lrc shows lines, whichever cue has them
            assert text not in seen, name
        seen.append(text)
