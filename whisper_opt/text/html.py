"""Transcripts and tables as HTML for notebooks: one element, nothing fetched from elsewhere."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence

from whisper_opt.text.results import Segment, Transcript, Word

__all__ = ["clock", "segment_html", "table_html", "transcript_html", "words_html"]

_SEARCH = (
    "const q=this.value.toLowerCase();"
    "for(const p of this.closest('[data-transcript]').querySelectorAll('p'))"
    "p.style.display=p.textContent.toLowerCase().includes(q)?'':'none'"
)
"""Hides the paragraphs without the text of the search field."""
_TIME = "color:GrayText;font-variant-numeric:tabular-nums;margin-right:.8em"
_DOUBT = "204,102,0"
"""Colour of improbable words, red, green and blue: seen on white and on black."""


def clock(seconds: float) -> str:
    """A time as people read it: ``1:05``, or ``1:01:05`` after an hour."""
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"


def words_html(words: Iterable[Word]) -> str:
    """Words with a background that is the stronger the less probable they are.

    Their times are attributes (``data-start``, ``data-end``), and the title that is shown when the
    pointer rests on a word.
    """
    return "".join(map(_word, words))


def _word(word: Word) -> str:
    doubt = round(0.6 * (1 - min(max(word.probability, 0.0), 1.0)), 2)
    style = f' style="background:rgba({_DOUBT},{doubt})"' if doubt >= 0.1 else ""
    title = f"{word.start:.2f} to {word.end:.2f} s, probability {word.probability:.2f}"
    text = html.escape(word.word)
    return (
        f'<span data-start="{word.start:.2f}" data-end="{word.end:.2f}" title="{title}"{style}>'
        f"{text}</span>"
    )


def segment_html(segment: Segment) -> str:
    """A paragraph with the time and the text of a segment, its words coloured if it has any.

    It begins with the speaker's name if that is known.
    """
    text = words_html(segment.words) if segment.words else html.escape(segment.text)
    time = f'<span style="{_TIME}">{clock(segment.start)}</span>'
    speaker = f"<b>{html.escape(segment.speaker)}:</b> " if segment.speaker else ""
    return f'<p style="margin:.2em 0">{time}{speaker}{text}</p>'


def transcript_html(transcript: Transcript, *, before: str = "") -> str:
    """A transcript with a field to search it.

    Args:
        transcript: what is shown.
        before: HTML to put above the text.
    """
    n = len(transcript)
    language = html.escape(transcript.language)
    about = f"{clock(transcript.duration)}, {language}, {n} segment{'' if n == 1 else 's'}"
    search = (
        f'<input type="search" placeholder="Search" aria-label="Search" oninput="{_SEARCH}">'
        f' <small style="color:GrayText">{about}</small>'
    )
    parts = "".join(map(segment_html, transcript))
    dropped = "".join(
        f"<li>{clock(part.start)} to {clock(part.end)}: {html.escape(part.reason)}"
        f"{' ' + html.escape(part.text) if part.text else ''}</li>"
        for part in transcript.dropped
    )
    below = f"<small>Without text:<ul>{dropped}</ul></small>" if dropped else ""
    return (
        f'<div data-transcript lang="{language}" style="max-width:50em">{before}{search}'
        f'<div style="max-height:30em;overflow:auto">{parts}</div>{below}</div>'
    )


def table_html(rows: Sequence[tuple[str, object]]) -> str:
    """A table of names and values."""
    cells = "".join(
        f'<tr><th style="text-align:left">{html.escape(name)}</th>'
        f'<td style="text-align:left">{html.escape(str(value))}</td></tr>'
        for name, value in rows
    )
    return f"<table>{cells}</table>"
