"""Contract of the sessions of every backend, including the fake one.

Random programs, which also compare the backends with each other, are in ``test_programs.py``. The
expected scores come from the backend itself: one audio and one row in a new session, with all
tokens fed at once. ``tests/export/graphs/test_graph_parity.py`` compares them with the checkpoint.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from tests.support.backend_subjects import BACKENDS, DIMS, N_CTX, TOLERANCE, make_backend, mels, pad
from tests.support.conformance import ExpectedScores, Fed, Rows, close, draw, last, opened
from whisper_opt.core.backend import Backend, TokenMask
from whisper_opt.core.errors import EngineError
from whisper_opt.core.logits import top_k
from whisper_opt.runtime.onnxruntime.session import CAPACITIES


@pytest.fixture(scope="module", params=BACKENDS)
def backend(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Backend:
    return make_backend(request.param, tmp_path_factory.mktemp("engine") / request.param)


def test_encoding_counts_windows(backend: Backend) -> None:
    assert backend.dims == DIMS
    for n_audio in (1, 3):
        assert len(backend.encode(mels(n_audio))) == n_audio


def test_other_audios_and_tokens_give_other_scores(backend: Backend) -> None:
    """So that the other tests would detect mixed-up rows."""
    expected_scores = ExpectedScores(backend, 2)
    (tokens,) = draw(1, 12)
    other = np.concatenate([tokens[:1] ^ 1, tokens[1:]])
    assert (
        np.abs(expected_scores(0, tokens) - expected_scores(1, tokens)).max(axis=1).min()
        > 100 * TOLERANCE
    )
    assert (
        np.abs(expected_scores(0, tokens) - expected_scores(0, other)).max(axis=1).min()
        > 100 * TOLERANCE
    )


def test_a_batch_equals_single_rows(backend: Backend) -> None:
    expected_scores = ExpectedScores(backend, 3)
    sequences = draw(2, 6, 6, 6)
    session = opened(backend, 3)
    tokens = np.stack(sequences)
    found = session.extend(tokens[:, :4], at=np.tile(np.arange(3), (3, 1))).numpy().copy()
    assert found.shape == (3, 4, DIMS.n_vocab)
    assert found.dtype == np.float32
    for audio, sequence in enumerate(sequences):
        close(found[audio], expected_scores(audio, sequence)[:4])
    for step in (4, 5):
        found = last(session, tokens[:, step : step + 1])
        for audio, sequence in enumerate(sequences):
            close(found[audio], expected_scores(audio, sequence)[step])


@pytest.mark.parametrize("cuts", [[1], [3], [3, 4], [1, 2, 3, 4, 5, 6, 7, 8, 9], [2, 8]])
def test_a_cache_changes_nothing(backend: Backend, cuts: list[int]) -> None:
    expected_scores = ExpectedScores(backend, 1)
    (tokens,) = draw(3, 10)
    session = opened(backend, 1)
    for begin, end in zip([0, *cuts], [*cuts, len(tokens)]):
        at = np.arange(end - begin - 1)[None]
        found = session.extend(tokens[None, begin:end], at=at).numpy()
        assert found.shape[1] == end - begin
        close(found[0], expected_scores(0, tokens)[begin:end])


def test_ragged_prompts_equal_single_ones(backend: Backend) -> None:
    expected_scores = ExpectedScores(backend, 4)
    sequences = draw(4, 9 + 3, 1 + 3, 5 + 3, 9 + 3)
    prompts = [sequence[:-3] for sequence in sequences]
    session = opened(backend, 4)
    found = last(session, *pad(prompts))
    for audio, prompt in enumerate(prompts):
        close(found[audio], expected_scores(audio, sequences[audio])[len(prompt) - 1])
    for step in range(3):  # the padding was never there
        found = last(session, [[sequence[step - 3]] for sequence in sequences])
        for audio, (prompt, sequence) in enumerate(zip(prompts, sequences)):
            close(found[audio], expected_scores(audio, sequence)[len(prompt) + step])


def test_ragged_tokens_on_top_of_a_ragged_past(backend: Backend) -> None:
    expected_scores = ExpectedScores(backend, 3)
    sequences = draw(5, 20, 20, 20)
    held = [0, 0, 0]
    session = opened(backend, 3)
    for lengths in ([5, 2, 7], [1, 6, 3], [1, 1, 1], [4, 4, 4], [2, 1, 1]):
        new = [sequences[i][held[i] : held[i] + n] for i, n in enumerate(lengths)]
        found = last(session, *pad(new))
        held = [n + more for n, more in zip(held, lengths)]
        for audio, sequence in enumerate(sequences):
            close(found[audio], expected_scores(audio, sequence)[held[audio] - 1])


@pytest.mark.parametrize("past", [0, 3])
def test_wanted_positions_equal_shorter_prefixes(backend: Backend, past: int) -> None:
    expected_scores = ExpectedScores(backend, 2)
    sequences = draw(6, past + 8, past + 5)
    session = opened(backend, 2)
    if past:
        last(session, [sequence[:past] for sequence in sequences])
    tokens, lengths = pad([sequence[past:] for sequence in sequences])
    at = np.array([[7, 0, 3, 3], [4, 2, 0, 1]])  # any order, twice, the last one too
    found = session.extend(tokens, lengths, at).numpy()
    assert found.shape == (2, 5, DIMS.n_vocab)
    for audio, sequence in enumerate(sequences):
        wanted = [*at[audio], lengths[audio] - 1]
        for column, index in enumerate(wanted):
            prefix = sequence[: past + index + 1]
            close(found[audio, column], expected_scores(audio, prefix)[-1])


def test_more_positions_wanted_than_tokens_fed(backend: Backend) -> None:
    """Rows of different lengths request different positions, so that no two columns are equal."""
    rows = Rows(backend, 3)
    rows.extend([2, 2, 1], np.array([[1, 0], [0, 1], [0, 0]]))
    rows.step()


def test_an_identity_gather_changes_nothing(backend: Backend) -> None:
    rows = Rows(backend, 3)
    rows.extend([4, 2, 3])
    rows.gather(0, 1, 2)
    rows.step()
    rows.gather(0, 0, 1, 2, 2, 2)
    rows.gather(*range(6))
    rows.step(2)
    rows.gather(*range(6))
    rows.extend([2, 1, 3, 1, 2, 2])


@pytest.mark.parametrize(
    "gathers",
    [
        [(2, 0, 1)],  # a permutation of audios
        [(0, 0, 0, 1, 1, 1, 2, 2, 2)],  # equal groups
        [(0, 0, 1, 2, 2, 2, 2)],  # unequal groups
        [(0, 1, 0, 2, 1, 0)],  # rows of an audio need not be adjacent
        [(0, 0, 1, 1), (3, 1, 0, 2)],  # an audio is removed, rows cross
        [(0, 0, 0, 1, 1, 1, 2, 2, 2), (1, 1, 0, 5, 3, 4, 8, 8, 8)],  # beams reordered
        [(0, 0, 0, 1, 1, 1, 2, 2, 2), (2, 5, 8)],  # back to one each
        [(2,)],  # two audios are removed
        [(1, 1, 1)],
        [(0, 2), (1,), (0, 0)],
        [(0, 0, 1, 1, 2, 2), (0, 1, 4, 5), (2, 3, 0), (1, 1, 2)],
        [(0, 1, 2, 2), (0, 1, 2), (2, 1, 0), (1, 0)],
    ],
)
@pytest.mark.parametrize("steps", [0, 2])
def test_gather(backend: Backend, gathers: list[tuple[int, ...]], steps: int) -> None:
    rows = Rows(backend, 3)
    rows.extend([3, 5, 2])
    for chosen in gathers:
        rows.gather(*chosen)
        rows.step(steps)
    rows.extend([1 + i % 3 for i in range(len(rows.held))])
    rows.step()


def test_beams_change_slots_repeatedly(backend: Backend) -> None:
    rows = Rows(backend, 2)
    rows.extend([3, 2])
    rows.gather(0, 0, 0, 1, 1, 1)
    for chosen in ((1, 0, 2, 5, 4, 3), (2, 0, 1, 4, 3, 3), (1, 0, 0, 4, 5, 3), (0, 2, 1, 3, 5, 4)):
        rows.step()
        rows.gather(*chosen)
    rows.step(2)


def test_gather_before_the_first_tokens(backend: Backend) -> None:
    rows = Rows(backend, 3)
    rows.gather(2, 2, 0)
    rows.extend([3, 1, 4])
    rows.step(2)


def test_audios_are_removed_one_by_one(backend: Backend) -> None:
    rows = Rows(backend, 5)
    rows.extend([2, 3, 1, 4, 2])
    rows.gather(0, 0, 1, 2, 2, 2, 3, 4, 4)
    for leaving in (1, 0, 4, 2):
        rows.step()
        rows.gather(*(i for i, (audio, _) in enumerate(rows.held) if audio != leaving))
    rows.step(2)
    assert [audio for audio, _ in rows.held] == [3]


OUTGROWN = sorted({size for sizes in CAPACITIES.values() for size in sizes[:-1]})


@pytest.mark.parametrize("first", [1, *(capacity - 1 for capacity in OUTGROWN)])
def test_growing_past_a_capacity_changes_nothing(backend: Backend, first: int) -> None:
    rows = Rows(backend, 2, seed=first)
    rows.extend([first, max(first - 40, 1)])
    rows.step(4)
    rows.gather(0, 1, 0)
    rows.extend([70, 2, 66])
    rows.step(2)


def test_the_whole_context_can_be_used(backend: Backend) -> None:
    rows = Rows(backend, 2)
    rows.extend([N_CTX - 3, 5])
    rows.step(2)
    rows.extend([1, 20])  # the padded row is full, the other is not
    assert len(rows.held[0][1]) == N_CTX
    rows.gather(1)
    rows.step()


@pytest.mark.parametrize("new", [(2, 1), (40, 3), (1, N_CTX)])
def test_outgrowing_the_context_is_refused(backend: Backend, new: tuple[int, int]) -> None:
    rows = Rows(backend, 2)
    rows.extend([N_CTX - 1, 7])
    tokens, lengths = pad(draw(8, *new))
    with pytest.raises(EngineError, match=rf"would grow to \d+ tokens; the model holds {N_CTX}"):
        rows.session.extend(tokens, lengths)
    rows.step()  # nothing was fed


def test_a_prompt_longer_than_the_context_is_refused(backend: Backend) -> None:
    session = opened(backend, 1)
    with pytest.raises(EngineError, match=f"would grow to {N_CTX + 1} tokens"):
        session.extend(np.zeros((1, N_CTX + 1), np.int64))


def test_sessions_do_not_share_anything(backend: Backend) -> None:
    expected_scores = ExpectedScores(backend, 2)
    encoded = backend.encode(mels(2))
    sequences = draw(9, 5, 5)
    one, two = backend.open(encoded), backend.open(encoded)
    last(one, [sequence[:3] for sequence in sequences])
    last(two, [sequence[:2][::-1] for sequence in sequences])
    two.gather(np.array([1]))
    two.close()
    found = last(one, [sequence[3:] for sequence in sequences])
    for audio, sequence in enumerate(sequences):
        close(found[audio], expected_scores(audio, sequence)[-1])
    three = backend.open(encoded)
    found = last(three, np.stack(sequences))
    for audio, sequence in enumerate(sequences):
        close(found[audio], expected_scores(audio, sequence)[-1])


def test_closing_twice_is_closing(backend: Backend) -> None:
    session = opened(backend, 1)
    last(session, [[1, 2]])
    session.close()
    session.close()
    fresh = opened(backend, 1)
    fresh.close()  # nothing was fed


def test_the_best_tokens_equal_the_reference_implementation(backend: Backend) -> None:
    session = opened(backend, 3)
    logits = session.extend(*pad(draw(10, 4, 2, 3)))
    scores = logits.numpy()[:, -1]
    rng = np.random.default_rng(0)
    mask = TokenMask(
        rng.random((3, DIMS.n_vocab)) < 0.3, np.array([400, DIMS.n_vocab, 400], np.int64)
    )
    for k in (1, 5):
        found, expected = logits.top(k, mask), top_k(scores, k, mask)
        np.testing.assert_array_equal(found.tokens, expected.tokens)
        close(found.logprobs, expected.logprobs)


def test_audio_of_another_backend_is_refused(backend: Backend) -> None:
    class Foreign:
        def __len__(self) -> int:
            return 1

        def take(self, audios: Sequence[int]) -> Foreign:
            return self

    with pytest.raises(EngineError, match=r"encoded by another backend \(Foreign\)"):
        backend.open(Foreign())


# --- append -------------------------------------------------------------------------------------


def test_appended_rows_have_the_scores_of_single_rows(backend: Backend) -> None:
    expected_scores = ExpectedScores(backend, 4)
    rows = Fed(backend, expected_scores, [0, 1], 20)
    rows.step(1)
    rows.append(Fed(backend, expected_scores, [2, 3], 21))
    rows.step(2)
    rows.gather(3, 0)
    rows.step(3)
    rows.append(Fed(backend, expected_scores, [1], 22))
    rows.step(4)


def test_appended_hypotheses_keep_their_audio(backend: Backend) -> None:
    expected_scores = ExpectedScores(backend, 4)
    rows = Fed(backend, expected_scores, [0], 23)
    rows.gather(0, 0, 0)
    rows.step(1)
    other = Fed(backend, expected_scores, [3, 2], 24)
    other.gather(0, 0, 1)
    rows.append(other)
    rows.step(2)
    rows.gather(2, 2, 5, 4, 3)
    rows.step(3)
    rows.append(Fed(backend, expected_scores, [1, 1], 25))
    rows.step(4)


def test_sessions_do_not_change_encoded_audio(backend: Backend) -> None:
    """Encoded audio is reused at the next temperature, so sessions must not write to it."""
    expected_scores = ExpectedScores(backend, 4)
    encoded = backend.encode(mels(4)).take([0, 1])
    (tokens,) = draw(26, 5)
    for _ in range(2):
        session = backend.open(encoded)
        close(last(session, [tokens, tokens])[1], expected_scores(1, tokens)[-1])
        session.append(Fed(backend, expected_scores, [2], 27).session)
        session.gather(np.array([2, 1]))
        session.append(Fed(backend, expected_scores, [3, 0], 28).session)
        last(session, [[1], [2], [3], [4]])
        session.gather(np.array([3]))
        last(session, [[1]])
        session.close()


def test_only_sessions_of_the_same_backend_join(backend: Backend) -> None:
    class Other:
        pass

    session = opened(backend, 1)
    with pytest.raises(EngineError, match="session"):
        session.append(Other())  # type: ignore[arg-type]


# --- attention ----------------------------------------------------------------------------------


def test_attention_of_a_batch_equals_single_audios(backend: Backend) -> None:
    encoded = backend.encode(mels(3))
    sequences = draw(40, 9, 4, 6)
    tokens, lengths = pad(sequences)
    together = backend.attention(encoded, tokens, lengths)
    assert together.scores.shape[0] == 3
    assert together.scores.shape[2] == tokens.shape[1]
    assert together.logits.shape == (*tokens.shape, DIMS.n_vocab)
    expected_scores = ExpectedScores(backend, 3)
    for audio, sequence in enumerate(sequences):
        n = len(sequence)
        alone = backend.attention(encoded.take([audio]), sequence[None], np.array([n]))
        close(alone.scores[0], together.scores[audio, :, :n])
        close(together.logits[audio, :n], expected_scores(audio, sequence))


def test_attention_differs_between_audios_and_tokens(backend: Backend) -> None:
    encoded = backend.encode(mels(2))
    (tokens,) = draw(41, 8)
    changed = tokens.copy()
    changed[2] ^= 1
    both = np.stack([tokens, tokens])
    scores = backend.attention(encoded, both, np.array([8, 8])).scores
    other = backend.attention(encoded, np.stack([changed, changed]), np.array([8, 8])).scores
    assert np.abs(scores[0] - scores[1]).max() > 100 * TOLERANCE
    close(other[:, :, :2], scores[:, :, :2])
    assert np.abs(other[:, :, 2:] - scores[:, :, 2:]).max() > 100 * TOLERANCE


def test_attention_past_the_context_is_refused(backend: Backend) -> None:
    tokens = np.zeros((1, N_CTX + 1), np.int64)
    with pytest.raises(EngineError, match=f"the model holds {N_CTX}"):
        backend.attention(backend.encode(mels(1)), tokens, np.array([N_CTX + 1]))


@pytest.mark.parametrize("dropped", [(1, 0, 2), (3, 1, 4), (0, 0, 0), (2, 2, 2)])
def test_truncated_rows_forget_their_last_tokens(
    backend: Backend, dropped: tuple[int, ...]
) -> None:
    rows = Rows(backend, 3)
    rows.extend([5, 3, 6])
    rows.extend([4, 1, 5], np.array([[0, 1, 2, 3], [0, 0, 0, 0], [4, 2, 0, 1]]))
    rows.truncate(*dropped)
    rows.step()
    rows.extend([2, 6, 1])
    rows.gather(2, 0, 1)
    rows.truncate(*dropped)
    rows.gather(0, 0, 1, 2, 2, 2)
    rows.extend([3, 1, 2, 1, 1, 4])
    rows.truncate(3, 0, 1, 1, 0, 2)
    rows.step()
