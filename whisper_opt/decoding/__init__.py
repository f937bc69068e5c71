"""From encoded audio to tokens: rules ban, searches choose, the loop drives a session."""

from whisper_opt.decoding.batch import Batch, Decoded, Task, decode, next_token_logprobs
from whisper_opt.decoding.constraints import Rule
from whisper_opt.decoding.search import Beam, Greedy, Hypothesis, Sample, Search, rank

__all__ = [
    "Batch",
    "Beam",
    "Decoded",
    "Greedy",
    "Hypothesis",
    "Rule",
    "Sample",
    "Search",
    "Task",
    "decode",
    "next_token_logprobs",
    "rank",
]
