"""Transcripts as HTML."""

from __future__ import annotations

from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest

from tests.support.results import segment, transcript, word
from whisper_opt.text.html import clock, segment_html, table_html, words_html

HOSTILE = "<script>alert(1)</script> & \"quotes\" 'too'"


class Balance(HTMLParser):
    """Fails if an element is not closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag != "input":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def check(html: str) -> None:
    parser = Balance()
    parser.feed(html)
    assert parser.open == []


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.0, "0:00"), (65.9, "1:05"), (3665.0, "1:01:05"), (36000.0, "10:00:00")]
)
def test_clock(seconds: float, text: str) -> None:
    assert clock(seconds) == text


def test_text_is_escaped() -> None:
    for html in (
        segment_html(segment(0, 0.0, 1.0, HOSTILE)),
        words_html([word(HOSTILE, 0.0, 1.0)]),
        transcript(segment(0, 0.0, 1.0, HOSTILE), dropped=(HOSTILE, 1.0, 2.0))._repr_html_(),
        table_html([(HOSTILE, HOSTILE)]),
    ):
        assert "<script" not in html
        check(html)


def test_words_have_times_and_the_improbable_a_colour() -> None:
    (sure, unsure) = ElementTree.fromstring(
        f"<p>{words_html([word(' a', 0.0, 0.5, 0.99), word(' b', 0.5, 1.0, 0.1)])}</p>"
    )
    assert (sure.attrib["data-start"], sure.attrib["data-end"]) == ("0.00", "0.50")
    assert "style" not in sure.attrib
    assert unsure.attrib["style"] == "background:rgba(204,102,0,0.54)"
    assert (sure.text, unsure.text) == (" a", " b")


def test_a_transcript_says_what_it_is() -> None:
    html = transcript(segment(0, 0.0, 1.0, " Hello."), duration=65.0)._repr_html_()
    assert "1:05, en, 1 segment<" in html
    assert "0:00</span> Hello.</p>" in html


def test_dropped_parts_are_listed() -> None:
    html = transcript(dropped=("no speech", 1.0, 2.0))._repr_html_()
    assert "0:01 to 0:02: no speech" in html


def test_speakers_have_their_names() -> None:
    html = segment_html(segment(0, 0.0, 1.0, " Hi", speaker=HOSTILE))
    assert "too&#x27;:</b>  Hi" in html
    assert "<script" not in html
    check(html)


def test_one_segment() -> None:
    assert segment(0, 61.0, 62.0, " Hi")._repr_html_() == segment_html(
        segment(0, 61.0, 62.0, " Hi")
    )
