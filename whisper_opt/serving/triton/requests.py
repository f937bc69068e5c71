"""What a request to Triton asks for: the recording, the options, one response or several."""

from __future__ import annotations

import base64
import binascii
import dataclasses
import json
from collections.abc import Mapping
from typing import Any, Union

import numpy as np

from whisper_opt.core.arrays import F32
from whisper_opt.core.dims import SAMPLE_RATE
from whisper_opt.core.errors import OptionError
from whisper_opt.core.options import TranscribeOptions

__all__ = ["INPUTS", "Asked", "read_request"]

_AUDIO, _SAMPLES = "audio", "samples"
INPUTS = {
    _AUDIO: ("TYPE_UINT8", "the bytes of a file of any format"),
    _SAMPLES: ("TYPE_FP32", "samples of one channel; their rate is the parameter sample_rate"),
}
"""Type and meaning of the inputs [n] by name; both are optional, but one recording is needed."""
_BASE64 = "audio_base64"
"""Parameter that may take the place of the inputs: Triton's JSON has no bytes."""
_FIELDS = tuple(field.name for field in dataclasses.fields(TranscribeOptions))


@dataclasses.dataclass(frozen=True)
class Asked:
    """A request.

    Attributes:
        audio: the bytes of a file, or samples, float32 [n].
        sample_rate: rate of the samples in Hz; None for a file.
        options: how to transcribe.
        stream: whether segments are sent as they are decoded.
    """

    audio: Union[bytes, F32]
    sample_rate: Union[int, None]
    options: TranscribeOptions
    stream: bool


def read_request(inputs: Mapping[str, Any], parameters: Mapping[str, Any]) -> Asked:
    """Read the inputs and parameters of a request.

    Args:
        inputs: arrays [n] by the names of ``INPUTS``, if they were sent; they are copied.
        parameters: ``audio_base64``, a file in base64; ``stream``; ``sample_rate``; ``options``,
            fields of :class:`TranscribeOptions` in a JSON object; and such fields themselves.
            Those that begin with ``triton_`` are Triton's own.

    Raises:
        OptionError: there is no recording or more than one, or an option is unknown or wrong.
    """
    given = {name: value for name, value in parameters.items() if not name.startswith("triton_")}
    sent = {**inputs, **({_BASE64: given.pop(_BASE64)} if _BASE64 in given else {})}
    if len(sent) != 1:
        raise OptionError(
            f"the request has {' and '.join(sent) or 'no recording'}; expected one of the inputs"
            f" {_AUDIO} and {_SAMPLES}, or the parameter {_BASE64}"
        )
    ((name, value),) = sent.items()
    stream = given.pop("stream", True)
    if not isinstance(stream, bool):
        raise OptionError(f"stream is {stream!r}; expected true or false")
    sample_rate = _sample_rate(name, given.pop("sample_rate", None))
    options = _options({**_object(given.pop("options", "{}")), **given})
    return Asked(_audio(name, value), sample_rate, options, stream)


def _sample_rate(name: str, given: Any) -> Union[int, None]:
    if name == _SAMPLES:
        rate = SAMPLE_RATE if given is None else given
        if isinstance(rate, bool) or not isinstance(rate, int) or rate < 1:
            raise OptionError(f"sample_rate is {rate!r}; expected a rate in Hz, above 0")
        return rate
    if given is not None:
        raise OptionError(
            f"sample_rate is {given!r}, but the recording is a file, which has its own; leave it"
            f" out, or send {_SAMPLES}"
        )
    return None


def _audio(name: str, value: Any) -> Union[bytes, F32]:
    if name == _BASE64:
        return _decoded(value)
    return value.tobytes() if name == _AUDIO else np.array(value, np.float32).reshape(-1)


def _decoded(text: Any) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, TypeError, ValueError) as error:
        raise OptionError(f"{_BASE64} is no base64 ({error}); expected a file in it") from error


def _object(text: Any) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except (TypeError, ValueError, RecursionError) as error:
        raise OptionError(f"options is no JSON ({error}); expected a JSON object") from error
    if not isinstance(found, dict):
        raise OptionError(f"options is {text}; expected a JSON object")
    return found


def _options(given: Mapping[str, Any]) -> TranscribeOptions:
    unknown = [name for name in given if name not in _FIELDS]
    if unknown:
        raise OptionError(
            f"there is no parameter {unknown[0]!r}; expected {_BASE64}, stream, sample_rate,"
            " options, or an option of transcription such as language"
        )
    return TranscribeOptions(**given)
