"""Options about who speaks: channels of a recording, and speakers in it."""

from __future__ import annotations

import dataclasses

from whisper_opt.core.errors import OptionError
from whisper_opt.core.options.fields import check_fields, option

__all__ = ["CHANNELS", "SpeakerOptions", "check_one_text"]

CHANNELS = ("mix", "split")


@dataclasses.dataclass(frozen=True)
class SpeakerOptions:
    """What tells speakers apart.

    Raises:
        OptionError: a value is of the wrong type or out of range, or two contradict.
    """

    channels: str = option(
        "mix",
        "text",
        "mix: one transcript of the mean of all channels; split: each channel is transcribed by"
        " itself, the transcripts are merged by time, and of words that two channels have at the"
        " same time the louder ones are kept; segments then have a channel, and a speaker of that"
        " name",
        choices=CHANNELS,
    )

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def needs_words(self) -> bool:
        """Whether word times are needed to tell who says what."""
        return self.channels == "split"


def check_one_text(channels: str, transcript_prefix: str | None) -> None:
    """A transcript of several channels has no single beginning; raises OptionError."""
    if channels == "split" and transcript_prefix:
        raise OptionError(
            "channels is 'split' and transcript_prefix is given, but every channel has a beginning"
            " of its own; leave one of them out"
        )
