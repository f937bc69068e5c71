"""Engines of 8 and 4 bits: keys and values packed for kernels, and what the runtime does with them.

The packed graphs run in two ways, and all of this holds of both: with compiled kernels, and by the
functions that define them, so that machines without the instructions test the runtime too.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Callable

import numpy as np
import pytest

from tests.support.engines import sharp_checkpoint
from tests.support.models import random_dims
from whisper_opt import Whisper
from whisper_opt.core.arrays import F32, Int, NDArray
from whisper_opt.core.errors import EngineError
from whisper_opt.export import export
from whisper_opt.runtime import native
from whisper_opt.runtime.engine import MANIFEST, PACKED, Engine, read_engine
from whisper_opt.runtime.native import why_no_kernels
from whisper_opt.runtime.onnxruntime import backend as ort
from whisper_opt.runtime.onnxruntime import graph as ort_graph
from whisper_opt.runtime.onnxruntime.backend import OrtBackend
from whisper_opt.runtime.padding import BLOCK

DIMS = random_dims(n_vocab=2000)
WAYS = ("kernels", "definition")
Open = Callable[[str], OrtBackend]


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Engine]:
    folder, checkpoint = tmp_path_factory.mktemp("packed"), sharp_checkpoint(DIMS)
    names = ("fp32", "fp16", "int8", "int4")
    return {name: export(checkpoint, folder / name, precision=name) for name in names}


@pytest.fixture(params=["int8", "int4"])
def engine(request: pytest.FixtureRequest, engines: dict[str, Engine]) -> Engine:
    return engines[request.param]


@pytest.fixture(params=WAYS)
def packed(
    request: pytest.FixtureRequest, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> OrtBackend:
    """The packed graphs; skipped where the way cannot be gone."""
    if request.param == "definition":
        monkeypatch.setattr(ort, "kernel_library", lambda: Path("unused"))
        monkeypatch.setattr(ort_graph, "kernel_library", lambda: None)
    elif reason := why_no_kernels():
        pytest.skip(f"not tested: {reason}")
    backend = OrtBackend(engine, threads=1)
    assert backend.encode(windows(0)).cross[0].dtype == np.uint8
    return backend


def windows(*seeds: int, sounds: Sequence[int] = (400,)) -> F32:
    """Windows of noise with padding behind it; ``sounds``: frames of noise, in turn."""
    found = np.zeros((len(seeds), DIMS.n_mels, 3000), np.float32)
    for i, (window, seed) in enumerate(zip(found, seeds)):
        n = sounds[i % len(sounds)]
        window[:, :n] = np.random.default_rng(seed).standard_normal((DIMS.n_mels, n)) * 0.4
    return found


def far(found: F32, expected: F32) -> float:
    """Root mean square of the difference, as a share of what was expected."""
    assert found.shape == expected.shape
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def tokens(n_seq: int, n: int, seed: int = 1) -> Int:
    drawn = np.random.default_rng([seed, n_seq, n]).integers(0, DIMS.n_vocab, (n_seq, n))
    return drawn.astype(np.int64)


# --- files ----------------------------------------------------------------------------------------


def test_what_files_there_are(engines: dict[str, Engine]) -> None:
    for name, engine in engines.items():
        there = {path.name for path in engine.path.iterdir()} - {MANIFEST}
        assert there == set(engine.manifest.files)
        assert {each for each in there if "packed" in each} == (
            set(PACKED) if name in ("int8", "int4") else set()
        )
        assert ("packed" in engine.manifest.parity) is (name in ("int8", "int4"))


def test_they_have_no_weights_of_their_own(engine: Engine) -> None:
    """But they name all files beside them that they read."""
    for name in PACKED:
        graph = engine.file(name).read_bytes()
        assert len(graph) < 200_000
        assert name.split(".")[0].encode() + b".data" in graph


@pytest.mark.parametrize("name", PACKED)
def test_damage_is_found(engine: Engine, name: str, tmp_path: Path) -> None:
    folder = tmp_path / "engine"
    shutil.copytree(engine.path, folder)
    path = folder / name
    held = path.read_bytes()
    path.write_bytes(held[:-1] + bytes([held[-1] ^ 1]))
    read_engine(folder)
    with pytest.raises(EngineError, match=f"{name} has sha256"):
        read_engine(folder, verify=True)
    path.write_bytes(held[:-1])
    with pytest.raises(EngineError, match=f"{name} has {len(held) - 1} bytes"):
        read_engine(folder)
    path.unlink()
    with pytest.raises(EngineError, match=f"{name} is missing"):
        read_engine(folder)


def forget(engine: Engine, folder: Path, *names: str) -> Path:
    """A copy of an engine that lacks these files, and does not list them."""
    shutil.copytree(engine.path, folder)
    manifest = json.loads((folder / MANIFEST).read_text())
    for name in names:
        (folder / name).unlink()
        del manifest["files"][name]
    (folder / MANIFEST).write_text(json.dumps(manifest))
    return folder


@pytest.mark.parametrize("name", PACKED)
def test_one_without_the_other_is_refused(engine: Engine, name: str, tmp_path: Path) -> None:
    folder = forget(engine, tmp_path / "engine", name)
    with pytest.raises(EngineError, match=f"does not list {name}"):
        read_engine(folder)


def test_engines_from_before_are_read(engine: Engine, tmp_path: Path) -> None:
    """Their plain graphs run, with kernels where there are."""
    old = read_engine(forget(engine, tmp_path / "engine", *PACKED), verify=True)
    plain, backend = OrtBackend(engine, threads=1, kernels=False), OrtBackend(old, threads=1)
    found, expected = (each.encode(windows(1, 2)) for each in (backend, plain))
    assert found.cross[0].dtype == np.float32
    assert len(found.cross) == 2 * DIMS.n_text_layer
    assert far(scores(backend, found), scores(plain, expected)) < 0.1
    Whisper.load(old.path, device="cpu", threads=1).close()


# --- with and without -----------------------------------------------------------------------------


def scores(backend: OrtBackend, heard: ort.OrtEncoded, n: int = 6) -> F32:
    """[A, n, n_vocab] after every token of a prompt."""
    session = backend.open(heard)
    fed = tokens(len(heard), n)
    at = np.repeat(np.arange(n - 1)[None], len(heard), axis=0)
    found: F32 = session.extend(fed, at=at).numpy().copy()
    session.close()
    return found


def test_without_kernels_it_is_as_if_none_were_compiled(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Bit for bit."""
    off = OrtBackend(engine, threads=1, kernels=False)
    monkeypatch.setattr(native, "LIBRARY", tmp_path / "libwhisper_opt.so")
    why_no_kernels.cache_clear()
    try:
        none = OrtBackend(engine, threads=1, kernels=True)
        found, expected = (each.encode(windows(1, 2)) for each in (off, none))
    finally:
        why_no_kernels.cache_clear()
    assert len(found.cross) == len(expected.cross) == 2 * DIMS.n_text_layer
    for one, other in zip(found.cross, expected.cross):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(scores(off, found), scores(none, expected))


@pytest.mark.parametrize("sounds", [(30,), (400,), (1500,), (3000,), (3000, 30, 1500)])
def test_packed_is_as_plain(packed: OrtBackend, engine: Engine, sounds: tuple[int, ...]) -> None:
    """But for what 8 bits lose, in the encoder too where there are kernels.

    Measured: 0.02 and 0.09 of the scores of prompts, 0.04 and 0.13 of single ones, 0.04 and 0.22 of
    attention, by definition and with kernels.
    """
    plain = OrtBackend(engine, threads=1, kernels=False)
    mels = windows(1, 2, 3, sounds=sounds)
    found, expected = packed.encode(mels), plain.encode(mels)
    assert [len(counts) for counts in found.counts] == [len(c) for c in expected.counts]
    assert found.cross[-1].shape[1] % BLOCK == 0
    assert far(scores(packed, found), scores(plain, expected)) < SCORES
    fed, lengths = tokens(3, 9), np.array([9, 4, 6])
    heard = [each.attention(e, fed, lengths) for each, e in ((packed, found), (plain, expected))]
    assert heard[0].scores.shape[-1] == 1500
    for row, n in enumerate(lengths):
        assert far(heard[0].scores[row, :, :n], heard[1].scores[row, :, :n]) < ATTENTION
        assert far(heard[0].logits[row, :n], heard[1].logits[row, :n]) < SCORES


SCORES = 0.2
ATTENTION = 0.3


# --- rows and windows are strangers ---------------------------------------------------------------


class Rows:
    """A session, and what each of its rows was fed, to compare with that row alone."""

    def __init__(self, backend: OrtBackend, mels: F32, audios: Sequence[int]) -> None:
        self.backend, self.mels = backend, mels
        self.session = backend.open(backend.encode(mels[list(audios)]))
        self.rows: list[tuple[int, list[int]]] = [(audio, []) for audio in audios]

    def extend(self, n: int, seed: int = 0) -> None:
        new = tokens(len(self.rows), n, seed)
        found = self.session.extend(new).numpy()[:, -1].copy()
        self.rows = [(audio, held + more) for (audio, held), more in zip(self.rows, new.tolist())]
        for (audio, held), each in zip(self.rows, found):
            alone = self.backend.open(self.backend.encode(self.mels[audio : audio + 1]))
            expected = alone.extend(np.array([held])).numpy()[0, -1]
            alone.close()
            np.testing.assert_allclose(each, expected, rtol=0, atol=SAME * np.abs(expected).max())

    def gather(self, *rows: int) -> None:
        self.session.gather(np.array(rows))
        self.rows = [self.rows[row] for row in rows]

    def append(self, other: Rows) -> None:
        self.session.append(other.session)
        self.rows += other.rows


SAME = 0.01
"""A last bit of attention to the past moves an integer here and there: up to 0.004 of the largest
score in 4 bits. Another window, or another past, moves scores by more than a third."""


@pytest.fixture
def mels() -> F32:
    return windows(1, 2, 3, 4, 5, sounds=(400, 3000, 30, 1500, 700))


def test_windows_of_other_lengths_in_a_batch(packed: OrtBackend, mels: F32) -> None:
    together = packed.encode(mels)
    for i in range(5):
        alone, taken = packed.encode(mels[i : i + 1]), together.take([i])
        np.testing.assert_array_equal(alone.counts[0], taken.counts[0])
        n_keys = alone.cross[-1].shape[1]
        *pairs, steps, added = alone.cross
        np.testing.assert_array_equal(steps, taken.cross[-2])
        np.testing.assert_array_equal(added, taken.cross[-1][:, :n_keys])
        assert (taken.cross[-1][:, n_keys:] < -1e29).all()
        for one, wide in zip(pairs, taken.cross):
            np.testing.assert_array_equal(one, wide[:, :, : one.shape[2]])
    one = scores(packed, together)
    for i in range(5):
        session = packed.open(packed.encode(mels[i : i + 1]))
        at = np.arange(5)[None]
        expected = session.extend(tokens(5, 6)[i : i + 1], at=at).numpy()[0]
        session.close()
        np.testing.assert_allclose(one[i], expected, rtol=0, atol=SAME * np.abs(expected).max())


def test_other_windows_give_other_scores(packed: OrtBackend, mels: F32) -> None:
    """What :data:`SAME` is worth."""
    session = packed.open(packed.encode(mels))
    found = session.extend(np.repeat(tokens(1, 6), 5, axis=0)).numpy()[:, -1].copy()
    session.close()
    for i in range(1, 5):
        assert np.abs(found[i] - found[0]).max() > 0.2 * np.abs(found[0]).max()


@pytest.mark.parametrize(("first", "second"), [((2,), (1, 0)), ((1, 3), (2,)), ((0,), (0, 4))])
def test_windows_that_join_are_longer_or_shorter(
    packed: OrtBackend, mels: F32, first: tuple[int, ...], second: tuple[int, ...]
) -> None:
    rows, others = Rows(packed, mels, first), Rows(packed, mels, second)
    rows.extend(5)
    others.extend(3)
    rows.append(others)
    rows.extend(1)
    rows.gather(len(rows.rows) - 1, 0)  # the others go
    rows.extend(2)
    more = Rows(packed, mels, [1])
    more.extend(4)
    rows.append(more)
    rows.extend(1)
    rows.gather(2)
    rows.extend(1)


def test_windows_that_join_before_anything_is_fed(packed: OrtBackend, mels: F32) -> None:
    rows, others = Rows(packed, mels, [2]), Rows(packed, mels, [1])
    rows.append(others)
    rows.extend(4)


def test_beams(packed: OrtBackend, mels: F32) -> None:
    rows = Rows(packed, mels, [2, 1, 0])
    rows.extend(4)
    rows.gather(0, 0, 0, 1, 1, 2)
    rows.extend(1)
    rows.gather(2, 1, 1, 4, 3, 5)
    rows.extend(1)
    rows.gather(3, 4, 3)  # windows are done
    rows.extend(1)
    rows.gather(1, 0, 2, 2)
    rows.extend(1)


def test_what_was_encoded_outlives_a_session(packed: OrtBackend, mels: F32) -> None:
    """Sessions that grow and shrink do not write to it."""
    heard = packed.encode(mels[:3])
    before = [array.copy() for array in heard.cross]
    for _ in range(2):
        session = packed.open(heard)
        session.extend(tokens(3, 4))
        session.append(packed.open(packed.encode(mels[3:5])))
        session.gather(np.array([2, 4, 0]))
        session.extend(tokens(3, 1))
        session.gather(np.array([1]))
        session.extend(tokens(1, 1))
        session.close()
    arrays: list[NDArray] = list(heard.cross)
    for array, held in zip(arrays, before):
        np.testing.assert_array_equal(array, held)


def test_past_a_capacity(packed: OrtBackend, mels: F32) -> None:
    rows = Rows(packed, mels, [1, 0])
    rows.extend(188)
    rows.extend(3)
    rows.extend(3)
    rows.gather(1, 0, 1)
    rows.extend(1)


# --- from audio to words --------------------------------------------------------------------------


def test_word_times(engine: Engine, packed: OrtBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model of noise has nothing to say, but it does so to the end."""
    rng = np.random.default_rng(3)
    audio = (rng.standard_normal(16000 * 3) * 0.1).astype(np.float32)
    with Whisper.load(engine.path, device="cpu", threads=1) as model:
        for beam_size in (1, 3):
            found = model.transcribe(
                audio,
                sample_rate=16000,
                language="en",
                word_timestamps=True,
                beam_size=beam_size,
                max_new_tokens=12,
                temperature=0.0,
            )
            times = [
                time for s in found.segments for w in s.words or () for time in (w.start, w.end)
            ]
            assert all(0 <= time <= 30 for time in times)
