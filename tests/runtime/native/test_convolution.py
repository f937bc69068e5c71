"""Kernels of the encoder's convolutions against numpy and against their definition.

Run on the oldest supported Python and ONNX Runtime too, by test_pythons.py.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.runtime.native.test_kernels import extreme, some_rows
from tests.support.one_node import conv_constants, conv_graph, difference, run, session
from whisper_opt.core.arrays import F32, NDArray
from whisper_opt.export.graphs.convolutions import COLUMN_LIMIT, INPUT_STEPS
from whisper_opt.export.verification.reference import gelu

pytestmark = pytest.mark.usefixtures("kernels")

strides = pytest.mark.parametrize("stride", [1, 2])


def by_hand(x: F32, weight: NDArray, constants: dict[str, NDArray], stride: int) -> NDArray:
    """In float64, with inputs rounded as the kernels round them; ``weight`` [3 * C, n_out]."""
    padded = np.pad(x, ((0, 0), (1, 1), (0, 0)))
    rows = np.concatenate([padded[:, i : i + x.shape[1]] for i in range(3)], axis=2)[:, ::stride]
    absmax = np.maximum(np.abs(rows).max(axis=-1, keepdims=True), np.float32(1e-20))
    integers = np.rint(rows * (np.float32(INPUT_STEPS) / absmax)).astype(np.int64)
    product = integers @ weight.astype(np.int64)
    steps = (absmax / np.float32(INPUT_STEPS)).astype(np.float64)
    found: NDArray = gelu(product * steps * constants["scale"] + constants["bias"])
    return found


@strides
@pytest.mark.parametrize(("n_channels", "n_out"), [(16, 64), (80, 128), (128, 64)])
def test_against_numpy(n_channels: int, n_out: int, stride: int) -> None:
    weight, constants = conv_constants(n_channels, n_out)
    model = conv_graph(n_channels, n_out, stride)
    one, two = (session(model, kernels=True, threads=threads) for threads in (1, 2))
    for n_audio, n_frames in ((1, 1), (1, 2), (2, 7), (3, 50), (1, 301)):
        x = some_rows((n_audio, n_frames, n_channels), n_frames)
        found = run(one, x=x)
        assert found.shape == (n_audio, -(-n_frames // stride), n_out)
        np.testing.assert_allclose(
            found, by_hand(x, weight, constants, stride), rtol=2e-6, atol=2e-6
        )
        np.testing.assert_array_equal(found, run(two, x=x))
        np.testing.assert_array_equal(found[-1:], run(one, x=x[-1:].copy()))


@strides
def test_against_its_definition(stride: int) -> None:
    """Which does not round inputs."""
    model = conv_graph(80, 128, stride)
    plain, own = (session(model, kernels=kernels) for kernels in (False, True))
    for n_frames in (1, 2, 100):
        x = some_rows((2, n_frames, 80), n_frames)
        assert difference(run(own, x=x), run(plain, x=x)) < 1e-3


@strides
@pytest.mark.parametrize("name", extreme(16))
def test_extreme_frames(name: str, stride: int) -> None:
    weight, constants = conv_constants(16, 64)
    x = np.stack([extreme(16)[name], *np.eye(2, 16, dtype=np.float32)])[None]
    found = run(session(conv_graph(16, 64, stride), kernels=True), x=x)
    expected = by_hand(x, weight, constants, stride)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("n_channels", [16, 512])
def test_the_largest_sums(n_channels: int) -> None:
    """All inputs at the last step, all weights of a sign, as large as a column may be."""
    n_in = 3 * n_channels
    weight = np.full((n_in, 64), min(COLUMN_LIMIT // n_in, 32_767), np.int16)
    weight[:, 1::2] *= -1
    ones = {"scale": np.full(64, 2.0**-20, np.float32), "bias": np.zeros(64, np.float32)}
    runner = session(conv_graph(n_channels, 64, 1, weight=weight, **ones), kernels=True)
    for sign in (1, -1):
        x = np.full((1, 9, n_channels), INPUT_STEPS * sign, np.float32)
        np.testing.assert_allclose(run(runner, x=x), by_hand(x, weight, ones, 1), rtol=1e-6)


@pytest.mark.parametrize("fault", [np.nan, -np.nan, np.inf, -np.inf])
@strides
def test_nan_and_infinity_stay_visible(fault: float, stride: int) -> None:
    """In the positions that read the frame; all others do not change."""
    runner = session(conv_graph(16, 64, stride), kernels=True)
    x = some_rows((2, 60, 16), 0)
    unchanged = run(runner, x=x)
    x[1, 30, 5] = fault
    found = run(runner, x=x)
    affected = np.zeros((2, 60 // stride), np.bool_)
    affected[1, 30 // stride - (stride == 1) : 31 // stride + 1] = True
    assert not np.isfinite(found[affected]).any()
    np.testing.assert_array_equal(found[~affected], unchanged[~affected])


def test_no_frames_are_no_error() -> None:
    for stride in (1, 2):
        runner = session(conv_graph(16, 64, stride), kernels=True)
        assert run(runner, x=np.zeros((2, 0, 16), np.float32)).shape == (2, 0, 64)
        assert run(runner, x=np.zeros((0, 8, 16), np.float32)).shape == (0, 8 // stride, 64)


def test_wrong_shapes_are_refused() -> None:
    x = np.ones((1, 4, 16), np.float32)
    weight, constants = conv_constants(16, 64)
    changed: tuple[dict[str, Any], ...] = (
        {"weight": weight[:32]},
        {"scale": constants["scale"][:32]},
        {"bias": constants["bias"][:32]},
    )
    for wrong in changed:
        with pytest.raises(Exception, match="x, weight, scale and bias do not match"):
            run(session(conv_graph(16, 64, 1, **wrong), kernels=True), x=x)
    with pytest.raises(Exception, match="x, weight, scale and bias do not match"):
        run(session(conv_graph(16, 64, 1), kernels=True), x=np.ones((1, 4, 32), np.float32))
    for n_channels, n_out in ((8, 64), (16, 32), (2064, 64)):
        runner = session(conv_graph(n_channels, n_out, 1), kernels=True)
        with pytest.raises(Exception, match="a convolution needs a multiple of 16 channels"):
            run(runner, x=np.ones((1, 4, n_channels), np.float32))
