"""The comparison of plans with their ONNX engine finds faults of plans."""

from __future__ import annotations

import dataclasses
from typing import Any, Callable

import numpy as np
import pytest

from tests.support.cpu_executor import CpuExecutor
from tests.support.engines import random_engine
from tests.support.models import random_dims, tokenizer_json
from whisper_opt.core.arrays import F32, Int
from whisper_opt.core.backend import (
    Attention,
    Encoded,
    GreedyRows,
    Logits,
    MultiStepResult,
    Session,
    TokenMask,
    Top,
)
from whisper_opt.core.interruption import Interruption
from whisper_opt.export.verification.compare import compare_backends
from whisper_opt.runtime.device.backend import DeviceBackend
from whisper_opt.runtime.device.session import DeviceSession
from whisper_opt.runtime.engine import Engine
from whisper_opt.runtime.onnxruntime.backend import OrtBackend
from whisper_opt.text.vocabulary import Vocab

DIMS = random_dims(n_audio_layer=1)
Change = Callable[[F32], F32]


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return random_engine(tmp_path_factory.mktemp("engines") / "e", DIMS, "standard")


@pytest.fixture(scope="module")
def backend(engine: Engine) -> OrtBackend:
    return OrtBackend(engine, threads=1)


@pytest.fixture(scope="module")
def vocab() -> Vocab:
    return Vocab(tokenizer_json(DIMS), DIMS)


@dataclasses.dataclass
class Faulty:
    """A backend with one fault, selected by its fields."""

    backend: OrtBackend
    scores: Change = np.copy
    attended: Change = np.copy
    cross: Change = np.copy
    moves: bool = True
    chosen: int = 0

    def __post_init__(self) -> None:
        self.dims = self.backend.dims

    def encode(self, mel: F32, interruption: Interruption | None = None) -> Encoded:
        return self.backend.encode(self.cross(mel))

    def attention(self, audio: Encoded, tokens: Int, lengths: Int) -> Attention:
        found = self.backend.attention(audio, tokens, lengths)
        return Attention(self.attended(found.scores), found.logits)

    def open(self, audio: Encoded) -> Session:
        return FaultySession(self, self.backend.open(audio))  # type: ignore[return-value]


@dataclasses.dataclass
class FaultySession:
    faults: Faulty
    session: Any
    n_gathered: int = 0

    def extend(self, tokens: Int) -> Logits:
        return FaultyLogits(self.faults, self.session.extend(tokens))

    def gather(self, rows: Int) -> None:
        self.n_gathered += 1
        first = self.n_gathered == 1  # else the number of rows would be wrong
        self.session.gather(rows if self.faults.moves or first else np.sort(rows))

    def close(self) -> None:
        self.session.close()


@dataclasses.dataclass
class FaultyLogits:
    faults: Faulty
    logits: Logits

    def requested(self) -> F32:
        return self.logits.requested()

    def numpy(self) -> F32:
        return self.faults.scores(self.logits.numpy())

    def top(self, k: int, mask: TokenMask) -> Top:
        top = self.logits.top(k + self.faults.chosen, mask)
        return Top(top.tokens[:, -k:], top.logprobs[:, -k:])


def test_the_same_backend_is_equal(backend: OrtBackend, vocab: Vocab) -> None:
    found = compare_backends(backend, backend, vocab)
    assert found["status"] == "equal"
    assert found["detail"].startswith("0 of 48 tokens differ; scores of up to ")
    assert found["detail"].endswith(" by at most 0, attention by 0.0%")


def test_rounding_is_equal(backend: OrtBackend, vocab: Vocab) -> None:
    rounds = Faulty(backend, scores=lambda scores: scores.astype(np.float16).astype(np.float32))
    assert compare_backends(backend, rounds, vocab)["status"] == "equal"


class Unruly(DeviceBackend):
    """A device whose multi-step decoding has one fault."""

    change: Callable[[MultiStepResult], MultiStepResult]

    def open(self, audio: Encoded) -> DeviceSession:
        session, change = super().open(audio), self.change
        real = session.decode_steps

        def run(tokens: Int, rows: GreedyRows, steps: int) -> MultiStepResult:
            return change(real(tokens, rows, steps))

        session.decode_steps = run  # type: ignore[method-assign]
        return session


def other_token(run: MultiStepResult) -> MultiStepResult:
    run.tokens[3, 0] = (run.tokens[3, 0] + 1) % 100
    return run


def other_likelihood(run: MultiStepResult) -> MultiStepResult:
    run.logprobs[5, 1] -= 1.0
    return run


def no_likelihood(run: MultiStepResult) -> MultiStepResult:
    run.logprobs[0, 0] = np.nan
    return run


def a_rule_forgotten(run: MultiStepResult) -> MultiStepResult:
    run.tokens[1, 0] = 7  # text after a timestamp that stands alone
    run.tokens[0, 0] = DIMS.n_vocab - 1
    return run


@pytest.mark.parametrize(
    ("change", "status"),
    [
        (lambda run: run, "equal"),
        (other_token, "differ"),
        (other_likelihood, "differ"),
        (no_likelihood, "differ"),
        (a_rule_forgotten, "differ"),
    ],
)
def test_steps_of_the_device(
    engine: Engine,
    backend: OrtBackend,
    vocab: Vocab,
    change: Callable[[MultiStepResult], MultiStepResult],
    status: str,
) -> None:
    device = Unruly(CpuExecutor(engine, threads=1), DIMS)
    device.change = change
    found = compare_backends(backend, device, vocab)
    assert found["status"] == status
    assert ("not chosen by their scores" in found["detail"]) == (status == "differ")


def nan_in_one_row(scores: F32) -> F32:
    scores = scores.copy()
    scores[-1] = np.nan
    return scores


def one_is_far_off(scores: F32) -> F32:
    """Change the score of a token that is not the best."""
    scores = scores.copy()
    scores[:, -1, scores[0, -1].argmin()] -= 0.2 * np.abs(scores).max()
    return scores


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ({"scores": np.negative}, "tokens differ"),
        ({"scores": np.zeros_like}, "48 of 48 tokens differ"),
        ({"scores": nan_in_one_row}, "tokens differ"),
        ({"scores": one_is_far_off}, "0 of 48 tokens differ"),
        ({"cross": lambda mel: mel[::-1]}, "tokens differ"),
        ({"moves": False}, "tokens differ"),
        ({"chosen": 1}, "; 48 tokens were not chosen by their scores"),
        ({"attended": lambda scores: scores[:, :, ::-1]}, "0 of 48 tokens differ"),
        ({"attended": nan_in_one_row}, "attention by nan%"),
    ],
)
def test_faults_are_found(
    fault: dict[str, Any], reason: str, backend: OrtBackend, vocab: Vocab
) -> None:
    found = compare_backends(backend, Faulty(backend, **fault), vocab)
    assert found["status"] == "differ", found
    assert reason in found["detail"]
