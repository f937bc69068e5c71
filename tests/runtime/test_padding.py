"""Padding compression: the positions, the graphs and the sessions."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import Engines
from tests.support.engines import random_engine, sharp_checkpoint
from tests.support.golden import clip_pcm
from tests.support.models import random_dims
from whisper_opt.core.arrays import F32
from whisper_opt.core.dims import N_FRAMES
from whisper_opt.core.errors import EngineError, VerificationError
from whisper_opt.export import export
from whisper_opt.export.checkpoints import Checkpoint
from whisper_opt.export.graphs.builder import GraphBuilder
from whisper_opt.export.graphs.dialects import make_dialect
from whisper_opt.export.graphs.graph import build_decoder, build_encoder
from whisper_opt.export.graphs.partial import CompressedPositions
from whisper_opt.export.graphs.precision import FP32, Precision
from whisper_opt.export.quantization.padding_parts import padding_parts, parts_by_attention
from whisper_opt.export.verification.partitioned import PartitionedGraph
from whisper_opt.export.verification.reference import Reference
from whisper_opt.export.verification.verify import noise_mel, verify
from whisper_opt.export.writer import write_graph
from whisper_opt.runtime.engine import MANIFEST, Engine, read_engine
from whisper_opt.runtime.native import why_no_kernels
from whisper_opt.runtime.onnxruntime.backend import OrtBackend
from whisper_opt.runtime.padding import (
    MARGIN,
    MASKED,
    EncoderInput,
    PaddingCompression,
    expand_scores,
)
from whisper_opt.transcription.model import Whisper

DIMS = random_dims(n_vocab=2000, n_audio_layer=3, n_text_layer=2)
N_CTX = DIMS.n_audio_ctx
TOKENS = np.random.default_rng(2).integers(0, DIMS.n_vocab, 9).astype(np.int64)


def short(n_frames: int, seed: int = 0) -> F32:
    """A window [n_mels, 3000] whose first ``n_frames`` frames are noise."""
    mel = noise_mel(DIMS, seed)
    mel[:, n_frames:] = 0
    return mel


# --- which positions ------------------------------------------------------------------------------

LENGTHS = st.lists(st.integers(1, 20), min_size=1, max_size=60)


@given(LENGTHS, st.integers(0, 900))
def test_every_position_is_represented_once(parts: list[int], n_audio: int) -> None:
    n_ctx = sum(parts)
    mel = np.zeros((1, 3, 2 * n_ctx), np.float32)
    mel[0, 1, : 2 * n_audio] = 1
    inputs = PaddingCompression(parts, 2).compress(mel)
    assert inputs.counts.sum() == n_ctx
    assert inputs.counts.min() >= 1
    ends = np.cumsum(inputs.counts)
    assert ((ends - inputs.counts <= inputs.positions) & (inputs.positions < ends)).all()
    exact = min(n_ctx, min(n_audio, n_ctx) + MARGIN)
    assert (inputs.counts[:exact] == 1).all()
    # only padding is removed, and at least three positions of it are left
    left = inputs.mel.shape[2]
    assert left == mel.shape[2] or left >= 2 * (n_audio + 3)
    assert not mel[:, :, left:].any()


def test_windows_are_not_compressed_if_that_saves_nothing() -> None:
    padding = PaddingCompression([10] * 150, 2)
    for n_frames in (3000, 2999, 2750):
        inputs = padding.compress(short(n_frames)[None])
        np.testing.assert_array_equal(inputs.positions, np.arange(N_CTX))
        assert inputs.mel.shape[2] == N_FRAMES
    assert len(padding.compress(short(2000)[None]).positions) < 0.8 * N_CTX
    uncompressed = PaddingCompression([10] * 150, 2, disabled=True).compress(short(200)[None])
    assert len(uncompressed.positions) == N_CTX


def test_a_shorter_window_is_not_compressed() -> None:
    inputs = PaddingCompression([10] * 150, 2).compress(short(100)[None, :, :601])
    assert inputs.mel.shape[2] == 601
    np.testing.assert_array_equal(inputs.positions, np.arange(301))


def test_shorter_audio_has_finer_parts() -> None:
    padding = PaddingCompression([10] * 150, 2)
    largest = [
        int(padding.compress(short(n_frames)[None]).counts.max()) for n_frames in (100, 500, 900)
    ]
    assert largest == [4, 5, 10]
    for n_frames in range(0, 1000, 100):
        assert len(padding.compress(short(n_frames)[None]).positions) <= 0.4 * N_CTX


def test_windows_of_a_batch_use_the_longest_one() -> None:
    padding = PaddingCompression([10] * 150, 2)
    both = padding.compress(np.stack([short(100), short(700, 1)]))
    alone = padding.compress(short(700)[None])
    np.testing.assert_array_equal(both.positions, alone.positions)
    silence = padding.compress(np.zeros((1, DIMS.n_mels, N_FRAMES), np.float32))
    assert silence.mel.shape[2] == 2 * MARGIN


def test_scores_of_parts_are_repeated_for_their_positions() -> None:
    scores = np.array([[1.0, 2.0, 3.0 + np.log(4)]], np.float32)
    found = expand_scores(scores, np.array([1, 1, 4]))
    np.testing.assert_allclose(found, [[1, 2, 3, 3, 3, 3]], rtol=1e-6)


@given(st.integers(0, 2**32 - 1), st.sampled_from([100, 1500]))
def test_parts_are_short_where_attention_is_high(seed: int, n_ctx: int) -> None:
    draw = np.random.default_rng(seed)
    density = np.exp(2 * draw.standard_normal(n_ctx))
    peak = int(draw.integers(n_ctx))
    density[peak] = 100 * density.max()
    parts = parts_by_attention(density / density.mean())
    assert sum(parts) == n_ctx
    assert min(parts) >= 1
    assert max(parts) <= 12
    ends = np.cumsum(parts)
    assert parts[int(np.searchsorted(ends, peak, side="right"))] == 1


def test_parts_depend_on_the_weights_only() -> None:
    checkpoint = sharp_checkpoint(DIMS)
    parts = padding_parts(checkpoint)
    assert parts == padding_parts(checkpoint)
    assert sum(parts) == N_CTX
    assert len(parts) < N_CTX // 5


# --- the graphs -----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Exact(Precision):
    """float32 with padding compression: all remaining errors are those of the graph."""

    @property
    def compresses_padding(self) -> bool:
        return True


EXACT = _Exact(**{f.name: getattr(FP32, f.name) for f in dataclasses.fields(FP32)})


@pytest.fixture(scope="module")
def small() -> Checkpoint:
    return sharp_checkpoint(DIMS)


@pytest.fixture(scope="module")
def graphs(small: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> list[PartitionedGraph]:
    return float_graphs(small, tmp_path_factory.mktemp("graphs"))


def float_graphs(checkpoint: Checkpoint, folder: Path) -> list[PartitionedGraph]:
    """Encoder and decoder."""
    built = {
        "encoder": build_encoder(DIMS, checkpoint.tensors, make_dialect("contrib"), EXACT),
        "decoder": build_decoder(
            DIMS, checkpoint.tensors, make_dialect("contrib"), types=EXACT, alignment_heads=None
        ),
    }
    for stem, (graph, _) in built.items():
        write_graph(graph, folder, stem, lambda n: None)
    return [PartitionedGraph(*parts, folder, stem) for stem, parts in built.items()]


def test_without_compression_it_is_the_plain_model(
    small: Checkpoint, graphs: list[PartitionedGraph]
) -> None:
    reference = Reference(small)
    for mel in (noise_mel(DIMS)[:, :400], noise_mel(DIMS)[:, :401], short(300)):
        cross = graphs[0].run(EncoderInput.uncompressed(mel[None], 2).feeds())
        key, value = reference.cross(reference.encode(mel), 1)
        np.testing.assert_allclose(cross["cross_v_1"][0], value.transpose(1, 0, 2), atol=1e-4)
        found = cross["cross_k_1"][0]
        np.testing.assert_allclose(found[:, :64], key.transpose(1, 2, 0), atol=1e-4)
        assert not found[:, 64].any()


@pytest.mark.parametrize("n_frames", [0, 1, 2, 77, 310, 2000])
def test_compressed_encoding_equals_the_reference(
    small: Checkpoint, graphs: list[PartitionedGraph], n_frames: int
) -> None:
    reference, mel = Reference(small), short(n_frames)
    inputs = PaddingCompression(padding_parts(small), 2).compress(mel[None])
    audio = reference.encode_compressed(mel, inputs.positions, inputs.counts)
    cross = graphs[0].run(inputs.feeds())
    key, value = reference.cross(audio, 0)
    np.testing.assert_allclose(cross["cross_v_0"][0], value.transpose(1, 0, 2), atol=1e-4)
    np.testing.assert_allclose(cross["cross_k_0"][0, :, :64], key.transpose(1, 2, 0), atol=1e-4)
    np.testing.assert_allclose(
        cross["cross_k_0"][0, :, 64], np.tile(8 * np.log(inputs.counts), (2, 1)), atol=1e-5
    )


def test_merging_equal_positions_is_exact() -> None:
    """If all padding positions are equal, compression is exact."""
    plain = sharp_checkpoint(DIMS)
    zero = np.zeros((N_CTX, DIMS.n_audio_state), np.float32)
    name = "encoder.positional_embedding"
    tensor = dataclasses.replace(plain.tensors[name], read=lambda: zero)
    reference = Reference(dataclasses.replace(plain, tensors={**plain.tensors, name: tensor}))
    mel = short(500)
    inputs = PaddingCompression([30] * 50, 2).compress(mel[None])
    by_parts = reference.encode_compressed(mel, inputs.positions, inputs.counts)
    whole = reference.encode(mel)
    np.testing.assert_allclose(by_parts, whole[inputs.positions], atol=1e-4)
    scores = reference.decode(by_parts, [TOKENS], counts=inputs.counts)[0][0]
    np.testing.assert_allclose(scores, reference.logits(whole, [TOKENS])[0], atol=1e-3)


@pytest.mark.parametrize("broken", ["encoder", "keys"])
def test_wrong_counts_are_found(
    small: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    if broken == "keys":

        def without_counts(self: CompressedPositions, heads: str, n_head: int) -> str:
            builder, zero = self._builder, np.array(0, np.float32)
            ends = builder.constant([0, 1]), builder.constant(zero), builder.constant([3])
            return builder.node("Pad", heads, *ends)

        monkeypatch.setattr(CompressedPositions, "append_log_counts", without_counts)
    else:

        def never_compressed(self: GraphBuilder, condition: str, then: Any, otherwise: Any) -> str:
            return str(otherwise())

        monkeypatch.setattr(GraphBuilder, "if_else", never_compressed)
    encoder, decoder = float_graphs(small, tmp_path)
    with pytest.raises(VerificationError, match="padding"):
        verify(small, encoder, decoder, precision=EXACT, parts=padding_parts(small))


# --- engines --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def engine(small: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Engine:
    folder = tmp_path_factory.mktemp("engines")
    return export(small, folder / "int8", precision="int8", verified=False)


@pytest.fixture(params=[False, True], ids=["plain", "packed"])
def kernels(request: pytest.FixtureRequest) -> bool:
    """Whether keys and values are packed for the compiled kernels."""
    reason = why_no_kernels()
    if request.param and reason:
        pytest.skip(f"not tested: {reason}")
    return bool(request.param)


def test_windows_of_other_lengths_join(engine: Engine, kernels: bool) -> None:
    """Windows of different lengths have the same scores in one session as alone."""
    backend = OrtBackend(engine, threads=1, kernels=kernels)
    windows = [backend.encode(mel[None]) for mel in (short(300), short(3000, 1), short(900, 2))]
    assert len({len(audio.counts[0]) for audio in windows}) == 3
    alone = []
    for audio in windows:
        session = backend.open(audio)
        alone.append(session.extend(TOKENS[None]).numpy()[0, -1])
        session.close()
    session = backend.open(windows[0])
    session.extend(TOKENS[None, :-1])
    for audio in windows[1:]:
        other = backend.open(audio)
        other.extend(TOKENS[None, :-1])
        session.append(other)
    together = session.extend(np.repeat(TOKENS[None, -1:], 3, axis=0)).numpy()[:, -1]
    np.testing.assert_allclose(together, alone, atol=2e-3 * float(np.abs(alone).max()))
    session.gather(np.array([2, 0]))
    assert session.extend(np.array([[5], [6]])).numpy().shape[0] == 2
    session.close()


def test_a_window_in_a_batch_is_encoded_as_alone(engine: Engine, kernels: bool) -> None:
    backend = OrtBackend(engine, threads=1, kernels=kernels)
    mels = [short(300), short(3000, 1), short(900, 2), short(900, 3)]
    together = backend.encode(np.stack(mels))
    tokens, lengths = np.repeat(TOKENS[None], 4, axis=0), np.full(4, len(TOKENS))
    found = backend.attention(together, tokens, lengths)
    assert found.scores.shape[3] == N_CTX
    for i, mel in enumerate(mels):
        alone = backend.encode(mel[None])
        one, n_positions = together.take([i]), len(alone.counts[0])
        if kernels:  # the last two arrays are steps, and what is added to scores
            np.testing.assert_array_equal(one.cross[-2], alone.cross[-2])
            added, n_keys = one.cross[-1], alone.cross[-1].shape[1]
            np.testing.assert_array_equal(added[:, :n_keys], alone.cross[-1])
            assert (added[:, n_positions:] == MASKED).all()
        else:
            for expected, array in zip(alone.cross[1::2], one.cross[1::2]):
                np.testing.assert_array_equal(array[:, :, :n_positions], expected)
                assert not array[:, :, n_positions:].any()
        wanted = backend.attention(alone, TOKENS[None], lengths[:1])
        scale = float(np.abs(wanted.logits).max())
        for batched in (found.logits[i], backend.attention(one, tokens[:1], lengths[:1]).logits[0]):
            np.testing.assert_allclose(batched, wanted.logits[0], atol=2e-3 * scale)
        np.testing.assert_allclose(found.scores[i], wanted.scores[0], atol=0.05)
    if kernels:
        return
    pair = backend.encode(np.stack(mels[2:]))
    for array, expected in zip(pair.take([1]).cross, together.take([3]).cross):
        shorter = expected[
            ..., :64, : array.shape[3]
        ]  # the last digits differ in ONNX Runtime 1.19
        np.testing.assert_allclose(array[..., :64, :], shorter, atol=2e-3 * np.abs(shorter).max())


def test_engines_without_counts_refuse_windows_of_other_lengths(tmp_path: Path) -> None:
    backend = OrtBackend(random_engine(tmp_path / "fp32", DIMS), threads=1)
    sessions = [
        backend.open(backend.encode(noise_mel(DIMS)[None, :, :n_frames])) for n_frames in (300, 900)
    ]
    for session in sessions:
        session.extend(TOKENS[None])
    with pytest.raises(EngineError, match="different lengths"):
        sessions[0].append(sessions[1])


def test_attention_covers_all_positions(small: Checkpoint, engine: Engine, kernels: bool) -> None:
    """Word times need all positions; merged ones have the attention of their part."""
    mel, reference = short(300), Reference(small)
    for whole in (False, True):
        backend = OrtBackend(engine, threads=1, whole_padding=whole, kernels=kernels)
        audio = backend.encode(mel[None])
        assert (len(audio.counts[0]) == N_CTX) is whole
        found = backend.attention(audio, TOKENS[None], np.array([len(TOKENS)])).scores[0]
        inputs = EncoderInput(mel[None], *audio.counts)
        exact = reference.encode_compressed(mel, inputs.positions, inputs.counts)
        (expected,) = reference.decode(exact, [TOKENS], small.heads, counts=inputs.counts)[1]
        expected = np.repeat(expected, inputs.counts, axis=2)
        assert found.shape == expected.shape == (len(small.heads), len(TOKENS), N_CTX)
        assert np.square(found - expected).mean() < 0.1 * np.square(expected).mean()


def test_older_engines_encode_all_positions(engine: Engine, tmp_path: Path) -> None:
    """A manifest of version 3 has no parts; they were added in version 4."""
    folder = tmp_path / "older"
    plain = random_engine(folder, DIMS)
    values = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    assert "padding" not in values
    values["format_version"] = 3
    (folder / MANIFEST).write_text(json.dumps(values), encoding="utf-8")
    older = read_engine(folder)
    assert older.manifest.padding is None
    mel = short(300)[None]
    found = OrtBackend(older, threads=1).encode(mel).cross
    for one, other in zip(found, OrtBackend(plain, threads=1).encode(mel).cross):
        np.testing.assert_array_equal(one, other)
    assert engine.manifest.padding is not None


@pytest.mark.slow
def test_real_weights(engines: Engines) -> None:
    """Half of the positions give the same words, and nearly the same times."""
    folder = engines.engine("tiny.en", precision="int8").path
    results = []
    for padding in ("auto", "whole"):
        with Whisper.load(folder, threads=2, padding=padding) as model:
            results.append(
                model.transcribe(clip_pcm("en-jfk"), sample_rate=16000, word_timestamps=True)
            )
    assert results[0].text == results[1].text
    words = [[word for segment in one.segments for word in segment.words or ()] for one in results]
    differences = [abs(one.start - other.start) for one, other in zip(*words)]
    assert np.mean(differences) < 0.03
