"""Arguments of ``Whisper``'s methods: options with overrides, and those of many recordings."""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections.abc import Iterable, Iterator, Sized
from typing import Any, TypeVar

import numpy as np

from whisper_opt.core.errors import OptionError
from whisper_opt.core.options import TranscribeOptions

__all__ = ["ManyOptions", "check_detection", "merged"]

_T = TypeVar("_T")
_ONE = (str, bytes, bytearray, memoryview, os.PathLike, np.ndarray)
"""What is one recording, although most of it can be iterated over."""


def merged(options: TranscribeOptions | None, overrides: dict[str, Any]) -> TranscribeOptions:
    """Options, some of which are replaced; raises OptionError if there is no such option."""
    known = [field.name for field in dataclasses.fields(TranscribeOptions)]
    for name in overrides:
        if name not in known:
            raise OptionError(f"unknown option {name!r}; expected one of {', '.join(known)}")
    return dataclasses.replace(options or TranscribeOptions(), **overrides)


def check_detection(windows: int, threshold: float) -> None:
    """Raise OptionError unless both arguments of ``detect_language`` can be used."""
    if isinstance(windows, bool) or not isinstance(windows, int) or windows < 1:
        raise OptionError(f"windows is {windows!r}; expected an integer of at least 1")
    number = isinstance(threshold, (int, float)) and not isinstance(threshold, bool)
    if not number or not 0 <= threshold <= 1:
        raise OptionError(f"threshold is {threshold!r}; expected a probability from 0 to 1")


class ManyOptions:
    """The options of each of several recordings.

    Attributes:
        batch_size: windows to decode at once.
        n_used: recordings that have got theirs.
    """

    def __init__(
        self,
        audios: object,
        options: TranscribeOptions | Iterable[TranscribeOptions] | None,
        overrides: dict[str, Any],
    ) -> None:
        """Check what can be checked before the first recording.

        Args:
            audios: the recordings.
            options: shared by all, or one for each.
            overrides: fields that replace those of every ``options``.

        Raises:
            OptionError: ``audios`` is one recording, or there are not as many options.
        """
        _refuse_one(audios)
        self.batch_size = TranscribeOptions.batch_size
        self.n_used = 0
        self._n_options: int | None = None
        self._options: Iterator[TranscribeOptions]
        if options is None or isinstance(options, TranscribeOptions):
            shared = merged(options, overrides)
            self.batch_size = shared.batch_size
            self._options = itertools.repeat(shared)
            return
        self._options = (merged(one, overrides) for one in options)
        if isinstance(options, Sized):
            self._n_options = len(options)
            if isinstance(audios, Sized):
                self._check(len(audios))

    def next(self) -> TranscribeOptions:
        """The options of the next recording; raises OptionError if there are none left."""
        chosen = next(self._options, None)
        if chosen is None:
            raise _unequal(self.n_used, "more recordings than that")
        self.n_used += 1
        return chosen

    def checked_after(self, results: Iterator[_T]) -> Iterator[_T]:
        """Results; and after the last one OptionError, if a list of options was not used up."""
        yield from results
        self._check(self.n_used)

    def _check(self, n_recordings: int) -> None:
        if self._n_options not in (None, n_recordings):
            raise _unequal(self._n_options, f"{n_recordings} recording(s)")


def _refuse_one(audios: object) -> None:
    if isinstance(audios, _ONE) or hasattr(audios, "read") or not isinstance(audios, Iterable):
        raise OptionError(
            f"audios is one recording or none ({type(audios).__name__}); expected a list of"
            " recordings, such as [audio]; or call transcribe"
        )


def _unequal(n_options: int | None, found: str) -> OptionError:
    return OptionError(
        f"there are options for {n_options} recording(s), but {found}; expected one for each, or"
        " one for all"
    )
