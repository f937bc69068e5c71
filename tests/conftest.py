"""Fixtures: engines of the real checkpoints, exported once per run."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.engines import SHARED, random_engine, shared_engine, tiny_dims
from tests.support.live_script import Silent
from tests.support.loopback_hub import LoopbackHub
from whisper_opt import Whisper
from whisper_opt.export import export
from whisper_opt.runtime.engine import Engine

ROOT = Path(__file__).parent.parent
MODELS = Path(os.environ.get("WHISPER_OPT_MODELS", ROOT / "models"))


def pytest_configure(config: pytest.Config) -> None:
    """All processes of a run share a folder of engines, which goes at its end."""
    if not hasattr(config, "workerinput"):
        folder = tempfile.TemporaryDirectory(prefix="whisper-opt-tests-")
        config.add_cleanup(folder.cleanup)
        os.environ[SHARED] = folder.name


def model_dir(name: str) -> Path:
    """Directory of the real checkpoint ``name``; fails if it was not fetched."""
    path = MODELS / name
    if not path.is_dir():
        pytest.fail(f"no checkpoint at {path}; run: python scripts/get_model.py {name}")
    return path


class Engines:
    """Exports real checkpoints on first use and keeps them for the run."""

    def __init__(self) -> None:
        self._engines: dict[tuple[str, str, str], Engine] = {}
        self._models: dict[tuple[str, str, str], Whisper] = {}

    def engine(self, name: str, dialect: str = "contrib", precision: str = "fp32") -> Engine:
        """The engine of ``name`` in ``dialect`` and ``precision``."""
        key = (name, dialect, precision)
        if key not in self._engines:
            source = model_dir(name)
            self._engines[key] = shared_engine(
                "-".join(key),
                lambda path: export(source, path, dialect=dialect, precision=precision),
            )
        return self._engines[key]

    def path(self, name: str, precision: str) -> Path:
        """Directory of that engine in the default dialect."""
        return self.engine(name, precision=precision).path

    def model(self, name: str, dialect: str = "contrib", precision: str = "fp32") -> Whisper:
        """The loaded engine of ``name`` in ``dialect`` and ``precision``, on one core of the CPU.

        The other cores have processes of pytest of their own.
        """
        key = (name, dialect, precision)
        if key not in self._models:
            path = self.engine(*key).path
            self._models[key] = Whisper.load(path, device="cpu", threads=1)
        return self._models[key]


@pytest.fixture(scope="session")
def engines() -> Engines:
    """Engines of the real checkpoints."""
    return Engines()


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory of a tiny random multilingual engine, whose windows have at most 20 tokens."""
    return random_engine(tmp_path_factory.mktemp("tiny") / "tiny", tiny_dims()).path


@pytest.fixture
def loopback(tmp_path: Path) -> Iterator[LoopbackHub]:
    """A hub on this machine, which the client of this process uses with a cache of its own."""
    with LoopbackHub() as hub, hub.client(tmp_path / "hub-cache"):
        yield hub


@pytest.fixture(scope="module")
def hear_no_speech() -> Iterator[None]:
    """Live sessions find no speech: with ``vad=False`` all audio is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("whisper_opt.audio.vad.gate.Frames", Silent)
        patch.setattr("whisper_opt.audio.vad.gate.SecondLook", Silent)
        yield
