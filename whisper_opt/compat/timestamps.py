"""Timestamps as text, in the form that openai-whisper and faster-whisper share."""

from __future__ import annotations

from collections.abc import Callable, Sequence

__all__ = ["decode_with_timestamps", "format_timestamp"]


def format_timestamp(
    seconds: float, always_include_hours: bool = False, decimal_marker: str = "."
) -> str:
    """``[hh:]mm:ss.mmm``."""
    if seconds < 0:
        raise AssertionError(f"seconds is {seconds}; expected 0 or more")
    whole, milliseconds = divmod(round(seconds * 1000.0), 1000)
    hours = f"{whole // 3600:02d}:" if always_include_hours or whole >= 3600 else ""
    return f"{hours}{whole // 60 % 60:02d}:{whole % 60:02d}{decimal_marker}{milliseconds:03d}"


def decode_with_timestamps(
    decode: Callable[[Sequence[int]], str], tokens: Sequence[int], timestamp_begin: int
) -> str:
    """Text of ids with timestamps such as ``<|1.08|>``.

    Args:
        decode: text of ids that are no timestamps.
        tokens: ids.
        timestamp_begin: id of ``<|0.00|>``.
    """
    parts: list[str] = []
    run: list[int] = []
    for token in tokens:
        if token < timestamp_begin:
            run.append(token)
            continue
        parts += [decode(run), f"<|{(token - timestamp_begin) * 0.02:.2f}|>"]
        run = []
    return "".join([*parts, decode(run)])
