"""Hallucinated words: noise, music and silence, alone and around speech.

    pip install -e '.[cpu,export]' openai-whisper faster-whisper jiwer whisper-normalizer
    python scripts/get_model.py tiny.en base
    python benchmarks/hallucination.py

Every system runs with its default options. The count is the insertions of an alignment with the
transcript, minus those on the same speech alone; without speech, all words. Deletions show the cost
of suppression. Texts are stored in build/benchmarks, so that a stopped run can continue.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import sys

import numpy as np
from common import SAMPLE_RATE, Pieces, Verdict, arguments, clip, clip_pcm, finish, table
from stored import stored_text
from systems import FasterWhisper, OpenaiWhisper, Ours, Settings, System

from tests.support.golden import pcm_digest
from whisper_opt.cli.bench.scoring import score, unspoken
from whisper_opt.core.arrays import F32

SILENT = (
    "ns-silence-10s",
    "ns-dither-35s",
    "ns-white-12s",
    "ns-pink-40s",
    "ns-music-brahms-32s",
    "edge-50ms",
)
DERIVED = (
    "en-derived-pad-silence",
    "en-derived-pink10dB",
    "en-derived-pink0dB",
    "en-derived-quiet",
    "en-derived-clipped",
)
FAINT = -50.0
"""Level of added noise in dB of full scale."""


@dataclasses.dataclass(frozen=True)
class Sound:
    """Samples and transcript. ``speech``: the clip with the same speech alone."""

    name: str
    pcm: F32
    text: str = ""
    speech: str = ""
    stored: bool = False


def noise(seconds: float, exponent: float, seed: int) -> F32:
    """Noise whose power falls with frequency to ``exponent``: 0 white, 1 pink."""
    n = round(seconds * SAMPLE_RATE)
    spectrum = np.fft.rfft(np.random.default_rng(seed).standard_normal(n))
    frequency = np.maximum(np.arange(len(spectrum)), 1.0)
    samples = np.fft.irfft(spectrum / frequency ** (exponent / 2), n)
    level = 10 ** (FAINT / 20) / np.sqrt(np.mean(samples**2))
    pcm: F32 = (samples * level).astype(np.float32)
    return pcm


def silence(seconds: float) -> F32:
    return np.zeros(round(seconds * SAMPLE_RATE), np.float32)


def _stored(clip_id: str) -> Sound:
    source = clip(clip_id).entry.get("derived_from") or clip_id
    text = clip(clip_id).text
    return Sound(clip_id, clip_pcm(clip_id), text, source if text else "", stored=True)


def made_up() -> list[Sound]:
    """Speech before, after and between noise."""
    jfk, sentence = clip("en-jfk"), clip("en-ls-2412-153948-0000")
    speech, middle = clip_pcm(jfk.id), clip_pcm(sentence.id)
    music = clip_pcm("ns-music-brahms-32s")[: 20 * SAMPLE_RATE]
    rest = 60 - len(middle) / SAMPLE_RATE
    after = {
        "20 s of silence": silence(20),
        "20 s of faint white noise": noise(20, 0, 1),
        "20 s of faint pink noise": noise(20, 1, 2),
        "20 s of music": music,
    }
    found = [
        Sound(f"speech, {name}", np.concatenate([speech, sound]), jfk.text, jfk.id)
        for name, sound in after.items()
    ]
    found.append(
        Sound("20 s of music, speech", np.concatenate([music, speech]), jfk.text, jfk.id),
    )
    for name, half in (
        ("silence", silence(rest / 2)),
        ("faint pink noise", noise(rest / 2, 1, 3)),
    ):
        sounds = [half, middle, half]
        found.append(
            Sound(
                f"a sentence in 60 s of {name}", np.concatenate(sounds), sentence.text, sentence.id
            )
        )
    return found


def sounds(quick: bool) -> list[Sound]:
    """All recordings; the speech alone comes first."""
    if quick:
        return [*map(_stored, ("en-jfk", "ns-silence-10s")), *made_up()[:1]]
    alone = ("en-jfk", "en-ls-1998-15444-0003", "en-ls-2412-153948-0000")
    return [*map(_stored, (*alone, *SILENT, *DERIVED)), *made_up()]


def transcripts(
    model: str, systems: dict[str, tuple[System, bool]], chosen: list[Sound], pieces: Pieces
) -> dict[str, dict[str, str]]:
    """Texts by system and recording."""
    found: dict[str, dict[str, str]] = {}
    for label, (system, batched) in systems.items():
        found[label] = {}
        for sound in chosen:
            known = None
            if sound.stored and isinstance(system, OpenaiWhisper):
                known = stored_text(model, sound.name, 1)  # it is greedy by default
            if known is None:
                samples = pcm_digest(np.rint(sound.pcm * 32768).astype(np.int16))[:8]
                name = (model, sound.name, samples, label, system.version)
                make = functools.partial(system.transcribe, sound.pcm, Settings(batched=batched))
                known = pieces.get(name, make)
            found[label][sound.name] = known
    return found


def counted(
    chosen: list[Sound], texts: dict[str, dict[str, str]]
) -> dict[str, dict[str, tuple[int, int]]]:
    """(hallucinated words, lost words) by system and recording."""
    found: dict[str, dict[str, tuple[int, int]]] = {}
    for label, said in texts.items():
        found[label] = {}
        for sound in chosen:
            extra, lost = unspoken(sound.text, said[sound.name], "en"), 0
            if sound.text:
                lost = score(sound.text, said[sound.name], "en").deletions
            if sound.speech not in ("", sound.name) and sound.speech in said:
                extra = max(0, extra - unspoken(sound.text, said[sound.speech], "en"))
            found[label][sound.name] = extra, lost
    return found


def run(args: argparse.Namespace, model: str, pieces: Pieces) -> int:
    checkpoint = args.models_dir / model
    ours = Ours(args.engines / model, checkpoint, args.threads)
    faster = FasterWhisper(checkpoint, "float32", args.threads)
    systems: dict[str, tuple[System, bool]] = {
        "whisper_opt": (ours, False),
        "whisper_opt batched": (ours, True),
        "openai-whisper": (OpenaiWhisper(model, checkpoint, args.threads), False),
        "faster-whisper": (faster, False),
        "faster-whisper batched": (faster, True),
    }
    chosen = sounds(args.quick)
    texts = transcripts(model, systems, chosen, pieces)
    counts = counted(chosen, texts)
    rows = [
        (sound.name, *(_cell(counts[label][sound.name], bool(sound.text)) for label in systems))
        for sound in chosen
    ]
    sums = [tuple(map(sum, zip(*counts[label].values()))) for label in systems]
    rows.append(("all", *(_cell((extra, lost), True) for extra, lost in sums)))
    made = [
        (sound.name, label, texts[label][sound.name][-70:])
        for sound in chosen
        for label in systems
        if counts[label][sound.name][0]
    ]
    tables = {
        f"{model}: hallucinated words, words lost": table(("", *systems), rows),
        f"{model}: ends of the texts that have such words": table(("", "system", "text"), made),
    }
    bars = []
    for label in ("whisper_opt", "whisper_opt batched"):
        guilty = {name: extra for name, (extra, _) in counts[label].items() if extra}
        bars.append(
            Verdict(
                f"{model} {label}: no word that is not spoken",
                not guilty,
                ", ".join(f"{name}: {n}" for name, n in guilty.items()) or "none",
            )
        )
    figures = {"model": model, "counts": counts, "texts": texts}
    return finish(f"hallucination-{model}", args, figures, tables, bars)


def _cell(count: tuple[int, int], spoken: bool) -> str:
    extra, lost = count
    return f"{extra}, -{lost}" if spoken and lost else str(extra)


def main() -> int:
    args = arguments(__doc__).parse_args()
    pieces = Pieces(args.pieces / "hallucination.jsonl", args.force)
    return max([run(args, model, pieces) for model in args.models])


if __name__ == "__main__":
    sys.exit(main())
