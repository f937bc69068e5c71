"""Engines in int8 and int4: keys and values packed for the compiled kernels, and their sessions.

Each test runs the packed graphs with the compiled kernels, and with the ONNX functions that define
the operators, so that machines without the instructions test the runtime too.
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
MODES = ("kernels", "definition")
Open = Callable[[str], OrtBackend]


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Engine]:
    folder, checkpoint = tmp_path_factory.mktemp("packed"), sharp_checkpoint(DIMS)
    names = ("fp32", "fp16", "int8", "int4")
    return {name: export(checkpoint, folder / name, precision=name) for name in names}


@pytest.fixture(params=["int8", "int4"])
def engine(request: pytest.FixtureRequest, engines: dict[str, Engine]) -> Engine:
    return engines[request.param]


@pytest.fixture(params=MODES)
def packed(
    request: pytest.FixtureRequest, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> OrtBackend:
    """A backend with the packed graphs; skipped if there are no kernels."""
    if request.param == "definition":
        monkeypatch.setattr(ort, "kernel_library", lambda: Path("unused"))
        monkeypatch.setattr(ort_graph, "kernel_library", lambda: None)
        monkeypatch.setattr(ort, "OWN_ATTENTION_VERSION", 1000)  # what only the kernel can do
    elif reason := why_no_kernels():
        pytest.skip(f"not tested: {reason}")
    backend = OrtBackend(engine, threads=1)
    assert backend.encode(windows(0)).cross[0].dtype == np.uint8
    return backend


def windows(*seeds: int, n_frames: Sequence[int] = (400,)) -> F32:
    """Windows of noise followed by padding; ``n_frames``: frames of noise, in turn."""
    found = np.zeros((len(seeds), DIMS.n_mels, 3000), np.float32)
    for i, (window, seed) in enumerate(zip(found, seeds)):
        n = n_frames[i % len(n_frames)]
        window[:, :n] = np.random.default_rng(seed).standard_normal((DIMS.n_mels, n)) * 0.4
    return found


def relative_error(found: F32, expected: F32) -> float:
    """Root mean square of the difference, relative to that of the expected values."""
    assert found.shape == expected.shape
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def tokens(n_seq: int, n: int, seed: int = 1) -> Int:
    drawn = np.random.default_rng([seed, n_seq, n]).integers(0, DIMS.n_vocab, (n_seq, n))
    return drawn.astype(np.int64)


# --- files ----------------------------------------------------------------------------------------


def test_the_files_of_an_engine(engines: dict[str, Engine]) -> None:
    for name, engine in engines.items():
        files = {path.name for path in engine.path.iterdir()} - {MANIFEST}
        assert files == set(engine.manifest.files)
        assert {each for each in files if "packed" in each} == (
            set(PACKED) if name in ("int8", "int4") else set()
        )
        assert ("packed" in engine.manifest.parity) is (name in ("int8", "int4"))


def test_packed_graphs_share_the_weights(engine: Engine) -> None:
    """They name all external files that they read."""
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
def test_an_incomplete_pair_of_graphs_is_refused(engine: Engine, name: str, tmp_path: Path) -> None:
    folder = forget(engine, tmp_path / "engine", name)
    with pytest.raises(EngineError, match=f"does not list {name}"):
        read_engine(folder)


def test_older_engines_are_read(engine: Engine, tmp_path: Path) -> None:
    """Their plain graphs run, with kernels if there are any."""
    old = read_engine(forget(engine, tmp_path / "engine", *PACKED), verify=True)
    plain, backend = OrtBackend(engine, threads=1, kernels=False), OrtBackend(old, threads=1)
    found, expected = (each.encode(windows(1, 2)) for each in (backend, plain))
    assert found.cross[0].dtype == np.float32
    assert len(found.cross) == 2 * DIMS.n_text_layer
    assert relative_error(scores(backend, found), scores(plain, expected)) < 0.1
    Whisper.load(old.path, device="cpu", threads=1).close()


# --- with and without -----------------------------------------------------------------------------


def scores(backend: OrtBackend, encoded: ort.OrtEncoded, n: int = 6) -> F32:
    """[A, n, n_vocab] after every token of a prompt."""
    session = backend.open(encoded)
    fed = tokens(len(encoded), n)
    at = np.repeat(np.arange(n - 1)[None], len(encoded), axis=0)
    found: F32 = session.extend(fed, at=at).numpy().copy()
    session.close()
    return found


def test_disabled_kernels_equal_missing_kernels(
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


@pytest.mark.parametrize("n_frames", [(30,), (400,), (1500,), (3000,), (3000, 30, 1500)])
def test_packed_equals_plain(packed: OrtBackend, engine: Engine, n_frames: tuple[int, ...]) -> None:
    """Up to the error of 8-bit attention, with kernels in the encoder too.

    Measured without and with kernels: 0.02 and 0.09 for scores of prompts, 0.04 and 0.13 for single
    ones, 0.04 and 0.22 for attention.
    """
    plain = OrtBackend(engine, threads=1, kernels=False)
    mels = windows(1, 2, 3, n_frames=n_frames)
    found, expected = packed.encode(mels), plain.encode(mels)
    assert [len(counts) for counts in found.counts] == [len(c) for c in expected.counts]
    assert found.cross[-1].shape[1] % BLOCK == 0
    assert relative_error(scores(packed, found), scores(plain, expected)) < SCORES
    fed, lengths = tokens(3, 9), np.array([9, 4, 6])
    attention = [b.attention(e, fed, lengths) for b, e in ((packed, found), (plain, expected))]
    assert attention[0].scores.shape[-1] == 1500
    for row, n in enumerate(lengths):
        assert (
            relative_error(attention[0].scores[row, :, :n], attention[1].scores[row, :, :n])
            < ATTENTION
        )
        assert relative_error(attention[0].logits[row, :n], attention[1].logits[row, :n]) < SCORES


SCORES = 0.2
ATTENTION = 0.3


# --- rows and windows are independent -------------------------------------------------------------


class Rows:
    """A session and the tokens of each row, to compare with that row alone."""

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
"""A difference in the last bit of self-attention can change rounded integers: scores differ by up
to 0.004 of the largest one in int4. Other windows or tokens change them by more than a third."""


@pytest.fixture
def mels() -> F32:
    return windows(1, 2, 3, 4, 5, n_frames=(400, 3000, 30, 1500, 700))


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
    """The difference is much larger than :data:`SAME`."""
    session = packed.open(packed.encode(mels))
    found = session.extend(np.repeat(tokens(1, 6), 5, axis=0)).numpy()[:, -1].copy()
    session.close()
    for i in range(1, 5):
        assert np.abs(found[i] - found[0]).max() > 0.2 * np.abs(found[0]).max()


@pytest.mark.parametrize(("first", "second"), [((2,), (1, 0)), ((1, 3), (2,)), ((0,), (0, 4))])
def test_windows_of_other_lengths_join(
    packed: OrtBackend, mels: F32, first: tuple[int, ...], second: tuple[int, ...]
) -> None:
    rows, others = Rows(packed, mels, first), Rows(packed, mels, second)
    rows.extend(5)
    others.extend(3)
    rows.append(others)
    rows.extend(1)
    rows.gather(len(rows.rows) - 1, 0)  # the others leave
    rows.extend(2)
    more = Rows(packed, mels, [1])
    more.extend(4)
    rows.append(more)
    rows.extend(1)
    rows.gather(2)
    rows.extend(1)


def test_windows_join_before_the_first_tokens(packed: OrtBackend, mels: F32) -> None:
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


def test_sessions_do_not_change_encoded_audio(packed: OrtBackend, mels: F32) -> None:
    """Even if they grow and shrink."""
    encoded = packed.encode(mels[:3])
    before = [array.copy() for array in encoded.cross]
    for _ in range(2):
        session = packed.open(encoded)
        session.extend(tokens(3, 4))
        session.append(packed.open(packed.encode(mels[3:5])))
        session.gather(np.array([2, 4, 0]))
        session.extend(tokens(3, 1))
        session.gather(np.array([1]))
        session.extend(tokens(1, 1))
        session.close()
    arrays: list[NDArray] = list(encoded.cross)
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
    """Word times of a random model are within the window."""
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
