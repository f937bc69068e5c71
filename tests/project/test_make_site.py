"""The documentation as a site."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import make_site
import pytest
from make_site import DOCS, ROOT

import whisper_opt


def test_links_between_pages_stay() -> None:
    text = "[options](options.md#vad) [this](#a) [web](https://example.org/x)"
    assert make_site.page(text, DOCS) == text


def test_links_to_pages_from_the_root() -> None:
    text = "[x](docs/usage.md) [y](CHANGELOG.md) [z](README.md)"
    assert make_site.page(text, ROOT) == "[x](usage.md) [y](CHANGELOG.md) [z](index.md)"


def test_links_to_files_become_text() -> None:
    text = (
        "[code](../whisper_opt/__init__.py), [loop][] and [the loop][loop]\n\n[loop]: ../Makefile\n"
    )
    assert make_site.page(text, DOCS) == "code, loop and the loop\n\n"


def test_code_stays() -> None:
    text = "```\n[x](../Makefile)\n```\n"
    assert make_site.page(text, DOCS) == text


def test_a_broken_link() -> None:
    with pytest.raises(FileNotFoundError, match=r"missing\.md"):
        make_site.page("[x](missing.md)", DOCS)


def test_every_public_name_is_in_the_reference() -> None:
    text = (DOCS / "api.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"^::: whisper_opt\.(\w+)$", text, re.M))
    assert listed - {"plots", "serving"} == set(whisper_opt.__all__) - {"__version__"}


@pytest.mark.slow
def test_the_site_is_built(tmp_path: Path) -> None:
    """Broken links, missing anchors and docstrings that cannot be read are errors."""
    pytest.importorskip("zensical", reason="not tested: zensical needs Python 3.11")
    command = [sys.executable, "scripts/make_site.py", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    page = (tmp_path / "site" / "api" / "index.html").read_text(encoding="utf-8")
    assert 'id="whisper_opt.Whisper.transcribe"' in page
    assert ":meth:" not in page
