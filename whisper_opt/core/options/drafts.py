"""Drafts: text that a recording probably has, given with an option."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Any, Union

from whisper_opt.core.errors import OptionError

__all__ = ["DraftSegment", "draft_segments"]


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


def draft_segments(value: Any) -> Union[tuple[DraftSegment, ...], None]:
    """The segments of a draft in order of time; None if there is no text.

    Args:
        value: text; or segments, each with ``text`` and perhaps ``start`` and ``end``, as
            attributes or keys: of a transcript, or of its dictionary; or None.

    Raises:
        OptionError: it is none of these.
    """
    if value is None:
        return None
    if isinstance(value, str):
        found = [DraftSegment(value)]
    else:
        found = [_segment(item) for item in _listed(value)]
    found = [segment for segment in found if segment.text.strip()]
    if found and all(segment.start is not None for segment in found):
        found.sort(key=lambda segment: segment.start or 0.0)
    return tuple(found) or None


def _listed(value: Any) -> Iterable[Any]:
    """The segments of a transcript, of its dictionary, or of a list."""
    if isinstance(value, Mapping):
        value = value.get("segments")
    elif hasattr(value, "segments"):
        value = value.segments
    if isinstance(value, (bytes, Mapping)) or not isinstance(value, Iterable):
        raise OptionError(
            f"draft is {_shown(value)}; expected text, or segments with text, start and end"
        )
    return value


def _segment(item: Any) -> DraftSegment:
    if isinstance(item, DraftSegment):
        return item
    if isinstance(item, str):
        return DraftSegment(item)
    text, start, end = (_field(item, name) for name in ("text", "start", "end"))
    if not isinstance(text, str):
        raise OptionError(
            f"draft has a segment {_shown(item)}; expected one with text, and start and end in"
            " seconds if they are known"
        )
    for name, second in (("start", start), ("end", end)):
        number = isinstance(second, (int, float)) and not isinstance(second, bool)
        if second is not None and not (number and math.isfinite(second)):
            raise OptionError(
                f"draft has a segment whose {name} is {second!r}; expected seconds, or None"
            )
    return DraftSegment(
        text, None if start is None else float(start), None if end is None else float(end)
    )


def _field(item: Any, name: str) -> Any:
    return item.get(name) if isinstance(item, Mapping) else getattr(item, name, None)


def _shown(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{shown[:60]}..."
