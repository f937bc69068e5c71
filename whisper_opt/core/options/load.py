"""Options of ``Whisper.load``: the device that an engine runs on, and how."""

from __future__ import annotations

import dataclasses
from typing import Union

from whisper_opt.core.errors import OptionError
from whisper_opt.core.options.fields import check_fields, option

__all__ = [
    "DEVICES",
    "ENCODER_PRECISIONS",
    "KERNELS",
    "LIBRARIES",
    "PADDINGS",
    "PRECISIONS",
    "LoadOptions",
]

DEVICES = ("auto", "cpu", "cuda", "tensorrt")
LIBRARIES = ("tensorrt", "tensorrt-rtx")
ENCODER_PRECISIONS = ("engine", "bf16", "int8", "auto")
PRECISIONS = ("auto", "fp32", "fp16", "fp16-storage", "int8", "int8-avx2", "int4")
PADDINGS = ("auto", "whole")
KERNELS = ("auto", "native", "off")


@dataclasses.dataclass(frozen=True)
class LoadOptions:
    """The device that an engine runs on, and how.

    ``whisper_opt.runtime.devices`` checks whether the machine has that device.

    Raises:
        OptionError: a value is of the wrong type or out of range, or two options contradict.
    """

    device: str = option(
        "auto",
        "text",
        "cpu; cuda: ONNX Runtime on an NVIDIA GPU; tensorrt: TensorRT plans of this engine on an"
        " NVIDIA GPU; auto: the fastest that this machine and this engine support",
        choices=DEVICES,
    )
    device_index: int = option(0, "integer", "index of the GPU, from 0", low=0, metavar="N")
    threads: Union[int, None] = option(
        None,
        "integer",
        "CPU threads; default: one per physical core",
        low=1,
        metavar="N",
    )
    precision: str = option(
        "auto",
        "text",
        "precision of the engine that is exported from a model name or a checkpoint; auto: int8 on"
        " the CPU (fp32 gives the words of openai-whisper), fp16 with cuda and tensorrt. int8-avx2:"
        " int8 with slightly coarser weights, faster on processors with AVX2 but no VNNI. With a"
        " directory of Optimum: which of its graphs to run; auto: fp32 if it is there, else int8,"
        " fp16, int4",
        choices=PRECISIONS,
    )
    revision: Union[str, None] = option(
        None,
        "text",
        "branch, tag or commit of a hub id; default: the pinned commit of a short name, else the"
        " newest",
        metavar="REV",
    )
    cache_dir: Union[str, None] = option(
        None,
        "text",
        "directory of the engine cache; default: WHISPER_OPT_CACHE, else whisper_opt in the user's"
        " cache directory",
        metavar="DIR",
    )
    local_files_only: bool = option(
        False,
        "flag",
        "use no network: a model of the hub must have been fetched before",
    )
    encoder_precision: str = option(
        "engine",
        "text",
        "precision of the encoder of an fp32 engine on the CPU; engine: as exported, same text as"
        " openai-whisper; bf16, int8: run by OpenVINO; auto: the most accurate of them that is"
        " clearly faster on this CPU",
        choices=ENCODER_PRECISIONS,
    )
    padding: str = option(
        "auto",
        "text",
        "how int8 and int4 engines process the padding after audio shorter than 30 s; auto: merge"
        " it into a few encoder positions (twice as fast for 10 s of audio); whole: process all of"
        " it, as every other engine does",
        choices=PADDINGS,
    )
    kernels: str = option(
        "auto",
        "text",
        "what runs the 8-bit operators of int8 and int4 engines on the CPU; native: this library's"
        " compiled kernels, an error if they cannot be used; off: ONNX Runtime; auto: the kernels"
        " if they can be used",
        choices=KERNELS,
    )
    speakers: Union[str, None] = option(
        None,
        "text",
        "directory of the networks for diarize, which whisper-opt export-speakers writes; they run"
        " on the CPU",
        metavar="DIR",
    )
    draft_model: Union[str, None] = option(
        None,
        "text",
        "a smaller model with the same vocabulary, by name or path: it proposes tokens, which"
        " greedy decoding verifies; on the CPU",
        metavar="MODEL",
    )
    cuda_graphs: Union[bool, None] = option(
        None,
        "flag",
        "with tensorrt: run decoding steps as CUDA graphs; default: yes",
    )
    tensorrt_library: Union[str, None] = option(
        None,
        "text",
        "with tensorrt: which library runs the plans; default: the first that works and has plans"
        " of this engine",
        choices=LIBRARIES,
    )
    build_plans: bool = option(
        False,
        "flag",
        "with tensorrt: build plans that are missing or out of date, in seconds to minutes, once",
    )
    tensorrt_provider: bool = option(
        False,
        "flag",
        "with cuda: run the encoder on ONNX Runtime's TensorRT execution provider (TensorRT 10)",
    )

    def __post_init__(self) -> None:
        check_fields(self)
        if self.device == "cpu" and self.device_index:
            raise OptionError(
                f"device_index is {self.device_index}, but device is 'cpu', and there is only one;"
                " leave it out, or choose cuda or tensorrt"
            )
        if self.device == "tensorrt" and self.threads is not None:
            raise OptionError(
                f"threads is {self.threads}, but device is 'tensorrt', which runs nothing on"
                " the CPU; leave it out"
            )
        if self.encoder_precision != "engine" and self.device in ("cuda", "tensorrt"):
            raise OptionError(
                f"encoder_precision is {self.encoder_precision!r}, but device is {self.device!r},"
                " which runs the precision of the engine; leave it out, or use device='cpu'"
            )
        if self.kernels != "auto" and self.device in ("cuda", "tensorrt"):
            raise OptionError(
                f"kernels is {self.kernels!r}, but device is {self.device!r}, and the kernels run"
                " on the CPU; leave it out, or use device='cpu'"
            )
        if self.padding != "auto" and self.device in ("cuda", "tensorrt"):
            raise OptionError(
                f"padding is {self.padding!r}, but device is {self.device!r}, which always"
                " processes all of it; leave it out, or use device='cpu'"
            )
        if self.draft_model is not None and self.device in ("cuda", "tensorrt"):
            raise OptionError(
                f"draft_model is given, but device is {self.device!r}, and draft models run on the"
                " CPU; leave it out, or use device='cpu'"
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
