"""Several processes at one engine cache, and processes that are killed during an export."""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import model_dir
from tests.support.exports import SMALL
from tests.support.models import random_checkpoint
from tests.support.models_write import write_huggingface
from whisper_opt.core.options import LoadOptions
from whisper_opt.runtime.cache_contents import cached_engines, prune
from whisper_opt.runtime.engine import read_engine
from whisper_opt.runtime.engine_cache import SOURCES, EngineCache
from whisper_opt.transcription.model_source import engine_directory

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.slow

TRANSCRIBE = """
import logging, sys
logging.basicConfig(level="INFO", stream=sys.stderr)
from whisper_opt.cli.main import main
sys.exit(main(["transcribe", *sys.argv[1:]]))
"""


def test_five_processes_export_once_and_all_transcribe(tmp_path: Path) -> None:
    options = ["--format", "txt", "--threads", "1", "--cache-dir", str(tmp_path / "cache")]
    source, audio = str(model_dir("tiny.en")), str(ROOT / "examples" / "jfk.flac")
    command = [sys.executable, "-c", TRANSCRIBE, source, audio, *options]
    running = [
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
        )
        for _ in range(5)
    ]
    results = [process.communicate(timeout=500) for process in running]
    assert [process.returncode for process in running] == [0] * 5, results
    logs = [log for _, log in results]
    assert sum(":exporting " in log for log in logs) == 1
    assert len({text for text, _ in results}) == 1
    assert "ask not what your country can do for you" in results[0][0]
    (engine,) = cached_engines(EngineCache(tmp_path / "cache"))
    left = {path.name for path in (tmp_path / "cache").iterdir()}
    assert left == {engine.path.name, SOURCES}


# Ends itself at the Nth call of a Python function, or at the Nth change of the file system.
KILLED = """
import os, signal, sys
from whisper_opt.core.options import LoadOptions
from whisper_opt.export import prepare
from whisper_opt.transcription.model_source import engine_directory

source, cache, kind, moment = *sys.argv[1:4], int(sys.argv[4])
n = 0

def count():
    global n
    n += 1
    if n == moment:
        os.kill(os.getpid(), signal.SIGKILL)

def profile(frame, event, argument):
    if event == "call":
        count()

def audit(event, arguments):
    changes = event in ("os.mkdir", "os.rename", "os.remove", "os.utime", "fcntl.flock")
    if changes or (event == "open" and str(arguments[0]).startswith(cache)):
        count()

if kind == "calls":
    sys.setprofile(profile)
else:
    sys.addaudithook(audit)
engine_directory(source, LoadOptions(precision="fp32", cache_dir=cache))
sys.setprofile(None)
print(n)
"""


def export_in_a_process(source: Path, cache: Path, kind: str, moment: int = 0) -> tuple[int, str]:
    """Exit status and output of a process that exports, and ends itself at a moment."""
    command = [sys.executable, "-c", KILLED, str(source), str(cache), kind, str(moment)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    return done.returncode, done.stdout


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="not tested: no SIGKILL here")
@pytest.mark.parametrize("kind", ["calls", "changes"])
def test_killed_at_ten_random_moments(kind: str, tmp_path: Path) -> None:
    """After each, nothing incomplete is taken for an engine, and the next call exports it."""
    source = write_huggingface(random_checkpoint(SMALL), tmp_path / "source")
    status, printed = export_in_a_process(source, tmp_path / "whole", kind)
    assert status == 0
    (whole,) = cached_engines(EngineCache(tmp_path / "whole"))
    n, n_exported = int(printed), 0
    cache = EngineCache(tmp_path / "cache")
    engine = cache.path / whole.path.name
    for moment in random.Random(0).sample(range(1, n + 1), 10):
        status, _ = export_in_a_process(source, cache.path, kind, moment)
        assert status == -signal.SIGKILL
        n_exported += cache.has(engine)
        if cache.has(engine):  # killed afterwards
            read_engine(engine, verify=True)
        else:
            assert cached_engines(cache) == []
        options = LoadOptions(precision="fp32", cache_dir=str(cache.path))
        assert engine_directory(source, options) == engine
        read_engine(engine, verify=True)
        for _ in prune(cache):
            pass
        assert {path.name for path in cache.path.iterdir()} == {engine.name, SOURCES}
        shutil.rmtree(cache.path)
    assert n_exported < 10
