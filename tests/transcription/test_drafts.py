"""Drafts of recordings, in every mode: fewer steps of the model, the same transcript."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from tests.conftest import Engines
from tests.support.engines import require
from tests.support.golden import clip_pcm
from tests.support.reference_windows import DIMS, VOCAB
from tests.support.watched_backend import PLAIN, WatchedBackend, engine, many, noise, noises
from whisper_opt import OptionError, TranscribeOptions, Transcript, Whisper
from whisper_opt.core.arrays import F32
from whisper_opt.serving import Engine
from whisper_opt.text.vocabulary import Vocab
from whisper_opt.transcription.drafts import ChunkDraft, Draft

N_CTX = 224
WORDS = [f"w{chr(97 + i % 26)}{chr(97 + i // 26)}n" for i in range(200)]
BEGIN, LAST = VOCAB.timestamp_begin, VOCAB.timestamp_begin + DIMS.n_audio_ctx
START = VOCAB.start("en", "transcribe", timestamps=True)


def script(seed: int, timestamps: bool) -> list[int]:
    """What is said in a window: three sentences of five words."""
    rng = np.random.default_rng(seed)
    tokens: list[int] = []
    times = np.linspace(BEGIN, LAST, 4).astype(int).tolist()
    for begin, end in zip(times, times[1:]):
        text = VOCAB.encode(" " + " ".join(rng.choice(WORDS, 5)))
        tokens += [begin, *text, end] if timestamps else text
    return [*tokens, VOCAB.eot]


def speaking(seed: int, tokens: Sequence[int]) -> F32:
    """Scores of a model that says the script of a window."""
    scores = np.zeros(DIMS.n_vocab, np.float32)
    first = list(tokens).index(VOCAB.sot)
    timestamps = VOCAB.no_timestamps not in tokens
    sampled = len(tokens) - first - len(START) - (not timestamps)
    says = script(seed, timestamps)
    scores[says[min(max(sampled, 0), len(says) - 1)]] = 20
    return scores


def model() -> tuple[Whisper, WatchedBackend]:
    backend = WatchedBackend(dataclasses.replace(DIMS, n_text_ctx=N_CTX), speaking)
    return Whisper(engine(n_text_ctx=N_CTX), backend), backend


def run(sound: Any, **options: Any) -> tuple[Transcript, int]:
    """A transcript, and how often the decoder was called for it."""
    whisper, backend = model()
    found = whisper.transcribe(sound, **options)
    return found, len(backend.of("prefill")) + len(backend.of("extend"))


def as_dicts(transcript: Transcript) -> list[dict[str, Any]]:
    """Segments as a file of subtitles has them."""
    return [
        {"start": round(each.start, 3), "end": round(each.end, 3), "text": each.text.strip()}
        for each in transcript
    ]


MODES = {
    "sequential": PLAIN,
    "without_timestamps": {**PLAIN, "without_timestamps": True},
    "batched": {**PLAIN, "strategy": "batched", "clip_timestamps": (0.0, 30.0, 31.0, 90.0)},
}


@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
def test_drafts_change_the_number_of_steps_only(mode: dict[str, Any]) -> None:
    sound = noise(90, 3)
    expected, n_plain = run(sound, **mode)
    assert len(expected) >= 3
    assert n_plain > 60
    for draft in (expected, as_dicts(expected), expected.to_dict(), expected.text):
        found, n_drafted = run(sound, **mode, draft=draft)
        assert found == expected
        assert n_drafted <= 0.2 * n_plain
    found, n_looked_up = run(sound, **mode, prompt_lookup_num_tokens=4)
    assert found == expected
    assert n_looked_up <= n_plain


@pytest.mark.parametrize(
    "draft", ["something else " * 40, "wxn", "\u3042", [{"text": "w", "start": 2}]]
)
@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
def test_wrong_drafts_are_harmless(mode: dict[str, Any], draft: Any) -> None:
    sound = noise(40, 3)
    mode = {**mode, "clip_timestamps": (0.0, 40.0)}
    assert run(sound, **mode, draft=draft)[0] == run(sound, **mode)[0]


def test_every_recording_has_its_draft() -> None:
    sounds = noises(35, 62, 20, 50)
    expected = [run(sound, **PLAIN)[0] for sound in sounds]
    drafts = [expected[0].text, None, expected[2], "w" + expected[3].text]
    options = [TranscribeOptions(**PLAIN, draft=draft) for draft in drafts]
    whisper, _ = model()
    found = many(whisper, sounds, options=options, batch_size=3)
    assert [found[i] for i in range(4)] == expected
    with Engine(whisper, max_batch=3) as served:
        handles = [served.submit(sound, each) for sound, each in zip(sounds, options)]
        assert [handle.result() for handle in handles] == expected


def test_a_draft_is_followed_across_windows() -> None:
    """Also if there is text before it, between its parts and after it."""
    sound = noise(150, 3)
    expected, n_plain = run(sound, **PLAIN)
    parts = [segment.text for segment in expected]
    draft = " ".join(["Once upon a time", *parts[:4], "and then", *parts[6:], "the end"])
    found, n_drafted = run(sound, **PLAIN, draft=draft)
    assert found == expected
    assert n_drafted < 0.4 * n_plain


def test_hotter_attempts_get_no_proposals() -> None:
    sound = noise(30, 1)
    text = run(sound, **PLAIN)[0].text
    options = {**PLAIN, "temperature": (0.0, 0.4), "logprob_threshold": 0.0, "seed": 3}
    expected, n_plain = run(sound, **options)
    found, n_drafted = run(sound, **options, draft=text)
    assert found == expected
    assert [segment.temperature for segment in found] == [0.4] * len(found)
    assert n_plain / 2 < n_drafted < n_plain


@pytest.mark.parametrize("name", ["draft", "prompt_lookup_num_tokens"])
def test_only_greedy_decoding_takes_drafts(name: str) -> None:
    values: dict[str, Any] = {"draft": "So it is", "prompt_lookup_num_tokens": 4}
    given: dict[str, Any] = {name: values[name]}
    with pytest.raises(OptionError, match=rf"{name} is given, but so is beam_size \(2\)"):
        TranscribeOptions(beam_size=2, **given)
    with pytest.raises(OptionError, match=rf"{name} is given, but no temperature is 0"):
        TranscribeOptions(temperature=(0.2, 0.4), **given)


def drafted(draft: Any, start: float = 0.0, **options: Any) -> ChunkDraft:
    dims = dataclasses.replace(DIMS, n_text_ctx=N_CTX)
    given = TranscribeOptions(draft=draft, **options)
    return ChunkDraft(Draft(given, VOCAB, 100.0), given, VOCAB, dims, start)


def first(part: ChunkDraft, seek: int, language: str = "en") -> list[int]:
    """What is proposed in a window of 30 s that begins with 0.00."""
    make = part.drafter(seek, 3000, (), language)
    return [] if make is None else list(make().propose([BEGIN], 100))


def test_a_window_gets_the_segments_that_overlap_it() -> None:
    step = DIMS.time_precision
    segments = [
        {"text": "one", "start": 0.0, "end": 10.05},
        {"text": "two", "start": 8.0, "end": 20.0},
        {"text": "three", "start": 30.0, "end": 45.0},
        {"text": "four", "start": 44.0, "end": 50.0},
    ]
    one, two, three, four = (VOCAB.encode(f" {each['text']}") for each in segments)

    def time(seconds: float) -> int:
        return BEGIN + round(seconds / step)

    assert first(drafted(segments), 1000) == [*two, time(10), time(20), *three]
    assert first(drafted(segments, 10.0), 0) == [*two, time(10), time(20), *three]
    assert first(drafted(segments[::-1], 44.5), 0) == [*three, time(0.5), time(0), *four, time(5.5)]
    assert first(drafted(segments, 60.0), 0) == []
    plain = drafted(segments, without_timestamps=True)
    assert first(plain, 0) == [*one, *two]
    assert first(drafted([{"text": "one", "start": 0.0}, {"text": "two"}]), 1000) == [*one, *two]


def test_text_begins_with_a_space_except_in_languages_without_spaces() -> None:
    assert first(drafted(" so  it\nis "), 0, "en") == VOCAB.encode(" so it is")
    assert first(drafted(" so "), 0, "ja") == VOCAB.encode("so")


def test_the_text_is_encoded_once_for_all_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    sound = noise(90, 3)
    expected, _ = run(sound, **MODES["batched"])
    texts: list[str] = []
    encode = Vocab.encode_sentence

    def watched(self: Vocab, text: str, language: str) -> list[int]:
        texts.append(text)
        return encode(self, text, language)

    monkeypatch.setattr(Vocab, "encode_sentence", watched)
    assert run(sound, **MODES["batched"], draft=expected.text)[0] == expected
    assert len(texts) == 1


@pytest.mark.parametrize("duration", [200.0, None])
def test_the_place_of_a_chunk_in_the_text(duration: float | None) -> None:
    """Also of a stream, whose length is not known: what was read of it so far is not all of it."""
    draft = Draft(TranscribeOptions(draft="wan " * 700), VOCAB, duration)
    text = draft.text("en")
    n = len(text.tokens)
    assert draft.near(0, text) == 0
    if duration is None:
        draft.heard(100.0, n // 2)
    assert draft.near(50, text) == pytest.approx(n / 4, abs=1)
    assert draft.near(500, text) == n


@pytest.mark.slow
@pytest.mark.parametrize("dialect", ["contrib", "standard"])
def test_real_speech_keeps_its_tokens(engines: Engines, dialect: str) -> None:
    """In fp32; in 8 bits, rounding may choose another of two tokens that are close."""
    require(dialect)
    whisper = engines.model("tiny.en", dialect)
    sound = clip_pcm("en-ls-1272-141231-0002")
    expected = whisper.transcribe(sound, **PLAIN)
    assert len(expected.text) > 50
    for draft in (expected, expected.text, expected.text.replace(" the ", " a ")):
        found = whisper.transcribe(sound, **PLAIN, draft=draft)
        assert [each.tokens for each in found] == [each.tokens for each in expected]
