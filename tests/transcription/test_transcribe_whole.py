"""Whole recordings on a fake model, language detection and compression ratio."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest

from tests.support.fake_backend import FakeBackend, FakeEncoded, FakeSession
from tests.support.models import random_dims, tokenizer_json
from tests.support.reference_rules import Reference, reference_log_softmax
from tests.support.reference_windows import BEGIN, DIMS, VOCAB, DecodeWindow, reference
from tests.support.watched_backend import talkative
from whisper_opt.audio.features import LogMel
from whisper_opt.core.arrays import F32
from whisper_opt.core.backend import Encoded
from whisper_opt.core.errors import OptionError
from whisper_opt.core.interruption import Interruption
from whisper_opt.core.options import TranscribeOptions
from whisper_opt.decoding.rows import Decoded
from whisper_opt.decoding.search import Hypothesis
from whisper_opt.text.results import Segment
from whisper_opt.text.vocabulary import Vocab
from whisper_opt.transcription.fallback import (
    FallbackDecoder,
    Suppression,
    Window,
    WindowResult,
    compression_ratio,
)
from whisper_opt.transcription.job import Chunk, TranscriptionJob
from whisper_opt.transcription.language import detect_language
from whisper_opt.transcription.scheduler import Progress, Scheduler
from whisper_opt.transcription.windows import WindowCursor

SUPPRESSION = Suppression((1, 2, 7), (220, VOCAB.eot))


class SpyBackend(FakeBackend):
    """Records the encoded windows and counts open sessions."""

    def __init__(self) -> None:
        super().__init__(DIMS, talkative)
        self.mels: list[F32] = []
        self.open_sessions = 0

    def encode(self, mel: F32, interruption: Interruption | None = None) -> FakeEncoded:
        assert mel.dtype == np.float32
        assert mel.shape[1:] == (DIMS.n_mels, 3000)
        self.mels.extend(mel)
        return super().encode(mel)

    def open(self, audio: Encoded) -> FakeSession:
        backend = self
        backend.open_sessions += 1

        class Session(FakeSession):
            def close(self) -> None:
                backend.open_sessions -= 1
                super().close()

        assert isinstance(audio, FakeEncoded)
        return Session(self, audio)


def log_mel_of(n_frames: int, seed: int = 0) -> LogMel:
    rng = np.random.default_rng(seed)
    frames = rng.standard_normal((DIMS.n_mels, n_frames + 2), np.float32)
    return LogMel(frames, n_frames, -1.0)


def transcribe(
    backend: FakeBackend,
    mel: LogMel,
    options: TranscribeOptions,
    on_progress: Progress | None = None,
) -> Iterator[Segment]:
    """The segments of one recording with one chunk."""
    cursor = WindowCursor(mel.n_frames, VOCAB, DIMS, options, "en")
    fallback = FallbackDecoder(DIMS, VOCAB, options, SUPPRESSION)
    job = TranscriptionJob(fallback, lambda _: iter([Chunk(mel, cursor)]))
    for _, segments in Scheduler(backend, VOCAB, 8).run([job]):
        yield from segments
        if job.error is not None:
            raise job.error
        if on_progress is not None and segments:
            on_progress(job.done, mel.n_frames / 100)


def run(
    mel: LogMel, options: TranscribeOptions, backend: FakeBackend | None = None, **more: Any
) -> list[Segment]:
    return list(transcribe(backend or SpyBackend(), mel, options, **more))


def window_of(mel: LogMel, seek: int, size: int) -> F32:
    """A part of the spectrogram, padded with zeros to a window."""
    window = np.zeros((DIMS.n_mels, 3000), np.float32)
    window[:, :size] = mel.frames[:, seek : seek + size]
    return window


def naive_decoding(mel: LogMel, options: TranscribeOptions) -> DecodeWindow:
    """Greedy decoding of one window by the reference's filters, one sequence, no cache."""
    suppress = None
    if options.suppress_tokens:
        listed = set(options.suppress_tokens) | set(VOCAB.never_sampled())
        suppress = (*(listed - {-1}), *(SUPPRESSION.non_speech if -1 in listed else ()))
    filters = Reference(
        VOCAB.eot,
        VOCAB.no_timestamps,
        BEGIN,
        SUPPRESSION.begin if options.suppress_blank else None,
        suppress,
        not options.without_timestamps,
        round(options.max_initial_timestamp / 0.02) if options.max_initial_timestamp else None,
    )

    def decode(seek: int, size: int, prompt: tuple[int, ...]) -> WindowResult:
        seed = zlib.crc32(window_of(mel, seek, size).tobytes())
        tokens: list[int] = []
        total = 0.0
        for _ in range(options.max_new_tokens or DIMS.n_text_ctx // 2):
            token, logprob = filters.best(talkative(seed, [*prompt, *tokens]), tokens)
            total += logprob
            if token == VOCAB.eot:
                break
            tokens.append(token)
            if len(prompt) + len(tokens) > DIMS.n_text_ctx:
                break
        start = talkative(seed, prompt[: prompt.index(VOCAB.sot) + 1])
        silence = float(np.exp(reference_log_softmax(start)[VOCAB.no_speech]))
        text = VOCAB.decode(tokens, specials=True).strip().encode()
        ratio = len(text) / len(zlib.compress(text))
        return WindowResult(tuple(tokens), total / (len(tokens) + 1), silence, ratio, 0.0)

    return decode


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"without_timestamps": True},
        {"condition_on_previous_text": False, "max_initial_timestamp": 0.02},
        {"max_initial_timestamp": None, "no_speech_threshold": None, "max_new_tokens": 5},
        {"max_initial_timestamp": 0.1, "suppress_blank": False, "max_new_tokens": 1000},
        {"suppress_tokens": None, "without_timestamps": True, "suppress_blank": False},
        {"suppress_tokens": (300, 301), "prefix": "so far so good", "initial_prompt": "n" * 40},
        {"clip_timestamps": (3, 20, 31.5), "initial_prompt": "Ann", "carry_initial_prompt": True},
        {"no_speech_threshold": 0.0, "logprob_threshold": None},
    ],
    ids=lambda options: " ".join(options) or "defaults",
)
def test_whole_recordings_equal_the_reference(options: dict[str, Any]) -> None:
    chosen = TranscribeOptions(temperature=0.0, **options)
    for n_frames in (3151, 7411) if chosen.clip_timestamps else (8, 2999, 7411):
        mel = log_mel_of(n_frames)
        backend = SpyBackend()
        found = run(mel, chosen, backend)
        theirs = reference(n_frames, chosen, naive_decoding(mel, chosen))
        assert len(found) == len(theirs.segments)
        for mine, other in zip(found, theirs.segments):
            assert (mine.id, mine.seek, mine.text, mine.tokens) == (
                other.id,
                other.seek,
                other.text,
                other.tokens,
            )
            for name in ("start", "end", "avg_logprob", "no_speech_prob", "compression_ratio"):
                assert getattr(mine, name) == pytest.approx(getattr(other, name), abs=1e-4)
        assert len(backend.mels) == len(theirs.windows)
        for encoded, (seek, size, _) in zip(backend.mels, theirs.windows):
            np.testing.assert_array_equal(encoded, window_of(mel, seek, size))
        assert backend.open_sessions == 0


def test_the_fake_model_gives_varied_results() -> None:
    """Makes sure that the comparison above covers results of many kinds."""
    found = [
        segment
        for seed in range(4)
        for segment in run(log_mel_of(9000, seed), TranscribeOptions(no_speech_threshold=None))
    ]
    windows = {(segment.seek, segment.avg_logprob) for segment in found}
    assert len(found) > len(windows) > 12
    assert len({segment.tokens for segment in found}) > 15
    assert any(segment.seek % 3000 for segment in found)
    assert len({segment.no_speech_prob > 0.6 for segment in found}) == 2


def test_progress() -> None:
    steps: list[tuple[float, float]] = []
    found = run(log_mel_of(7411), TranscribeOptions(), on_progress=lambda *step: steps.append(step))
    assert {segment.seek for segment in found} <= {0, *(round(done * 100) for done, _ in steps)}
    assert [done for done, _ in steps] == sorted({done for done, _ in steps})
    assert steps[-1] == (74.11, 74.11)
    assert {total for _, total in steps} == {74.11}


def test_segments_come_before_the_next_window_is_decoded() -> None:
    backend = SpyBackend()
    segments = transcribe(backend, log_mel_of(9000), TranscribeOptions(no_speech_threshold=None))
    assert backend.mels == []
    next(segments)
    assert len(backend.mels) == 1
    assert backend.open_sessions == 0


def test_a_prompt_that_does_not_fit_is_refused() -> None:
    options = TranscribeOptions(prefix=" ".join("a" * 40))
    with pytest.raises(OptionError, match=r"41 tokens; the model holds 32: shorten prefix"):
        run(log_mel_of(100), options)


def test_a_prompt_that_just_fits_leaves_one_token() -> None:
    options = TranscribeOptions(prefix=" ".join("a" * 31), no_speech_threshold=None)
    (segment,) = run(log_mel_of(100), options)
    assert len(segment.tokens) <= 1
    options = dataclasses.replace(options, prefix=" ".join("a" * 30), without_timestamps=True)
    assert len(run(log_mel_of(100), options)[0].tokens) <= 1


def test_a_transcript_prefix_that_does_not_fit_is_refused() -> None:
    options = TranscribeOptions(transcript_prefix=" ".join("a" * 31))
    with pytest.raises(OptionError, match=r"33 tokens; the model holds 32: shorten transcript_pre"):
        run(log_mel_of(100), options)


def test_a_transcript_prefix_does_not_count_as_new_tokens() -> None:
    options = TranscribeOptions(
        transcript_prefix="a b a", max_new_tokens=2, no_speech_threshold=None, temperature=0.0
    )
    first, *_ = run(log_mel_of(100), options)
    begin = (BEGIN, *VOCAB.encode(" a b a"))
    assert first.tokens[:4] == begin
    assert 4 < len(first.tokens) <= 6
    assert first.truncated == (len(first.tokens) == 6)


@pytest.mark.parametrize("beam", [{}, {"beam_size": 3}], ids=["greedy", "beam"])
def test_a_transcript_prefix_does_not_raise_the_mean_log_probability(beam: dict[str, Any]) -> None:
    options = TranscribeOptions(
        without_timestamps=True, suppress_blank=False, no_speech_threshold=None, **beam
    )
    prompted = dataclasses.replace(options, prefix="a b a")
    (expected,) = run(log_mel_of(100), prompted)
    (found,) = run(log_mel_of(100), dataclasses.replace(options, transcript_prefix="a b a"))
    assert found.tokens == (*VOCAB.encode(" a b a"), *expected.tokens)
    assert found.avg_logprob == expected.avg_logprob


def test_given_tokens_may_count_in_the_mean() -> None:
    fallback = FallbackDecoder(DIMS, VOCAB, TranscribeOptions(), SUPPRESSION)
    short, long = Hypothesis((5, 6, 7), -1.0), Hypothesis((5, 6, 7, 8), -1.4)
    decoded = Decoded([short, long], no_speech_prob=0.0)
    window = Window(0, 3000, (VOCAB.sot,), 0, begin=(5, 6))
    found = fallback.result(window, decoded, 0)
    assert (found.tokens, found.avg_logprob) == (long.tokens, -1.4 / 3)
    found = fallback.result(dataclasses.replace(window, begin_counts=True), decoded, 0)
    assert (found.tokens, found.avg_logprob) == (short.tokens, -1.0 / 4)


def test_word_times_leave_room_for_the_start_and_the_end_of_the_aligned_text() -> None:
    options = TranscribeOptions(word_timestamps=True, max_new_tokens=448)
    fallback = FallbackDecoder(DIMS, VOCAB, options, SUPPRESSION)
    window = Window(0, 3000, (VOCAB.sot,), 0)
    assert fallback.request(window, 0).max_new_tokens == 32 - 2 - 1
    window = dataclasses.replace(window, begin=(BEGIN, *VOCAB.encode(" a")))
    assert fallback.request(window, 0).max_new_tokens == 32 - 2 - 1 - 2


def test_suppressed_ids_must_exist() -> None:
    options = TranscribeOptions(suppress_tokens=(-1, 2000))
    with pytest.raises(OptionError, match=r"suppress_tokens holds 2000; .* end at 1999"):
        run(log_mel_of(100), options)


# --- compression ratio and language -------------------------------------------------------------


def test_compression_ratio() -> None:
    assert compression_ratio("") == 0.0
    assert compression_ratio("one of a kind") < 1.0
    assert compression_ratio("again and again and " * 20) > 2.4
    text = "naïve ♪ 日本"
    assert compression_ratio(text) == len(text.encode()) / len(zlib.compress(text.encode()))


@pytest.mark.parametrize(("n_vocab", "n_languages"), [(51865, 99), (51866, 100)])
def test_detect_language(n_vocab: int, n_languages: int) -> None:
    dims = random_dims(n_vocab=n_vocab)
    vocab = Vocab(tokenizer_json(dims), dims)
    asked: list[tuple[int, list[int]]] = []

    def scores(seed: int, tokens: Sequence[int]) -> F32:
        asked.append((seed, list(tokens)))
        return np.random.default_rng(seed).standard_normal(n_vocab, np.float32)

    mel = log_mel_of(200).head()
    found = detect_language(FakeBackend(dims, scores), vocab, [mel])
    seed = zlib.crc32(mel.tobytes())
    assert asked == [(seed, [vocab.sot])] * len(asked)
    assert asked
    assert len(found) == n_languages
    assert list(found.values()) == sorted(found.values(), reverse=True)
    assert sum(found.values()) == pytest.approx(1.0, abs=1e-5)
    row = scores(seed, [])
    logits = {code: float(row[token]) for code, token in vocab.languages.items()}
    assert list(found) == sorted(logits, key=lambda code: -logits[code])
    total = sum(np.exp(list(logits.values())))
    for code, prob in found.items():
        assert prob == pytest.approx(np.exp(logits[code]) / total, rel=1e-4)


@pytest.mark.parametrize("others", [0.0, 60.0, 500.0])
def test_languages_are_weighed_among_themselves(others: float) -> None:
    dims = random_dims()
    vocab = Vocab(tokenizer_json(dims), dims)

    def scores(seed: int, tokens: Sequence[int]) -> F32:
        row = np.full(dims.n_vocab, others, np.float32)
        row[list(vocab.languages.values())] = 0
        row[vocab.languages["fr"]] = row[vocab.languages["de"]] = np.float32(np.log(97))
        return row

    found = detect_language(FakeBackend(dims, scores), vocab, [log_mel_of(3000).head()])
    assert list(found)[:3] == ["de", "fr", "en"]  # equal ones by id
    assert found["fr"] == pytest.approx(1 / 3, abs=1e-5)
    assert found["en"] == pytest.approx(1 / 291, rel=1e-4)


def test_an_english_model_detects_nothing() -> None:
    with pytest.raises(OptionError, match="English-only"):
        detect_language(SpyBackend(), VOCAB, [log_mel_of(10).head()])
