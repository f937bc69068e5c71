"""Inputs of the pipeline as samples."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

import whisper_opt

__all__ = ["is_several", "one_by_one", "recording"]

_ONE = (str, bytes, bytearray, memoryview, os.PathLike, Mapping, np.ndarray)
_URL = ("http://", "https://")
_CONVERTED = ("detach", "cpu", "numpy")
"""Methods of a tensor that lead to an array."""


def is_several(inputs: Any) -> bool:
    """Whether ``inputs`` are recordings: a list, a generator, a dataset, ..."""
    if isinstance(inputs, _ONE) or _is_decoder(inputs) or _is_tensor(inputs):
        return False
    if hasattr(inputs, "read"):
        return False
    indexed = hasattr(inputs, "__len__") and hasattr(inputs, "__getitem__")
    return isinstance(inputs, Iterable) or indexed


def one_by_one(inputs: Any) -> Iterator[Any]:
    """The recordings; a dataset of torch may have ``__getitem__`` and ``__len__`` only."""
    if isinstance(inputs, Iterable):
        yield from inputs
    else:
        for i in range(len(inputs)):
            yield inputs[i]


def recording(item: Any) -> tuple[Any, dict[str, Any]]:
    """Samples, float32 [n] at 16 kHz, and the further entries of a dictionary.

    Args:
        item: path, bytes of a file, file object; array or tensor [n] or [channels, n] at 16 kHz; a
            dictionary with ``raw`` or ``array`` and ``sampling_rate``, or with ``path`` or
            ``bytes``; or a decoder of torchcodec.

    Raises:
        AudioError: the recording cannot be read or used.
        OptionError: the type or an entry is not supported, or it is a URL.
    """
    if isinstance(item, Mapping):
        return _entries(item)
    if _is_decoder(item):
        found = item.get_all_samples()
        return _samples(found.data, int(found.sample_rate)), {}
    if isinstance(item, np.ndarray) or _is_tensor(item):
        return _samples(item, None), {}
    if isinstance(item, str) and item.startswith(_URL):
        raise whisper_opt.OptionError(
            f"inputs has the URL {item!r}, but nothing is fetched; download it, and give its path"
            " or its bytes"
        )
    return _loaded(item), {}


def _loaded(item: Any) -> Any:
    known = isinstance(item, _ONE) or hasattr(item, "read")
    if not known:
        raise whisper_opt.OptionError(
            f"inputs has a {type(item).__name__}; expected a path, bytes, an array, or a"
            " dictionary with 'raw' and 'sampling_rate'"
        )
    return whisper_opt.load_audio(item)


def _entries(item: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    if item.get("stride") is not None:
        raise whisper_opt.OptionError(
            "inputs has 'stride', which is about CTC models; cut the samples, or use chunk_length_s"
        )
    used = {"raw", "array", "sampling_rate", "path", "bytes", "stride"}
    extra = {name: value for name, value in item.items() if name not in used}
    for name in ("raw", "array"):
        if item.get(name) is not None:
            if item.get("sampling_rate") is None:
                raise whisper_opt.OptionError(
                    f"inputs has {name!r} without 'sampling_rate'; give the rate in Hz"
                )
            return _samples(item[name], int(item["sampling_rate"])), extra
    for name in ("bytes", "path"):
        if item.get(name) is not None:
            return recording(item[name])[0], extra
    raise whisper_opt.OptionError(
        f"inputs has a dictionary with {', '.join(map(repr, item)) or 'nothing'}; expected 'raw' or"
        " 'array' with 'sampling_rate', or 'path' or 'bytes'; of a dataset give the column with the"
        " recordings"
    )


def _samples(values: Any, rate: int | None) -> Any:
    array = _mono(_array(values))
    return whisper_opt.load_audio(array, sample_rate=rate)


def _array(values: Any) -> Any:
    if _is_tensor(values):
        for method in _CONVERTED:
            values = getattr(values, method)()
    return np.asarray(values)


def _mono(array: Any) -> Any:
    """The mean of one or two channels."""
    if array.ndim == 1:
        return array
    if array.ndim != 2 or len(array) > 2:
        raise whisper_opt.OptionError(
            f"inputs has an array of shape {list(array.shape)}; expected [n], or [channels, n] with"
            " one or two channels: transpose [n, channels], mix other channels"
        )
    return array.mean(axis=0, dtype=np.float32)


def _is_tensor(value: Any) -> bool:
    return all(hasattr(value, name) for name in _CONVERTED)


def _is_decoder(value: Any) -> bool:
    """Whether ``value`` is an ``AudioDecoder`` of torchcodec, which datasets returns."""
    return hasattr(value, "get_all_samples")
