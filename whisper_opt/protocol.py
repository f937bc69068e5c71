"""The seams between the decode loop and whatever computes the model.

A backend never knows a search and a search never knows a backend: they meet in four verbs
(``encode``, ``open``, ``extend``, ``gather``) and in :class:`Logits`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Protocol

from whisper_opt.arrays import F32, Bool, Int
from whisper_opt.dims import ModelDims

__all__ = ["Backend", "Encoded", "Logits", "Session", "TokenMask", "Top"]


class Encoded(Protocol):
    """Encoded audio (cross-attention keys and values); only its backend looks inside."""

    def __len__(self) -> int:
        """How many windows (n_audio)."""

    def take(self, audios: Sequence[int]) -> Encoded:
        """Some of the windows, by index and in this order."""


@dataclasses.dataclass(frozen=True)
class TokenMask:
    """What may be sampled next.

    Attributes:
        ban: [n_seq, n_vocab] bool, True where a token must not be sampled.
        timestamp_begin: [n_seq] id of ``<|0.00|>`` for rows under the timestamp rules; n_vocab for
            rows that are not (no probability is compared with that of the timestamps).
    """

    ban: Bool
    timestamp_begin: Int


@dataclasses.dataclass(frozen=True)
class Top:
    """The best next tokens of each row, best first.

    Attributes:
        tokens: [n_seq, k] int64.
        logprobs: [n_seq, k] float32, log-softmax over the tokens that were not banned (natural
            logarithm); -inf where fewer than k tokens were allowed.
    """

    tokens: Int
    logprobs: F32


class Logits(Protocol):
    """Scores of the next token at the wanted positions, wherever they live (host or device)."""

    def top(self, k: int, mask: TokenMask) -> Top:
        """The k best allowed tokens after each row's last token; see ``decode.topk``."""

    def numpy(self) -> F32:
        """All scores, float32 [n_seq, n_at, n_vocab]; the last position is the row's last token."""


class Session(Protocol):
    """The key/value cache of n_seq live hypotheses: the only device state of decoding."""

    def extend(self, tokens: Int, lengths: Int | None = None, at: Int | None = None) -> Logits:
        """Append tokens to every row.

        Args:
            tokens: int64 [n_seq, n_new], right-padded.
            lengths: int64 [n_seq] real tokens in each row (default: all of them).
            at: int64 [n_seq, n_at] indices among the new tokens whose scores are wanted besides
                the last real token's (default: none).

        Returns:
            Scores [n_seq, n_at + 1, n_vocab], the last position being the row's last real token.
            Valid until the next call on this session.

        Raises:
            EngineError: the rows would grow past ``dims.n_text_ctx``.
        """

    def gather(self, rows: Int) -> None:
        """Row i becomes old row ``rows[i]``; ``len(rows)`` is the new n_seq. Identity is free."""

    def close(self) -> None:
        """Release the cache; the session is unusable afterwards."""


class Backend(Protocol):
    """Computes one Whisper model."""

    dims: ModelDims

    def encode(self, mel: F32) -> Encoded:
        """Encode log-mel windows, float32 [n_audio, n_mels, n_frames]."""

    def open(self, audio: Encoded) -> Session:
        """A session with one empty row an audio."""
