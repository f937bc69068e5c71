"""Chromium for tests of pages."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

__all__ = ["chromium", "until"]

_ARGUMENTS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    "--autoplay-policy=no-user-gesture-required",
)
_PATIENCE = 120


@contextlib.contextmanager
def chromium(profile: Path, *arguments: str) -> Iterator[Any]:
    """A browser; fails at the end if a page has written an error to its console.

    Skips, saying that nothing was tested, where there is no Chromium or selenium.

    Args:
        profile: an empty directory.
        *arguments: more arguments of the command.
    """
    selenium = pytest.importorskip("selenium.webdriver", reason="not tested: selenium is missing")
    program, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if program is None or driver is None:
        pytest.skip("not tested: chromium and chromedriver are not on the PATH")
    options = selenium.ChromeOptions()
    options.binary_location = program
    for argument in (*_ARGUMENTS, *arguments, f"--user-data-dir={profile}"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    opened = selenium.Chrome(options=options, service=selenium.ChromeService(driver))
    try:
        yield opened
        assert opened.get_log("browser") == []
    finally:
        opened.quit()


def until(browser: Any, condition: Any) -> Any:
    """Wait until ``condition(browser)`` is true, and return it."""
    from selenium.webdriver.support.wait import WebDriverWait

    return WebDriverWait(browser, _PATIENCE, poll_frequency=0.05).until(condition)
