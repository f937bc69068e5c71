"""How close the reference's decisions were if a transcript differs from it."""

from __future__ import annotations

from tests.support.golden import GoldenClip, Ranking, Segment, Window, margin, options
from whisper_opt import Transcript
from whisper_opt.text.results import Segment as Found

__all__ = ["closeness"]


def _at(seek: int, segments: list[Segment]) -> list[list[int]]:
    return [segment["tokens"] for segment in segments if segment["seek"] == seek]


def _threshold_distance(attempts: list[Ranking], config: str) -> float:
    """Least distance of any attempt from the thresholds of temperature fallback."""
    chosen = options(config)
    likely, repetitive = chosen["logprob_threshold"], chosen["compression_ratio_threshold"]
    distances: list[float] = [abs(attempt["avg_logprob"] - likely) for attempt in attempts]
    distances += [abs(attempt["compression_ratio"] - repetitive) for attempt in attempts]
    return min(distances)


def _window_closeness(window: Window, config: str, theirs: list[int], found: list[Found]) -> float:
    """How close the decisions of the first window that differs were, in nats.

    Greedy decoding: the margin at the first token that differs. Beam search compares complete
    hypotheses: the distance of the best two, or of the reference's result from ours.
    """
    if found and found[0].temperature != window.get("temperature", 0.0):
        return _threshold_distance([window, *window.get("rejected", [])], config)
    ours = [token for segment in found for token in segment.tokens]
    if window["gaps"]:
        shorter = min(len(ours), len(theirs))
        same = next((i for i in range(shorter) if ours[i] != theirs[i]), shorter)
        return margin(window, same)
    gap = window.get("rank_gap")
    likely = found[0].avg_logprob if found else float("inf")
    return min(abs(likely - window["avg_logprob"]), float("inf") if gap is None else gap)


def closeness(config: str, want: GoldenClip, found: Transcript) -> float:
    """How close the decisions of the reference were at the first difference, in nats.

    Infinite without a difference. A difference at a small margin is a near-tie, not an error.
    """
    for window in want["windows"]:
        seek = window["seek"]
        theirs = _at(seek, want["segments"])
        ours = [segment for segment in found if segment.seek == seek]
        if theirs != [list(segment.tokens) for segment in ours]:
            joined = [token for tokens in theirs for token in tokens]
            return _window_closeness(window, config, joined, ours)
    return float("inf")
