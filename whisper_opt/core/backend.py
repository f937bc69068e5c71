"""Interfaces between the decode loop and the backends that compute the model.

Token decoders and backends do not depend on each other. They share six methods (``encode``,
``open``, ``extend``, ``truncate``, ``gather``, ``append``) and :class:`Logits`. Word times need a
seventh (``attention``). An eighth (``decode_steps``) is optional: sessions that have it are
:class:`MultiStepSession`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np

from whisper_opt.core.arrays import F32, Bool, Int, NDArray
from whisper_opt.core.dims import ModelDims
from whisper_opt.core.interruption import Interruption

__all__ = [
    "Attention",
    "Backend",
    "BannedTokens",
    "Encoded",
    "GreedyRows",
    "Logits",
    "MultiStepResult",
    "MultiStepSession",
    "Session",
    "TokenMask",
    "Top",
]


class Encoded(Protocol):
    """Encoded audio: cross-attention keys and values, opaque to everything but their backend."""

    def __len__(self) -> int:
        """Number of windows (n_audio)."""

    def take(self, audios: Sequence[int]) -> Encoded:
        """The windows with these indices, in this order."""


class BannedTokens:
    """Tokens that one row must not sample next."""

    def __init__(self) -> None:
        """Start with no token banned."""
        self._ids: list[int | slice | Int] = []

    def add(self, ids: int | slice | Int) -> None:
        """Ban an id, a range (as a slice) or an array of ids."""
        self._ids.append(ids)

    def write(self, row: NDArray, value: object) -> None:
        """Set the banned entries of a row [n_vocab] to ``value``."""
        for ids in self._ids:
            row[ids] = value

    def array(self, n_vocab: int) -> Bool:
        """Bool [n_vocab], True for banned tokens."""
        row = np.zeros(n_vocab, np.bool_)
        self.write(row, True)
        return row


class TokenMask:
    """Which tokens the rows of a batch may sample next.

    Attributes:
        timestamp_begin: [n_seq] id of ``<|0.00|>`` for rows under the timestamp rules; n_vocab for
            rows that are not (no probability is compared with that of the timestamps).
        timestamp_end: id after the last timestamp; None if the timestamps are the last ids.
        seen: [n_seq, n_vocab] bool, True for tokens under the repetition penalty; None: no token.
        penalty: [n_seq] float32 repetition penalty of each row; None if ``seen`` is None.
    """

    def __init__(
        self,
        ban: Bool | Sequence[BannedTokens],
        timestamp_begin: Int,
        seen: Bool | None = None,
        penalty: F32 | None = None,
        *,
        n_vocab: int = 0,
        timestamp_end: int | None = None,
    ) -> None:
        """``ban``: bool [n_seq, n_vocab], True for banned tokens; or one BannedTokens per row."""
        self._ban = ban
        self._n_vocab = n_vocab
        self.timestamp_begin = timestamp_begin
        self.timestamp_end = timestamp_end
        self.seen = seen
        self.penalty = penalty

    @functools.cached_property
    def ban(self) -> Bool:
        """[n_seq, n_vocab] bool, True for banned tokens."""
        if isinstance(self._ban, np.ndarray):
            return self._ban
        dense = np.zeros((len(self._ban), self._n_vocab), np.bool_)
        for banned, row in zip(self._ban, dense):
            banned.write(row, True)
        return dense

    @property
    def splits_text(self) -> bool:
        """Whether a row is under the timestamp rules and has text ids after the timestamps."""
        end = self.timestamp_end
        return end is not None and bool((self.timestamp_begin < end).any())

    def times(self, row: int) -> tuple[int, int | None]:
        """First timestamp of a row (n_vocab without timestamp rules) and the id after the last."""
        begin, end = int(self.timestamp_begin[row]), self.timestamp_end
        return begin, end if end is not None and begin < end else None

    def forbid(self, row: int, scores: F32) -> None:
        """Set the scores [n_vocab] of banned tokens of one row to -inf."""
        if isinstance(self._ban, np.ndarray):
            np.copyto(scores, -np.inf, where=self._ban[row])
        else:
            self._ban[row].write(scores, -np.inf)


@dataclasses.dataclass(frozen=True)
class Top:
    """The best next tokens of each row, best first.

    Attributes:
        tokens: [n_seq, k] int64.
        logprobs: [n_seq, k] float32, log-softmax over the allowed tokens (natural logarithm);
            -inf if fewer than k tokens were allowed.
    """

    tokens: Int
    logprobs: F32


class Logits(Protocol):
    """Scores of the next token at the requested positions, in host or device memory."""

    def top(self, k: int, mask: TokenMask) -> Top:
        """The k best allowed next tokens of each row; see :mod:`whisper_opt.core.logits`."""

    def requested(self) -> F32:
        """Scores at the requested positions, float32 [n_seq, n_at, n_vocab]."""

    def numpy(self) -> F32:
        """All scores, float32 [n_seq, n_at + 1, n_vocab]; the last ones follow the last token.

        Scores that were not requested may be computed by this call, which takes longer.
        """


class Session(Protocol):
    """Key/value cache of n_seq active hypotheses: the only decoding state on the device."""

    def extend(self, tokens: Int, lengths: Int | None = None, at: Int | None = None) -> Logits:
        """Append tokens to every row.

        Args:
            tokens: int64 [n_seq, n_new], right-padded.
            lengths: int64 [n_seq] real tokens in each row (default: all of them).
            at: int64 [n_seq, n_at] indices of new tokens whose scores are returned in addition to
                those of the last real token (default: none).

        Returns:
            Scores [n_seq, n_at + 1, n_vocab]; the last position is the row's last real token.
            Valid until the next call on this session.

        Raises:
            EngineError: a row would grow past ``dims.n_text_ctx``.
        """

    @property
    def extends_at_once(self) -> bool:
        """Whether several tokens on top of others take one call of the model, not one each."""

    def truncate(self, dropped: Int) -> None:
        """Forget the last tokens of every row.

        Args:
            dropped: int64 [n_seq], how many of each row.
        """

    def gather(self, rows: Int) -> None:
        """Row i becomes old row ``rows[i]``; ``len(rows)`` is the new n_seq.

        The identity costs nothing.
        """

    def append(self, other: Session) -> None:
        """Append the rows of another session of the same backend, and close that session.

        Windows join a running batch this way. Their prompts are prefilled in their own session, so
        that the rows of the batch do not wait for them.
        """

    def close(self) -> None:
        """Release the cache; the session cannot be used afterwards."""


@dataclasses.dataclass(frozen=True)
class GreedyRows:
    """State of rows that are decoded greedily without the host.

    Each row has sampled at least one token; the last one is fed next. The rules of
    :class:`whisper_opt.decoding.constraints.TimestampRules` depend on the last token, on the one
    before it and on the latest timestamp.

    Attributes:
        ban: [n_seq, n_vocab] bool, True for tokens that are never sampled.
        timestamp_begin: [n_seq] id of ``<|0.00|>`` for rows under the timestamp rules; n_vocab for
            other rows.
        eot: [n_seq] id of the end-of-text token.
        previous: [n_seq] token sampled before the last one; ``timestamp_begin`` if there is none.
        latest: [n_seq] latest timestamp sampled; ``timestamp_begin - 1`` if there is none.
    """

    ban: Bool
    timestamp_begin: Int
    eot: Int
    previous: Int
    latest: Int


@dataclasses.dataclass(frozen=True)
class MultiStepResult:
    """Tokens that a session sampled in several steps.

    Attributes:
        tokens: [n_steps, n_seq] int64; after its end of text, a row repeats the end of text.
        logprobs: [n_steps, n_seq] float32, as in :class:`Top`; 0 after a row's end of text.
    """

    tokens: Int
    logprobs: F32


@runtime_checkable
class MultiStepSession(Session, Protocol):
    """A session that can run several greedy decode steps without the host."""

    @property
    def supports_multistep(self) -> bool:
        """Whether :meth:`decode_steps` can be called now; if not, use single steps."""

    def decode_steps(self, tokens: Int, rows: GreedyRows, steps: int) -> MultiStepResult:
        """Feed one token to every row, sample the best next token, feed that, and so on.

        Stops after ``steps`` steps, or soon after a row has ended. Each row then contains the
        tokens fed to it: ``tokens`` and all that it sampled except the last one; never the end of
        text.

        Args:
            tokens: int64 [n_seq, 1], not yet fed.
            rows: state of each row.
            steps: maximum number of tokens to sample, at least 1.

        Raises:
            EngineError: a row could grow past ``dims.n_text_ctx``. After any failure the rows are
                unchanged.
        """


@dataclasses.dataclass(frozen=True)
class Attention:
    """Cross-attention of the alignment heads in one teacher-forced pass.

    Attributes:
        scores: float32 [n_audio, n_heads, n_tokens, n_audio_ctx], attention scores of the alignment
            heads before the softmax: query times key divided by the square root of the head width.
        logits: float32 [n_audio, n_tokens, n_vocab], scores of the token after each position.
    """

    scores: F32
    logits: F32


class Backend(Protocol):
    """Computes one Whisper model."""

    dims: ModelDims

    def encode(self, mel: F32, interruption: Interruption | None = None) -> Encoded:
        """Encode log-mel windows.

        Args:
            mel: float32 [n_audio, n_mels, n_frames].
            interruption: asks to stop the run; a backend that cannot stop ignores it.

        Raises:
            Interrupted: it was stopped.
        """

    def open(self, audio: Encoded) -> Session:
        """Open a session with one empty row per window."""

    def attention(self, audio: Encoded, tokens: Int, lengths: Int) -> Attention:
        """Feed whole token sequences and return the attention of the alignment heads.

        Args:
            audio: n_audio windows.
            tokens: int64 [n_audio, n_tokens], right-padded.
            lengths: int64 [n_audio] real tokens in each row; results at padding are meaningless.

        Raises:
            EngineError: a row is longer than ``dims.n_text_ctx``.
        """
