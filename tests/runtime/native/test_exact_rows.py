"""8-bit and 4-bit engines with compiled kernels: a row's scores do not depend on how it is fed.

In one call or in many, alone or beside other rows: the bits are the same. Verified proposals then
give the tokens of single steps.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import Engines
from tests.runtime.test_packed import tokens, windows
from tests.support.engines import sharp_checkpoint
from tests.support.golden import clip_pcm
from tests.support.models import random_dims
from tests.support.watched_backend import PLAIN
from whisper_opt.core.arrays import F32
from whisper_opt.core.backend import Backend, Encoded
from whisper_opt.export import export
from whisper_opt.runtime.engine import MANIFEST, Engine, read_engine
from whisper_opt.runtime.onnxruntime.backend import OrtBackend

DIMS = random_dims(n_vocab=2000, n_text_ctx=80)
"""``tokens`` draws from as many ids."""


@pytest.fixture(scope="module", params=["int8", "int4"])
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Engine:
    folder = tmp_path_factory.mktemp("engine") / "engine"
    return export(sharp_checkpoint(DIMS), folder, precision=request.param)


@pytest.fixture
def backend(engine: Engine, kernels: str) -> OrtBackend:
    return OrtBackend(engine, threads=2)


def fed(backend: Backend, audio: Encoded, sizes: Sequence[int], n: int = 60) -> F32:
    """Scores [A, n, n_vocab] of the same tokens, fed in calls of so many."""
    session, found = backend.open(audio), []
    given = tokens(len(audio), n)
    for part in np.split(given, np.cumsum(sizes), axis=1):
        at = np.tile(np.arange(part.shape[1] - 1), (len(audio), 1))
        found.append(session.extend(part, at=at).numpy().copy())
    session.close()
    return np.concatenate(found, axis=1)


def test_one_call_equals_single_steps(backend: OrtBackend) -> None:
    audio = backend.encode(windows(0, 1))
    whole = fed(backend, audio, [])
    for sizes in ([1] * 59, [4, 33, 1, 7]):
        np.testing.assert_array_equal(fed(backend, audio, sizes), whole)


@pytest.mark.parametrize("n", [2, 5, 8])
def test_a_row_does_not_depend_on_the_others(backend: OrtBackend, n: int) -> None:
    audio = backend.encode(windows(*range(n)))
    given, at = tokens(n, 40), np.tile(np.arange(38), (n, 1))
    together = backend.open(audio)
    prompt = together.extend(given[:, :39], at=at).numpy().copy()
    step = together.extend(given[:, 39:]).numpy().copy()
    for row in range(n):
        alone = backend.open(audio.take([row]))
        mine = alone.extend(given[row : row + 1, :39], at=at[:1]).numpy()[0]
        np.testing.assert_array_equal(mine, prompt[row])
        mine = alone.extend(given[row : row + 1, 39:]).numpy()[0]
        np.testing.assert_array_equal(mine, step[row])


@pytest.mark.parametrize("lengths", [(9, 9, 8), (1, 20, 3)])
def test_rows_accept_different_numbers(backend: OrtBackend, lengths: Sequence[int]) -> None:
    """In one call, or row by row if most of it would be padding."""
    n = len(lengths)
    audio = backend.encode(windows(*range(n)))
    given, sizes = tokens(n, 40), np.array(lengths, np.int64)
    session = backend.open(audio)
    session.extend(given[:, :12])
    session.truncate(np.arange(n))  # of 12, 11 and 10 tokens
    new = np.stack([given[row, 12 - row : 32 - row] for row in range(n)])[:, : max(lengths)]
    found = session.extend(new, sizes).numpy()[:, -1]
    for row, length in enumerate(lengths):
        alone = backend.open(audio.take([row]))
        wanted = alone.extend(given[row : row + 1, : 12 - row + length]).numpy()[0, -1]
        np.testing.assert_array_equal(found[row], wanted)


@pytest.mark.usefixtures("library")
def test_only_packed_graphs_of_new_engines_have_the_operator(
    engine: Engine, tmp_path: Path
) -> None:
    """Plain graphs are for ONNX Runtime's own operators, and older engines must still load."""
    assert b"SelfAttention" in engine.file("decoder.packed.onnx").read_bytes()
    assert b"SelfAttention" not in engine.file("decoder.onnx").read_bytes()
    assert OrtBackend(engine, threads=1).decoder.own_attention
    assert not OrtBackend(engine, threads=1, kernels=False).decoder.own_attention
    shutil.copytree(engine.path, tmp_path / "older")
    manifest = tmp_path / "older" / MANIFEST
    values = {**json.loads(manifest.read_text(encoding="utf-8")), "format_version": 5}
    manifest.write_text(json.dumps(values), encoding="utf-8")
    assert not OrtBackend(read_engine(tmp_path / "older"), threads=1).decoder.own_attention


@pytest.mark.slow
@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("precision", ["int8", "int4"])
@pytest.mark.parametrize("name", ["tiny.en", "base"])
def test_drafts_change_no_token(engines: Engines, name: str, precision: str) -> None:
    """Nor a log-probability, whether they are right or not."""
    model = engines.model(name, precision=precision)
    for clip in ("en-ls-1272-141231-0002", "en-jfk"):
        sound = clip_pcm(clip)
        expected = model.transcribe(sound, **PLAIN)
        for draft in (expected, expected.text, expected.text.replace(" the ", " a ")):
            found = model.transcribe(sound, **PLAIN, draft=draft)
            assert found == expected
