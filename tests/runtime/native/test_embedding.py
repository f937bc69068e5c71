"""The kernel of the embedding against its definition."""

from __future__ import annotations

import numpy as np
import pytest

from tests.support.one_node import embedding_graph, head_constants, head_graph, run, session

pytestmark = pytest.mark.usefixtures("kernels")


@pytest.mark.parametrize("n_vocab", [64, 70, 200])
@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (0, 2), (2, 0)])
def test_rows_are_those_of_the_definition(n_vocab: int, shape: tuple[int, int]) -> None:
    tokens = np.random.default_rng(n_vocab).integers(0, n_vocab, shape)
    model = embedding_graph(80, n_vocab)
    found, expected = (run(session(model, kernels=used), tokens=tokens) for used in (True, False))
    assert found.shape == (*shape, 80)
    np.testing.assert_array_equal(found, expected)


def test_rows_by_hand() -> None:
    held = head_constants(64, 70)
    tokens = np.array([[0, 63, 64, 69]])
    found = run(session(embedding_graph(64, 70), kernels=True), tokens=tokens)
    columns = held["weight"].T[tokens].astype(np.float32)
    expected = columns * held["scale"][tokens][..., None] * held["shrink"] + held["mean"]
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("token", [-1, 70])
def test_a_token_out_of_range(token: int) -> None:
    runner = session(embedding_graph(64, 70), kernels=True)
    with pytest.raises(Exception, match="a token is out of range"):
        run(runner, tokens=np.array([[0, token]]))


def test_a_head_of_engines_before_format_5() -> None:
    hidden = np.random.default_rng(0).standard_normal((2, 3, 64)).astype(np.float32)
    found, expected = (
        run(session(head_graph(64, 70, packed=packed), kernels=True), hidden=hidden)
        for packed in (False, True)
    )
    np.testing.assert_array_equal(found, expected)
