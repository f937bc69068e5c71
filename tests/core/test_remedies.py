"""Commands in messages."""

from __future__ import annotations

import sys

import pytest

from whisper_opt.core.remedies import install_hint


@pytest.mark.parametrize(("system", "quote"), [("linux", "'"), ("darwin", "'"), ("win32", '"')])
def test_quotes_are_those_of_the_shell(
    system: str, quote: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """cmd.exe passes single quotes on, and takes > for a redirection outside of double ones."""
    monkeypatch.setattr(sys, "platform", system)
    assert install_hint("cpu") == (
        f"pip install {quote}.[cpu]{quote} in a clone of whisper-opt"
        f" (or {quote}whisper-opt[cpu]{quote} from a package index)"
    )
