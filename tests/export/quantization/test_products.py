"""Single products in 8 and 4 bits against numpy."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto

from tests.support.models import as_tensor
from whisper_opt.core.arrays import F32
from whisper_opt.export.graphs.builder import GraphBuilder
from whisper_opt.export.graphs.operators import GELU_MIN, GELU_ZERO_POINT
from whisper_opt.export.graphs.precision import INT4, INT8
from whisper_opt.export.quantization.activation_stats import ActivationStats
from whisper_opt.export.quantization.int4 import BLOCK, Int4Linear, pack_int4, unpack_int4
from whisper_opt.export.quantization.int8 import (
    FOUR_LIMIT,
    Int8Linear,
    largest_fours,
    round_columns,
)
from whisper_opt.export.quantization.smoothing import smooth
from whisper_opt.export.verification.reference import gelu
from whisper_opt.export.writer import write_graph
from whisper_opt.runtime.onnxruntime.graph import session_options

RNG = np.random.default_rng(3)
GAIN = np.exp(RNG.standard_normal(64)).astype(np.float32) * 3


def random_tensors(n_in: int, n_out: int, name: str) -> dict[str, Any]:
    weight = RNG.standard_normal((n_out, n_in)).astype(np.float32)
    bias = RNG.standard_normal(n_out).astype(np.float32)
    found = {f"{name}.weight": as_tensor(weight), f"{name}.bias": as_tensor(bias)}
    block = name.rsplit(".", 2)[0]
    for norm in ("mlp_ln", "attn_ln", "cross_attn_ln"):
        for part in ("weight", "bias"):
            values = RNG.standard_normal(n_in).astype(np.float32)
            found[f"{block}.{norm}.{part}"] = as_tensor(values)
    return found


def run_product(
    folder: Path,
    make: Callable[[GraphBuilder], Callable[[str, str], str]],
    name: str,
    value: F32,
) -> F32:
    """The output of a graph of one product for ``value``."""
    builder = GraphBuilder("one")
    builder.input("x", TensorProto.FLOAT, ["m", value.shape[1]])
    product = make(builder)("x", name)
    builder.output(product, "y", TensorProto.FLOAT, ["m", "n"])
    write_graph(builder.finish(20, 10), folder, "one", lambda _: None)
    options = session_options()  # exact sums on every processor
    session = onnxruntime.InferenceSession(
        str(folder / "one.onnx"), options, providers=["CPUExecutionProvider"]
    )
    found: F32 = session.run(None, {"x": value})[0]
    return found


def by_row(value: F32, weight: F32, steps: int, zero: int, absmax: F32) -> F32:
    """The integer product of rows that were divided by ``absmax``."""
    columns, scale = round_columns(np.ascontiguousarray(weight.T))
    step = np.float32(1 / steps)
    integers = np.clip(np.rint((value / absmax) / step) + zero, 0, 255).astype(np.int64) - zero
    product: F32 = (integers @ columns.astype(np.int64)).astype(np.float32) * (step * scale)
    return product * absmax


def test_sums_of_four_products_fit_16_bits() -> None:
    """In int8 they do not."""
    weight = RNG.standard_normal((384, 70)).astype(np.float32)
    weight[:8, 0] = [0, 0, 1, 1, 0, 0, 1, 1]  # inputs 2, 3, 6 and 7 are summed
    plain, _ = round_columns(weight)
    assert (largest_fours(plain.astype(np.int64)) > FOUR_LIMIT).all()
    integers, scale = round_columns(weight, four_fit=True)
    assert largest_fours(integers.astype(np.int64)).max() <= FOUR_LIMIT
    assert np.abs(integers * scale - weight).max() <= 0.501 * scale.max()


def test_weights_that_cannot_be_divided_by_eight_inputs() -> None:
    integers, scale = round_columns(np.full((4, 1), 3, np.float32), four_fit=True)
    np.testing.assert_array_equal(integers, 64)
    assert scale == np.float32(3 / 64)


def test_rows_are_quantized_independently(tmp_path: Path) -> None:
    name = "decoder.blocks.0.attn.out"
    tensors = random_tensors(64, 96, name)
    value = (RNG.standard_normal((7, 64)) * 10.0 ** np.arange(-3, 4)[:, None]).astype(np.float32)
    found = run_product(tmp_path, lambda b: Int8Linear(b, tensors, INT8, {}), name, value)
    weight, bias = tensors[f"{name}.weight"].read(), tensors[f"{name}.bias"].read()
    absmax = np.abs(value).max(axis=1, keepdims=True)
    expected = by_row(value, weight, 127, 128, absmax) + bias
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    exact = value @ weight.T
    error = np.linalg.norm(found - bias - exact, axis=1) / np.linalg.norm(exact, axis=1)
    assert (error < 0.03).all()  # of small rows as of large ones
    assert (error > 1e-4).all()


def test_a_row_of_zeros_is_no_division_by_zero(tmp_path: Path) -> None:
    name = "decoder.blocks.0.attn.out"
    tensors = random_tensors(64, 96, name)
    value = np.zeros((2, 64), np.float32)
    found = run_product(tmp_path, lambda b: Int8Linear(b, tensors, INT8, {}), name, value)
    np.testing.assert_array_equal(found, np.stack([tensors[f"{name}.bias"].read()] * 2))


def test_after_a_gelu_zero_is_near_the_lower_end(tmp_path: Path) -> None:
    name = "encoder.blocks.0.mlp.2"
    tensors = random_tensors(128, 96, name)
    before = RNG.standard_normal((9, 128)).astype(np.float32) * 3
    before[0] = -0.75  # the least value of a GELU everywhere
    value, residual = gelu(before), RNG.standard_normal(96).astype(np.float32)

    def make(builder: GraphBuilder) -> Callable[[str, str], str]:
        linear, other = Int8Linear(builder, tensors, INT8, {}), builder.constant(residual)
        return lambda x, name: linear.gelu_linear_add(other, x, name, lambda *_: "unused")

    found = run_product(tmp_path, make, name, before) - residual
    weight, bias = tensors[f"{name}.weight"].read(), tensors[f"{name}.bias"].read()
    steps = 255 - GELU_ZERO_POINT
    least = np.float32(GELU_MIN * steps / GELU_ZERO_POINT)
    absmax = np.maximum(value.max(axis=1, keepdims=True), least)
    expected = by_row(value, weight, steps, GELU_ZERO_POINT, absmax) + bias
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-4)
    exact = value @ weight.T + bias
    assert np.linalg.norm(found - exact) < 0.01 * np.linalg.norm(exact)


def smoothing_case(name: str) -> tuple[dict[str, Any], F32, ActivationStats]:
    """Tensors, a normalized value and its statistics, with a mean and large channels."""
    tensors = random_tensors(64, 96, name)
    norm = f"{name.rsplit('.', 2)[0]}.mlp_ln"
    gain, shift = GAIN, 5 * GAIN
    tensors[f"{norm}.weight"], tensors[f"{norm}.bias"] = as_tensor(gain), as_tensor(shift)
    rows = RNG.standard_normal((50, 64)).astype(np.float32)
    rows = (rows - rows.mean(axis=1, keepdims=True)) / rows.std(axis=1, keepdims=True)
    value = rows * gain + shift
    mean = value.mean(axis=0)
    return tensors, rows, ActivationStats(mean, np.abs(value - mean).max(axis=0))


@pytest.mark.parametrize("block", ["encoder.blocks.0", "decoder.blocks.0"])
def test_smoothing_is_exact_but_for_rounding(block: str, tmp_path: Path) -> None:
    name = f"{block}.mlp.0"
    tensors, rows, input_stats = smoothing_case(name)
    builder = GraphBuilder("norm")
    linear = Int8Linear(builder, tensors, INT8, {name: input_stats})
    linear.norm(f"{block}.mlp_ln")
    gain, shift = (weight.read() for weight in builder.finish(20, 10).weights)
    # the output of the graph's own normalization
    value = (rows * gain + shift).astype(np.float32)
    assert np.abs(value.mean(axis=0)).max() < 0.1 * np.abs(value).max()
    found = run_product(
        tmp_path, lambda b: Int8Linear(b, tensors, INT8, {name: input_stats}), name, value
    )
    plain = rows * GAIN + 5 * GAIN
    weight, bias = tensors[f"{name}.weight"].read(), tensors[f"{name}.bias"].read()
    exact = plain @ weight.T + bias
    error = np.linalg.norm(found - exact) / np.linalg.norm(exact - exact.mean(axis=0))
    absmax = np.abs(plain).max(axis=1, keepdims=True)
    naive = by_row(plain, weight, 127, 128, absmax) + bias
    naive_error = np.linalg.norm(naive - exact) / np.linalg.norm(exact - exact.mean(axis=0))
    assert error < 0.025
    assert error < naive_error / 2


def test_no_input_is_out_of_range(tmp_path: Path) -> None:
    """A row ten times as large as at export is quantized as well as others."""
    name = "encoder.blocks.1.mlp.0"
    tensors, rows, input_stats = smoothing_case(name)
    make = functools.partial(Int8Linear, tensors=tensors, types=INT8, stats={name: input_stats})
    smoothing = smooth(input_stats, np.abs(tensors[f"{name}.weight"].read()).max(axis=0))
    value = 10 * ((rows * GAIN + 5 * GAIN - smoothing.mean) / smoothing.scale).astype(np.float32)
    found = run_product(tmp_path, make, name, value)
    weight, bias = tensors[f"{name}.weight"].read(), tensors[f"{name}.bias"].read()
    exact = (value * smoothing.scale + smoothing.mean) @ weight.T + bias
    assert np.linalg.norm(found - exact) < 0.03 * np.linalg.norm(exact)


def test_smoothing_scales_are_powers_of_two() -> None:
    input_stats = ActivationStats(np.zeros(64, np.float32), GAIN)
    smoothing = smooth(input_stats, np.abs(RNG.standard_normal(64)).astype(np.float32))
    np.testing.assert_array_equal(np.exp2(np.rint(np.log2(smoothing.scale))), smoothing.scale)


def test_int4_round_trip() -> None:
    weight = RNG.standard_normal((70, 4 * BLOCK)).astype(np.float32)
    weight[3] = 0
    packed, steps = pack_int4(weight)
    assert packed.dtype == np.uint8
    assert (packed.shape, steps.shape) == ((70, 4, 16), (70, 4))
    back = unpack_int4(packed, steps)
    assert np.linalg.norm(back - weight) < 0.11 * np.linalg.norm(weight)
    np.testing.assert_array_equal(back[3], 0)
    again = unpack_int4(*pack_int4(back))
    np.testing.assert_allclose(again, back, rtol=1e-5, atol=1e-6)


def test_an_int4_product_is_that_of_numpy(tmp_path: Path) -> None:
    name = "decoder.blocks.0.attn.out"
    tensors = random_tensors(64, 96, name)
    value = RNG.standard_normal((5, 64)).astype(np.float32)
    found = run_product(tmp_path, lambda b: Int4Linear(b, tensors, INT4), name, value)
    weight = unpack_int4(*pack_int4(tensors[f"{name}.weight"].read()))
    expected = value @ weight.T + tensors[f"{name}.bias"].read()
    # the rest is the error of the input's 8 bits
    assert np.linalg.norm(found - expected) < 0.01 * np.linalg.norm(expected)
