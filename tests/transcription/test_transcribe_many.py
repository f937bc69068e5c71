"""Recordings in a batch have the transcripts of single runs, whatever else is in the batch."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, Callable

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from tests.conftest import Engines
from tests.support.engines import DIALECTS, require, sharp_checkpoint
from tests.support.golden import clip_pcm, clips
from tests.support.models import as_tensor, random_dims, special_ids
from tests.support.watched_backend import many, noise
from whisper_opt import TranscribeOptions, Transcript, Whisper
from whisper_opt.core.arrays import F32
from whisper_opt.export import export
from whisper_opt.export.checkpoints import Checkpoint

DIMS = random_dims(n_audio_layer=1)


def talkative_checkpoint() -> Checkpoint:
    """A random model with clear preferences that produces timestamps and the end of text.

    If all tokens had similar scores, rounding would decide, and results without an end of text
    would all be similar.
    """
    plain = sharp_checkpoint(DIMS, seed=1)
    tensors = dict(plain.tensors)
    special = special_ids(DIMS)
    rng = np.random.default_rng(0)
    direction = rng.standard_normal(DIMS.n_text_state, np.float32)
    direction *= np.float32(40) / np.linalg.norm(direction)
    embedding = tensors["decoder.token_embedding.weight"].read().copy()
    # the bias of the last layer norm adds this direction to every output
    embedding[special["<|endoftext|>"]] += direction * np.float32(4 / 1600)
    embedding[special["<|notimestamps|>"] + 1 :] += direction * np.float32(1 / 1600)
    tensors["decoder.token_embedding.weight"] = as_tensor(embedding)
    weight = tensors["decoder.ln.weight"].read() * np.float32(14)
    tensors["decoder.ln.weight"] = as_tensor(weight)
    tensors["decoder.ln.bias"] = as_tensor(tensors["decoder.ln.bias"].read() + direction)
    return dataclasses.replace(plain, tensors=tensors)


Load = Callable[[str], Whisper]


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Load:
    """Loads the random multilingual model in a dialect."""

    @functools.cache
    def load(dialect: str) -> Whisper:
        require(dialect)
        engine = export(
            talkative_checkpoint(), tmp_path_factory.mktemp("many") / dialect, dialect=dialect
        )
        return Whisper.load(engine.path, threads=1)

    return load


@pytest.fixture(scope="module", params=DIALECTS)
def model(request: pytest.FixtureRequest, load: Load) -> Whisper:
    return load(request.param)


SECONDS = (0.1, 0.7, 3.0, 9.0, 29.99, 30.0, 31.0, 45.0, 70.0)


def temperatures(draw: st.DrawFn) -> dict[str, Any]:
    """Temperatures and thresholds; some results pass, others fall back."""
    temperature = draw(st.sampled_from([(0.0,), (0.0,), (0.0, 0.4, 1.0), (0.0, 0.8), (0.6,)]))
    several = len(temperature) > 1
    options: dict[str, Any] = {
        "temperature": temperature,
        "seed": draw(st.integers(0, 3)) if temperature[-1] > 0 else 0,
        "logprob_threshold": draw(st.sampled_from([None, -1.9, -3.0])) if several else -1.0,
        "compression_ratio_threshold": draw(st.sampled_from([None, 2.4, *[0.9] * several])),
        "no_speech_threshold": draw(st.sampled_from([None, 0.6, 1e-7])),
    }
    if 0.0 in temperature and draw(st.integers(0, 2)) == 0:
        options["beam_size"] = draw(st.integers(2, 5))
        options["patience"] = draw(st.sampled_from([None, 1.0, 2.0]))
        options["length_penalty"] = draw(st.sampled_from([None, 0.0, 0.6, 1.0]))
    if temperature[-1] > 0:
        options["best_of"] = draw(st.sampled_from([None, 1, 3]))
    return options


def spoken_in(draw: st.DrawFn) -> dict[str, Any]:
    kind = draw(st.sampled_from(["given", "given", "detected", "over windows", "mixed"]))
    if kind == "given":
        return {"language": draw(st.sampled_from(["en", "de", "Japanese", "ru"]))}
    if kind == "over windows":
        return {"language_detection_segments": 2, "language_detection_threshold": 0.9}
    return {"multilingual": kind == "mixed"}


def strategy(draw: st.DrawFn) -> dict[str, Any]:
    if draw(st.integers(0, 3)) == 0:
        clips = draw(st.sampled_from([(0, 2), (0, 31.5, 33, 40), (1, 2, 2, 3, 3.5, 5), (5,)]))
        return {"strategy": "batched", "clip_timestamps": clips}
    options: dict[str, Any] = {
        "condition_on_previous_text": draw(st.sampled_from([None, True, False])),
        "clip_timestamps": draw(st.sampled_from([(), (), (), (0.5, 2, 20, 44)])),
    }
    if options["clip_timestamps"] == ():
        options["vad"] = draw(st.sampled_from(["off", "off", "check"]))
    return options


@st.composite
def option_sets(draw: st.DrawFn) -> dict[str, Any]:
    options: dict[str, Any] = {
        "task": draw(st.sampled_from(["transcribe", "transcribe", "translate"])),
        "without_timestamps": draw(st.booleans()),
        "max_initial_timestamp": draw(st.sampled_from([None, 0.02, 1.0])),
        "initial_prompt": draw(st.sampled_from([None, None, "Ann and Bob", "word " * 300])),
        "prefix": draw(st.sampled_from([None, None, "so", "it is said that"])),
        "hotwords": draw(st.sampled_from([None, None, "Ann", "Bob Carol Dave " * 30])),
        "suppress_tokens": draw(st.sampled_from([(-1,), None, (300, 301)])),
        "suppress_blank": draw(st.booleans()),
        "max_new_tokens": draw(st.sampled_from([1, 3, 8, 8, 14, 20])),
        "repetition_penalty": draw(st.sampled_from([1.0, 1.0, 1.2, 0.8])),
        "no_repeat_ngram_size": draw(st.sampled_from([0, 0, 1, 3])),
        "word_timestamps": draw(st.integers(0, 4)) == 0,
        **temperatures(draw),
        **spoken_in(draw),
        **strategy(draw),
    }
    if options["without_timestamps"] and options["max_initial_timestamp"] == 0.02:
        options["max_initial_timestamp"] = None  # the two are refused together
    if options["initial_prompt"] is not None:
        options["carry_initial_prompt"] = draw(st.booleans())
    return options


Mix = tuple[tuple[int, int], list[tuple[float, int, dict[str, Any]]]]

mixes = st.tuples(
    st.permutations([1, 2, 5, 16]).map(lambda sizes: (sizes[0], sizes[1])),
    st.lists(
        st.tuples(st.sampled_from(SECONDS), st.integers(0, 5), option_sets()),
        min_size=2,
        max_size=6,
    ),
)
"""Two sizes of batch, and the length, seed and options of every recording."""


def same(found: Transcript, expected: Transcript) -> None:
    """Equal tokens, times and text; probabilities up to the rounding of other batch shapes."""
    assert [s.tokens for s in found] == [s.tokens for s in expected]
    assert (found.text, found.language, found.duration) == (
        expected.text,
        expected.language,
        expected.duration,
    )
    assert found.language_probability == pytest.approx(expected.language_probability, abs=1e-4)
    for mine, other in zip(found, expected):
        figures = ("avg_logprob", "no_speech_prob")
        for name in figures:
            assert getattr(mine, name) == pytest.approx(getattr(other, name), abs=1e-3)
        for word, another in zip(mine.words or (), other.words or ()):
            assert dataclasses.replace(word, probability=0) == dataclasses.replace(
                another, probability=0
            )
            assert word.probability == pytest.approx(another.probability, abs=1e-3)
        assert len(mine.words or ()) == len(other.words or ())
        equal = {name: getattr(other, name) for name in (*figures, "words")}
        assert dataclasses.replace(mine, **equal) == other


def compare(
    model: Whisper,
    audios: Sequence[F32],
    options: Sequence[dict[str, Any]],
    batch_sizes: Sequence[int] = (1, 2, 5, 16),
) -> None:
    alone = [model.transcribe(sound, **chosen) for sound, chosen in zip(audios, options)]
    each = [TranscribeOptions(**chosen) for chosen in options]
    for batch_size in batch_sizes:
        found = many(model, audios, options=each, batch_size=batch_size)
        assert sorted(found) == list(range(len(audios)))
        for i, expected in enumerate(alone):
            same(found[i], expected)


def compare_mix(model: Whisper, mix: Mix) -> None:
    sizes, recordings = mix
    # rows of a batch differ in their last bits, so a sampled token must not be a near-tie: with
    # other noise, one of thousands is
    audios = [noise(seconds, seed + 100) for seconds, seed, _ in recordings]
    compare(model, audios, [options for _, _, options in recordings], sizes)


@settings(derandomize=True, deadline=None, max_examples=8, phases=[Phase.generate])
@given(mix=mixes)
def test_random_mixes_equal_single_runs(load: Load, mix: Mix) -> None:
    compare_mix(load("contrib"), mix)


@settings(derandomize=True, deadline=None, max_examples=2, phases=[Phase.generate])
@given(mix=mixes)
def test_random_mixes_equal_single_runs_in_the_other_dialect(load: Load, mix: Mix) -> None:
    compare_mix(load("standard"), mix)


@pytest.mark.slow
@settings(derandomize=True, deadline=None, max_examples=8, phases=[Phase.generate])
@given(mix=mixes)
def test_more_random_mixes_equal_single_runs(model: Whisper, mix: Mix) -> None:
    compare_mix(model, mix)


def test_the_random_model_gives_varied_results(model: Whisper) -> None:
    """Makes sure that the properties above are tested with results of many kinds."""
    lengths, temperatures, ended = set(), set(), 0
    tokens: list[int] = []
    for seed in range(4):
        found = model.transcribe(
            noise(70.0, seed),
            language="en",
            max_new_tokens=20,
            no_speech_threshold=None,
            logprob_threshold=-1.9,
            temperature=(0.0, 0.5, 1.0),
            vad="off",
        )
        for segment in found:
            lengths.add(len(segment.tokens))
            temperatures.add(segment.temperature)
            tokens.extend(segment.tokens)
            ended += len(segment.tokens) < 20
    begin = special_ids(DIMS)["<|notimestamps|>"] + 1
    assert len(lengths) > 4
    assert ended > 3
    assert len(temperatures) > 1
    assert 0.05 < np.mean(np.array(tokens) >= begin) < 0.8
    assert len(set(tokens)) > 20


def test_other_recordings_of_the_batch_change_nothing(model: Whisper) -> None:
    """One recording with different other recordings, at every position."""
    sound = noise(45.0, 1)
    plain = TranscribeOptions(max_new_tokens=10, beam_size=3, temperature=0.0, language="en")
    alone = model.transcribe(sound, options=plain)
    others = [dataclasses.replace(plain, language=each) for each in ("de", "fr", "ru")]
    for place in range(4):
        audios = [noise(3.0 + 30 * i, 7 + i) for i in range(3)]
        audios.insert(place, sound)
        chosen = [*others[:place], plain, *others[place:]]
        found = many(model, audios, options=chosen, batch_size=3)
        same(found[place], alone)


# --- real speech ---------------------------------------------------------------------------------

CLIPS = tuple(clip.id for clip in clips() if 0 < clip.duration_s < 45)

FEATURES: tuple[dict[str, Any], ...] = (
    {},
    {"beam_size": 5},
    {"beam_size": 3, "patience": 2.0, "length_penalty": 1.0},
    {"without_timestamps": True},
    {"condition_on_previous_text": False},
    {"initial_prompt": "A glossary: Kennedy, Quilter.", "carry_initial_prompt": True},
    {"prefix": "Well,", "without_timestamps": True},
    {"hotwords": "Americans"},
    {"temperature": (0.0, 0.4, 1.0), "logprob_threshold": -0.3, "best_of": 2, "seed": 3},
    {"temperature": 0.7, "seed": 9},
    {"no_repeat_ngram_size": 3},
    {"repetition_penalty": 1.15},
    {"max_new_tokens": 7},
    {"word_timestamps": True},
    {"clip_timestamps": (0, 2, 3)},
    {"strategy": "batched"},
    {"strategy": "batched", "beam_size": 2, "word_timestamps": True},
    {"vad": "cut"},
    {"vad": "off"},
)
LANGUAGES: tuple[dict[str, Any], ...] = (
    {},
    {"language": "de"},
    {"language": "fr", "task": "translate"},
    {"multilingual": True},
    {"language_detection_segments": 3, "language_detection_threshold": 0.95},
)


def random_mix(seed: int, languages: bool) -> tuple[list[F32], list[dict[str, Any]]]:
    rng = np.random.default_rng(seed)
    audios, options = [], []
    for _ in range(5):
        audios.append(clip_pcm(str(rng.choice(CLIPS))))
        chosen = dict(FEATURES[rng.integers(len(FEATURES))])
        if "temperature" not in chosen:
            chosen["temperature"] = 0.0
        if languages:
            chosen.update(LANGUAGES[rng.integers(len(LANGUAGES))])
        options.append(chosen)
    return audios, options


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "seed", "batch_sizes"),
    [
        ("tiny.en", 0, (2, 16)),
        ("tiny.en", 1, (1, 5)),
        ("base", 3, (5,)),
    ],
)
def test_real_speech_in_batches_equals_single_runs(
    engines: Engines, name: str, seed: int, batch_sizes: tuple[int, ...]
) -> None:
    audios, options = random_mix(seed, languages=name == "base")
    compare(engines.model(name), audios, options, batch_sizes)


@pytest.mark.slow
@pytest.mark.parametrize("features", FEATURES, ids=lambda features: " ".join(features) or "plain")
def test_each_feature_in_a_batch_of_real_speech(engines: Engines, features: dict[str, Any]) -> None:
    """Three recordings with the same options."""
    picked = np.random.default_rng(len(str(features))).choice(CLIPS, 3)
    chosen = {"temperature": 0.0, **features}
    audios = [clip_pcm(str(each)) for each in picked]
    compare(engines.model("tiny.en"), audios, [chosen] * 3, batch_sizes=[3])
