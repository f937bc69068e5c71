"""From encoded audio to tokens: rules ban, searches choose, the loop drives a session."""

from whisper_opt.decode.loop import Decoded, Task, decode, next_token_logprobs
from whisper_opt.decode.rules import Rule
from whisper_opt.decode.search import Greedy, Hypothesis, Search

__all__ = [
    "Decoded",
    "Greedy",
    "Hypothesis",
    "Rule",
    "Search",
    "Task",
    "decode",
    "next_token_logprobs",
]
