"""What ``whisper-opt live`` shows: a line that changes on a terminal, else lines that stay."""

from __future__ import annotations

import math
import os
import shutil
import threading
import time
import unicodedata
from typing import IO, Any, Protocol, Union

import numpy as np

from whisper_opt.text.live_events import Committed, Failed, Lag, LiveEvent, Partial, Utterance
from whisper_opt.text.writers import format_timestamp

__all__ = ["Lines", "Terminal", "View", "view_for"]

_DIM, _PLAIN, _CLEAR = "\x1b[2m", "\x1b[22m", "\r\x1b[K"
_BARS = "▁▂▃▄▅▆▇█"
_QUIET_DB, _LOUD_DB = -60.0, -6.0
_REFRESH_S = 0.1


class View(Protocol):
    """Shows events."""

    def show(self, event: LiveEvent) -> None:
        """Show an event."""

    def hear(self, samples: Any) -> None:
        """Note how loud the audio is; from any thread."""

    def close(self) -> None:
        """Leave the terminal in order."""


def view_for(out: IO[str]) -> View:
    """The view of a terminal, or of anything else."""
    if out.isatty() and os.environ.get("TERM") != "dumb":
        return Terminal(out)
    return Lines(out)


def _line(start: float, end: float, text: str) -> str:
    return f"[{format_timestamp(start)} --> {format_timestamp(end)}] {text.strip()}"


class Lines:
    """A line for each piece of text as it is committed."""

    def __init__(self, out: IO[str]) -> None:
        self._out = out

    def show(self, event: LiveEvent) -> None:
        """See :class:`View`."""
        if isinstance(event, Committed) and event.words:
            text = _line(event.words[0].start, event.words[-1].end, event.text)
            print(text, file=self._out, flush=True)

    def hear(self, samples: Any) -> None:
        """See :class:`View`."""

    def close(self) -> None:
        """See :class:`View`."""


class Terminal:
    """The last line shows how loud it is, how late the text is, and the text of the utterance.

    What is certain is in normal letters, what may change is dim. Finished utterances stay above.
    """

    def __init__(self, out: IO[str], width: Union[int, None] = None) -> None:
        """``width``: columns; default: those of the terminal."""
        self._out = out
        self._width = width
        self._lock = threading.Lock()
        self._certain: dict[int, str] = {}  # by utterance
        self._tentative: dict[int, str] = {}
        self._lag = 0.0
        self._level = 0.0
        self._drawn = 0.0

    def show(self, event: LiveEvent) -> None:
        """See :class:`View`."""
        with self._lock:
            if isinstance(event, Committed):
                before = self._certain.get(event.utterance, "")
                self._certain[event.utterance] = before + event.text
            elif isinstance(event, Partial):
                self._tentative[event.utterance] = event.text
            elif isinstance(event, Lag):
                self._lag = event.seconds
            number = getattr(event, "utterance", None)
            if isinstance(event, Utterance) and event.text.strip():
                said_by = "" if event.speaker is None else f"{event.speaker}: "
                text = said_by + event.text.strip()
                self._out.write(f"{_CLEAR}{_line(event.start, event.end, text)}\n")
            if number is not None and isinstance(event, (Utterance, Failed)):
                self._certain.pop(number, None)
                self._tentative.pop(number, None)
            self._draw()

    def hear(self, samples: Any) -> None:
        """See :class:`View`."""
        scale = 32_768.0 if samples.dtype.kind == "i" else 1.0
        peak = float(np.abs(samples.astype(np.float32)).max(initial=0.0)) / scale
        decibels = 20 * math.log10(max(peak, 1e-9))
        level = (decibels - _QUIET_DB) / (_LOUD_DB - _QUIET_DB)
        with self._lock:
            self._level = min(1.0, max(0.0, level))
            if time.monotonic() - self._drawn > _REFRESH_S:
                self._draw()

    def close(self) -> None:
        """See :class:`View`."""
        with self._lock:
            self._out.write(_CLEAR)
            self._out.flush()

    def _draw(self) -> None:
        self._drawn = time.monotonic()
        bar = _BARS[min(len(_BARS) - 1, int(self._level * len(_BARS)))]
        head = f"{bar} {self._lag:4.1f} s "
        columns = self._width or shutil.get_terminal_size().columns
        numbers = sorted({*self._certain, *self._tentative})
        parts = [
            (text, dim)
            for number in numbers
            for text, dim in (
                (self._certain.get(number, ""), False),
                (self._tentative.get(number, ""), True),
            )
        ]
        shown = _tail(parts, columns - len(head) - 1)
        self._out.write(f"{_CLEAR}{head}{shown}")
        self._out.flush()


def _tail(parts: list[tuple[str, bool]], columns: int) -> str:
    """The end of the text that fits, with the dim parts marked."""
    letters = [(letter, dim) for text, dim in parts for letter in text if letter.isprintable()]
    begin, room = len(letters), columns
    while begin and room >= _columns(letters[begin - 1][0]):
        begin -= 1
        room -= _columns(letters[begin][0])
    found, was_dim = "", False
    for letter, dim in letters[begin:]:
        if dim != was_dim:
            found += _DIM if dim else _PLAIN
        found, was_dim = found + letter, dim
    return found + (_PLAIN if was_dim else "")


def _columns(letter: str) -> int:
    if unicodedata.combining(letter):
        return 0
    return 2 if unicodedata.east_asian_width(letter) in "WF" else 1
