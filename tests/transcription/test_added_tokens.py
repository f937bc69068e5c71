"""Tokens that were added behind the timestamps of a fine-tuned model are text like any other.

The oracle is renumbering: a vocabulary whose last words were moved behind the timestamps gives what
the ordinary one gives, under other ids.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import ROOT, model_dir
from tests.runtime.test_head_select import BEGIN, N_ROWS, N_VOCAB, _masks, make_head
from tests.support.models import (
    as_tensor,
    random_checkpoint,
    random_dims,
    special_ids,
    tokenizer_json,
)
from whisper_opt import Whisper
from whisper_opt.core.arrays import F32, Int
from whisper_opt.core.backend import TokenMask
from whisper_opt.core.dims import ModelDims
from whisper_opt.core.errors import EngineError, OptionError
from whisper_opt.core.logits import sample, top_k
from whisper_opt.core.text_ids import TextIds
from whisper_opt.decoding.constraints import NoRepeatNGram, TimestampRules
from whisper_opt.decoding.multistep import greedy_row
from whisper_opt.export import export
from whisper_opt.export.checkpoints import Checkpoint, load_checkpoint
from whisper_opt.runtime.head_select import TwoStageLogits
from whisper_opt.text.vocabulary import Vocab

DIMS = random_dims(n_vocab=3000, n_audio_state=64, n_text_state=64, n_audio_layer=1, n_text_layer=1)
EMBEDDING = "decoder.token_embedding.weight"


def with_words(text: str, *words: tuple[str, int], special: bool = False) -> str:
    """A tokenizer to which tokens were added."""
    value = json.loads(text)
    value["added_tokens"] += [
        {"id": index, "content": content, "special": special} for content, index in words
    ]
    return json.dumps(value)


def more(n: int, dims: ModelDims = DIMS) -> ModelDims:
    return dataclasses.replace(dims, n_vocab=dims.n_vocab + n)


# --- the vocabulary -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def vocab() -> Vocab:
    """Three words behind the timestamps, one of which is no text."""
    text = with_words(tokenizer_json(DIMS), (" country", 3000), ("né", 3001))
    return Vocab(with_words(text, ("[NOISE]", 3002), special=True), more(3))


def test_what_is_text(vocab: Vocab) -> None:
    plain = Vocab(tokenizer_json(DIMS), DIMS)
    assert vocab.times == range(plain.timestamp_begin, 3000)
    assert (vocab.timestamp_begin, vocab.timestamp_end) == (plain.timestamp_begin, 3000)
    assert plain.timestamp_end is None
    for token in range(3003):
        assert (token in vocab.text) == (token < vocab.eot or token in (3000, 3001)), token
    assert vocab.eot == plain.eot


def test_added_words_are_written(vocab: Vocab) -> None:
    tokens = [vocab.timestamp_begin, *vocab.encode("my"), 3000, 3001, 3002, 2999, vocab.eot]
    assert vocab.decode(tokens) == "my countryné"
    assert vocab.decode(tokens, specials=True) == "my countryné[NOISE]<|endoftext|>"


def test_added_words_are_split_into_words(vocab: Vocab) -> None:
    my = vocab.encode(" my")
    words, tokens = vocab.split_words([*my, 3000, 3001, 3000], "en")
    assert words == [" my", " countryné", " country"]
    assert tokens == [my, [3000, 3001], [3000]]


def test_added_words_in_prompts(vocab: Vocab) -> None:
    assert vocab.encode(" country my") == [3000, *vocab.encode(" my")]
    with pytest.raises(OptionError, match=r"special token \[NOISE\]"):
        vocab.encode("so [NOISE]")


def test_scores_of_text(vocab: Vocab) -> None:
    scores = np.arange(2 * 3003, dtype=np.float32).reshape(2, 3003)
    text = vocab.text.scores(scores)
    columns = vocab.text.columns([5, 3001, 3000])
    assert text.shape == (2, vocab.eot + 2)
    np.testing.assert_array_equal(text[:, columns], scores[:, [5, 3001, 3000]])


def test_pieces_behind_the_timestamps_are_text() -> None:
    """As of tokenizers that list added words in their model."""
    value = json.loads(tokenizer_json(DIMS))
    value["model"]["vocab"]["ab" * 9] = 3000
    vocab = Vocab(json.dumps(value), more(1))
    assert vocab.decode([3000]) == "ab" * 9
    assert 3000 in vocab.text


@pytest.mark.parametrize(
    ("word", "index", "said"),
    [
        ("word", 1499, r"'word' the id 1499, which is the timestamp <\|0\.00\|>"),
        ("word", 2999, r"which is the timestamp <\|30\.00\|>; add tokens behind the 1501"),
        ("word", 3001, "'word' the id 3001, but the model's ids end at 3000"),
    ],
)
def test_ids_that_mean_something_else(word: str, index: int, said: str) -> None:
    with pytest.raises(EngineError, match=said):
        Vocab(with_words(tokenizer_json(DIMS), (word, index)), more(1))


def test_who_says_that_a_model_is_multilingual() -> None:
    text = tokenizer_json(DIMS)
    assert not Vocab(text, DIMS).is_multilingual  # engines that do not say: by the size
    vocab = Vocab(text, DIMS, True)
    assert vocab.check_language("de", "translate") == "de"
    start = [vocab.sot, vocab.languages["de"], vocab.translate]
    assert vocab.start("de", "translate", timestamps=True) == start
    big = random_dims()
    assert Vocab(tokenizer_json(big), big).is_multilingual
    english = Vocab(tokenizer_json(big), big, False)
    assert english.start("en", "transcribe", timestamps=True) == [english.sot]


# --- rules and choice ---------------------------------------------------------------------------

SMALL, MOVED = 40, 3
EOT, FIRST_TIME = 20, 25
ORDER = np.concatenate([np.arange(EOT - MOVED), np.arange(EOT, SMALL), np.arange(EOT - MOVED, EOT)])
"""New id -> old id: the last words lie behind the timestamps."""
NEW = np.argsort(ORDER)


def rules(moved: bool) -> TimestampRules:
    shift = MOVED if moved else 0
    end = SMALL - MOVED if moved else None
    return TimestampRules(FIRST_TIME - shift, EOT - shift, FIRST_TIME - 1 - shift, 4, end)


@given(history=st.lists(st.integers(0, SMALL - 1), max_size=5))
def test_rules_know_what_a_timestamp_is(history: Sequence[int]) -> None:
    before, after = np.zeros((2, SMALL), np.bool_)
    rules(False)(history, before)
    rules(True)(NEW[list(history)].tolist(), after)
    np.testing.assert_array_equal(after, before[ORDER])
    for limit in (None, 4):
        rule = dataclasses.replace(rules(True), max_initial=limit)
        ban = np.zeros(SMALL, np.bool_)
        rule([], ban)
        assert ban[: rule.begin].all()
        assert ban[SMALL - MOVED :].all()


def test_repeated_words_are_words_wherever_they_lie() -> None:
    text = TextIds(EOT - MOVED, range(SMALL - MOVED, SMALL))
    ban = np.zeros(SMALL, np.bool_)
    NoRepeatNGram(2, text)([38, 1, 25, 38], ban)
    assert np.flatnonzero(ban).tolist() == [1]


def mask(ban: Any, begin: Int, moved: bool) -> TokenMask:
    if not moved:
        return TokenMask(ban, begin)
    begins = np.where(begin < ban.shape[1], begin - MOVED, begin)
    return TokenMask(ban[:, ORDER], begins, timestamp_end=SMALL - MOVED)


@settings(max_examples=150)
@given(seed=st.integers(0, 10**6), k=st.integers(1, 3))
def test_the_best_tokens(seed: int, k: int) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.normal(0, 3, (6, SMALL)).astype(np.float32)
    ban = rng.random(scores.shape) < 0.2
    begin = rng.choice([FIRST_TIME, SMALL], 6)
    before = top_k(scores, k, mask(ban, begin, False))
    after = top_k(scores[:, ORDER], k, mask(ban, begin, True))
    np.testing.assert_array_equal(ORDER[after.tokens], before.tokens)
    np.testing.assert_allclose(after.logprobs, before.logprobs, atol=1e-5)


@given(seed=st.integers(0, 10**6))
def test_drawn_tokens(seed: int) -> None:
    """Draws depend on the order of ids; what may be drawn, and how likely it is, does not."""
    rng = np.random.default_rng(seed)
    scores = rng.normal(0, 2, SMALL).astype(np.float32)
    ban = rng.random(SMALL) < 0.1
    known: dict[int, float] = {}
    for moved in (False, True):
        order = ORDER if moved else np.arange(SMALL)
        begin, end = (FIRST_TIME - MOVED, SMALL - MOVED) if moved else (FIRST_TIME, None)
        draw = np.random.default_rng(1)
        found = sample(scores[order], ban[order], begin, 40, 1.0, draw, end)
        for token, logprob in zip(*found):
            expected = known.setdefault(int(order[token]), float(logprob))
            assert abs(logprob - expected) < 1e-5
    probable = [token for token, logprob in known.items() if logprob > -1]
    times = [token >= FIRST_TIME for token in known]
    best = np.where(ban, -np.inf, scores)
    together = np.log(np.exp(best[FIRST_TIME:]).sum())
    assert not (together > best[:FIRST_TIME].max()) or all(times)
    assert probable or len(known) > 1


def test_masks_say_where_timestamps_end() -> None:
    ban = np.zeros((2, SMALL), np.bool_)
    split = mask(ban, np.array([FIRST_TIME, SMALL]), True)
    assert split.splits_text
    assert split.times(0) == (FIRST_TIME - MOVED, SMALL - MOVED)
    assert split.times(1) == (SMALL, None)
    assert not mask(ban, np.array([SMALL, SMALL]), True).splits_text
    assert not mask(ban, np.array([FIRST_TIME, SMALL]), False).splits_text


def test_a_device_does_not_go_on_alone() -> None:
    """Its graph takes every id from the first timestamp on for a timestamp."""
    begin, eot = FIRST_TIME - MOVED, EOT - MOVED
    assert greedy_row([rules(False)], FIRST_TIME, EOT, SMALL) is not None
    assert greedy_row([rules(True)], begin, eot, SMALL) is None
    assert greedy_row([], None, eot, SMALL) is not None


@pytest.mark.parametrize("k", [1, 6])
@pytest.mark.parametrize("flat", [False, True])
def test_candidates_of_the_two_stage_head(k: int, flat: bool) -> None:
    """Its choice is that of exact scores, with text on both sides of the timestamps."""
    end, n_differing = BEGIN + 150, 0
    for seed in range(4):
        head = make_head(seed, flat=flat)
        scores = head.scores()
        plain = _masks(seed, scores)
        split = TokenMask(plain.ban, plain.timestamp_begin, timestamp_end=end)
        # the rows of the head are in no order: some best tokens lie in each of the three parts
        nothing = np.zeros((N_ROWS, 0, N_VOCAB), np.float32)
        logits = TwoStageLogits(head.bounds, head.approximate, head.hidden, nothing)
        found, expected = logits.top(k, split), top_k(scores.copy(), k, split)
        allowed = np.isfinite(expected.logprobs)
        np.testing.assert_array_equal(found.tokens, expected.tokens)
        np.testing.assert_allclose(found.logprobs[allowed], expected.logprobs[allowed], atol=2e-3)
        n_differing += int((top_k(scores, k, plain).tokens != expected.tokens).any())
    assert n_differing


# --- whole transcripts --------------------------------------------------------------------------


def moved_words(checkpoint: Checkpoint, n: int) -> tuple[Checkpoint, Int]:
    """The same model with its last ``n`` words behind the timestamps, and new ids -> old ids."""
    dims = checkpoint.dims
    eot = special_ids(dims)["<|endoftext|>"]
    order = np.concatenate(
        [np.arange(eot - n), np.arange(eot, dims.n_vocab), np.arange(eot - n, eot)]
    )
    new = np.argsort(order)
    value = json.loads(checkpoint.tokenizer_json)
    words = value["model"]["vocab"]
    last = [name for name, i in words.items() if i >= eot - n]
    added = [(name, int(new[words.pop(name)])) for name in last]
    for token in value["added_tokens"]:
        token["id"] = int(new[token["id"]])
    rows = checkpoint.tensors[EMBEDDING].read()[order]
    text = with_words(json.dumps(value), *added)
    tensors = {**checkpoint.tensors, EMBEDDING: as_tensor(rows)}
    changed = dataclasses.replace(
        checkpoint,
        tokenizer_json=text,
        tensors=tensors,
        suppress_tokens=tuple(int(new[i]) for i in checkpoint.suppress_tokens or ()),
        begin_suppress_tokens=tuple(int(new[i]) for i in checkpoint.begin_suppress_tokens or ()),
    )
    return changed, order


N_MOVED = 400


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """An ordinary model, the same with words moved, and new ids -> old ids."""
    folder = tmp_path_factory.mktemp("added")
    plain = random_checkpoint(DIMS, seed=5)
    rows = plain.tensors[EMBEDDING].read()
    eot = special_ids(DIMS)["<|endoftext|>"]
    rows[eot - N_MOVED : eot] *= np.float32(1.5)  # so that they are often the best
    plain = dataclasses.replace(plain, tensors={**plain.tensors, EMBEDDING: as_tensor(rows)})
    moved, order = moved_words(plain, N_MOVED)
    loaded = [
        Whisper.load(export(each, folder / name).path, device="cpu", threads=1)
        for name, each in (("plain", plain), ("moved", moved))
    ]
    yield (*loaded, order)
    for model in loaded:
        model.close()


def noise(seconds: float) -> F32:
    rng = np.random.default_rng(3)
    sound: F32 = rng.normal(0, 0.1, round(seconds * 16000)).astype(np.float32)
    return sound


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"without_timestamps": True},
        {"word_timestamps": True},
        {"beam_size": 3},
        {"strategy": "batched", "word_timestamps": True, "clip_timestamps": [0, 20, 20, 33]},
        {"repetition_penalty": 1.3},
        {"no_repeat_ngram_size": 2},
        {"condition_on_previous_text": True, "initial_prompt": "ab"},
    ],
    ids=str,
)
def test_transcripts_do_not_depend_on_where_words_lie(models: Any, options: dict[str, Any]) -> None:
    plain, moved, order = models
    common = {
        "max_new_tokens": 14,
        "no_speech_threshold": None,
        "vad": "off",
        "temperature": 0.0,
    }
    expected = plain.transcribe(noise(33), **common, **options)
    found = moved.transcribe(noise(33), **common, **options)
    assert [s.text for s in found] == [s.text for s in expected]
    assert [order[list(s.tokens)].tolist() for s in found] == [list(s.tokens) for s in expected]
    assert [(s.start, s.end) for s in found] == [(s.start, s.end) for s in expected]
    for ours, theirs in zip(found, expected):
        assert ours.avg_logprob == pytest.approx(theirs.avg_logprob, abs=1e-3)
        for word, other in zip(ours.words or (), theirs.words or ()):
            assert (word.word, word.start, word.end) == (other.word, other.start, other.end)
            assert word.probability == pytest.approx(other.probability, abs=1e-4)
    assert any(token >= DIMS.n_vocab - N_MOVED for s in found for token in s.tokens)


@pytest.mark.slow
def test_words_added_to_a_real_model(tmp_path: Path) -> None:
    """Rows of three words of a speech, a little longer, so that the model writes the added ones."""
    base = load_checkpoint(model_dir("base"))
    vocab = Vocab(base.tokenizer_json, base.dims)
    words = [" country", " fellow", " Americans"]
    rows = base.tensors[EMBEDDING].read()
    likely = [rows[vocab.encode(word)[0]] * np.float32(1.15) for word in words]
    added = [(word, base.dims.n_vocab + i) for i, word in enumerate(words)]
    checkpoint = dataclasses.replace(
        base,
        dims=more(3, base.dims),
        tensors={**base.tensors, EMBEDDING: as_tensor(np.concatenate([rows, likely]))},
        tokenizer_json=with_words(base.tokenizer_json, *added),
    )
    speech = ROOT / "examples" / "jfk.flac"
    sentence = (
        "And so my fellow Americans ask not what your country can do for you,"
        " ask what you can do for your country."
    )
    with Whisper.load(export(checkpoint, tmp_path / "engine").path, threads=2) as model:
        assert model.is_multilingual
        found = model.transcribe(speech, word_timestamps=True, temperature=0.0)
        assert found.text.strip() == sentence
        used = {token for segment in found for token in segment.tokens}
        assert {index for _, index in added} <= used
        times = {w.word: w.start for s in found for w in s.words or ()}
        assert times[" fellow"] == pytest.approx(1.2, abs=0.2)
        assert times[" Americans"] == pytest.approx(1.6, abs=0.2)
        untimed = model.transcribe(speech, without_timestamps=True, temperature=0.0)
        assert " fellow Americans, ask not what your country can do" in untimed.text
        (segment,) = untimed
        assert segment.start == 0.0
        assert segment.end == pytest.approx(11.0)
