"""Options about who speaks: channels of a recording, and speakers in it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Union

from whisper_opt.core.errors import OptionError
from whisper_opt.core.options.fields import check_fields, items, option

__all__ = ["CHANNELS", "DIARIZE_OPTIONS", "SpeakerOptions", "check_one_text"]

CHANNELS = ("mix", "split")
DIARIZE_OPTIONS = ("num_speakers", "min_speakers", "max_speakers", "known_speakers")
"""Fields of :class:`SpeakerOptions` that have no effect without ``diarize``."""
MAX_SPEAKERS = 64


@dataclasses.dataclass(frozen=True)
class SpeakerOptions:
    """What tells speakers apart.

    Raises:
        OptionError: a value is of the wrong type or out of range, two contradict, or one needs
            ``diarize``.
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
    diarize: bool = option(
        False,
        "flag",
        "find out who speaks when: segments and words have a speaker, and segments are divided"
        " where the speaker changes; needs the networks of whisper-opt export-speakers (option"
        " speakers)",
    )
    num_speakers: Union[int, None] = option(
        None,
        "integer",
        "with diarize: how many speakers there are; default: as many as there are different voices",
        low=1,
        high=MAX_SPEAKERS,
        metavar="N",
    )
    min_speakers: Union[int, None] = option(
        None,
        "integer",
        "with diarize: how many speakers there are at least",
        low=1,
        high=MAX_SPEAKERS,
        metavar="N",
    )
    max_speakers: Union[int, None] = option(
        None,
        "integer",
        "with diarize: how many speakers there are at most",
        low=1,
        high=MAX_SPEAKERS,
        metavar="N",
    )
    known_speakers: Union[Mapping[str, Any], Sequence[tuple[str, Any]], None] = option(
        (),
        "clips",
        "with diarize: names of people and a clip of 2 to 10 s of each; speakers with the same"
        " voice get that name, all others a letter",
        metavar="NAME=FILE,...",
    )

    def __post_init__(self) -> None:
        check_fields(self)
        object.__setattr__(self, "known_speakers", _pairs(self.known_speakers))
        if not self.diarize:
            for name in DIARIZE_OPTIONS:
                if getattr(self, name) != self.__dataclass_fields__[name].default:
                    raise OptionError(f"{name} is given, but it needs diarize; turn it on")
            return
        if self.channels == "split":
            raise OptionError(
                "diarize is on and channels is 'split', where the channel says who speaks; leave"
                " one of them out"
            )
        self._check_numbers()

    def _check_numbers(self) -> None:
        low, high = self.min_speakers, self.max_speakers
        if self.num_speakers is not None:
            for name in ("min_speakers", "max_speakers"):
                if getattr(self, name) is not None:
                    raise OptionError(
                        f"num_speakers and {name} are both given; leave one of them out"
                    )
        if low is not None and high is not None and low > high:
            raise OptionError(
                f"min_speakers is {low}; expected at most max_speakers, which is {high}"
            )

    @property
    def clips(self) -> tuple[tuple[str, Any], ...]:
        """Names, and the clip of each."""
        return _pairs(self.known_speakers)

    @property
    def needs_words(self) -> bool:
        """Whether word times are needed to tell who says what."""
        return self.channels == "split" or self.diarize

    @property
    def why_words(self) -> str:
        """The option for which :attr:`needs_words` is true, as the beginning of a message."""
        return "diarize is on" if self.diarize else f"channels is {self.channels!r}"

    @property
    def bounds(self) -> tuple[int, Union[int, None]]:
        """Minimum and maximum number of speakers."""
        if self.num_speakers is not None:
            return self.num_speakers, self.num_speakers
        return self.min_speakers or 1, self.max_speakers


def _pairs(value: Any) -> tuple[tuple[str, Any], ...]:
    """Names and clips; raises OptionError."""
    pairs = items(value.items() if isinstance(value, Mapping) else () if value is None else value)
    both = [items(pair) or () for pair in pairs or ()]
    if pairs is None or not all(
        len(pair) == 2 and isinstance(pair[0], str) and pair[0].strip() for pair in both
    ):
        raise OptionError(
            f"known_speakers is {value!r:.200}; expected a dictionary: the name of each, and a"
            " path, bytes or an array"
        )
    found = tuple((name.strip(), clip) for name, clip in both)
    for name, clip in found:
        if hasattr(clip, "read"):
            raise OptionError(
                f"known_speakers has a file object for {name!r}, which can be read only once; give"
                " a path or its bytes"
            )
    if len({name for name, _ in found}) < len(found):
        raise OptionError("known_speakers has a name twice; expected one clip for each")
    return found


def check_one_text(channels: str, transcript_prefix: str | None) -> None:
    """A transcript of several channels has no single beginning; raises OptionError."""
    if channels == "split" and transcript_prefix:
        raise OptionError(
            "channels is 'split' and transcript_prefix is given, but every channel has a beginning"
            " of its own; leave one of them out"
        )
