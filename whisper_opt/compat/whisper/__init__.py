"""openai-whisper's interface on ONNX engines, without torch.

>>> import whisper_opt.compat.whisper as whisper
>>> model = whisper.load_model("base")  # doctest: +SKIP
>>> print(model.transcribe("talk.mp3")["text"])  # doctest: +SKIP

Modules and names are those of openai-whisper 20250625. Every argument is honoured or refused by
name; docs/compat.md lists them. Arrays are numpy's where the original has tensors; tensors are
accepted. Errors are those of :mod:`whisper_opt`; ``OptionError`` is a ``ValueError``.
"""

from __future__ import annotations

import os
from typing import Any

import whisper_opt
from whisper_opt import __version__
from whisper_opt.compat.whisper.audio import load_audio, log_mel_spectrogram, pad_or_trim
from whisper_opt.compat.whisper.decoding import (
    DecodingOptions,
    DecodingResult,
    decode,
    detect_language,
)
from whisper_opt.compat.whisper.model import ModelDimensions, Whisper
from whisper_opt.compat.whisper.transcribe import transcribe

__all__ = [
    "DecodingOptions",
    "DecodingResult",
    "ModelDimensions",
    "Whisper",
    "__version__",
    "available_models",
    "decode",
    "detect_language",
    "load_audio",
    "load_model",
    "log_mel_spectrogram",
    "pad_or_trim",
    "transcribe",
]


def available_models() -> list[str]:
    """Names that :func:`load_model` accepts; it also accepts what ``Whisper.load`` does."""
    return whisper_opt.available_models()


def load_model(
    name: str,
    device: Any = None,
    download_root: str | None = None,
    in_memory: bool = False,
    **options: Any,
) -> Whisper:
    """Load a model.

    Args:
        name: a short name, a hub id, a checkpoint in any supported form, or an engine directory.
        device: ``cpu``, ``cuda``, ``cuda:1``, or a ``torch.device``; None: the fastest.
        download_root: directory of the engine cache; None: the default one.
        in_memory: no effect: the weights are in memory in any case.
        **options: further fields of :class:`whisper_opt.LoadOptions`, which the original does not
            have, such as ``precision="fp32"`` and ``threads=4``.

    Raises:
        WhisperOptError: there is no such model, or it cannot run on the device.
        OptionError: an argument is not supported.
    """
    if download_root is not None:
        options["cache_dir"] = download_root
    if device is not None:
        options = {**_device(str(device)), **options}
    return Whisper(whisper_opt.Whisper.load(os.fspath(name), **options))


def _device(name: str) -> dict[str, Any]:
    """The load options of torch's name for a device."""
    kind, _, index = name.partition(":")
    if index and not index.isdigit():
        raise whisper_opt.OptionError(f"device is {name!r}; expected cpu, cuda, or cuda:0")
    if kind in ("mps", "xpu", "hpu"):
        raise whisper_opt.OptionError(
            f"device is {name!r}, for which there is no backend; expected cpu or cuda"
        )
    return {"device": kind, **({"device_index": int(index)} if index and kind != "cpu" else {})}
