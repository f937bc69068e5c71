"""A player for notebooks: words light up as they are spoken."""

from __future__ import annotations

import base64
import dataclasses
import io
from typing import Any

import soundfile

from whisper_opt import OptionError, Transcript, load_audio

__all__ = ["Player", "player"]

_RATE = 16_000
_FOLLOW = (
    "const a=this,words=a.closest('[data-transcript]').querySelectorAll('[data-start]');"
    "const mark=()=>{for(const w of words)w.style.outline="
    "a.currentTime>=w.dataset.start&&a.currentTime<w.dataset.end?'2px solid Highlight':'';"
    "if(!a.paused)requestAnimationFrame(mark)};mark()"
)
"""Outlines the word that is playing."""
_SEEK = (
    "const w=event.target.closest('[data-start]');"
    "if(w){const a=this.querySelector('audio');a.currentTime=w.dataset.start;a.play()}"
)
"""Plays from the word that is clicked."""
_LONGEST = 3600.0
"""Seconds; the recording becomes a part of the notebook's file."""


@dataclasses.dataclass(frozen=True)
class Player:
    """A transcript with its recording; shown in a notebook, or saved as a page.

    Attributes:
        html: one element that contains the recording.
    """

    html: str

    def _repr_html_(self) -> str:
        """The player in a notebook."""
        return self.html


def player(transcript: Transcript, audio: Any) -> Player:
    """Play a recording beside its transcript; a click on a word plays from there.

    The recording is included as FLAC, 16 kHz, mono: about 1 MB per minute.

    Args:
        transcript: with words (``word_timestamps=True``).
        audio: the recording, as for :meth:`whisper_opt.Whisper.transcribe`.

    Raises:
        AudioError: the recording cannot be read.
        OptionError: segments have no words, or the recording is longer than an hour.
    """
    if any(segment.words is None for segment in transcript):
        raise OptionError("the transcript has no words; transcribe with word_timestamps=True")
    if transcript.duration > _LONGEST:
        raise OptionError(
            f"the recording has {transcript.duration:.0f} s; expected at most {_LONGEST:.0f}: all"
            " of it becomes a part of the notebook"
        )
    file = io.BytesIO()
    soundfile.write(file, load_audio(audio), _RATE, format="FLAC")
    source = "data:audio/flac;base64," + base64.b64encode(file.getvalue()).decode()
    controls = f'<audio controls style="width:100%" src="{source}" onplay="{_FOLLOW}"></audio>'
    shown = transcript.to_html(before=controls)
    return Player(f'<div onclick="{_SEEK}">{shown}</div>')
