"""Verifies that a new engine computes what its checkpoint computes. Every export ends with it.

Encoder outputs and teacher-forced decoder scores are compared with the numpy forward pass of
``reference`` on a seeded noise window, and with openai-whisper if it is installed. The decoder runs
as in decoding: a ragged, right-padded prefill of two hypotheses of one audio, then single steps.
A third sequence is decoded greedily from the prompt of a transcription.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Callable

import numpy as np

from whisper_opt.core.arrays import F32, Int, NDArray
from whisper_opt.core.dims import HEAD_DIM, N_FRAMES, ModelDims
from whisper_opt.export.checkpoints.checkpoint import Checkpoint
from whisper_opt.export.graphs.precision import FP32, Precision
from whisper_opt.export.verification.greedy import greedy_tokens
from whisper_opt.export.verification.measures import MEASURES, require_error_below, rms
from whisper_opt.export.verification.openai import openai_logits
from whisper_opt.export.verification.parity import Parity
from whisper_opt.export.verification.partitioned import PartitionedGraph
from whisper_opt.export.verification.reference import Reference
from whisper_opt.runtime.head_bounds import HeadBounds, HeadInputs
from whisper_opt.runtime.head_names import APPROXIMATE, APPROXIMATE_SCORES, EXACT, HIDDEN
from whisper_opt.runtime.padding import MASKED, EncoderInput, PaddingCompression
from whisper_opt.text.vocabulary import Vocab

__all__ = ["PACKED_TOLERANCE", "Parity", "noise_mel", "unpack_cross", "verify", "verify_packed"]

SEED = 20220921
_PREFILL = 8
_STEPS = 3
_GREEDY = 4
"""Tokens decoded greedily; none if the decoder is partitioned, whose weights are read per call."""
PACKED_TOLERANCE = {"cross": 0.02, "logits": 0.2, "attention": 0.1}
"""Largest root mean square errors with packed keys and values. Their rounding changes other
integers of the decoder, and errors on noise are larger than on speech (docs/accuracy.md)."""
_COUNTS = 1e-5
"""Largest error of the logarithm of the number of positions per key."""
_SHORT = 150
"""Frames before the padding in the window with padding compression."""


def noise_mel(dims: ModelDims, seed: int = SEED) -> F32:
    """A seeded log-mel window [n_mels, 3000] in the range of real ones (about -1 to 1.5)."""
    drawn = np.random.default_rng(seed).standard_normal((dims.n_mels, N_FRAMES), np.float32)
    mel: F32 = np.clip(drawn * np.float32(0.4), -1, 1.5).astype(np.float32)
    return mel


def verify(
    checkpoint: Checkpoint,
    encoder: PartitionedGraph,
    decoder: PartitionedGraph,
    head: HeadBounds | None = None,
    *,
    vocab: Vocab | None = None,
    precision: Precision = FP32,
    parts: Sequence[int] | None = None,
) -> Parity:
    """Compare an exported engine with its checkpoint.

    Args:
        checkpoint: the exported checkpoint.
        encoder: the encoder graph.
        decoder: the decoder graph.
        head: the output head and its bounds, if the decoder has a two-stage head.
        vocab: vocabulary to decode with; None: random tokens only.
        precision: defines the measure and the tolerances.
        parts: lengths of the parts of padding, if the encoder compresses padding.

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
    require_error_below(
        "cross-attention keys and values", cross_error, precision.cross_tolerance * cross_scale
    )
    if parts is not None:
        _verify_compression(checkpoint, encoder, decoder, parts, precision)
    encoder.close()  # neither the encoder nor the decoder is needed beside the next
    sequences = _sequences(dims)
    found, bound_ratio = _decode_stepwise(decoder, cross, sequences, dims, head)
    decoded = [] if vocab is None else [_decode_greedily(decoder, cross, vocab, dims)]
    found += [_decode_at_once(decoder, cross, tokens, dims)["logits"][0] for tokens in decoded]
    attention = _attention(decoder, cross, sequences[0], dims)
    decoder.close()
    del cross
    expected, alignment = reference.decode(audio, sequences[:1], checkpoint.heads)
    expected += reference.logits(audio, [*sequences[1:], *decoded])
    error, scale = measure(zip(expected, found))
    require_error_below("decoder scores", error, precision.logits_tolerance * scale)
    attention_error, attention_scale = measure(zip(alignment, [attention]))
    require_error_below(
        "attention scores", attention_error, precision.cross_tolerance * attention_scale
    )
    return Parity(
        input=f"seeded noise ({SEED})",
        cross_error=cross_error,
        cross_scale=cross_scale,
        logits_error=error,
        logits_scale=scale,
        attention_error=attention_error,
        attention_scale=attention_scale,
        bound_ratio=bound_ratio,
        openai_whisper=_verify_openai(checkpoint, mel, sequences, found, precision),
        decoded=None if vocab is None else vocab.decode(decoded[0].tolist(), specials=True),
        cross_tolerance=precision.cross_tolerance,
        logits_tolerance=precision.logits_tolerance,
        measure=precision.measure,
    )


def _verify_openai(
    checkpoint: Checkpoint,
    mel: F32,
    sequences: Sequence[Int],
    found: Sequence[F32],
    precision: Precision,
) -> float | None:
    """Error of scores against openai-whisper; None if that is not available.

    Integers have errors a thousand times those of the reference, so it has nothing to add there.
    """
    expected = None if precision.bits else openai_logits(checkpoint, mel, sequences)
    if expected is None:
        return None
    error, scale = MEASURES[precision.measure](zip(expected, found))
    require_error_below("scores against openai-whisper", error, precision.logits_tolerance * scale)
    return error


def verify_packed(
    dims: ModelDims,
    plain: tuple[PartitionedGraph, PartitionedGraph],
    packed: tuple[PartitionedGraph, PartitionedGraph],
    parts: Sequence[int],
) -> dict[str, float]:
    """Compare the graphs with packed keys and values with the plain ones.

    On a seeded noise window with padding, with the prefill and steps of :func:`verify`.

    Returns:
        Relative root mean square errors of keys and values, scores and attention scores.

    Raises:
        VerificationError: an error exceeds :data:`PACKED_TOLERANCE`, or a key has a wrong weight.
    """
    mel = noise_mel(dims, SEED + 1)
    mel[:, _SHORT:] = 0
    encoder_input = PaddingCompression(parts, dims.frames_per_position).compress(mel[None])
    sequences = _sequences(dims)
    found = []
    for encoder, decoder in (plain, packed):
        cross = _encode(encoder, encoder_input)
        encoder.close()  # one graph in memory at a time
        scores, _ = _decode_stepwise(decoder, cross, sequences, dims, None)
        attention = _attention(decoder, cross, sequences[0], dims)[..., : len(encoder_input.counts)]
        decoder.close()
        if "cross_added" in cross:
            require_error_below(
                "packed counts", _count_error(cross["cross_added"], encoder_input), _COUNTS
            )
            cross = unpack_cross(cross, dims)
        found.append((cross, scores, attention))
    names = [f"cross_{kind}_{i}" for i in range(dims.n_text_layer) for kind in ("k", "v")]
    n = len(encoder_input.counts)
    pairs = {
        "cross": [_same_part(found[0][0][name], found[1][0][name], n) for name in names],
        "logits": list(zip(found[0][1], found[1][1])),
        "attention": [(found[0][2], found[1][2])],
    }
    errors = {}
    for name, each in pairs.items():
        error, scale = rms(each)
        require_error_below(f"packed {name}", error, PACKED_TOLERANCE[name] * scale)
        errors[name] = error / scale
    return errors


def _count_error(added: F32, encoder_input: EncoderInput) -> float:
    """Error of the values added to scores; for masked keys relative to ``MASKED``."""
    n = len(encoder_input.counts)
    counts = np.abs(added[:, :n] - np.log(encoder_input.counts)).max()
    return float(max(counts, np.abs(added[:, n:] / MASKED - 1).max(initial=0)))


def _same_part(plain: NDArray, packed: NDArray, n: int) -> tuple[NDArray, NDArray]:
    """Keys [A, H, 65, n] or values [A, H, n, 64], plain and packed, without padding."""
    if plain.shape[2] == n and plain.shape[3] == HEAD_DIM:
        return plain, packed[:, :, :n]
    return plain[:, :, :HEAD_DIM], packed[..., :n]


def unpack_cross(cross: Mapping[str, NDArray], dims: ModelDims) -> dict[str, NDArray]:
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


def _encode(encoder: PartitionedGraph, encoder_input: EncoderInput) -> dict[str, NDArray]:
    feeds = encoder_input.feeds()
    return encoder.run({name: feeds[name] for name in encoder.inputs})


def _verify_compression(
    checkpoint: Checkpoint,
    encoder: PartitionedGraph,
    decoder: PartitionedGraph,
    parts: Sequence[int],
    precision: Precision,
) -> None:
    """Verify padding compression: keys and values of short audio, and scores after a prompt.

    Quantization errors of padding are larger than those of audio (base: 0.21 of the keys and
    values; 0.07 without padding), hence twice the tolerances.
    """
    dims, reference = checkpoint.dims, Reference(checkpoint)
    measure = MEASURES[precision.measure]
    mel = noise_mel(dims, SEED + 1)
    mel[:, _SHORT:] = 0
    encoder_input = PaddingCompression(parts, dims.frames_per_position).compress(mel[None])
    audio = reference.encode_compressed(mel, encoder_input.positions, encoder_input.counts)
    cross = _encode(encoder, encoder_input)
    encoder.close()
    error, scale = _compare_cross(reference, audio, cross, dims, measure)
    require_error_below("keys and values of padding", error, 2 * precision.cross_tolerance * scale)
    tokens = _sequences(dims)[0]
    found = _decode_at_once(decoder, cross, tokens, dims)["logits"]
    decoder.close()
    expected = reference.decode(audio, [tokens], counts=encoder_input.counts)[0]
    error, scale = measure(zip(expected, found))
    require_error_below(
        "decoder scores after padding", error, 2 * precision.logits_tolerance * scale
    )


def _sequences(dims: ModelDims) -> list[Int]:
    """Two token sequences whose prefills differ in length."""
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


def _decode_stepwise(
    decoder: PartitionedGraph,
    cross: dict[str, NDArray],
    sequences: Sequence[Int],
    dims: ModelDims,
    head: HeadBounds | None,
) -> tuple[list[F32], float | None]:
    """Scores [len(sequence), n_vocab] after every token, by a prefill and single steps.

    And, for a two-stage head, the largest error of an approximate score relative to its bound.
    """
    n_seq = len(sequences)
    cache = _empty_cache(n_seq, dims, cross)
    aligned = np.zeros(0, np.int64)
    prefill = np.array([len(sequence) - _STEPS for sequence in sequences], np.int64)
    tokens = np.zeros((n_seq, int(prefill.max())), np.int64)
    for padded, sequence, n in zip(tokens, sequences, prefill.tolist()):
        padded[:n] = sequence[:n]
    # every position of the prefill is requested; the last column is each row's last real token
    at = np.minimum(np.arange(tokens.shape[1])[None], prefill[:, None] - 1)
    start = np.zeros(n_seq, np.int64)
    scores: list[list[F32]] = [[] for _ in sequences]
    ratio = 0.0
    for step in range(_STEPS + 1):
        feeds = {"tokens": tokens, "start": start, "at": at, "aligned": aligned}
        out = decoder.run({**feeds, **_all_columns(decoder, at), **cross, **cache})
        for row, count in enumerate(prefill.tolist() if step == 0 else [1] * n_seq):
            scores[row].extend(out["logits"][row, :count])
        if head is not None:
            ratio = max(ratio, _bound_ratio(head, out))
        cache = {name: out[f"{name}_out"] for name in cache}
        start = prefill + step
        if step < _STEPS:
            tokens = np.array([[sequences[i][start[i]]] for i in range(n_seq)], np.int64)
            at = np.zeros((n_seq, 1), np.int64)
    return [np.stack(rows) for rows in scores], None if head is None else ratio


def _all_columns(decoder: PartitionedGraph, at: Int) -> dict[str, NDArray]:
    """All requested positions in both stages of the head, if the decoder has these inputs."""
    every = np.arange(at.shape[1])
    return {name: every for name in (EXACT, APPROXIMATE) if name in decoder.inputs}


def _bound_ratio(head: HeadBounds, out: dict[str, NDArray]) -> float:
    """The largest error of an approximate score relative to its bound, which it must not exceed."""
    rows = zip(
        *(
            out[name].reshape(-1, out[name].shape[2])
            for name in ("logits", APPROXIMATE_SCORES, HIDDEN)
        )
    )
    ratio = 0.0
    every = np.arange(len(head.error))
    for exact, approximate, hidden in rows:
        error = np.abs(approximate + hidden @ head.mean - exact)
        ratio = max(ratio, float((error / HeadInputs(head, hidden[None]).bounds(0, every)).max()))
    require_error_below("approximate scores, relative to their bounds,", ratio, 1.0)
    return ratio


def _empty_cache(n_seq: int, dims: ModelDims, cross: Mapping[str, NDArray]) -> dict[str, NDArray]:
    shape = (n_seq, dims.n_text_head, 64, HEAD_DIM)
    dtype = np.float32 if "cross_steps" in cross else cross["cross_k_0"].dtype
    return {
        f"self_{kind}_{i}": np.zeros(shape, dtype)
        for i in range(dims.n_text_layer)
        for kind in ("k", "v")
    }


def _decode_greedily(
    decoder: PartitionedGraph, cross: dict[str, NDArray], vocab: Vocab, dims: ModelDims
) -> Int:
    """Prompt of a transcription and the tokens that follow, greedily."""

    def next_scores(tokens: Int) -> F32:
        last = np.array([len(tokens) - 1])
        scores: F32 = _decode_at_once(decoder, cross, tokens, dims, last)["logits"][0, 0]
        return scores

    return greedy_tokens(next_scores, vocab, _GREEDY if len(decoder) == 1 else 0)


def _attention(
    decoder: PartitionedGraph, cross: dict[str, NDArray], tokens: Int, dims: ModelDims
) -> F32:
    """Cross-attention scores [n_heads, n_tokens, n_ctx] of one sequence fed at once."""
    out = _decode_at_once(decoder, cross, tokens, dims, at=np.array([len(tokens) - 1]))
    layers = [out[name][0] for name in out if name.startswith("attention_")]
    return np.concatenate(layers)


def _decode_at_once(
    decoder: PartitionedGraph,
    cross: dict[str, NDArray],
    tokens: Int,
    dims: ModelDims,
    at: Int | None = None,
) -> dict[str, NDArray]:
    """Outputs of the decoder for one sequence fed at once, with scores at ``at`` (default: all)."""
    at = np.arange(len(tokens)) if at is None else at
    feeds = {
        "tokens": tokens[None],
        "start": np.zeros(1, np.int64),
        "at": at[None],
        "aligned": np.arange(len(tokens)),
    }
    columns = _all_columns(decoder, feeds["at"])
    return decoder.run({**feeds, **columns, **cross, **_empty_cache(1, dims, cross)})
