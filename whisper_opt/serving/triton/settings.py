"""Settings of a model that ``config.pbtxt`` carries from the command to the instances."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from whisper_opt.core.errors import EngineError, OptionError
from whisper_opt.core.options import LoadOptions

__all__ = ["ENGINE", "PARAMETER", "Settings"]

ENGINE = "engine"
"""Name of the directory of the engine beside ``model.py``."""
PARAMETER = "whisper_opt"
"""Name of the parameter of ``config.pbtxt`` that holds the settings."""
_OF_EXPORT = ("precision", "revision", "cache_dir", "local_files_only", "device_index")
"""Options of loading that have done their work when the engine is there, or that Triton gives."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """How the instances of a model run.

    Attributes:
        load: options of loading; device ``auto`` stands for the CPU.
        max_batch: windows decoded at once, per instance.
        instances: instances on the CPU, or on each GPU.
        gpus: indices of the GPUs; empty: all. For CPUs: empty.

    Raises:
        OptionError: a number is out of range, or options contradict each other.
    """

    load: LoadOptions = LoadOptions()  # noqa: RUF009  # it is frozen
    max_batch: int = 8
    instances: int = 1
    gpus: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for name in ("max_batch", "instances"):
            if getattr(self, name) < 1:
                raise OptionError(f"{name} is {getattr(self, name)}; expected at least 1")
        if self.gpus and not self.on_gpus:
            raise OptionError(
                f"GPUs are given, but device is {self.load.device!r}; give --device cuda or"
                " tensorrt"
            )
        if self.load.device_index:
            raise OptionError(
                f"device_index is {self.load.device_index}, but Triton places the instances; give"
                " --gpus"
            )
        if self.instances > 1 and not self.on_gpus and self.load.threads is None:
            raise OptionError(
                f"{self.instances} instances on the CPU would each use all cores; give --threads,"
                " or one instance with a larger --max-batch"
            )

    @property
    def on_gpus(self) -> bool:
        """Whether the instances run on GPUs."""
        return self.load.device in ("cuda", "tensorrt")

    def to_json(self) -> str:
        """What the instances need to know, as JSON in ASCII."""
        default = LoadOptions()
        load = {
            field.name: getattr(self.load, field.name)
            for field in dataclasses.fields(LoadOptions)
            if getattr(self.load, field.name) != getattr(default, field.name)
            and field.name not in _OF_EXPORT
        }
        return json.dumps({"load": load, "max_batch": self.max_batch})

    @classmethod
    def read(cls, config: Mapping[str, Any]) -> Settings:
        """Settings from the configuration of a model, as Triton gives it.

        Raises:
            EngineError: it has none, or has been damaged.
            OptionError: a value is wrong.
        """
        try:
            found = json.loads(config["parameters"][PARAMETER]["string_value"])
            return cls(load=LoadOptions(**found["load"]), max_batch=found["max_batch"])
        except (KeyError, TypeError, json.JSONDecodeError) as error:
            raise EngineError(
                f"config.pbtxt has no usable parameter {PARAMETER!r}"
                f" ({type(error).__name__}: {error}); write the model with whisper-opt"
                " triton-repository again"
            ) from error

    def on(self, kind: str, device: str) -> LoadOptions:
        """Options of loading for an instance.

        Args:
            kind: ``CPU`` or ``GPU``, perhaps after ``KIND_``.
            device: index of the GPU.
        """
        if kind.rpartition("_")[2] != "GPU":
            return dataclasses.replace(self.load, device="cpu")
        chosen = self.load.device if self.on_gpus else "cuda"
        return dataclasses.replace(self.load, device=chosen, device_index=int(device))
