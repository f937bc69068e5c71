"""Options of loading: what an engine runs on."""

from __future__ import annotations

import dataclasses
from typing import Union

from whisper_opt.core.errors import OptionError
from whisper_opt.core.options.fields import check_fields, option

__all__ = ["DEVICES", "ENCODER_PRECISIONS", "KERNELS", "LIBRARIES", "PADDINGS", "LoadOptions"]

DEVICES = ("auto", "cpu", "cuda", "tensorrt")
LIBRARIES = ("tensorrt", "tensorrt-rtx")
ENCODER_PRECISIONS = ("engine", "bf16", "int8", "auto")
PADDINGS = ("auto", "whole")
KERNELS = ("auto", "native", "off")


@dataclasses.dataclass(frozen=True)
class LoadOptions:
    """What an engine runs on; whether the machine has it is found out by ``whisper_opt.runtime.devices``.

    Raises:
        OptionError: a value is of the wrong type or out of range, or two contradict one another.
    """

    device: str = option(
        "auto",
        "text",
        "what computes: cpu; cuda: ONNX Runtime on an NVIDIA GPU; tensorrt: plans of this engine on"
        " an NVIDIA GPU; auto: the best of them that this machine and this engine can use",
        choices=DEVICES,
    )
    device_index: int = option(0, "integer", "which GPU, counted from 0", low=0, metavar="N")
    threads: Union[int, None] = option(
        None,
        "integer",
        "threads of what the CPU computes; default: one a physical core",
        low=1,
        metavar="N",
    )
    encoder_precision: str = option(
        "engine",
        "text",
        "what the CPU computes the encoder of an fp32 engine in: engine: as it was exported, the"
        " words of the reference; bf16, int8: through OpenVINO; auto: the most exact of them that"
        " is clearly faster on this CPU",
        choices=ENCODER_PRECISIONS,
    )
    padding: str = option(
        "auto",
        "text",
        "how much of the padding behind a short sound an engine of 8 or 4 bits hears: auto: one"
        " position for every part of it, twice as fast for ten seconds of sound; whole: all of it,"
        " as every other engine does",
        choices=PADDINGS,
    )
    kernels: str = option(
        "auto",
        "text",
        "what computes the 8-bit operators of int8 and int4 engines on the CPU: native: this"
        " library's compiled kernels, or a refusal where they cannot be used; off: ONNX Runtime;"
        " auto: the kernels where they can be used",
        choices=KERNELS,
    )
    cuda_graphs: Union[bool, None] = option(
        None,
        "flag",
        "with tensorrt: replay decoding steps as CUDA graphs; default: yes",
    )
    tensorrt_library: Union[str, None] = option(
        None,
        "text",
        "with tensorrt: which library; default: the first that works and has plans of the engine",
        choices=LIBRARIES,
    )
    build_plans: bool = option(
        False,
        "flag",
        "with tensorrt: build plans that are missing or stale; seconds to minutes, once",
    )
    tensorrt_provider: bool = option(
        False,
        "flag",
        "with cuda: let ONNX Runtime's TensorRT execution provider (TensorRT 10) run the encoder",
    )

    def __post_init__(self) -> None:
        check_fields(self)
        if self.device == "cpu" and self.device_index:
            raise OptionError(
                f"device_index is {self.device_index}, but device is 'cpu', of which there is one;"
                " leave it out, or choose cuda or tensorrt"
            )
        if self.device == "tensorrt" and self.threads is not None:
            raise OptionError(
                f"threads is {self.threads}, but device is 'tensorrt', where the CPU computes"
                " nothing; leave it out"
            )
        if self.encoder_precision != "engine" and self.device in ("cuda", "tensorrt"):
            raise OptionError(
                f"encoder_precision is {self.encoder_precision!r}, but device is {self.device!r},"
                " which computes in the precision of the engine; leave it out, or use device='cpu'"
            )
        if self.kernels != "auto" and self.device in ("cuda", "tensorrt"):
            raise OptionError(
                f"kernels is {self.kernels!r}, but device is {self.device!r}, and they are the"
                " CPU's; leave it out, or use device='cpu'"
            )
        if self.padding != "auto" and self.device in ("cuda", "tensorrt"):
            raise OptionError(
                f"padding is {self.padding!r}, but device is {self.device!r}, where all of it is"
                " always computed; leave it out, or use device='cpu'"
            )
        self._only("cuda_graphs", self.cuda_graphs is not None, "tensorrt")
        self._only("tensorrt_library", self.tensorrt_library is not None, "tensorrt")
        self._only("build_plans", self.build_plans, "tensorrt")
        self._only("tensorrt_provider", self.tensorrt_provider, "cuda")

    def _only(self, name: str, given: bool, device: str) -> None:
        if given and self.device != device:
            raise OptionError(
                f"{name} is given, but device is {self.device!r}; it works with {device!r} only"
            )
