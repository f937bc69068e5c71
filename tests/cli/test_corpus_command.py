"""``whisper-opt corpus`` as a process: shards, failures, interrupts, and kills at any moment."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, Union

import pytest
import soundfile

from tests.support.watched_backend import noise
from whisper_opt import Whisper, render
from whisper_opt.cli.main import main

OPTIONS = ("--vad", "off", "--temperature", "0", "--device", "cpu", "--threads", "1")
N = 10

DIES = """
import os, signal, sys
left = int(sys.argv.pop(1))

def before(number=None):
    global left
    left -= 1
    if not left:
        if number is not None:  # half of the file is on disk
            os.ftruncate(number, os.fstat(number).st_size // 2)
        os.kill(os.getpid(), signal.SIGKILL)

sync, rename = os.fsync, os.replace

def replace(*paths):
    before()
    rename(*paths)
    before()

os.fsync = lambda number: (before(number), sync(number))
os.replace = replace
from whisper_opt.cli.main import main
sys.exit(main(sys.argv[1:]))
"""
"""The command, killed when the given number of steps of writing files has been done."""


@pytest.fixture(scope="module")
def engine(tiny: Path) -> Path:
    return tiny


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Paths and objects; one recording is damaged, and one is missing."""
    folder = tmp_path_factory.mktemp("recordings")
    rows: list[Union[str, dict[str, Any]]] = []
    for i in range(N):
        soundfile.write(folder / f"{i}.wav", noise(1.0 + 4 * (i % 4), i), 16000, "FLOAT")
        row = {"audio": f"{i}.wav", "id": f"talk/{i}", "max_new_tokens": 5 + i}
        rows.append(row if i % 2 else f"{i}.wav")
    (folder / "damaged.wav").write_bytes(b"RIFF")
    rows[3:3] = ["damaged.wav", {"path": "gone.wav", "id": "gone"}]
    path = folder / "list"
    lines = (row if isinstance(row, str) else json.dumps(row) for row in rows)
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def run(engine: Path, manifest: Path, out: Path, *more: str) -> int:
    return main(["corpus", str(engine), str(manifest), str(out), *OPTIONS, *more])


def contents(out: Path) -> dict[str, bytes]:
    """Everything that is not a record."""
    return {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}


@pytest.fixture(scope="module")
def whole(engine: Path, manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of one run."""
    out = tmp_path_factory.mktemp("corpus") / "whole"
    assert run(engine, manifest, out, "--format", "json,txt") == 1
    return out


def test_one_file_per_recording_and_format(whole: Path, engine: Path, manifest: Path) -> None:
    found = contents(whole)
    names = [f"talk_{i}" if i % 2 else f"{i}.wav" for i in range(N)]
    expected = {f"{name}.{form}" for name in names for form in ("json", "txt")}
    assert {*found} == {*expected, "failed.jsonl"}
    with Whisper.load(engine, device="cpu", threads=1) as model:
        alone = model.transcribe(
            manifest.with_name("7.wav"), vad="off", temperature=0.0, max_new_tokens=12
        )
    assert found["talk_7.json"].decode() == render(alone, "json")
    failed = [json.loads(line) for line in found["failed.jsonl"].decode().splitlines()]
    assert [each["id"] for each in failed] == ["damaged.wav", "gone"]


def test_a_second_run_does_nothing(
    whole: Path, engine: Path, manifest: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in whole.glob("*.json")}
    assert run(engine, manifest, whole, "--format", "json") == 1
    assert f"0 transcribed, {N} were there, 2 failed;" in capsys.readouterr().err
    assert before == {path: path.stat().st_mtime_ns for path in whole.glob("*.json")}


def test_failed_ones_are_retried_if_asked(
    engine: Path, manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [f"{manifest.parent / 'damaged.wav'}", "new.wav", str(manifest.parent / "1.wav")]
    path = tmp_path / "list"
    path.write_text("\n".join(rows), encoding="utf-8")
    assert run(engine, path, tmp_path / "out") == 1
    assert "1 transcribed, 0 were there, 2 failed;" in capsys.readouterr().err
    assert run(engine, path, tmp_path / "out", "--retry-failed") == 1
    text = capsys.readouterr().err
    assert "0 transcribed, 1 were there, 2 failed;" in text
    assert "damaged.wav" in text
    soundfile.write(tmp_path / "new.wav", noise(1.0), 16000)
    path.write_text("\n".join(rows[1:]), encoding="utf-8")
    assert run(engine, path, tmp_path / "out") == 0
    assert not (tmp_path / "out" / "failed.jsonl").exists()


def test_shards_give_what_one_run_gives(
    whole: Path, engine: Path, manifest: Path, tmp_path: Path
) -> None:
    lines = manifest.read_text(encoding="utf-8").splitlines()
    other = manifest.with_name("reversed")
    other.write_text("\n".join(lines[::-1]), encoding="utf-8")
    for shard, path in (("0/2", manifest), ("1/2", other)):
        run(engine, path, tmp_path, "--format", "json,txt", "--shard", shard)
    found, expected = contents(tmp_path), contents(whole)
    lists = sorted(name for name in found if name.startswith("failed-"))
    failed = b"".join(found.pop(name) for name in lists)
    assert {*failed.splitlines()} == {*expected.pop("failed.jsonl").splitlines()}
    assert found == expected


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="not tested: Windows has no SIGKILL")
@pytest.mark.parametrize("seed", [0, 1])
def test_killed_ten_times(
    whole: Path, engine: Path, manifest: Path, tmp_path: Path, seed: int
) -> None:
    rng = random.Random(seed)
    script = tmp_path / "dies.py"
    script.write_text(DIES, encoding="utf-8")
    out = tmp_path / "out"
    arguments = ["corpus", str(engine), str(manifest), str(out), *OPTIONS, "--format", "json,txt"]
    progress = []
    for _ in range(10):
        steps = str(rng.randint(1, 14))
        ended = subprocess.run(
            [sys.executable, str(script), steps, *arguments], capture_output=True, check=False
        )
        assert ended.returncode == -signal.SIGKILL, ended.stderr.decode()
        progress.append(len(list((out / ".whisper-opt").glob("*.json"))))
    assert progress == sorted(progress)
    assert 0 < progress[-1] < N + 2
    assert main(arguments) == 1
    assert contents(out) == contents(whole)
    records = sorted(path.name for path in (out / ".whisper-opt").iterdir())
    assert records == sorted(path.name for path in (whole / ".whisper-opt").iterdir())


@pytest.mark.parametrize("n_files", [1, 2, 5, 6])
def test_interrupt(
    whole: Path,
    engine: Path,
    manifest: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    n_files: int,
) -> None:
    """While a file is written; it is reported what is left, and the same command continues."""
    left = n_files
    sync = os.fsync

    def interrupted(number: int) -> None:
        nonlocal left
        left -= 1
        if not left:
            raise KeyboardInterrupt
        sync(number)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", interrupted)
        assert run(engine, manifest, tmp_path, "--format", "json,txt") == 1
    text = capsys.readouterr().err
    assert "not yet: the same command continues" in text
    assert text.endswith("interrupted; no incomplete files remain\n")
    assert not list(tmp_path.rglob("*.tmp"))
    assert run(engine, manifest, tmp_path, "--format", "json,txt") == 1
    assert contents(tmp_path) == contents(whole)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--shard", "2/2"), "expected i/n"),
        (("--max-line-width", "20"), "no subtitle format"),
        (("--max-line-width", "20", "--format", "srt"), "no word timestamps"),
        (("--language", "klingon"), "klingon"),
    ],
)
def test_wrong_options(
    engine: Path,
    manifest: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    more: tuple[str, ...],
    message: str,
) -> None:
    assert run(engine, manifest, tmp_path / "out", *more) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_ids_that_collide(engine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "list"
    path.write_text("a/b.wav\na_b.wav\n", encoding="utf-8")
    assert run(engine, path, tmp_path / "out") == 2
    assert "would both be written to a_b.wav" in capsys.readouterr().err
    assert os.listdir(tmp_path) == ["list"]
