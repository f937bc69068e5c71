"""The picture of a terminal shows what the commands print."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import make_terminal_picture
import pytest

from tests.conftest import ROOT, Engines

WORDS = "ask what you can do for your country"


def text_of(svg: str) -> str:
    return re.sub(r"\s+", " ", "".join(ElementTree.fromstring(svg).itertext()))


@pytest.mark.slow
def test_it_is_made(engines: Engines) -> None:
    text = text_of(make_terminal_picture.picture(str(engines.engine("tiny.en").path)))
    assert "$ whisper-opt transcribe tiny.en examples/jfk.flac" in text
    assert WORDS in text
    assert "00:00:00,000 -->" in text


def test_the_one_in_the_documentation() -> None:
    svg = (ROOT / "docs" / "images" / "terminal.svg").read_text(encoding="utf-8")
    assert WORDS in text_of(svg)
