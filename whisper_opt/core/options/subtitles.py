"""Options of subtitles: the layout of words in cues and lines."""

from __future__ import annotations

import dataclasses
from typing import Any, Union

from whisper_opt.core.errors import OptionError
from whisper_opt.core.options.effective import effective_subtitles
from whisper_opt.core.options.fields import check_fields, option

__all__ = ["SubtitleOptions"]


@dataclasses.dataclass(frozen=True)
class SubtitleOptions:
    """Layout of words in subtitles; every option needs word timestamps.

    Raises:
        OptionError: a value is of the wrong type or out of range, or two options contradict.
    """

    highlight_words: bool = option(
        False,
        "flag",
        "mark each word as it is spoken: underlined in srt and vtt, karaoke in ass, timed in lrc",
    )
    max_line_width: Union[int, None] = option(
        None, "integer", "maximum characters per subtitle line", low=1, metavar="N"
    )
    max_line_count: Union[int, None] = option(
        None, "integer", "maximum lines per subtitle; needs max_line_width", low=1, metavar="N"
    )
    max_words_per_line: Union[int, None] = option(
        None,
        "integer",
        "maximum words per subtitle line; not together with max_line_width",
        low=1,
        metavar="N",
    )

    def __post_init__(self) -> None:
        check_fields(self)
        if self.max_line_count is not None and self.max_line_width is None:
            raise OptionError(
                f"max_line_count is {self.max_line_count}, but it needs max_line_width; give both"
            )
        if self.max_words_per_line is not None and self.max_line_width is not None:
            raise OptionError(
                "max_words_per_line and max_line_width are both given; leave one of them out"
            )

    @classmethod
    def tolerant(cls, **values: Any) -> SubtitleOptions:
        """Like the constructor, but options without effect are left out, not refused.

        Raises:
            OptionError: a value is of the wrong type or out of range.
        """
        return cls(**effective_subtitles(values))

    @property
    def needs_words(self) -> bool:
        """Whether any option is set."""
        return self != SubtitleOptions()
