"""Drafts: text that a recording probably has, given with an option."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, Union

from whisper_opt.core.errors import OptionError

__all__ = ["DraftSegment", "draft_segments"]

_SHOWN = 200
"""Characters of a draft in an error message."""


@dataclasses.dataclass(frozen=True)
class DraftSegment:
    """A part of a draft.

    Attributes:
        text: what is said.
        start: beginning in seconds from the start of the recording; None if it is not known.
        end: end in seconds; None if it is not known.
    """

    text: str
    start: Union[float, None] = None
    end: Union[float, None] = None


def draft_segments(draft: Any) -> tuple[DraftSegment, ...]:
    """The segments of a draft that have text, in order of time if all have a start.

    Args:
        draft: text; or segments, each with ``text`` and perhaps ``start`` and ``end``, as
            attributes or keys: of a transcript, or of its dictionary; or None.

    Raises:
        OptionError: it is none of these.
    """
    if draft is None or isinstance(draft, str):
        found = [DraftSegment(draft or "")]
    else:
        found = [_segment(item, draft) for item in _listed(draft)]
    found = [segment for segment in found if segment.text.strip()]
    if all(segment.start is not None for segment in found):
        found.sort(key=lambda segment: segment.start or 0.0)
    return tuple(found)


def _listed(draft: Any) -> Sequence[Any]:
    """The segments of a transcript, of its dictionary, or of a list."""
    found = _field(draft, "segments")
    found = draft if found is None else found
    if isinstance(found, (bytes, bytearray, memoryview)) or not isinstance(found, Sequence):
        raise _unusable(draft)
    return found


def _segment(item: Any, draft: Any) -> DraftSegment:
    if isinstance(item, str):
        return DraftSegment(item)
    text, start, end = (_field(item, name) for name in ("text", "start", "end"))
    if not isinstance(text, str):
        raise _unusable(draft)
    for second in (start, end):
        number = isinstance(second, (int, float)) and not isinstance(second, bool)
        if second is not None and not (number and math.isfinite(second)):
            raise _unusable(draft)
    return DraftSegment(text, start, end)


def _field(item: Any, name: str) -> Any:
    return item.get(name) if isinstance(item, Mapping) else getattr(item, name, None)


def _unusable(draft: Any) -> OptionError:
    shown = repr(draft)
    shown = shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}..."
    return OptionError(
        f"draft is {shown}; expected text, or segments with text, and start and end in seconds if"
        " they are known"
    )
