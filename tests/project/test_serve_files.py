"""The systemd unit and the compose file of the server: commands parse, names exist."""

from __future__ import annotations

import argparse
import configparser
import json
import re
import shlex
from pathlib import Path
from typing import Any

import make_constraints
import pytest
import yaml

from whisper_opt.cli.main import _parser
from whisper_opt.core.options import ServeOptions

ROOT = Path(__file__).parents[2]
UNIT = ROOT / "deploy" / "whisper-opt.service"
COMPOSE = ROOT / "deploy" / "compose.yaml"
EXTRAS = make_constraints.read_project()["optional-dependencies"]


def unit() -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None, strict=True)
    parser.optionxform = str  # type: ignore[assignment,method-assign] # keys keep their case
    parser.read_string(UNIT.read_text(encoding="utf-8").replace("\\\n", ""))
    return parser


def service(name: str = "whisper-opt") -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(COMPOSE.read_text(encoding="utf-8"))
    return found["services"][name]  # type: ignore[no-any-return]


def parsed(arguments: list[str]) -> argparse.Namespace:
    return _parser().parse_args(arguments)


def test_the_unit_starts_the_server() -> None:
    program, *arguments = shlex.split(unit()["Service"]["ExecStart"])
    assert Path(program).name == "whisper-opt"
    given = parsed(arguments)
    assert given.host == "0.0.0.0"
    assert given.api_key_file.startswith("${CREDENTIALS_DIRECTORY}/")
    name = given.api_key_file.rpartition("/")[2]
    assert unit()["Service"]["LoadCredential"].startswith(f"{name}:")


def test_the_unit_waits_for_the_drain() -> None:
    found = unit()["Service"]
    given = parsed(shlex.split(found["ExecStart"])[1:])
    assert int(found["TimeoutStopSec"]) > given.drain_timeout


def test_compose_starts_the_server() -> None:
    given = parsed(service()["command"])
    assert f"127.0.0.1:8000:{given.port}" in service()["ports"]
    assert given.api_key_file == "/run/secrets/keys"
    (keys,) = service()["secrets"]
    assert Path(given.api_key_file).name == keys


def test_compose_waits_for_the_drain() -> None:
    given = parsed(service()["command"])
    assert int(service()["stop_grace_period"].rstrip("s")) > given.drain_timeout


@pytest.mark.parametrize("name", ["whisper-opt", "lab"])
def test_compose_builds_an_image_that_exists(name: str) -> None:
    build = service(name)["build"]
    folder = (COMPOSE.parent / build["context"]).resolve()
    assert (folder / build["dockerfile"]).is_file()
    assert set(build["args"]["EXTRAS"].split(",")) <= EXTRAS.keys()


def test_the_lab_is_on_loopback_and_has_a_token() -> None:
    lab = service("lab")
    assert lab["ports"] == ["127.0.0.1:8888:8888"]
    assert lab["environment"]["JUPYTER_TOKEN"].startswith("${JUPYTER_TOKEN:?")
    assert (ROOT / lab["command"][-1]).is_file()
    assert lab["profiles"] == ["lab"]  # it does not start with the server


def test_the_development_container() -> None:
    path = ROOT / ".devcontainer" / "devcontainer.json"
    found = json.loads(path.read_text(encoding="utf-8"))
    command = found["postCreateCommand"]
    (extras,) = re.findall(r"\.\[([\w,]+)\]", command)
    assert set(extras.split(",")) <= EXTRAS.keys()
    files = re.findall(r"(?:constraints/|scripts/|hatch)\S+", command)
    assert all((ROOT / name).is_file() for name in files)
    assert len(files) == 3


def test_the_extra_of_the_unit_exists() -> None:
    (extras,) = re.findall(r"whisper-opt\[([\w,]+)\]", UNIT.read_text(encoding="utf-8"))
    assert set(extras.split(",")) <= EXTRAS.keys()
    assert ServeOptions().port == 8000  # what both files assume
