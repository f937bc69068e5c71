"""From encoded audio to tokens: constraints, token decoders and the decode loop."""

from whisper_opt.decoding.batch import Batch, next_token_logprobs
from whisper_opt.decoding.constraints import TokenConstraint
from whisper_opt.decoding.rows import Decoded, DecodeRequest, Drafter
from whisper_opt.decoding.search import (
    BeamSearchDecoder,
    GreedyDecoder,
    Hypothesis,
    SamplingDecoder,
    TokenDecoder,
    rank,
)

__all__ = [
    "Batch",
    "BeamSearchDecoder",
    "DecodeRequest",
    "Decoded",
    "Drafter",
    "GreedyDecoder",
    "Hypothesis",
    "SamplingDecoder",
    "TokenConstraint",
    "TokenDecoder",
    "next_token_logprobs",
    "rank",
]
