"""Workflows of a public CI: what they run exists, and only publishing may publish."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from make_constraints import PYTHONS

from hatch_build import TARGETS

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
RELEASE = ROOT / ".github" / "workflows" / "release.yml"

every = pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)


def jobs(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))["jobs"]
    return found


def steps(path: Path) -> list[dict[str, Any]]:
    return [step for job in jobs(path).values() for step in job["steps"]]


@every
def test_scripts_exist(path: Path) -> None:
    text = "\n".join(step.get("run", "") for step in steps(path))
    named = re.findall(r"\b(?:scripts|tests|constraints)/[\w./-]+", text)
    assert named
    assert [name for name in named if not (ROOT / name).exists()] == []


@every
def test_jobs_need_jobs(path: Path) -> None:
    found = jobs(path)
    for job in found.values():
        needs = job.get("needs", [])
        assert {needs} if isinstance(needs, str) else {*needs} <= found.keys()
        assert job["timeout-minutes"] <= 60


@every
def test_expressions_are_not_pasted_into_shells(path: Path) -> None:
    """The name of a tag may hold commands: it is passed by the environment."""
    assert [step for step in steps(path) if "${{" in step.get("run", "")] == []


def test_every_wheel_is_tried() -> None:
    matrix = jobs(RELEASE)["try"]["strategy"]["matrix"]
    assert set(matrix["wheel"]) == TARGETS.keys()
    assert {entry["wheel"] for entry in matrix["include"]} == TARGETS.keys()
    assert len({entry["runner"] for entry in matrix["include"]}) == len(TARGETS)
    assert set(matrix["python"]) == {PYTHONS[0], PYTHONS[-1]}


def test_only_what_was_tried_is_published() -> None:
    found = jobs(RELEASE)
    assert set(found["publish"]["needs"]) == {"build", "try"}
    assert found["publish"]["if"] == "github.ref_type == 'tag'"
    writers = [name for name, job in found.items() if "id-token" in job["permissions"]]
    assert writers == ["publish"]


def test_actions_of_a_release_are_fixed() -> None:
    used = [step["uses"] for step in steps(RELEASE) if "uses" in step]
    assert used
    assert [name for name in used if not re.fullmatch(r"[\w/-]+@[0-9a-f]{40}", name)] == []


def test_it_says_that_it_has_never_run() -> None:
    """Take this test out with the notes, once it has."""
    assert "THIS WORKFLOW HAS NEVER RUN" in RELEASE.read_text(encoding="utf-8")
    install = (ROOT / "docs" / "install.md").read_text(encoding="utf-8")
    assert "release.yml` has never run" in install
