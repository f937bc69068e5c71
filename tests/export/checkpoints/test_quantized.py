from __future__ import annotations

import logging
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from whisper_opt.core.errors import CheckpointError
from whisper_opt.export.checkpoints.blob import Blob, same_values
from whisper_opt.export.checkpoints.quantized import (
    BLOCKS,
    BlockBlob,
    ScaledBlob,
    report_rounding,
)

HALF, LEAST = struct.pack("<e", 0.5), struct.pack("<e", -3.0)
LOW = bytes([0x10 * (15 - i) + i for i in range(16)])  # 0..15, then 15..0
LOW_VALUES = [*range(16), *range(15, -1, -1)]
HIGH = struct.pack("<I", 1 << 0 | 1 << 31)  # the first and the last value have a fifth bit


def test_blocks_by_hand(tmp_path: Path) -> None:
    fifth = [value + 16 * (i in (0, 31)) for i, value in enumerate(LOW_VALUES)]
    cases = {
        "q4_0": (HALF + LOW, [(value - 8) / 2 for value in LOW_VALUES]),
        "q4_1": (HALF + LEAST + LOW, [value / 2 - 3 for value in LOW_VALUES]),
        "q5_0": (HALF + HIGH + LOW, [(value - 16) / 2 for value in fifth]),
        "q5_1": (HALF + LEAST + HIGH + LOW, [value / 2 - 3 for value in fifth]),
        "q8_0": (
            HALF + struct.pack("<32b", *range(-128, 128, 8)),
            [value / 2 for value in range(-128, 128, 8)],
        ),
    }
    assert set(cases) == set(BLOCKS)
    path = tmp_path / "x.bin"
    for kind, (raw, wanted) in cases.items():
        path.write_bytes(b"before" + raw * 3)
        blob = BlockBlob(path, 6, kind, (3, 32))
        assert blob.n_bytes == 3 * len(raw)
        assert blob.read().tolist() == [wanted] * 3
        assert blob.rows(1, 3).read().tolist() == [wanted] * 2
        assert blob.tensor().read().dtype == np.float32


def test_large_arrays_are_read_in_parts(tmp_path: Path) -> None:
    """Beside the result, only a small part of the file is in memory."""
    path, shape = tmp_path / "x.bin", (20_000, 128)
    blob = BlockBlob(path, 0, "q5_1", shape)
    path.write_bytes(bytes(blob.n_bytes - 24) + HALF + LEAST + HIGH + LOW)
    blob.rows(0, 32).read()
    tracemalloc.start()
    try:
        values = blob.read()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert values.nbytes < peak < values.nbytes + 24 * (1 << 20)
    assert not values[:-1].any()
    assert values[-1, -1] == (LOW_VALUES[-1] + 16) / 2 - 3


def test_a_block_that_is_cut(tmp_path: Path) -> None:
    path = tmp_path / "x.bin"
    path.write_bytes(HALF + LOW[:-1])
    with pytest.raises(CheckpointError, match="ends before byte 18; the copy is incomplete"):
        BlockBlob(path, 0, "q4_0", (1, 32)).read()


def scaled(path: Path, scales: list[float]) -> ScaledBlob:
    """Integers [2, 3] and their scales."""
    path.write_bytes(struct.pack(f"<6b{len(scales)}f", -127, 0, 64, 1, 2, 127, *scales))
    shape = (2,) if len(scales) == 2 else ()
    return ScaledBlob(Blob(path, 0, "int8", (2, 3)), Blob(path, 6, "float32", shape))


def test_scales_of_rows_and_of_all(tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    blob = scaled(path, [2.0, 4.0])
    assert blob.read().tolist() == [[-63.5, 0, 32], [0.25, 0.5, 31.75]]
    assert blob.rows(1, 2).read().tolist() == [[0.25, 0.5, 31.75]]
    assert (blob.dtype, blob.shape) == ("int8", (2, 3))
    assert same_values(blob, scaled(path, [2.0, 4.0]))
    blob = scaled(path, [2.0])
    assert blob.rows(1, 2).read().tolist() == [[0.5, 1, 63.5]]


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan"), float("inf")])
def test_scales_that_are_no_numbers(scale: float, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"a scale .* is not a positive number"):
        scaled(tmp_path / "model.bin", [1.0, scale]).read()


def test_report(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    blob = scaled(tmp_path / "model.bin", [2.0])
    with caplog.at_level(logging.WARNING):
        report_rounding("mine", [blob.scales])
        assert not caplog.records
        report_rounding("mine", [blob.scales, blob, blob])
    assert "the weights of mine were rounded to int8" in caplog.text
