"""Options of voice activity detection."""

from __future__ import annotations

import dataclasses
import math

from whisper_opt.core.errors import OptionError
from whisper_opt.core.options.fields import check_fields, option

__all__ = ["VadOptions"]


@dataclasses.dataclass(frozen=True)
class VadOptions:
    """Options of the speech detector; names and meaning are those of Silero VAD.

    Raises:
        OptionError: a value is of the wrong type or out of range.
    """

    threshold: float = option(
        0.35,
        "number",
        "a frame is speech if its speech probability is at least this",
        low=0,
        high=1,
        metavar="P",
    )
    min_speech_duration: float = option(
        0.1,
        "number",
        "drop speech shorter than this, in seconds",
        low=0,
        high=30,
        metavar="SECONDS",
    )
    min_silence_duration: float = option(
        0.5,
        "number",
        "a silence shorter than this, in seconds, does not end a span of speech",
        low=0,
        high=30,
        metavar="SECONDS",
    )
    speech_pad: float = option(
        0.2,
        "number",
        "seconds of audio to add before and after each span of speech",
        low=0,
        high=5,
        metavar="SECONDS",
    )
    max_speech_duration: float = option(
        30.0,
        "number",
        "split speech longer than this, in seconds, at its longest silence",
        low=1,
        high=math.inf,
        metavar="SECONDS",
    )

    def __post_init__(self) -> None:
        check_fields(self)
        if self.min_speech_duration > self.max_speech_duration:
            raise OptionError(
                f"min_speech_duration is {self.min_speech_duration}; expected at most"
                f" max_speech_duration ({self.max_speech_duration})"
            )
        if self.max_speech_duration <= 2 * self.speech_pad + 0.1:
            raise OptionError(
                f"max_speech_duration is {self.max_speech_duration}; expected more than twice"
                f" speech_pad ({self.speech_pad}), which is part of every span"
            )
