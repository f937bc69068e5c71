"""Graphs without weights that keep decoding on a device: token choice, steps and reordering.

    choose    logits f32 [N, V], ban bool [N, V], timestamp_begin i64 [N]
              -> tokens i64 [N, K], logprobs f32 [N, K]
    advance   logits f32 [N, V], ban bool [N, V], timestamp_begin i64 [N], eot i64 [N],
              tokens i64 [N, 1], previous i64 [N, 1], latest i64 [N], start i64 [N]
              -> tokens_out i64 [N, 1], latest_out i64 [N], start_out i64 [N], logprobs f32 [N]
    reorder   rows i64 [M], self_k_i, self_v_i [N, H, C, 64]
              -> self_k_i_out, self_v_i_out [M, H, C, 64], entry m is old entry rows[m]

``choose`` computes :func:`whisper_opt.core.logits.top_k` (without a repetition penalty) for K =
:data:`CHOICES`. Equal scores come lowest id first. ONNX promises that order of ``TopK`` but
TensorRT does not, so the order of equal scores is computed separately.

``advance`` is one greedy step for rows whose token constraints need no host: ``top_k`` with one
choice after :mod:`whisper_opt.decoding.constraints`. ``ban`` holds the tokens that are never
sampled. The other bans follow from the token just fed, the previous token (``timestamp_begin`` if
there is none) and the latest timestamp (``timestamp_begin - 1`` if there is none). ``advance`` does
not choose the first token of a window. A row that was fed ``eot`` has ended: it returns ``eot``
again and its position stays.
"""

from __future__ import annotations

import numpy as np
from onnx import TensorProto

from whisper_opt.core.arrays import F32
from whisper_opt.core.dims import HEAD_DIM, ModelDims
from whisper_opt.export.graphs.builder import GraphBuilder, OnnxGraph
from whisper_opt.export.graphs.dialects import DIALECTS

__all__ = ["CHOICES", "build_advance", "build_choose", "build_device_graphs", "build_reorder"]

CHOICES = 11
"""Tokens that ``choose`` returns per row: enough for ten beams."""
_LOWEST: F32 = np.array(np.finfo(np.float32).min, np.float32)
"""Score of a banned token: below every score, but above text that the timestamp rule excludes."""
_OUT: F32 = np.array(-np.inf, np.float32)


def _log_sum_exp(builder: GraphBuilder, scores: str) -> str:
    axis = builder.constant([1])
    peak = builder.node("ReduceMax", scores, axis)
    powers = builder.node("Exp", builder.node("Sub", scores, peak))
    return builder.node("Add", peak, builder.node("Log", builder.node("ReduceSum", powers, axis)))


def _column(builder: GraphBuilder, values: str) -> str:
    """[N] as [N, 1]."""
    return builder.node("Unsqueeze", values, builder.constant([1]))


def _candidates(builder: GraphBuilder, ids: str, ban: str) -> str:
    """Scores [N, V] of the candidates; text is excluded if all timestamps together are likelier."""
    low, logits = builder.constant(_LOWEST), "logits"
    scores = builder.node("Where", ban, low, builder.node("Max", logits, low))
    begin = _column(builder, "timestamp_begin")
    text = builder.node("Less", ids, begin)
    best_text = builder.node(
        "ReduceMax", builder.node("Where", text, scores, low), builder.constant([1])
    )
    together = _log_sum_exp(builder, builder.node("Where", text, low, scores))
    win = builder.node("Greater", together, best_text)
    return builder.node("Where", builder.node("And", win, text), builder.constant(_OUT), scores)


def _best(
    builder: GraphBuilder, candidates: str, ids: str, n_vocab: int, k: int
) -> tuple[str, str]:
    """Scores and ids, float32 [N, 2 k] each: the k best in some order, the rest (-inf, n_vocab).

    Tokens above the k-th best score are all among the best. Of the tokens equal to it, the lowest
    ids are taken.
    """
    count, out = builder.constant([k]), builder.constant(_OUT)
    none = builder.constant(np.array(n_vocab, np.float32))
    scores, above = builder.nodes("TopK", [candidates, count], 2)
    edge = builder.node("Slice", scores, *map(builder.constant, ([k - 1], [k], [1])))
    better = builder.node("Greater", scores, edge)
    from_end = builder.node("Sub", none, builder.node("Cast", ids, to=TensorProto.FLOAT))
    equal = builder.node("Equal", candidates, edge)
    zero = builder.constant(np.array(0, np.float32))
    low, _ = builder.nodes("TopK", [builder.node("Where", equal, from_end, zero), count], 2)
    values = builder.node(
        "Concat",
        builder.node("Where", better, scores, out),
        builder.node("Where", builder.node("Greater", low, zero), edge, out),
        axis=1,
    )
    tokens = builder.node(
        "Concat",
        builder.node("Where", better, builder.node("Cast", above, to=TensorProto.FLOAT), none),
        builder.node("Sub", none, low),
        axis=1,
    )
    return values, tokens


def _sorted(builder: GraphBuilder, values: str, tokens: str, k: int) -> tuple[str, str]:
    """The first k of [N, M] pairs by score, best first, then by id: M comparisons each."""

    def at(value: str, axis: int) -> str:
        return builder.node("Unsqueeze", value, builder.constant([axis]))

    higher = builder.node("Greater", at(values, 1), at(values, 2))  # [N, i, j]: j before i
    same = builder.node("Equal", at(values, 1), at(values, 2))
    earlier = builder.node("And", same, builder.node("Less", at(tokens, 1), at(tokens, 2)))
    before = builder.node("Cast", builder.node("Or", higher, earlier), to=TensorProto.FLOAT)
    rank = builder.node("ReduceSum", before, builder.constant([2]))  # [N, M, 1]
    here = builder.node("Equal", rank, builder.constant(np.arange(k, dtype=np.float32)))
    zero, axis = builder.constant(np.array(0, np.float32)), builder.constant([1])
    values, tokens = (
        builder.node("ReduceSum", builder.node("Where", here, at(value, 2), zero), axis, keepdims=0)
        for value in (values, tokens)
    )
    return values, tokens


def build_choose(n_vocab: int, k: int = CHOICES, dialect: str = "standard") -> OnnxGraph:
    """The graph ``choose``: the k best allowed tokens of each row."""
    builder = GraphBuilder("whisper_choose")
    builder.input("logits", TensorProto.FLOAT, ["n_seq", n_vocab])
    builder.input("ban", TensorProto.BOOL, ["n_seq", n_vocab])
    builder.input("timestamp_begin", TensorProto.INT64, ["n_seq"])
    ids = builder.node("Range", *map(builder.constant, (0, n_vocab, 1)))
    candidates = _candidates(builder, ids, "ban")
    values, tokens = _best(builder, candidates, ids, n_vocab, k)
    values, tokens = _sorted(builder, values, tokens, k)
    logprobs = _logprobs(builder, candidates, values)
    tokens = builder.node("Cast", tokens, to=TensorProto.INT64)
    builder.output(tokens, "tokens", TensorProto.INT64, ["n_seq", k])
    builder.output(logprobs, "logprobs", TensorProto.FLOAT, ["n_seq", k])
    return builder.finish(DIALECTS[dialect].opset, DIALECTS[dialect].ir_version)


def _logprobs(builder: GraphBuilder, candidates: str, values: str) -> str:
    """Log-probabilities of ``values``, scores of some candidates; -inf for banned ones."""
    allowed = builder.node("Greater", values, builder.constant(_LOWEST))
    relative = builder.node("Sub", values, _log_sum_exp(builder, candidates))
    return builder.node("Where", allowed, relative, builder.constant(_OUT))


def _banned(builder: GraphBuilder, ids: str, n_vocab: int) -> str:
    """Banned tokens, bool [N, V]: ``ban`` and the timestamp rules.

    The rules are those of :class:`whisper_opt.decoding.constraints.TimestampRules`. A row without
    timestamps has ``timestamp_begin`` n_vocab, so only ``ban`` remains.
    """
    begin, eot, latest = (_column(builder, name) for name in ("timestamp_begin", "eot", "latest"))
    is_time = builder.node("GreaterOrEqual", "tokens", begin)
    after_time = builder.node("GreaterOrEqual", "previous", begin)
    closes = builder.node("And", is_time, after_time)
    opens = builder.node("And", is_time, builder.node("Not", after_time))
    # an opening timestamp may be repeated, other timestamps must grow; none follows a pair
    grown = builder.node("Add", latest, builder.constant(1))
    until = builder.node("Where", opens, latest, grown)
    until = builder.node("Where", closes, builder.constant(n_vocab), until)
    from_begin = builder.node("GreaterOrEqual", ids, begin)
    passed = builder.node("And", from_begin, builder.node("Less", ids, until))
    # a single timestamp is followed by another one or by the end
    text = builder.node("Less", ids, builder.node("Where", opens, eot, builder.constant(0)))
    return builder.node("Or", "ban", builder.node("Or", passed, text))


def build_advance(n_vocab: int, dialect: str = "standard") -> OnnxGraph:
    """The graph ``advance``: one greedy step under the timestamp rules."""
    builder = GraphBuilder("whisper_advance")
    builder.input("logits", TensorProto.FLOAT, ["n_seq", n_vocab])
    builder.input("ban", TensorProto.BOOL, ["n_seq", n_vocab])
    for name in ("timestamp_begin", "eot"):
        builder.input(name, TensorProto.INT64, ["n_seq"])
    for name in ("tokens", "previous"):
        builder.input(name, TensorProto.INT64, ["n_seq", 1])
    for name in ("latest", "start"):
        builder.input(name, TensorProto.INT64, ["n_seq"])
    axis, zero = builder.constant([1]), builder.constant(np.array(0, np.float32))
    ids = builder.node("Range", *map(builder.constant, (0, n_vocab, 1)))
    candidates = _candidates(builder, ids, _banned(builder, ids, n_vocab))
    best = builder.node("ReduceMax", candidates, axis)  # [N, 1]
    # of equal scores the lowest id, the farthest from the end
    count = builder.constant(np.array(n_vocab, np.float32))
    from_end = builder.node("Sub", count, builder.node("Cast", ids, to=TensorProto.FLOAT))
    equal = builder.node("Where", builder.node("Equal", candidates, best), from_end, zero)
    farthest = builder.node("Cast", builder.node("ReduceMax", equal, axis), to=TensorProto.INT64)
    chosen = builder.node("Sub", builder.constant(n_vocab), farthest)
    ended = builder.node("Equal", "tokens", _column(builder, "eot"))
    tokens = builder.node("Where", ended, "tokens", chosen)
    logprobs = builder.node("Where", ended, zero, _logprobs(builder, candidates, best))
    is_time = builder.node("GreaterOrEqual", tokens, _column(builder, "timestamp_begin"))
    latest = builder.node("Where", is_time, tokens, _column(builder, "latest"))
    moved = builder.node("Cast", builder.node("Not", ended), to=TensorProto.INT64)
    flat = {"latest_out": latest, "logprobs": logprobs, "moved": moved}
    flat = {name: builder.node("Squeeze", value, axis) for name, value in flat.items()}
    builder.output(tokens, "tokens_out", TensorProto.INT64, ["n_seq", 1])
    builder.output(flat["latest_out"], "latest_out", TensorProto.INT64, ["n_seq"])
    start = builder.node("Add", "start", flat["moved"])
    builder.output(start, "start_out", TensorProto.INT64, ["n_seq"])
    builder.output(flat["logprobs"], "logprobs", TensorProto.FLOAT, ["n_seq"])
    return builder.finish(DIALECTS[dialect].opset, DIALECTS[dialect].ir_version)


def build_reorder(
    dims: ModelDims, cache_type: int = TensorProto.FLOAT, dialect: str = "standard"
) -> OnnxGraph:
    """The graph ``reorder``: self-attention caches with rows copied, dropped or permuted.

    Args:
        dims: model dimensions.
        cache_type: ONNX type of the decoder's self-attention cache.
        dialect: defines the versions of the operators and of the format.
    """
    builder = GraphBuilder("whisper_reorder")
    rows = builder.input("rows", TensorProto.INT64, ["n_rows"])
    tail = [dims.n_text_head, dims.n_text_ctx, HEAD_DIM]
    for i in range(dims.n_text_layer):
        for kind in ("k", "v"):
            cache = builder.input(f"self_{kind}_{i}", cache_type, ["n_seq", *tail])
            taken = builder.node("Gather", cache, rows, axis=0)
            builder.output(taken, f"self_{kind}_{i}_out", cache_type, ["n_rows", *tail])
    return builder.finish(DIALECTS[dialect].opset, DIALECTS[dialect].ir_version)


def build_device_graphs(
    dims: ModelDims, decoder: OnnxGraph, dialect: str = "standard"
) -> dict[str, OnnxGraph]:
    """All device graphs by file stem, for the cache type of ``decoder``."""
    types = {value.name: value.type.tensor_type.elem_type for value in decoder.model.graph.input}
    return {
        "choose": build_choose(dims.n_vocab, dialect=dialect),
        "advance": build_advance(dims.n_vocab, dialect),
        "reorder": build_reorder(dims, types["self_k_0"], dialect),
    }
