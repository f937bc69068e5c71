# ruff: noqa: RUF001  # marks that look like ASCII ones are among the texts on purpose
"""Regenerate tests/data/align/golden.json.gz from openai-whisper's own word times.

Run from the repository root, in an environment with openai-whisper:

    PYTHONPATH=. python tools/goldens/make_align_golden.py

Everything except the network is the reference's; the network is replaced by seeded attention and
scripted results (``tests/support/align_cases.py``). Sections of the file:

    median, dtw    whisper.timing on seeded matrices
    alignment      find_alignment under seeded attention
    words          add_word_timestamps on synthetic timings
    splits         split_to_word_tokens, on the tests' vocabulary and on the real ones
    windows        whole calls of whisper.transcribe with word times
"""

from __future__ import annotations

import copy
import dataclasses
import gzip
import importlib
import itertools
import json
import random
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import torch
from whisper import timing
from whisper.decoding import DecodingResult
from whisper.tokenizer import Tokenizer, get_tokenizer

from tests.support.align_cases import DIMS, GOLDEN, VOCAB, attention, matrix

TOKENIZER = Tokenizer(VOCAB._encoding, num_languages=99)
"""The reference's tokenizer over the tests' vocabulary."""
LETTERS = [" a", " be", " i", " so", "it", "er", "x"]
MARKS = [".", ",", "?", " (", ")", ' "', '"', " -", "...", "。", " ", "!"]
DEFAULT_MARKS = {"prepend": "\"'“¿([{-", "append": "\"'.。,，!！?？:：”)]}、"}


class Attention(torch.nn.Module):  # type: ignore[misc]  # torch may be absent
    """A cross-attention block that returns its input."""

    def forward(self, scores: Any) -> Any:
        return None, scores


class FakeModel:
    """A network with the given ``attention`` and ``results``."""

    is_multilingual = False
    num_languages = 99
    device = torch.device("cpu")

    def __init__(self, seed: int, results: list[dict[str, Any]] | None = None) -> None:
        self.dims = SimpleNamespace(**dataclasses.asdict(DIMS))
        self.dims.n_text_layer = 1
        self.decoder = SimpleNamespace(blocks=[SimpleNamespace(cross_attn=Attention())])
        self.alignment_heads = torch.ones(1, 2).to_sparse()
        self.seed = seed
        self.n_frames = 3000
        self.results = results or []
        self.windows: list[list[Any]] = []

    def __call__(self, mel: Any, tokens: Any) -> Any:
        text = tokens[0, 2:-1].numpy()
        given = attention(self.seed + len(self.windows), len(text), self.n_frames)
        self.decoder.blocks[0].cross_attn(torch.tensor(given.scores)[None])
        logits = np.zeros((1, tokens.shape[1], DIMS.n_vocab), np.float32)
        odds = given.probs / (1 - given.probs) * (VOCAB.eot - 1)
        logits[0, np.arange(len(text)) + 1, text] = np.log(odds)
        return torch.tensor(logits)

    def decode(self, mel: Any, options: Any) -> Any:
        """The scripted results in turn; the values of the mel spectrogram are frame numbers."""
        seek, size = int(mel[0, 0]) - 1, int((mel[0] > 0).sum())
        stuck = bool(self.windows) and self.windows[-1][0] == seek
        if size < 4 or stuck:
            raise LoopError
        result = self.results[len(self.windows) % len(self.results)]
        self.n_frames = size
        self.windows.append([seek, size, list(options.prompt)])
        return DecodingResult(audio_features=None, language="en", **result)


class LoopError(Exception):
    """The reference decodes the same audio again, or hardly advances."""


def tokens_of(rng: random.Random, n: int, marks: float = 0.3) -> list[int]:
    text = "".join(rng.choice(MARKS if rng.random() < marks else LETTERS) for _ in range(n))
    return VOCAB.encode(text)[:24]


# --- parts ------------------------------------------------------------------------------------


def median_cases() -> list[dict[str, Any]]:
    cases = []
    shapes = [(1,), (3,), (4,), (9,), (2, 8), (3, 2, 20)]
    for seed, (shape, width) in enumerate((s, w) for s in shapes for w in (1, 3, 7, 9)):
        x = torch.tensor(matrix(seed, shape))
        result = timing.median_filter(x, width).numpy()
        cases.append({"seed": seed, "shape": shape, "width": width, "result": result.tolist()})
    return cases


def dtw_cases() -> list[dict[str, Any]]:
    cases = []
    shapes = [(1, 1), (1, 9), (7, 1), (5, 5), (9, 4), (12, 40), (40, 12)]
    listed = [(shape, levels) for shape in shapes for levels in (0, 2, 3)] + [((101, 1500), 0)]
    for seed, (shape, levels) in enumerate(listed):
        rows, columns = timing.dtw(torch.tensor(matrix(seed, shape, levels)))
        path = [rows.tolist(), columns.tolist()]
        cases.append({"seed": seed, "shape": shape, "levels": levels, "path": path})
    return cases


def word_dicts(timings: Any) -> list[list[Any]]:
    return [[w.word, list(w.tokens), float(w.start), float(w.end), w.probability] for w in timings]


def alignment_cases() -> list[dict[str, Any]]:
    rng = random.Random(0)
    cases = []
    for seed, n_frames in enumerate([3000, 3000, 2999, 1500, 700, 121, 40, 9, 8, 6, 4] * 2):
        tokens = tokens_of(rng, rng.randrange(1, 14))
        model = FakeModel(seed)
        model.n_frames = n_frames
        found = timing.find_alignment(
            model, TOKENIZER, tokens, torch.zeros(DIMS.n_mels, 3000), n_frames
        )
        cases.append(
            {"seed": seed, "n_frames": n_frames, "tokens": tokens, "words": word_dicts(found)}
        )
    return cases


# --- synthetic timings -------------------------------------------------------------------------


def made_up(rng: random.Random) -> list[list[Any]]:
    """Consecutive timings: most words short, some long, some without duration."""
    time, words = rng.choice([0, 0, 10, 80]), []
    for _ in range(rng.randrange(12)):
        word = rng.choice(MARKS if rng.random() < 0.4 else LETTERS)
        end = time + rng.choice([0, 3, 8, 12, 15, 20, 40, 90, 200])
        tokens = [rng.randrange(VOCAB.eot) for _ in range(rng.choice([1, 1, 1, 2, 3]))]
        words.append([word, tokens, time / 50, end / 50, rng.random()])
        time = end
    return words


def made_up_segments(rng: random.Random, words: list[list[Any]]) -> list[dict[str, Any]]:
    """Segments of the tokens of the words, split anywhere, with times that may not fit."""
    time: float
    tokens = [token for word in words for token in word[1]]
    cuts = sorted(rng.randrange(len(tokens) + 1) for _ in range(rng.randrange(4)))
    time, segments = rng.choice([0, 0, 1, 7]), []
    for first, last in zip([0, *cuts], [*cuts, len(tokens)]):
        end = time + rng.choice([0, 0.5, 1, 3, 8])
        begin = VOCAB.timestamp_begin
        piece = [begin, *tokens[first:last], begin + 7]
        segments.append({"start": time, "end": end, "tokens": piece})
        time = end
    return segments


def word_cases(n: int) -> list[dict[str, Any]]:
    cases = []
    for seed in range(n):
        rng = random.Random(seed)
        words = made_up(rng)
        case = {
            "timings": words,
            "segments": made_up_segments(rng, words),
            "seek": rng.choice([0, 0, 100, 4321]),
            "last_speech": rng.choice([0.0, 0.0, 0.5, 42.0, 44.44]),
            **rng.choice([DEFAULT_MARKS, DEFAULT_MARKS, {"prepend": "", "append": ".x"}]),
        }
        case["result"] = reference_words(copy.deepcopy(case))
        cases.append(case)
    return cases


def reference_words(case: dict[str, Any]) -> list[dict[str, Any]]:
    segments = case["segments"]
    for segment in segments:
        segment["seek"] = case["seek"]
        segment["start"] += case["seek"] / 100
        segment["end"] += case["seek"] / 100
    # np.float64, as find_alignment returns them
    timings = [
        timing.WordTiming(word, tokens, np.float64(start), np.float64(end), probability)
        for word, tokens, start, end, probability in case["timings"]
    ]
    with mock.patch.object(timing, "find_alignment", return_value=timings):
        timing.add_word_timestamps(
            segments=segments,
            model=None,
            tokenizer=TOKENIZER,
            mel=None,
            num_frames=3000,
            prepend_punctuations=case["prepend"],
            append_punctuations=case["append"],
            last_speech_timestamp=case["last_speech"],
        )
    return [plain(segment) for segment in segments]


def plain(segment: dict[str, Any]) -> dict[str, Any]:
    words = [
        [w["word"], float(w["start"]), float(w["end"]), float(w["probability"])]
        for w in segment["words"]
    ]
    return {"start": float(segment["start"]), "end": float(segment["end"]), "words": words}


# --- words out of tokens ------------------------------------------------------------------------

TEXTS = (
    "Hello, world! It's (so) \"nice\" -- isn't it?",
    " Mr. Quilter is the apostle of the middle classes; $3.50 & 100%",
    "  two  spaces\nand lines\n\n ",
    "你好，世界。今天天氣很好",
    "こんにちは世界 カタカナ 「引用」『本』",
    "안녕하세요 세계. Привет, мир! Γειά",
    "שלום עולם مرحبا بالعالم नमस्ते दुनिया",
    "สวัสดีชาวโลก ສະບາຍດີ မင်္ဂလာပါ",
    "👍🏽 👨‍👩‍👧‍👦 ♪ naïve café “quotes” ‘single’ – …",
)


def split_cases(tokenizer: Any, drawn: list[list[int]]) -> list[list[Any]]:
    """Tokens, language, words and their tokens, if the reference loses none of them."""
    cases = []
    for tokens in drawn:
        for language in ("en", "ja", "zh", "th", "lo", "my", "yue"):
            tokenizer.language = language
            try:
                words, parts = tokenizer.split_to_word_tokens([*tokens, tokenizer.eot])
            except IndexError:
                continue
            if list(itertools.chain(*parts)) == [*tokens, tokenizer.eot]:
                cases.append([language, words[:-1], parts[:-1]])
            if language == "ja" and len(drawn) > 30:
                break
    return cases


def all_splits() -> dict[str, list[list[Any]]]:
    rng = random.Random(0)
    small = [VOCAB.encode(text) for text in TEXTS]
    small += [[rng.randrange(256) for _ in range(rng.randrange(1, 9))] for _ in range(60)]
    splits = {"small": split_cases(copy.copy(TOKENIZER), small)}
    for name, multilingual in (("tiny.en", False), ("base", True)):
        tokenizer = copy.copy(get_tokenizer(multilingual))
        drawn = [tokenizer.encode(text) for text in TEXTS]
        splits[name] = split_cases(tokenizer, drawn)
        drawn = [[rng.randrange(tokenizer.eot) for _ in range(12)] for _ in range(31)]
        splits[name] += split_cases(tokenizer, drawn)
    return splits


# --- whole calls ------------------------------------------------------------------------------


def scripted_result(rng: random.Random) -> dict[str, Any]:
    """Tokens of one window: segments between times, perhaps unfinished, perhaps of nothing."""
    begin, time, tokens = VOCAB.timestamp_begin, rng.choice([0, 0, 25, 200]), []
    for _ in range(rng.choice([0, 1, 1, 2, 3])):
        end = min(1500, time + rng.choice([0, 30, 100, 250, 500]))
        tokens += [begin + time, *tokens_of(rng, rng.randrange(6))[:10], begin + end]
        time = min(1500, end + rng.choice([0, 0, 0, 100]))
    tail = rng.random()
    if tail < 0.3:
        tokens += [begin + time, *tokens_of(rng, 3)]
    elif tail < 0.5:
        tokens = tokens[:-1]
    elif tail < 0.6:
        tokens = [token for token in tokens if token < begin]
    return {
        "tokens": tokens,
        "avg_logprob": rng.choice([-0.3, -0.3, -2.0]),
        "no_speech_prob": rng.choice([0.1, 0.1, 0.1, 0.7]),
        "temperature": rng.choice([0.0, 0.0, 0.0, 0.6]),
        "compression_ratio": 1.5,
    }


def scenario(seed: int) -> dict[str, Any]:
    rng = random.Random(seed)
    options: dict[str, Any] = {
        "hallucination_silence_threshold": rng.choice([None, 0.0, 0.5, 1.0, 2.0, 2.0, 8.0]),
        "condition_on_previous_text": rng.random() < 0.5,
        "initial_prompt": rng.choice([None, None, "so it is"]),
    }
    if rng.random() < 0.3:
        points = sorted(rng.sample(range(70), rng.randrange(1, 5)))
        options["clip_timestamps"] = [float(point) for point in points]
    return {
        "seed": seed * 1000,
        "n_frames": rng.choice([500, 2000, 4321, 7000]),
        "options": options,
        "results": [scripted_result(rng) for _ in range(rng.randrange(1, 6))],
    }


def positions(n_frames: int) -> Any:
    """A spectrogram whose values are the numbers of its frames, from 1, then silence."""
    frames = torch.arange(1, n_frames + 3001, dtype=torch.float32)
    return torch.where(frames <= n_frames, frames, 0).repeat(DIMS.n_mels, 1)


def reference_windows(case: dict[str, Any]) -> dict[str, Any]:
    """The result of whisper.transcribe for a scenario.

    Raises:
        LoopError: it does not advance.
    """
    module = importlib.import_module("whisper.transcribe")
    model = FakeModel(case["seed"], case["results"])
    options = {"clip_timestamps": [], **case["options"]}
    with mock.patch.multiple(
        module,
        log_mel_spectrogram=lambda *_, **__: positions(case["n_frames"]),
        get_tokenizer=lambda *_, **__: TOKENIZER,
    ):
        found = module.transcribe(
            model,
            None,
            temperature=0.0,
            language="en",
            fp16=False,
            word_timestamps=True,
            **options,
        )
    segments = [
        {**plain(s), "id": s["id"], "seek": s["seek"], "text": s["text"], "tokens": s["tokens"]}
        for s in found["segments"]
    ]
    return {"windows": model.windows, "segments": segments}


def window_cases(n: int) -> list[dict[str, Any]]:
    cases: list[dict[str, Any]] = []
    seed = 0
    while len(cases) < n:
        case = scenario(seed)
        seed += 1
        try:
            case.update(reference_windows(case))
        except LoopError:
            continue
        cases.append(case)
    return cases


def main() -> None:
    """Write the golden file."""
    values = {
        "median": median_cases(),
        "dtw": dtw_cases(),
        "alignment": alignment_cases(),
        "words": word_cases(150),
        "splits": all_splits(),
        "windows": window_cases(100),
    }
    data = json.dumps(values, separators=(",", ":"), ensure_ascii=False).encode()
    GOLDEN.write_bytes(gzip.compress(data, mtime=0))


if __name__ == "__main__":
    main()
