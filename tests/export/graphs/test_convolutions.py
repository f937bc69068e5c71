"""16-bit weights of the encoder's convolutions."""

from __future__ import annotations

import numpy as np
import pytest

from whisper_opt.export.graphs.convolutions import (
    COLUMN_LIMIT,
    INPUT_STEPS,
    pack_columns,
    round_columns,
)


def test_sums_fit_32_bits() -> None:
    assert INPUT_STEPS * COLUMN_LIMIT < 2**31


@pytest.mark.parametrize("n_in", [48, 240, 3840])
@pytest.mark.parametrize("kind", ["normal", "equal", "sparse", "zeros"])
def test_columns_are_rounded_within_the_limit(n_in: int, kind: str) -> None:
    rng = np.random.default_rng(n_in)
    weight = rng.standard_normal((n_in, 64)).astype(np.float32)
    if kind == "equal":
        weight = np.sign(weight)
    elif kind == "sparse":
        weight[1:] = 0
    elif kind == "zeros":
        weight[:] = 0
    integers, scale = round_columns(weight)
    assert integers.dtype == np.int16
    assert scale.dtype == np.float32
    sums = np.abs(integers.astype(np.int64)).sum(axis=0)
    assert sums.max() <= COLUMN_LIMIT
    if kind in ("normal", "equal"):  # as fine as the limit allows
        assert sums.min() > 0.9 * min(COLUMN_LIMIT, 32_767 * n_in / 5)
    np.testing.assert_allclose(integers * scale, weight, atol=scale.max() * 0.51, rtol=0)


def test_every_weight_has_its_place() -> None:
    weight = np.arange(96 * 64, dtype=np.int16).reshape(96, 64)
    packed = pack_columns(weight)
    assert packed.shape == (4, 48, 16, 2)
    for row, column in ((0, 0), (1, 0), (95, 63), (40, 17)):
        assert packed[column // 16, row // 2, column % 16, row % 2] == weight[row, column]
