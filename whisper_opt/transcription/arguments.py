"""Arguments of the methods of ``Whisper``: options with overrides, options per recording."""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections.abc import Iterable, Iterator, Sized
from typing import Any, TypeVar

import numpy as np

from whisper_opt.core.errors import OptionError
from whisper_opt.core.options import LoadOptions, TranscribeOptions

__all__ = ["ManyOptions", "check_detection", "merged"]

_T = TypeVar("_T")
_Options = TypeVar("_Options", LoadOptions, TranscribeOptions)
_ONE = (str, bytes, bytearray, memoryview, os.PathLike, np.ndarray)
"""Types of a single recording, most of which are iterable."""


def merged(kind: type[_Options], options: _Options | None, overrides: dict[str, Any]) -> _Options:
    """Options of one kind with some fields replaced.

    Raises:
        OptionError: an override is not an option, or has an invalid value.
    """
    known = [field.name for field in dataclasses.fields(kind)]
    for name in overrides:
        if name not in known:
            raise OptionError(f"unknown option {name!r}; expected one of {', '.join(known)}")
    return dataclasses.replace(options or kind(), **overrides)


def check_detection(windows: int, threshold: float) -> None:
    """Check the arguments of ``detect_language``; raises OptionError."""
    if isinstance(windows, bool) or not isinstance(windows, int) or windows < 1:
        raise OptionError(f"windows is {windows!r}; expected an integer of at least 1")
    number = isinstance(threshold, (int, float)) and not isinstance(threshold, bool)
    if not number or not 0 <= threshold <= 1:
        raise OptionError(f"threshold is {threshold!r}; expected a probability from 0 to 1")


class ManyOptions:
    """The options of each of several recordings.

    Attributes:
        batch_size: maximum number of windows decoded at once.
        n_used: number of recordings whose options were taken.
    """

    def __init__(
        self,
        audios: object,
        options: TranscribeOptions | Iterable[TranscribeOptions] | None,
        overrides: dict[str, Any],
    ) -> None:
        """Check all that can be checked before the first recording.

        Args:
            audios: the recordings.
            options: shared by all, or one per recording.
            overrides: fields that replace those of every ``options``.

        Raises:
            OptionError: ``audios`` is a single recording, or the numbers of recordings and options
                differ.
        """
        _refuse_one(audios)
        self.batch_size = TranscribeOptions.batch_size
        self.n_used = 0
        self._n_options: int | None = None
        self._options: Iterator[TranscribeOptions]
        if options is None or isinstance(options, TranscribeOptions):
            shared = merged(TranscribeOptions, options, overrides)
            self.batch_size = shared.batch_size
            self._options = itertools.repeat(shared)
            return
        self._options = (merged(TranscribeOptions, one, overrides) for one in options)
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
        """Yield the results; raises OptionError at the end if options are left over."""
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
