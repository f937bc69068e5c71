"""The pipeline's arguments about the model, as load options of this library."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

import whisper_opt

__all__ = ["TASK", "check_parts", "load_model"]

TASK = "automatic-speech-recognition"

_PRECISIONS = {"auto": None, "float32": "fp32", "float": "fp32", "float16": "fp16", "half": "fp16"}
"""Precision of the engine per dtype; None: the fastest of the device."""
_IDLE = (
    *("attn_implementation", "use_flash_attention_2", "low_cpu_mem_usage", "use_safetensors"),
    *("offload_folder", "offload_state_dict", "variant", "trust_remote_code"),
)
"""Entries of ``model_kwargs`` that do not change results, or about files that are found anyway."""
_QUANTIZED = ("quantization_config", "load_in_8bit", "load_in_4bit")


def load_model(model: Any, given: Mapping[str, Any]) -> whisper_opt.Whisper:
    """The model of a pipeline.

    Args:
        model: short name, hub id, path, a loaded model, or a model of transformers in memory.
        given: the other arguments of ``pipeline``.

    Raises:
        WhisperOptError: there is no such model, or it cannot run on the device.
        OptionError: an argument is not supported.
    """
    if model is None:
        raise whisper_opt.OptionError(
            "model is None, for which transformers has a default that is not Whisper; expected a"
            " short name such as 'base', a hub id, a path or a model"
        )
    options = _load_options(model, given)
    if not isinstance(model, whisper_opt.Whisper):
        return whisper_opt.Whisper.load(model, **options)
    _check_loaded(model, options)
    return model


def _check_loaded(model: whisper_opt.Whisper, options: Mapping[str, Any]) -> None:
    """Refuse load options that a loaded model does not have."""
    for name, value in options.items():
        if name == "device" and value in ("auto", model.device):
            continue
        if name == "device" and value == "cuda" and model.device != "cpu":
            continue
        raise whisper_opt.OptionError(
            f"{name} is {value!r} for a model that is loaded already (device {model.device!r});"
            f" leave it out, or give {name} to whisper_opt.Whisper.load"
        )


def _load_options(model: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of :class:`whisper_opt.LoadOptions`; only those that are given."""
    more = dict(given.get("model_kwargs") or {})
    moved = {
        name: more.pop(name) for name in ("device_map", "torch_dtype", "dtype") if name in more
    }
    _refuse_twice(given, moved)
    options = {
        **_device(given.get("device"), moved.get("device_map", given.get("device_map"))),
        **_precision(given, moved),
        **_origin(model, given, more),
    }
    known = [field.name for field in dataclasses.fields(whisper_opt.LoadOptions)]
    for name, value in more.items():
        if name in _QUANTIZED:
            raise whisper_opt.OptionError(
                f"model_kwargs has {name!r}, a quantization of torch's layers; give precision:"
                " 'int8' or 'int4' in model_kwargs"
            )
        if name in known:
            options[name] = value
        elif name not in _IDLE:
            raise whisper_opt.OptionError(
                f"model_kwargs has {name!r}, which is about torch's models; leave it out, or use a"
                f" load option of this library: {', '.join(known)}"
            )
    return options


def _refuse_twice(given: Mapping[str, Any], moved: Mapping[str, Any]) -> None:
    """Transformers refuses arguments that are also in ``model_kwargs``, too."""
    for name, here in (("device_map", ("device_map",)), ("dtype", ("dtype", "torch_dtype"))):
        both = [other for other in here if given.get(other) not in (None, "auto")]
        if both and any(other in moved for other in here):
            raise whisper_opt.OptionError(
                f"{both[0]} is given, and {name} in model_kwargs as well; leave one of them out"
            )


def _device(device: Any, device_map: Any) -> dict[str, Any]:
    """``device`` and ``device_index``. None and numbers from 0 mean a GPU if there is one."""
    name = "device"
    if device_map is not None:
        if device is not None:
            raise whisper_opt.OptionError(
                f"device_map is {device_map!r}, and device is {device}; leave one of them out"
            )
        name, device = "device_map", _whole_map(device_map)
    if device is None:
        return {}
    if isinstance(device, int):
        return {"device": "cpu"} if device < 0 else {"device": "auto", **_index(device)}
    kind, _, index = str(device).partition(":")
    if kind not in ("auto", "cpu", "cuda", "tensorrt") or not (index or "0").isdecimal():
        raise whisper_opt.OptionError(
            f"{name} is {str(device)!r}; expected 'cpu', 'cuda', 'cuda:1', 'tensorrt', or the"
            " number of a GPU"
        )
    return {"device": kind, **(_index(int(index or 0)) if kind != "cpu" else {})}


def _index(number: int) -> dict[str, Any]:
    return {"device_index": number} if number else {}


def _whole_map(device_map: Any) -> Any:
    """The device of a map that puts the whole model on one."""
    if isinstance(device_map, Mapping):
        if set(device_map) != {""}:
            raise whisper_opt.OptionError(
                "device_map divides the model, but an engine runs on one device; give device"
            )
        return device_map[""]
    return device_map


def _precision(given: Mapping[str, Any], moved: Mapping[str, Any]) -> dict[str, Any]:
    found = {**moved, **{n: given[n] for n in ("dtype", "torch_dtype") if given.get(n) is not None}}
    values = {n: v for n, v in found.items() if n != "device_map" and v not in (None, "auto")}
    for name, value in values.items():
        dtype = str(value).rpartition(".")[2]
        if dtype not in _PRECISIONS:
            raise whisper_opt.OptionError(
                f"{name} is {value}, a precision in which no engine is exported; expected"
                " 'auto', float32 or float16, or precision: 'int8' in model_kwargs"
            )
        return {"precision": _PRECISIONS[dtype]}
    return {}


def _origin(model: Any, given: Mapping[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    """Where the model comes from; ``revision`` is about hub ids only, as in transformers."""
    token = more.pop("token", None) or given.get("token")
    if token not in (None, True):
        raise whisper_opt.OptionError(
            f"token is {'given' if token else token}, but tokens are not passed on: set HF_TOKEN,"
            " or log in with `hf auth login`, and leave it out; set"
            " HF_HUB_DISABLE_IMPLICIT_TOKEN=1 to send none"
        )
    is_id = isinstance(model, str) and not os.path.exists(model)
    found = {
        "revision": (more.pop("revision", None) or given.get("revision")) if is_id else None,
        "cache_dir": more.pop("cache_dir", None),
        "local_files_only": given.get("local_files_only") or None,
    }
    more.pop("revision", None)
    return {name: value for name, value in found.items() if value is not None}


def check_parts(model: Any, given: Mapping[str, Any]) -> None:
    """Refuse parts of a pipeline that would have to replace those of the model.

    Raises:
        OptionError: a part is not that of the model.
    """
    for name in ("tokenizer", "feature_extractor", "processor", "config"):
        part = given.get(name)
        if isinstance(part, (str, os.PathLike)) and str(part) != str(model):
            raise whisper_opt.OptionError(
                f"{name} is {str(part)!r}, another than the model; an engine has its own: leave it"
                " out, or export the model together with it (whisper-opt export)"
            )
    reasons = {
        "image_processor": "speech recognition has no images; leave it out",
        "video_processor": "speech recognition has no video; leave it out",
        "decoder": "Whisper decodes without a language model for CTC; leave it out, and use"
        " hotwords or initial_prompt of whisper_opt.Whisper.transcribe",
        "assistant_model": "there is no assisted decoding here; leave it out",
        "assistant_tokenizer": "there is no assisted decoding here; leave it out",
    }
    for name, reason in reasons.items():
        if given.get(name) is not None:
            raise whisper_opt.OptionError(f"{name} is given, but {reason}")
    if given.get("framework") not in (None, "pt"):
        raise whisper_opt.OptionError(
            f"framework is {given['framework']!r}, but an engine runs on ONNX Runtime or TensorRT;"
            " leave it out"
        )
