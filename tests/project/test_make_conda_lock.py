"""``scripts/make_conda_lock.py``: locks are exact, complete, or not written; no network is used."""

from __future__ import annotations

import hashlib
import json
import re
import sys
from pathlib import Path
from typing import Any

import make_conda_lock
import pytest
from make_conda_lock import ROOT, main

ENVIRONMENT = """
name: speech
channels: [conda-forge, nodefaults]
dependencies:
  - python=3.11
  - jupyterlab
  - pip:
      - -c constraints/py311.txt
      - -e .[cpu,audio]
"""


def package(name: str, version: str, subdir: str, *depends: str) -> tuple[str, dict[str, Any]]:
    """File name and record of a package."""
    file = f"{name}-{version}-0.conda"
    record = {
        **{"name": name, "version": version, "build": "0", "build_number": 0, "size": 1},
        **{"depends": list(depends), "subdir": subdir},
        "md5": hashlib.md5(file.encode()).hexdigest(),
        "sha256": hashlib.sha256(file.encode()).hexdigest(),
    }
    if subdir == "noarch":
        record["noarch"] = "python"
    return file, record


PACKAGES = (
    package("python", "3.11.8", "linux-64", "libz"),
    package("python", "3.11.9", "linux-64", "libz", "__glibc >=2.17"),
    package("python", "3.11.10", "linux-64", "libz", "__glibc >=2.99"),
    package("python", "3.12.1", "linux-64", "libz"),
    package("python", "3.9.1", "linux-64", "libz"),
    package("libz", "1.3", "linux-64"),
    package("ffmpeg", "8.0", "linux-64"),
    package("c-compiler", "1.11", "linux-64"),
    package("pip", "26.1", "noarch", "python"),
    package("jupyterlab", "4.5", "noarch", "python >=3.10"),
    package("jupyterlab", "4.2", "noarch", "python >=3.8"),
)


@pytest.fixture
def channel(tmp_path: Path) -> Path:
    """A channel of conda in a folder."""
    folder = tmp_path / "channel"
    for subdir in ("linux-64", "noarch"):
        packages = {file: record for file, record in PACKAGES if record["subdir"] == subdir}
        (folder / subdir).mkdir(parents=True)
        repodata = {"info": {"subdir": subdir}, "packages": {}, "packages.conda": packages}
        (folder / subdir / "repodata.json").write_text(json.dumps(repodata), "utf-8")
    return folder


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "speech.yml"
    path.write_text(ENVIRONMENT, "utf-8")
    return path


def written(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "out").iterdir())


@pytest.fixture(autouse=True)
def out(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


def run(source: Path, channel: Path, out: Path, *more: str) -> int:
    return main([str(source), "--channel", channel.as_uri(), "--out", str(out), *more])


def test_a_lock_names_every_package_by_url_and_hash(source: Path, channel: Path, out: Path) -> None:
    assert run(source, channel, out) == 0
    assert written(source.parent) == ["speech-linux-64.lock"]
    text = (out / "speech-linux-64.lock").read_text("utf-8")
    _, _, listed = text.partition("\n@EXPLICIT\n")
    expected = ("jupyterlab-4.5", "libz-1.3", "python-3.11.9")  # the system's glibc is 2.28
    hashes = {file: record["md5"] for file, record in PACKAGES}
    for line, name in zip(listed.splitlines(), expected):
        subdir, file = line.partition("#")[0].rsplit("/", 2)[1:]
        assert (subdir, file) in {(record["subdir"], file) for file, record in PACKAGES}
        assert file == f"{name}-0.conda"
        assert line == f"{channel.as_uri()}/{subdir}/{file}#{hashes[file]}"
    assert len(listed.splitlines()) == len(expected)
    assert "# pip install -c constraints/py311.txt -e '.[cpu,audio]'\n" in text


def test_the_same_channel_gives_the_same_lock(source: Path, channel: Path, out: Path) -> None:
    texts = set()
    for _ in range(2):
        assert run(source, channel, out) == 0
        texts.add((out / "speech-linux-64.lock").read_text("utf-8"))
    assert len(texts) == 1


@pytest.mark.parametrize("name", make_conda_lock.SOURCES)
def test_the_environments_of_this_repository(name: str, channel: Path, out: Path) -> None:
    assert run(ROOT / name, channel, out) == 0
    (lock,) = out.iterdir()
    text = lock.read_text("utf-8")
    python = "3.9.1" if "py39" in name else "3.11.9"
    assert f"/python-{python}-0.conda#" in text
    assert text.startswith(f"# {name} for linux-64,")
    assert len(re.findall(r"^file://\S+\.conda#[0-9a-f]{32}$", text, re.M)) == 6


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("jupyterlab", "nothing-of-that-name", "nothing-of-that-name"),
        ("python=3.11", "python=3.13", "python"),
        ("channels: [conda-forge, nodefaults]", "", "no environment file of conda"),
        ("name: speech", "name: [", "no environment file of conda"),
    ],
)
def test_nothing_is_written_on_failure(
    old: str,
    new: str,
    message: str,
    source: Path,
    channel: Path,
    out: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    good = source.with_name("good.yml")
    good.write_text(ENVIRONMENT, "utf-8")
    source.write_text(ENVIRONMENT.replace(old, new), "utf-8")
    (out / "speech-linux-64.lock").write_text("before", "utf-8")
    assert main([str(good), str(source), "--channel", channel.as_uri(), "--out", str(out)]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.endswith("; nothing was written\n")
    assert (out / "speech-linux-64.lock").read_text("utf-8") == "before"


def test_a_channel_that_is_not_there(
    source: Path, tmp_path: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(source, tmp_path / "none", out) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: cannot resolve linux-64 from file://")
    assert error.count("\n") == 1
    assert written(tmp_path) == []


def test_what_is_missing_is_named(
    source: Path,
    channel: Path,
    out: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "rattler", None)
    assert run(source, channel, out) == 1
    assert "py-rattler is not installed: pip install py-rattler" in capsys.readouterr().err


def test_an_unknown_platform(
    source: Path, channel: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(source, channel, out, "--platform", "linux") == 1
    assert "unknown platform 'linux'; expected linux-64" in capsys.readouterr().err
