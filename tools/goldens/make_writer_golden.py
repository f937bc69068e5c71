"""Regenerate the output of openai-whisper's writers for the transcripts in tests/data/writers.

Run from the repository root, in an environment with openai-whisper:

    python tools/goldens/make_writer_golden.py

``<name>.expected.<format>`` are made from ``transcript.json`` (awkward texts and times) and
``words.json`` (with word times), which were written by hand and are not regenerated.
``subtitles.json.gz`` holds synthetic transcripts with word times, some by hand and some random, and
the srt and vtt of each under every combination of the subtitle options. Left out are the files in
which the reference is wrong (an arrow or a blank line in a cue, a cue that ends before it begins, a
word of two lines that is not highlighted), and some that would be large.
"""

from __future__ import annotations

import gzip
import io
import itertools
import json
import pathlib
import random
import re
from typing import Any

from whisper.utils import SubtitlesWriter, WriteSRT, WriteVTT, get_writer

DATA = pathlib.Path(__file__).resolve().parents[2] / "tests" / "data" / "writers"
RANDOM = 30
LAYOUTS: list[dict[str, int]] = [
    {},
    *({"max_line_width": width} for width in (1, 10, 24, 42)),
    *(
        {"max_line_width": width, "max_line_count": count}
        for width, count in ((8, 1), (16, 2), (42, 1), (42, 2), (1000, 1), (20, 50))
    ),
    *({"max_words_per_line": words} for words in (1, 2, 3, 7, 1000)),
]
OPTIONS = [
    {**layout, **highlight}
    for layout, highlight in itertools.product(LAYOUTS, ({}, {"highlight_words": True}))
]

Words = list[tuple[str, float, float]]


def spoken(text: str, start: float = 0.0, each: float = 0.5, gap: float = 0.0) -> Words:
    """Words at regular times, separated by bars if there are any, else by spaces."""
    parts = text.split("|") if "|" in text else [f" {word}" for word in text.split()]
    times = [round(start + i * (each + gap), 3) for i in range(len(parts))]
    return [(part, time, round(time + each, 3)) for part, time in zip(parts, times)]


def by_hand() -> dict[str, list[Words]]:
    """Transcripts that each have one difficulty."""
    jfk = "And so my fellow Americans ask not what your country can do for you"
    return {
        "silence": [],
        "no words": [[], []],
        "plain": [spoken(jfk), spoken("ask what you can do for your country", 8.0)],
        "empty between": [[], spoken("one two", 1.0), [], spoken("three four", 3.0), []],
        "long pauses": [
            spoken("before the pause", 0.0),
            spoken("after it", 4.2),
            spoken("and slow words", 6.0, 0.4, 3.5),
        ],
        "pauses of three seconds": [spoken("a b", 0.0, 0.5, 2.5), spoken("c d", 6.0, 0.25, 2.751)],
        "a late beginning": [spoken("late words", 7200.5), spoken("and later", 7300.0)],
        "overlap": [spoken("all at the same", 1.0, 1.0, -0.5), spoken("time", 2.0)],
        "no duration": [spoken("a b c d e f", 1.0, 0.0), spoken("g h", 1.0, 0.0, 0.1)],
        "between milliseconds": [
            [(" a", 0.0004, 0.0005), (" b", 0.0015, 0.9996), (" c", 1.0, 1.5)]
        ],
        "chinese": [
            spoken("我|们|选|择|在|这|个|十|年|里|登|上|月|球"),
            spoken("不|是|因|为", 8.0),
        ],
        "japanese and latin": [spoken("これは| Whisper| です|。|とても|いい")],
        "blank words": [spoken("| |one| |two|  three|   |four"), spoken(" | |five", 5.0)],
        "blank at the edge": [spoken(" a| |"), spoken("| b", 3.0)],
        "long words": [spoken("Donaudampfschifffahrtsgesellschaft a Rindfleischetikettierung b c")],
        "many lines": [spoken(" two\nlines| and\nthree\nmore| end"), spoken(" x|\ny| z", 4.0)],
        "wide spaces": [spoken("  two|   three|four |\u00a0no-break|\u3000wide| tab\t|\tend")],
        "markup": [spoken("<i> &amp; & < > {\\an8} \\N \\ \"quotes\" 'single' -> <- - --")],
        "symbols": [
            spoken("\U0001f600 e\u0301 \u200f\u0645\u0631\u062d\u0628\u0627 \ufffd 100% [x]")
        ],
        "more words than a cue holds": [spoken(" ".join("ab" for _ in range(1003)), 0.0, 0.01)],
        "wider than a line": [spoken(" ".join(f"word{i:03d}" for i in range(150)), 0.0, 0.1)],
    }


def at_random(seed: int) -> list[Words]:
    """One to six segments of words of mixed lengths, with some pauses."""
    chance = random.Random(seed)
    now = chance.choice([0.0, 0.0, 3.3, 3599.0])
    segments = []
    for _ in range(chance.randint(1, 6)):
        words = []
        for _ in range(chance.choice([0, 1, 2, 5, 12])):
            now += chance.choice([0.0] * 6 + [0.02, 0.1, 0.7, 2.9, 3.1, 6.0])
            text = "".join(chance.choice("abcdefgh,.'é語") for _ in range(chance.randint(1, 14)))
            space = chance.choice([" "] * 8 + ["", "  "])
            start, now = now, now + chance.choice([0.0, 0.02, 0.24, 0.4, 1.0, 2.5])
            words.append(
                (space + text if chance.random() > 0.03 else space, round(start, 3), round(now, 3))
            )
        segments.append(words)
    return segments


def result_of(segments: list[Words]) -> dict[str, Any]:
    """The fields that the writers of the reference read."""
    entries = []
    for words in segments:
        timed = [{"word": word, "start": start, "end": end} for word, start, end in words]
        start, end = (words[0][1], words[-1][2]) if words else (0.0, 0.0)
        text = "".join(word for word, _, _ in words)
        entries.append({"start": start, "end": end, "text": text, "words": timed})
    return {"segments": entries}


def is_large(segments: list[Words], options: dict[str, Any]) -> bool:
    """Highlighting repeats a cue for each of its words."""
    n_words = sum(map(len, segments))
    return (n_words > 100 and "highlight_words" in options) or (
        n_words > 500 and options.get("max_words_per_line", 1000) < 1000
    )


def is_wrong(writer: SubtitlesWriter, result: dict[str, Any], options: dict[str, Any]) -> bool:
    """Whether cues of the reference contain what players misread, or lack a highlight."""
    words = [word["word"] for segment in result["segments"] for word in segment["words"]]
    if "highlight_words" in options and any(re.search(r"\S\s*\n\s*\S", word) for word in words):
        return True
    for start, end, text in writer.iterate_result(result, options):
        if "-->" in text or re.search(r"[\r\n]\s*([\r\n]|\Z)", text):
            return True
        if start.rjust(16, "0") > end.rjust(16, "0"):
            return True
    return False


def subtitles() -> list[dict[str, Any]]:
    """Every transcript with the files of every combination of options."""
    writers = {"srt": WriteSRT(""), "vtt": WriteVTT("")}
    transcripts = {**by_hand(), **{f"random {seed}": at_random(seed) for seed in range(RANDOM)}}
    cases = []
    for name, segments in transcripts.items():
        result = result_of(segments)
        files = []
        for options, (format, writer) in itertools.product(OPTIONS, writers.items()):
            if is_large(segments, options) or is_wrong(writer, result, options):
                continue
            text = io.StringIO()
            writer.write_result(result, file=text, options=options)
            files.append({"format": format, "options": options, "text": text.getvalue()})
        cases.append({"name": name, "segments": segments, "files": files})
    return cases


def main() -> None:
    """Write the golden files."""
    for name in ("transcript", "words"):
        result = json.loads((DATA / f"{name}.json").read_text(encoding="utf-8"))
        for format in ("txt", "srt", "vtt", "tsv", "json"):
            get_writer(format, str(DATA))(result, f"{name}.expected.audio")
    data = json.dumps(subtitles(), ensure_ascii=False).encode("utf-8")
    (DATA / "subtitles.json.gz").write_bytes(gzip.compress(data, mtime=0))


if __name__ == "__main__":
    main()
