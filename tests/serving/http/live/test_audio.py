"""Audio of messages to samples."""

from __future__ import annotations

import io

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from whisper_opt.serving.http.live.audio import SampleReader


@pytest.mark.parametrize(("encoding", "subtype"), [("mulaw", "ULAW"), ("alaw", "ALAW")])
def test_telephone_codes_are_those_of_libsndfile(encoding: str, subtype: str) -> None:
    codes = bytes(range(256))
    file = io.BytesIO(codes)
    expected, _ = soundfile.read(
        file, dtype="int16", samplerate=8000, channels=1, format="RAW", subtype=subtype
    )
    assert SampleReader(encoding).read(codes)[:, 0].tolist() == expected.tolist()


@given(st.binary(max_size=64), st.lists(st.integers(0, 64), max_size=5), st.integers(1, 3))
@settings(max_examples=50, derandomize=True, deadline=None)
def test_messages_may_end_within_a_sample(data: bytes, cuts: list[int], n_channels: int) -> None:
    reader = SampleReader("linear16", n_channels)
    edges = [0, *sorted(cuts), len(data)]
    parts = [reader.read(data[begin:end]) for begin, end in zip(edges, edges[1:]) if begin <= end]
    rest = data[min(max(edges[:-1]), len(data)) :] if max(edges[:-1]) > len(data) else b""
    found = np.concatenate([*parts, reader.read(rest)])
    n = len(data) // (2 * n_channels)
    expected = np.frombuffer(data[: n * 2 * n_channels], "<i2").reshape(n, n_channels)
    assert found.tolist() == expected.tolist()


def test_what_is_no_number() -> None:
    data = np.array([np.nan, np.inf, -np.inf, 0.5], "<f4").tobytes()
    assert SampleReader("linear32").read(data)[:, 0].tolist() == [0.0, 1.0, -1.0, 0.5]
