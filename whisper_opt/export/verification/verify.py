"""Every export ends here: does the new engine compute what its checkpoint computes?

Encoder outputs and teacher-forced decoder scores are compared with the plain numpy forward pass of
``reference`` (and, where openai-whisper is installed, with that), on a seeded noise window. The
decoder is driven as the decode loop drives it: a ragged, right-padded prefill of two hypotheses of
one audio, then single steps.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Callable

import numpy as np

from whisper_opt.core.arrays import F32, Int, NDArray
from whisper_opt.core.dims import HEAD_DIM, N_FRAMES, ModelDims
from whisper_opt.export.checkpoints.checkpoint import Checkpoint
from whisper_opt.export.graphs.precision import FP32, Precision
from whisper_opt.export.verification.measures import MEASURES, judge, rms
from whisper_opt.export.verification.openai import openai_logits
from whisper_opt.export.verification.partitioned import PiecewiseGraph
from whisper_opt.export.verification.reference import Reference
from whisper_opt.runtime.head_bounds import Inputs, Screen
from whisper_opt.runtime.padding import MASKED, EncoderInput, PaddingCompression

__all__ = ["PACKED_TOLERANCE", "Parity", "noise_mel", "unpacked", "verify", "verify_packed"]

SEED = 20220921
_PREFILL = 8
_STEPS = 3
PACKED_TOLERANCE = {"cross": 0.02, "logits": 0.2, "attention": 0.1}
"""Largest errors of what is computed from packed keys and values, root mean square. Rounding them
moves other integers of the decoder, and noise is no speech: docs/accuracy.md."""
_COUNTS = 1e-5
"""Largest error of the logarithm of how many a key stands for."""
_SHORT = 150
"""Frames of sound in the window whose padding is heard by parts."""


@dataclasses.dataclass(frozen=True)
class Parity:
    """What verification measured.

    Attributes:
        input: what the model was fed.
        cross_error: error of the cross-attention keys and values: the largest, or the root mean
            square (see ``measure``).
        cross_scale: those values themselves, measured likewise.
        logits_error: error of the decoder's scores.
        logits_scale: the scores.
        attention_error: error of the alignment heads' scores.
        attention_scale: the alignment heads' scores.
        screen_share: largest error of a rough score, as a share of its bound; None where the head
            is not screened.
        openai_whisper: difference from openai-whisper's scores; None where it is
            not installed.
        cross_tolerance: largest error allowed, as a share of ``cross_scale`` (and of
            ``attention_scale``).
        logits_tolerance: largest error allowed, as a share of ``logits_scale``.
        measure: ``largest`` absolute value, or root mean square (``rms``).
    """

    input: str
    cross_error: float
    cross_scale: float
    logits_error: float
    logits_scale: float
    attention_error: float
    attention_scale: float
    screen_share: float | None
    openai_whisper: float | None
    cross_tolerance: float = FP32.cross_tolerance
    logits_tolerance: float = FP32.logits_tolerance
    measure: str = FP32.measure

    def to_dict(self) -> dict[str, Any]:
        """For the manifest."""
        return {
            **dataclasses.asdict(self),
            "reference": "numpy fp32",
            "provider": "CPUExecutionProvider",  # other providers' kernels were not run
        }


def noise_mel(dims: ModelDims, seed: int = SEED) -> F32:
    """A seeded log-mel window [n_mels, 3000] in the range of real ones (about -1 to 1.5)."""
    drawn = np.random.default_rng(seed).standard_normal((dims.n_mels, N_FRAMES), np.float32)
    mel: F32 = np.clip(drawn * np.float32(0.4), -1, 1.5).astype(np.float32)
    return mel


def verify(
    checkpoint: Checkpoint,
    encoder: PiecewiseGraph,
    decoder: PiecewiseGraph,
    screen: Screen | None = None,
    *,
    precision: Precision = FP32,
    parts: Sequence[int] | None = None,
) -> Parity:
    """Compare an exported engine with its checkpoint.

    Args:
        checkpoint: what was exported.
        encoder: the encoder graph.
        decoder: the decoder graph.
        screen: the output head, if the decoder screens it.
        precision: what is measured, and how large errors may be.
        parts: in which padding is heard, where it is heard by parts.

    Raises:
        VerificationError: a value is not finite, or an error exceeds its tolerance.
    """
    dims = checkpoint.dims
    measure = MEASURES[precision.measure]
    mel = noise_mel(dims)
    reference = Reference(checkpoint)
    audio = reference.encode(mel)
    cross = _encode(encoder, EncoderInput.uncompressed(mel[None], dims.frames_per_position))
    cross_error, cross_scale = _compare_cross(reference, audio, cross, dims, measure)
    judge("cross-attention keys and values", cross_error, precision.cross_tolerance * cross_scale)
    if parts is not None:
        _verify_parts(checkpoint, encoder, decoder, parts, precision)
    sequences = _sequences(dims)
    found, screen_share = _drive(decoder, cross, sequences, dims, screen)
    expected, watched = reference.decode(audio, sequences[:1], checkpoint.heads)
    expected += reference.logits(audio, sequences[1:])
    error, scale = measure(zip(expected, found))
    judge("decoder scores", error, precision.logits_tolerance * scale)
    attention_error, attention_scale = measure(
        zip(watched, [_attention(decoder, cross, sequences[0], dims)])
    )
    judge("attention scores", attention_error, precision.cross_tolerance * attention_scale)
    oracle = openai_logits(checkpoint, mel, sequences)
    oracle_error = None
    if oracle is not None:
        oracle_error, oracle_scale = measure(zip(oracle, found))
        judge(
            "scores against openai-whisper", oracle_error, precision.logits_tolerance * oracle_scale
        )
    return Parity(
        input=f"seeded noise ({SEED})",
        cross_error=cross_error,
        cross_scale=cross_scale,
        logits_error=error,
        logits_scale=scale,
        attention_error=attention_error,
        attention_scale=attention_scale,
        screen_share=screen_share,
        openai_whisper=oracle_error,
        cross_tolerance=precision.cross_tolerance,
        logits_tolerance=precision.logits_tolerance,
        measure=precision.measure,
    )


def verify_packed(
    dims: ModelDims,
    plain: tuple[PiecewiseGraph, PiecewiseGraph],
    packed: tuple[PiecewiseGraph, PiecewiseGraph],
    parts: Sequence[int],
) -> dict[str, float]:
    """Compare the graphs that hand packed keys and values over with those that do not.

    On a seeded noise window with padding behind it, and the prefill and steps of :func:`verify`.

    Returns:
        Errors of keys and values, scores and attention scores: root mean square, as a share of that
        of what is expected.

    Raises:
        VerificationError: an error exceeds :data:`PACKED_TOLERANCE`, or keys count otherwise than
            they should.
    """
    mel = noise_mel(dims, SEED + 1)
    mel[:, _SHORT:] = 0
    heard = PaddingCompression(parts, dims.frames_per_position).compress(mel[None])
    sequences = _sequences(dims)
    found = []
    for encoder, decoder in (plain, packed):
        cross = _encode(encoder, heard)
        scores, _ = _drive(decoder, cross, sequences, dims, None)
        attention = _attention(decoder, cross, sequences[0], dims)[..., : len(heard.counts)]
        if "cross_added" in cross:
            judge("packed counts", _count_error(cross["cross_added"], heard), _COUNTS)
            cross = unpacked(cross, dims)
        found.append((cross, scores, attention))
    names = [f"cross_{kind}_{i}" for i in range(dims.n_text_layer) for kind in ("k", "v")]
    n = len(heard.counts)
    pairs = {
        "cross": [_same_part(found[0][0][name], found[1][0][name], n) for name in names],
        "logits": list(zip(found[0][1], found[1][1])),
        "attention": [(found[0][2], found[1][2])],
    }
    errors = {}
    for what, each in pairs.items():
        error, scale = rms(each)
        judge(f"packed {what}", error, PACKED_TOLERANCE[what] * scale)
        errors[what] = error / scale
    return errors


def _count_error(added: F32, heard: EncoderInput) -> float:
    """Error of what is added to scores; that of keys that there are not, in units of ``MASKED``."""
    n = len(heard.counts)
    counts = np.abs(added[:, :n] - np.log(heard.counts)).max()
    return float(max(counts, np.abs(added[:, n:] / MASKED - 1).max(initial=0)))


def _same_part(plain: NDArray, packed: NDArray, n: int) -> tuple[NDArray, NDArray]:
    """Keys [A, H, 65, n] or values [A, H, n, 64] and what was packed of them, where both are."""
    if plain.shape[2] == n and plain.shape[3] == HEAD_DIM:
        return plain, packed[:, :, :n]
    return plain[:, :, :HEAD_DIM], packed[..., :n]


def unpacked(cross: Mapping[str, NDArray], dims: ModelDims) -> dict[str, NDArray]:
    """Packed keys and values as floats: keys [A, H, 64, T'] and values [A, H, T', 64]."""
    found: dict[str, NDArray] = {}
    for i in range(dims.n_text_layer):
        keys, values = cross[f"cross_k_{i}"].astype(np.float32) - 128, cross[f"cross_v_{i}"]
        steps = cross["cross_steps"][:, i, :, :, None]
        n_audio, n_head = keys.shape[:2]
        shape = (n_audio, n_head, HEAD_DIM, -1)
        keys = keys.transpose(0, 1, 3, 5, 2, 4).reshape(shape)
        values = values.transpose(0, 1, 2, 4, 3).reshape(n_audio, n_head, -1, HEAD_DIM)
        found[f"cross_k_{i}"] = keys * steps[:, 0].swapaxes(-1, -2)
        found[f"cross_v_{i}"] = values * steps[:, 1]
    return found


def _encode(encoder: PiecewiseGraph, heard: EncoderInput) -> dict[str, NDArray]:
    feeds = heard.feeds()
    return encoder.run({name: feeds[name] for name in encoder.inputs})


def _verify_parts(
    checkpoint: Checkpoint,
    encoder: PiecewiseGraph,
    decoder: PiecewiseGraph,
    parts: Sequence[int],
    precision: Precision,
) -> None:
    """Compare with the reference what is heard of a short sound, and the scores after a prompt.

    Integers round padding more coarsely than sound (base: 0.21 of the keys and values, and 0.07
    where there is no padding), hence twice the tolerances.
    """
    dims, reference = checkpoint.dims, Reference(checkpoint)
    measure = MEASURES[precision.measure]
    mel = noise_mel(dims, SEED + 1)
    mel[:, _SHORT:] = 0
    heard = PaddingCompression(parts, dims.frames_per_position).compress(mel[None])
    audio = reference.encode_heard(mel, heard.positions, heard.counts)
    cross = _encode(encoder, heard)
    error, scale = _compare_cross(reference, audio, cross, dims, measure)
    judge("keys and values of padding", error, 2 * precision.cross_tolerance * scale)
    tokens = _sequences(dims)[0]
    found = _fed_whole(decoder, cross, tokens, dims, at=np.arange(len(tokens)))["logits"]
    expected = reference.decode(audio, [tokens], counts=heard.counts)[0]
    error, scale = measure(zip(expected, found))
    judge("decoder scores after padding", error, 2 * precision.logits_tolerance * scale)


def _sequences(dims: ModelDims) -> list[Int]:
    """Two token sequences whose prefills differ in length and whose steps begin there."""
    draw = np.random.default_rng(SEED)
    lengths = (_PREFILL + _STEPS, _PREFILL - 3 + _STEPS)
    return [draw.integers(0, dims.n_vocab, n).astype(np.int64) for n in lengths]


def _compare_cross(
    reference: Reference,
    audio: F32,
    found: dict[str, NDArray],
    dims: ModelDims,
    measure: Callable[[Any], tuple[float, float]],
) -> tuple[float, float]:
    def pairs() -> Any:
        for i in range(dims.n_text_layer):
            key, value = reference.cross(audio, i)
            yield key.transpose(1, 2, 0), found[f"cross_k_{i}"][0, :, :HEAD_DIM]
            yield value.transpose(1, 0, 2), found[f"cross_v_{i}"][0]

    return measure(pairs())


def _drive(
    decoder: PiecewiseGraph,
    cross: dict[str, NDArray],
    sequences: Sequence[Int],
    dims: ModelDims,
    screen: Screen | None,
) -> tuple[list[F32], float | None]:
    """Scores [len(sequence), n_vocab] after every token, as a session would get them."""
    n_seq = len(sequences)
    cache = _empty_cache(n_seq, dims, cross)
    aligned = np.zeros(0, np.int64)
    prefill = np.array([len(sequence) - _STEPS for sequence in sequences], np.int64)
    tokens = np.zeros((n_seq, int(prefill.max())), np.int64)
    for padded, sequence, n in zip(tokens, sequences, prefill.tolist()):
        padded[:n] = sequence[:n]
    # every position of the prefill is wanted; the last column is each row's last real token
    at = np.minimum(np.arange(tokens.shape[1])[None], prefill[:, None] - 1)
    start = np.zeros(n_seq, np.int64)
    scores: list[list[F32]] = [[] for _ in sequences]
    share = 0.0
    for step in range(_STEPS + 1):
        feeds = {"tokens": tokens, "start": start, "at": at, "aligned": aligned}
        out = decoder.run({**feeds, **_all_columns(decoder, at), **cross, **cache})
        for row, count in enumerate(prefill.tolist() if step == 0 else [1] * n_seq):
            scores[row].extend(out["logits"][row, :count])
        if screen is not None:
            share = max(share, _screen_share(screen, out))
        cache = {name: out[f"{name}_out"] for name in cache}
        start = prefill + step
        if step < _STEPS:
            tokens = np.array([[sequences[i][start[i]]] for i in range(n_seq)], np.int64)
            at = np.zeros((n_seq, 1), np.int64)
    return [np.stack(rows) for rows in scores], None if screen is None else share


def _all_columns(decoder: PiecewiseGraph, at: Int) -> dict[str, NDArray]:
    """Every wanted position, exact and screened, for a decoder that asks."""
    every = np.arange(at.shape[1])
    return {name: every for name in ("exact", "screened") if name in decoder.inputs}


def _screen_share(screen: Screen, out: dict[str, NDArray]) -> float:
    """The largest error of a rough score as a share of its bound, which must hold."""
    rows = zip(
        *(out[name].reshape(-1, out[name].shape[2]) for name in ("logits", "rough", "hidden"))
    )
    share = 0.0
    every = np.arange(len(screen.error))
    for exact, rough, hidden in rows:
        error = np.abs(rough + hidden @ screen.mean - exact)
        share = max(share, float((error / Inputs(screen, hidden[None]).bounds(0, every)).max()))
    judge("screened scores, in units of their bounds,", share, 1.0)
    return share


def _empty_cache(n_seq: int, dims: ModelDims, cross: Mapping[str, NDArray]) -> dict[str, NDArray]:
    shape = (n_seq, dims.n_text_head, 64, HEAD_DIM)
    dtype = np.float32 if "cross_steps" in cross else cross["cross_k_0"].dtype
    return {
        f"self_{kind}_{i}": np.zeros(shape, dtype)
        for i in range(dims.n_text_layer)
        for kind in ("k", "v")
    }


def _attention(
    decoder: PiecewiseGraph, cross: dict[str, NDArray], tokens: Int, dims: ModelDims
) -> F32:
    """Cross-attention scores [n_heads, n_tokens, n_ctx] of one sequence fed at once."""
    out = _fed_whole(decoder, cross, tokens, dims, at=np.array([len(tokens) - 1]))
    layers = [out[name][0] for name in out if name.startswith("attention_")]
    return np.concatenate(layers)


def _fed_whole(
    decoder: PiecewiseGraph, cross: dict[str, NDArray], tokens: Int, dims: ModelDims, at: Int
) -> dict[str, NDArray]:
    """What the decoder gives for one sequence fed at once, with scores at ``at``."""
    feeds = {
        "tokens": tokens[None],
        "start": np.zeros(1, np.int64),
        "at": at[None],
        "aligned": np.arange(len(tokens)),
    }
    columns = _all_columns(decoder, feeds["at"])
    return decoder.run({**feeds, **columns, **cross, **_empty_cache(1, dims, cross)})
