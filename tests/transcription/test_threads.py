"""One model in several threads, and in processes that were forked."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable

import numpy as np
import pytest

from tests.conftest import Engines
from tests.support.watched_backend import noise
from tests.transcription.test_transcribe_many import talkative_checkpoint
from whisper_opt import EngineError, Transcript, Whisper
from whisper_opt.core.arrays import F32
from whisper_opt.export import export

OPTIONS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "beam": {"beam_size": 5},
    "words": {"word_timestamps": True},
    "draws": {"temperature": 0.7, "best_of": 3},
    "detected": {"language": None},
}


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Engines of a random model. In fp32 its output head works in two stages."""
    folder = tmp_path_factory.mktemp("threads")
    return {
        precision: export(talkative_checkpoint(), folder / precision, precision=precision).path
        for precision in ("fp32", "int8")
    }


@pytest.fixture(scope="module")
def models(paths: dict[str, Path]) -> dict[str, Whisper]:
    return {precision: Whisper.load(path, threads=1) for precision, path in paths.items()}


@pytest.fixture
def model(models: dict[str, Whisper]) -> Whisper:
    return models["fp32"]


@pytest.fixture
def path(paths: dict[str, Path]) -> Path:
    return paths["fp32"]


@pytest.fixture
def hasty() -> Iterator[None]:
    """Threads take turns after every few instructions."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


def in_threads(calls: list[Callable[[], Any]]) -> list[Any]:
    """Results or errors of calls, each in its own thread."""
    found: list[Any] = [None] * len(calls)

    def call(i: int) -> None:
        try:
            found[i] = calls[i]()
        except BaseException as error:
            found[i] = error

    threads = [threading.Thread(target=call, args=(i,)) for i in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
        assert not thread.is_alive()
    return found


def use_at_once(model: Whisper, audios: list[F32], n: int, options: dict[str, Any]) -> None:
    """Every sound in its own thread, ``n`` times; all results equal those of single calls."""
    expected = [model.transcribe(sound, **options) for sound in audios]

    def repeat(sound: F32) -> list[Transcript]:
        return [model.transcribe(sound, **options) for _ in range(n)]

    found = in_threads([lambda sound=sound: repeat(sound) for sound in audios])  # type: ignore[misc]
    assert found == [[each] * n for each in expected]


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize(
    ("precision", "options"),
    [*(("fp32", options) for options in OPTIONS), ("int8", "greedy"), ("int8", "beam")],
)
def test_calls_of_several_threads_are_as_if_alone(
    models: dict[str, Whisper], precision: str, options: str
) -> None:
    chosen = {"temperature": 0.0, "language": "en", "vad": "off", "max_new_tokens": 12}
    audios = [noise(1.0, 1), noise(2.0, 2)]
    use_at_once(models[precision], audios, 3, {**chosen, **OPTIONS[options]})


@pytest.mark.slow
@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("beam_size", [None, 5])
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_speech_in_several_threads(engines: Engines, precision: str, beam_size: int | None) -> None:
    from whisper_opt.audio.decode import load_audio

    samples = load_audio(Path(__file__).parents[2] / "examples" / "jfk.flac")
    audios = [samples[: 4 * 16000], samples[5 * 16000 :]]
    with Whisper.load(engines.engine("tiny.en", precision=precision).path, threads=1) as model:
        use_at_once(model, audios, 8, {"temperature": 0.0, "vad": "off", "beam_size": beam_size})


def test_streams_of_one_thread_take_turns(model: Whisper) -> None:
    options: dict[str, Any] = {"temperature": 0.0, "language": "en", "vad": "off"}
    audios = [noise(35.0, 3), noise(40.0, 4)]
    expected = [model.transcribe(sound, max_new_tokens=8, **options).segments for sound in audios]
    streams = [model.stream(sound, max_new_tokens=8, **options) for sound in audios]
    dropped = model.stream(audios[0], max_new_tokens=8, **options)
    next(iter(dropped))
    found = list(zip(*streams))
    assert len(found) > 1
    for i in range(2):
        assert [pair[i] for pair in found] == list(expected[i][: len(found)])


def test_a_model_may_be_closed_while_another_thread_uses_it(path: Path) -> None:
    options: dict[str, Any] = {"temperature": 0.0, "language": "en", "vad": "off"}
    options["max_new_tokens"] = 8
    model = Whisper.load(path, threads=1)
    sound = noise(35.0, 3)
    expected = model.transcribe(sound, **options)
    begun, closed = threading.Event(), threading.Event()

    def use() -> Any:
        def wait(*_: float) -> None:
            begun.set()
            assert closed.wait(60)

        return model.transcribe(sound, on_progress=wait, **options)

    def close() -> None:
        assert begun.wait(60)
        model.close()
        closed.set()

    found, _ = in_threads([use, close])
    assert found == expected
    assert model._backend is None
    with pytest.raises(EngineError, match="closed; load it again"):
        model.transcribe(sound)


FORKED = """
import os, sys
import numpy as np
from whisper_opt import Whisper
model = Whisper.load(sys.argv[1], threads=2)
sound = np.random.default_rng(0).standard_normal(16000).astype(np.float32) / 9
options = dict(temperature=0.0, language="en", max_new_tokens=8)
text = model.transcribe(sound, **options).text
child = os.fork()
if not child:
    if sys.argv[2] == "use":
        assert model.transcribe(sound, **options).text == text
    if sys.argv[2] == "close":
        model.close()
        del model
    print("child", end="")
    sys.exit(5)
print("parent", os.WEXITSTATUS(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.mark.skipif(
    not hasattr(os, "register_at_fork") or not sys.platform.startswith("linux"),
    reason="forking is safe with glibc",
)
@pytest.mark.parametrize("what", ["exit", "close", "use"])
def test_a_forked_process_ends(path: Path, what: str) -> None:
    """With its exit status and its output."""
    command = [sys.executable, "-c", FORKED, str(path), what]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.stderr == ""
    assert done.returncode == 0
    assert done.stdout == "childparent 5\n"


def test_samples_are_shared_between_threads(model: Whisper) -> None:
    """The samples of the caller are not changed."""
    sound = noise(1.0, 5)
    sound.flags.writeable = False
    options: dict[str, Any] = {"temperature": 0.0, "vad": "off", "max_new_tokens": 8}
    first, second = in_threads([lambda: model.transcribe(sound, **options)] * 2)
    assert first == second
    assert np.isfinite(sound).all()
