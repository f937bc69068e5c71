"""The player of notebooks in Chromium: a click plays, and the word that is spoken is outlined."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.support.browser import chromium, until
from tests.support.results import segment, transcript, word
from whisper_opt.plots import player

pytestmark = pytest.mark.slow

WORDS = (word(" And", 0.0, 0.5), word(" so", 0.5, 0.9), word(" Americans", 0.9, 11.0, 0.2))
OUTLINED = "return [...document.querySelectorAll('[data-start]')].findIndex(w => w.style.outline)"
PLAYING = "return !document.querySelector('audio').paused"


def test_a_click_on_a_word_plays_from_there(tmp_path: Path) -> None:
    said = transcript(segment(0, 0.0, 11.0, " And so Americans", words=WORDS), duration=11.0)
    page = tmp_path / "page.html"
    html = player(said, ROOT / "examples" / "jfk.flac").html
    page.write_text(f"<!doctype html><meta charset=utf-8>{html}", encoding="utf-8")
    with chromium(tmp_path / "profile") as browser:
        browser.get(page.as_uri())
        browser.find_elements("css selector", "[data-start]")[2].click()
        until(browser, lambda page: page.execute_script(PLAYING))
        until(browser, lambda page: page.execute_script(OUTLINED) == 2)
        at = browser.execute_script("return document.querySelector('audio').currentTime")
        assert 0.9 <= at <= 11.0
        browser.save_screenshot(str(tmp_path / "player.png"))


def test_the_search_hides_other_paragraphs(tmp_path: Path) -> None:
    one, other = (
        segment(i, 0.0, 1.0, text, words=(word(text, 0.0, 1.0),))
        for i, text in enumerate((" Ask not", " Nothing"))
    )
    page = tmp_path / "page.html"
    html = transcript(one, other).to_html()
    page.write_text(f"<!doctype html><meta charset=utf-8>{html}", encoding="utf-8")
    with chromium(tmp_path / "profile") as browser:
        browser.get(page.as_uri())
        browser.find_element("css selector", "input").send_keys("ASK")
        shown = [one.is_displayed() for one in browser.find_elements("css selector", "p")]
        assert shown == [True, False]
