"""docs/options.md is up to date."""

from __future__ import annotations

from make_options_doc import TARGET, page


def test_the_page_is_current() -> None:
    stale = "run: python scripts/make_options_doc.py"
    assert TARGET.read_text(encoding="utf-8") == page(), stale
