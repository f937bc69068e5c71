"""Chapters of a podcast, in the form that YouTube and podcast players read.

A chapter begins after one of the longest pauses, at least so many minutes after another. Its title
is its first words.

python chapters.py PODCAST.mp3 [MODEL] [MINUTES]
"""

from __future__ import annotations

import sys

import whisper_opt


def chapter_starts(segments: list[whisper_opt.Segment], least: float) -> list[int]:
    """Segments with which chapters begin, those after the longest pauses first."""
    pauses = [(b.start - a.end, i + 1) for i, (a, b) in enumerate(zip(segments, segments[1:]))]
    chosen = [0]
    for _, i in sorted(pauses, reverse=True):
        if all(abs(segments[i].start - segments[other].start) >= least for other in chosen):
            chosen.append(i)
    return sorted(chosen)


def main(podcast: str, model: str = "base", minutes: str = "5") -> None:
    with whisper_opt.Whisper.load(model) as whisper:
        segments = list(whisper.transcribe(podcast, strategy="batched"))
    for i in chapter_starts(segments, 60 * float(minutes)) if segments else []:
        start = int(segments[i].start) if i else 0  # the first chapter begins at 0:00
        title = " ".join(segments[i].text.split()[:8])
        print(f"{start // 3600}:{start // 60 % 60:02d}:{start % 60:02d} {title}")


if __name__ == "__main__":
    main(*sys.argv[1:])
