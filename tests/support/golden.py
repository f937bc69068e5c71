"""Speech clips and the results of openai-whisper for them.

Both sides of every comparison process the same samples. :func:`clip_pcm` returns the input that
``tools/goldens/make_golden.py`` gave to the reference: 16-bit values that do not depend on the
installed decoder or resampler. Lossy recordings are therefore stored decoded, in
``data/golden/pcm``; lossless ones are read and resampled in float64, with rounding errors far below
one 16-bit step. The digest of every clip is checked.
"""

from __future__ import annotations

import dataclasses
import functools
import gzip
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypedDict, cast

import numpy as np
import soundfile
import soxr

from whisper_opt.core.arrays import F32, NDArray
from whisper_opt.core.dims import SAMPLE_RATE

__all__ = [
    "CONFIGS",
    "GOLDEN",
    "MODELS",
    "PCM",
    "SEARCHES",
    "SPEECH",
    "Attempt",
    "Clip",
    "GoldenClip",
    "Ranking",
    "Segment",
    "Window",
    "Word",
    "clip",
    "clip_pcm",
    "clips",
    "golden",
    "header",
    "margin",
    "options",
    "pairs",
    "pcm_digest",
    "quantize",
    "wanted",
]

DATA = Path(__file__).parents[1] / "data"
SPEECH = DATA / "speech"
GOLDEN = DATA / "golden"
PCM = GOLDEN / "pcm"
MODELS = ("tiny.en", "base")
CONFIGS = ("ts", "nots", "ts-nocond", "nots-nocond")
"""With and without timestamps; ``-nocond``: every window decoded without the text before it."""
PROMPT = "A glossary: Kennedy, Quilter, telephone; punctuation matters."
SEARCHES: dict[str, dict[str, Any]] = {
    "words": {"word_timestamps": True},
    "beam5": {"beam_size": 5},
    "beam5-patience2-penalty": {"beam_size": 5, "patience": 2.0, "length_penalty": 1.0},
    "fallback": {
        "temperature": (0.0, 1e-4),
        "beam_size": 5,
        "logprob_threshold": -0.25,
        "compression_ratio_threshold": 1.35,
    },
    "prompt": {"initial_prompt": PROMPT},
    "prefix": {"prefix": " Well,"},
    "prefix-nots": {"prefix": " Well,", "without_timestamps": True},
    "translate": {"task": "translate"},
    "words-beam5": {"word_timestamps": True, "beam_size": 5},
    "beam5-penalty": {"beam_size": 5, "length_penalty": 0.6},
    "beam5-patience2": {"beam_size": 5, "patience": 2.0},
    "beam5-nocond": {"beam_size": 5, "condition_on_previous_text": False},
    "words-skip": {"word_timestamps": True, "hallucination_silence_threshold": 0.5},
    "prompt-carried": {"initial_prompt": PROMPT, "carry_initial_prompt": True},
    "clip-times": {"clip_timestamps": [1.0, 4.0, 5.5]},
}
"""Further configurations: what each changes in ``ts``, under the names that openai-whisper's
``transcribe`` and ``TranscribeOptions`` share.

``fallback`` has thresholds so strict that half the windows are decoded again, by sampling at a
temperature so low that it always takes the most probable token (1e-3 nats ahead means e^10 to 1).
With timestamps most results with ``prefix`` are empty: a window must begin with a timestamp, but
the prefix is in its place. ``prefix-nots`` has text.
"""
RANKED = ("beam5-penalty", "beam5-patience2", "beam5-patience2-penalty")
"""Configurations of every clip but copies: the ways in which a beam ends and is ranked."""
LONGEST_S = 80.0
"""No longer clip is in a subset of :func:`wanted`."""
FULLER = (
    "fallback",
    "prompt",
    "prefix",
    "prefix-nots",
    "words-skip",
)
"""Configurations of which tiny.en has more than one clip of each language and kind."""


@dataclasses.dataclass(frozen=True)
class Clip:
    """One recording of ``data/speech/manifest.jsonl``; ``entry`` is its whole line."""

    id: str
    path: Path
    language: str | None
    duration_s: float
    text: str
    kind: str
    wer: bool
    entry: dict[str, Any]


class Attempt(TypedDict):
    """One call of the reference's ``decode``: a result at one temperature.

    ``gaps`` and ``switches`` have one value a sampled token, the end-of-text token included (absent
    when decoding stopped at its length limit). ``gaps``: best minus second-best logit after the
    filters, None where only one token was allowed. ``switches``: log-probability of all timestamps
    together minus that of the best text token, a comparison that forces a timestamp when positive;
    None where one side was not allowed, or without timestamps. Both are empty for beam search.
    """

    tokens: list[int]
    avg_logprob: float
    no_speech_prob: float
    gaps: list[float | None]
    switches: list[float | None]


class Ranking(Attempt, total=False):
    """Additional fields in files of ``SEARCHES``.

    ``rank_gap``: score of the best candidate of a beam minus that of the second best, whose tokens
    are ``runner_up``; None where there was one candidate.
    """

    temperature: float
    compression_ratio: float
    rank_gap: float | None
    runner_up: list[int] | None


class Window(Ranking, total=False):
    """The result kept for the 30 s from mel frame ``seek`` on.

    ``rejected``: the results at lower temperatures that failed the thresholds.
    """

    seek: int
    n_frames: int
    n_prompt: int
    rejected: list[Ranking]


class Word(TypedDict):
    """One word and its time in seconds, as the reference returns it."""

    word: str
    start: float
    end: float
    probability: float


class _Segment(TypedDict):
    id: int
    seek: int
    start: float
    end: float
    text: str
    tokens: list[int]
    temperature: float
    avg_logprob: float
    compression_ratio: float
    no_speech_prob: float


class Segment(_Segment, total=False):
    """One segment as the reference returns it, times in seconds; ``words`` if asked for."""

    words: list[Word]


class GoldenClip(TypedDict):
    """The reference's transcript of one clip.

    ``language_probs`` holds the three most probable languages, None for an English-only model.
    """

    n_samples: int
    pcm_sha256: str
    language: str
    language_probs: list[tuple[str, float]] | None
    text: str
    segments: list[Segment]
    windows: list[Window]


@functools.cache
def _manifest() -> dict[str, Clip]:
    found = {}
    for line in (SPEECH / "manifest.jsonl").read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
        names = ("id", "language", "duration_s", "text", "kind", "wer")
        path = SPEECH / entry["path"]
        found[entry["id"]] = Clip(path=path, entry=entry, **{name: entry[name] for name in names})
    return found


def clips(model: str | None = None) -> Iterator[Clip]:
    """Every clip in manifest order; with ``model``, those it has goldens for."""
    wanted = None if model is None else golden(model, "ts")
    return (clip for clip in _manifest().values() if wanted is None or clip.id in wanted)


def _shortest_of_each(found: list[Clip]) -> list[Clip]:
    """The shortest clip of every language and kind of recording, up to ``LONGEST_S``."""
    shortest: dict[tuple[str | None, str], Clip] = {}
    for clip in sorted(found, key=lambda clip: clip.duration_s):
        shortest.setdefault((clip.language, clip.kind), clip)
    return [clip for clip in shortest.values() if clip.duration_s < LONGEST_S]


def wanted(model: str, config: str) -> list[str]:
    """Ids of the clips that the file of ``model`` and ``config`` is to have, in manifest order.

    Every clip with samples for ``CONFIGS``, ``words`` and ``beam5``. The others leave out copies of
    one clip in other formats; ``RANKED`` leave out nothing else. ``translate`` has the
    clips that are not English, none for tiny.en.
    tiny.en has for ``FULLER`` all clips below 40 s and the longer English ones below ``LONGEST_S``.
    All else is the shortest clip of every language and kind of recording below ``LONGEST_S``; for
    ``clip-times``, of those that are long enough; and only those of more than one window where
    nothing is different with one.
    """
    found = [clip for clip in _manifest().values() if clip.duration_s > 0]
    if config in (*CONFIGS, "words", "beam5"):
        return [clip.id for clip in found]
    found = [clip for clip in found if clip.kind != "format-variant"]
    if config in RANKED:
        chosen = found
    elif config == "translate":
        spoken = [clip for clip in found if clip.language not in (None, "en")]
        chosen = [] if model.endswith(".en") else spoken
    elif model == "tiny.en" and config in FULLER:
        chosen = [
            clip
            for clip in found
            if clip.duration_s < (LONGEST_S if clip.language == "en" else 40.0)
        ]
    else:
        times = SEARCHES[config].get("clip_timestamps", [0.0])
        chosen = _shortest_of_each([clip for clip in found if clip.duration_s > times[-1]])
        if config in ("beam5-nocond", "prompt-carried"):
            chosen = [clip for clip in chosen if clip.duration_s > 30]
    ids = {clip.id for clip in chosen}
    return [clip_id for clip_id in _manifest() if clip_id in ids]


def clip(clip_id: str) -> Clip:
    """The clip called ``clip_id``; KeyError when there is none."""
    return _manifest()[clip_id]


def quantize(audio: NDArray, rate: int) -> NDArray:
    """Mono 16 kHz samples, int16 [n_out], of ``audio`` [n, n_channels] float64 at ``rate`` Hz.

    Channels are averaged, then resampled by soxr's one quality that computes in double precision:
    no sample of these clips lies nearer than 5e-9 steps to a tie between two 16-bit values, and its
    rounding is 2e-11 steps. (HQ computes in single precision, 0.01 steps.)
    """
    mono = audio.mean(axis=1)
    if rate != SAMPLE_RATE:
        mono = soxr.resample(mono, rate, SAMPLE_RATE, "VHQ")
    samples: NDArray = np.clip(np.rint(mono * 32768), -32768, 32767).astype(np.int16)
    return samples


def pcm_digest(samples: NDArray) -> str:
    """SHA-256 of int16 ``samples`` [n] as little-endian bytes."""
    return hashlib.sha256(samples.astype("<i2").tobytes()).hexdigest()


@functools.cache
def _pcm_index() -> dict[str, Any]:
    return cast("dict[str, Any]", json.loads((PCM / "index.json").read_text(encoding="utf-8")))


def clip_pcm(clip_id: str) -> F32:
    """The samples [n] of the reference: 16 kHz mono float32, multiples of 1/32768.

    Raises:
        KeyError: there is no such clip.
        ValueError: the samples differ from those of the goldens, so nothing can be compared.
    """
    index = _pcm_index()[clip_id]
    if index["file"] is not None:
        samples, _ = soundfile.read(PCM / index["file"], dtype="int16")
    else:
        audio, rate = soundfile.read(clip(clip_id).path, dtype="float64", always_2d=True)
        samples = quantize(audio, rate)
    found = pcm_digest(samples)
    if found != index["sha256"]:
        raise ValueError(
            f"samples of clip {clip_id!r} have SHA-256 {found}, those of the goldens"
            f" {index['sha256']}; restore tests/data, or make PCM and goldens anew with"
            " tools/goldens/make_golden.py"
        )
    pcm: F32 = samples.astype(np.float32) / np.float32(32768)
    return pcm


def options(config: str) -> dict[str, Any]:
    """The options of ``config``, under the names of ``transcribe`` and ``TranscribeOptions``."""
    return {
        "temperature": 0.0,
        "without_timestamps": config.startswith("nots"),
        "condition_on_previous_text": not config.endswith("-nocond"),
        **SEARCHES.get(config, {}),
    }


def pairs() -> list[tuple[str, str]]:
    """Every (model, configuration) with a golden: all of ``CONFIGS``, and other files."""
    return [
        (model, config)
        for config in (*CONFIGS, *SEARCHES)
        for model in MODELS
        if config in CONFIGS or _path(model, config).exists()
    ]


def _path(model: str, config: str) -> Path:
    return GOLDEN / f"{model}-{config}.json.gz"


@functools.cache
def _load(model: str, config: str) -> dict[str, Any]:
    with gzip.open(_path(model, config), "rt", encoding="utf-8") as file:
        return cast("dict[str, Any]", json.load(file))


def golden(model: str, config: str) -> dict[str, GoldenClip]:
    """Results of openai-whisper per clip id; read-only.

    Args:
        model: one of ``MODELS``.
        config: one of ``CONFIGS`` or ``SEARCHES``. A ``-nocond`` file has only the clips of more
            than one window: in the others there is no previous text, and the plain configuration
            holds for them.

    Raises:
        FileNotFoundError: there is no such file.
    """
    return cast("dict[str, GoldenClip]", _load(model, config)["clips"])


def header(model: str, config: str) -> dict[str, Any]:
    """How the file of :func:`golden` was made: versions, command, weights, clips left out."""
    return cast("dict[str, Any]", _load(model, config)["header"])


def margin(window: Attempt, i: int) -> float:
    """How near the choice of sampled token ``i`` was to another one (nats, >= 0).

    The smaller of the gap between the two best tokens and the distance to the point where a
    timestamp is forced or no longer forced. A wrong token after a margin below the numerical
    error of the backend is a near-tie; after a larger one it is a bug.
    """
    near = [
        abs(side[i] or 0.0)
        for side in (window["gaps"], window["switches"])
        if i < len(side) and side[i] is not None
    ]
    return min(near, default=float("inf"))
