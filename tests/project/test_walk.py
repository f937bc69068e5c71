"""The first pages, step by step (``scripts/walk.py``), without the installation."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import walk
from walk import NOT_RUN, Step, Walker, WalkError, route, steps

from tests.support.engines import tiny_dims
from tests.support.models import random_checkpoint
from tests.support.models_write import write_huggingface


def test_steps_are_read_in_the_order_of_the_page() -> None:
    text = (
        "Text.\n\n    a b \\\n        c   # why\n\n```python\nx = 1\n\ny = 2\n```\n\n    d\n    e\n"
    )
    found = [(step.kind, step.text) for step in steps("P", text)]
    assert found == [("sh", "a b c"), ("python", "x = 1\n\ny = 2\n"), ("sh", "d"), ("sh", "e")]


def test_blocks_of_other_languages_are_no_steps() -> None:
    assert steps("P", "```py\n    import whisper\n```\n") == []


def test_the_route_goes_from_the_clone_to_the_notebook() -> None:
    titles = [step.title for step in route(installed=False)]
    assert titles[0].startswith("git clone REPOSITORY_URL")
    assert titles[1].startswith("pip install")
    assert titles[-1].startswith("jupyter lab")
    assert len(titles) == len(set(titles) - {"the block of Python"}) + 2
    assert not [title for title in titles if title.startswith(tuple(NOT_RUN))]


def test_what_is_not_run_is_on_a_page() -> None:
    pages = "\n".join((walk.ROOT / page).read_text("utf-8") for page in walk.PAGES)
    assert [start for start in NOT_RUN if f"\n    {start}" not in pages] == []


@pytest.fixture
def walker(tmp_path: Path) -> Walker:
    return Walker(tmp_path, os.environ)


def test_a_change_of_folder_counts_for_the_steps_after_it(walker: Walker) -> None:
    walker.take(Step("P", "sh", "mkdir below && cd below"))
    walker.take(Step("P", "sh", "touch file"))
    assert (walker.folder / "file").exists()
    assert walker.folder.name == "below"


@pytest.mark.parametrize(
    ("kind", "text", "message"),
    [
        ("sh", "echo no; false", "no"),
        ("sh", "echo early; false | cat", "early"),
        ("python", "raise ValueError('gone')", "ValueError: gone"),
        ("sh", "curl http://127.0.0.1:8000/none", "curl"),
        ("sh", "whisper-opt serve --nothing", "the server is not ready: usage"),
    ],
)
def test_a_step_that_fails_says_what_it_printed(
    kind: str, text: str, message: str, walker: Walker
) -> None:
    if shutil.which(text.split()[0]) is None and kind == "sh":
        pytest.skip(f"not tested: no {text.split()[0]} here")
    with pytest.raises(WalkError, match=message):
        walker.take(Step("P", kind, text))


@pytest.mark.slow
def test_the_pages_without_the_installation(tmp_path: Path) -> None:
    """A small random model has the names; commands, server and curl are processes of their own."""
    if shutil.which("curl") is None:
        pytest.skip("not tested: no curl here")
    checkpoint = random_checkpoint(tiny_dims())
    for name in ("base", "tiny.en"):
        write_huggingface(checkpoint, tmp_path / name)
    taken = [step.title for step, _ in walk.walk(tmp_path, installed=True)]
    assert taken == [step.title for step in route(installed=True)]
    assert [title.split()[0] for title in taken].count("curl") == 1
