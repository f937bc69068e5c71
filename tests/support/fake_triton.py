"""The module that Triton gives to models in Python, as far as this package uses it."""

from __future__ import annotations

import dataclasses
import json
import threading
from typing import Any, Union

import numpy as np

__all__ = ["FakeRequest", "FakeSender", "FakeTriton", "Tensor"]

_WAIT = 60.0


class Tensor:
    """A named array; ``broken``: as a backend for numpy 1 beside numpy 2 gives it."""

    broken = False

    def __init__(self, name: str, array: Any) -> None:
        self.name = name
        self._array = array

    def as_numpy(self) -> Any:
        """The array."""
        return self._array

    def to_dlpack(self) -> Any:
        """Stands for the array."""
        return self._array

    @classmethod
    def from_dlpack(cls, name: str, array: Any) -> Tensor:
        """A tensor of what :meth:`to_dlpack` gave."""
        return cls(name, np.full_like(array, array[0]) if cls.broken else array)


@dataclasses.dataclass
class TritonError:
    """An error of a response."""

    text: str
    code: str
    INVALID_ARG = "INVALID_ARG"
    UNAVAILABLE = "UNAVAILABLE"
    CANCELLED = "CANCELLED"
    INTERNAL = "INTERNAL"


@dataclasses.dataclass
class InferenceResponse:
    """A response."""

    output_tensors: list[Tensor]
    error: Union[TritonError, None] = None

    @property
    def values(self) -> dict[str, str]:
        """Text by the names of the outputs."""
        return {each.name: each.as_numpy()[0].decode() for each in self.output_tensors}


class FakeSender:
    """Keeps responses; refuses any after the last one."""

    def __init__(self) -> None:
        self.sent: list[InferenceResponse] = []
        self.cancelled = False
        self.ended = threading.Event()

    def send(self, response: InferenceResponse, flags: int = 0) -> None:
        """Keep a response."""
        assert not self.ended.is_set(), "a response after the last one"
        self.sent.append(response)
        if flags:
            self.ended.set()

    def is_cancelled(self) -> bool:
        """Whether the test set it; not to be asked after the last response."""
        assert not self.ended.is_set(), "asked after the last response"
        return self.cancelled

    def wait(self) -> list[InferenceResponse]:
        """All responses, when the last one was sent."""
        assert self.ended.wait(_WAIT), "no last response"
        return self.sent


class FakeRequest:
    """A request with inputs and parameters."""

    def __init__(self, inputs: dict[str, Any], parameters: Union[dict[str, Any], None]) -> None:
        self.inputs = inputs
        self.sender = FakeSender()
        self._parameters = parameters

    def parameters(self) -> str:
        """The parameters as JSON; empty if there are none."""
        return "" if self._parameters is None else json.dumps(self._parameters)

    def get_response_sender(self) -> FakeSender:
        """The sender of this request."""
        return self.sender


class Logger:
    """Keeps what is logged."""

    lines: list[str]

    def __init__(self) -> None:
        self.lines = []

    def log_info(self, text: str) -> None:
        """Keep a line."""
        self.lines.append(text)


class FakeTriton:
    """The module."""

    TRITONSERVER_RESPONSE_COMPLETE_FINAL = 1
    TritonError = TritonError
    InferenceResponse = InferenceResponse

    def __init__(self, *, broken: bool = False) -> None:
        self.Logger = Logger()  # a class in the original
        self.Tensor = type("Tensor", (Tensor,), {"broken": broken})

    @staticmethod
    def get_input_tensor_by_name(request: FakeRequest, name: str) -> Union[Tensor, None]:
        """An input; None if it was not sent."""
        return Tensor(name, request.inputs[name]) if name in request.inputs else None
