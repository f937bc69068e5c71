"""RTTM: who speaks when, the format that diarization is scored in.

One line per turn, as in NIST's Rich Transcription evaluations (RT-09 evaluation plan, appendix A):
``SPEAKER <file> <channel> <start> <duration> <NA> <NA> <speaker> <NA> <NA>``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from whisper_opt.core.errors import OptionError
from whisper_opt.text.results import Transcript, Turn

__all__ = ["PAUSE", "rttm_lines", "turns_of"]

PAUSE = 0.5
"""Seconds; a longer silence ends a turn that is made from words."""


def turns_of(transcript: Transcript) -> Iterator[tuple[int, Turn]]:
    """Channel, from 1, and turns in order of time.

    They are those of ``diarize``; with ``channels="split"`` they are made from the words of each
    channel, or from its segments if there are no word times.
    """
    if transcript.turns:
        return ((1, turn) for turn in transcript.turns)
    return iter(sorted(_spoken(transcript), key=lambda found: (found[1].start, found[0])))


def _spoken(transcript: Transcript) -> list[tuple[int, Turn]]:
    found: list[tuple[int, Turn]] = []
    newest: dict[str, int] = {}
    for segment in transcript:
        if segment.speaker is None or not segment.text.strip():
            continue
        spans = [(word.start, word.end) for word in segment.words or ()]
        for start, end in spans or [(segment.start, segment.end)]:
            channel = 1 + (segment.channel or 0)
            i = newest.get(segment.speaker)
            if i is not None and start - found[i][1].end <= PAUSE:
                turn = found[i][1]
                end, start = max(end, turn.end), turn.start
            else:
                i = newest[segment.speaker] = len(found)
                found.append((channel, Turn(start, end, segment.speaker)))
            found[i] = (channel, Turn(start, end, segment.speaker))
    return found


def rttm_lines(transcript: Transcript, name: str) -> Iterator[str]:
    """The lines of a file; ``name`` of the recording.

    Raises:
        OptionError: the transcript has text, but no speakers.
    """
    named = transcript.turns or any(segment.speaker is not None for segment in transcript)
    if transcript.text.strip() and not named:
        raise OptionError(
            "rttm lists speakers, and the transcript has none; transcribe with diarize, or with"
            " channels='split'"
        )
    for channel, turn in turns_of(transcript):
        start, length = f"{turn.start:.3f}", f"{max(0.0, turn.end - turn.start):.3f}"
        yield (
            f"SPEAKER {_field(name)} {channel} {start} {length} <NA> <NA>"
            f" {_field(turn.speaker)} <NA> <NA>"
        )


def _field(text: str) -> str:
    """Fields are separated by spaces."""
    return re.sub(r"\s+", "_", text.strip()) or "<NA>"
