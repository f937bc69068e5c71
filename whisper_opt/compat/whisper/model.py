"""``whisper.model``: a loaded model."""

from __future__ import annotations

from typing import Any

import whisper_opt
from whisper_opt.compat.whisper.decoding import decode as decode_function
from whisper_opt.compat.whisper.decoding import detect_language as detect_language_function
from whisper_opt.compat.whisper.tokenizer import remember
from whisper_opt.compat.whisper.transcribe import transcribe as transcribe_function

__all__ = ["ModelDimensions", "Whisper"]

ModelDimensions = whisper_opt.ModelDims


class Device(str):
    """The name of a device, with the ``type`` of ``torch.device``."""

    @property
    def type(self) -> str:
        """``cpu`` or ``cuda``."""
        return str(self)


class Whisper:
    """A loaded model with the methods of openai-whisper's."""

    def __init__(self, model: whisper_opt.Whisper) -> None:
        self.model = model
        """The model of this library."""
        remember(model)

    @property
    def dims(self) -> Any:
        """Dimensions, under openai-whisper's names."""
        return self.model.dims

    @property
    def device(self) -> Device:
        """``cpu`` or ``cuda``."""
        return Device("cpu" if self.model.device == "cpu" else "cuda")

    @property
    def is_multilingual(self) -> bool:
        """Whether the model knows languages other than English."""
        return self.model.is_multilingual

    @property
    def num_languages(self) -> int:
        """Languages in the vocabulary."""
        return len(self.model.vocab.languages)

    transcribe = transcribe_function
    decode = decode_function
    detect_language = detect_language_function

    def to(self, device: Any) -> Whisper:
        """The model itself; another device than its own is refused.

        Raises:
            OptionError: the model runs on another device.
        """
        kind = str(device).partition(":")[0]
        if kind in ("cpu", "cuda", "mps") and kind != self.device:
            raise whisper_opt.OptionError(
                f"device is {str(device)!r}, but this model was loaded on {self.device}; give the"
                " device to load_model"
            )
        return self

    def cpu(self) -> Whisper:
        """The model itself if it runs on the CPU, else as :meth:`to`."""
        return self.to("cpu")

    def cuda(self, device: Any = None) -> Whisper:
        """The model itself if it runs on a GPU, else as :meth:`to`."""
        return self.to("cuda")

    def eval(self) -> Whisper:
        """The model itself: it never trains."""
        return self

    def half(self) -> Whisper:
        """The model itself: the precision was chosen when it was loaded."""
        return self

    float = half

    def __getattr__(self, name: str) -> Any:
        """Refuse parts of a torch module."""
        raise AttributeError(
            f"this model has no {name!r}: it is no torch module, it runs ONNX graphs; use"
            " transcribe, decode or detect_language, or openai-whisper itself"
        )
