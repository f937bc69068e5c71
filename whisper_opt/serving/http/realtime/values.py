"""Values in the JSON of clients: each is taken once, checked, and named by its path in errors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Union

from whisper_opt.serving.http.errors import ApiError, invalid

__all__ = ["Values", "unsupported"]


def unsupported(path: str, reason: str) -> ApiError:
    """The error of a value that this server cannot honour."""
    return ApiError(400, f"{path} is not supported: {reason}", param=path, code="unsupported_value")


class Values:
    """An object of JSON whose keys are taken one by one."""

    def __init__(self, value: Any, path: str) -> None:
        """Begin to read an object.

        Raises:
            ApiError: the value is no object.
        """
        if not isinstance(value, Mapping):
            raise invalid(path, f"is {_shown(value)}", "an object")
        self._values = dict(value)
        self._path = path
        self._known: list[str] = []

    def path(self, key: str) -> str:
        """The name of a key in errors."""
        return f"{self._path}.{key}" if self._path else key

    def has(self, key: str) -> bool:
        """Whether a key is there that was not taken."""
        return key in self._values

    def take(self, key: str) -> Any:
        """The value of a key, or None."""
        self._known.append(key)
        return self._values.pop(key, None)

    def text(self, key: str) -> Union[str, None]:
        """A string, or None."""
        value = self.take(key)
        if value is not None and not isinstance(value, str):
            raise invalid(self.path(key), f"is {_shown(value)}", "a string")
        return value

    def texts(self, key: str) -> tuple[str, ...]:
        """An array of strings; () if there is none."""
        value = self.take(key)
        if value is None:
            return ()
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise invalid(self.path(key), f"is {_shown(value)}", "an array of strings")
        return tuple(value)

    def number(self, key: str, low: float, high: float) -> Union[float, None]:
        """A number in a range, or None."""
        value = self.take(key)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise invalid(self.path(key), f"is {_shown(value)}", f"a number from {low} to {high}")
        if not low <= value <= high:
            raise invalid(self.path(key), f"is {value}", f"a number from {low} to {high}")
        return value

    def integer(self, key: str, low: int, high: int) -> Union[int, None]:
        """A whole number in a range, or None."""
        value = self.number(key, low, high)
        if value is not None and value != int(value):
            raise invalid(self.path(key), f"is {value}", "an integer")
        return None if value is None else int(value)

    def choice(self, key: str, choices: Sequence[str]) -> Union[str, None]:
        """One of some strings, or None."""
        value = self.text(key)
        if value is not None and value not in choices:
            raise invalid(self.path(key), f"is {_shown(value)}", f"one of {', '.join(choices)}")
        return value

    def end(self) -> None:
        """Refuse the keys that are left.

        Raises:
            ApiError: there are some.
        """
        for key in self._values:
            raise ApiError(
                400,
                f"{self.path(str(key)[:100])} is unknown; expected"
                f" {', '.join(dict.fromkeys(self._known))}",
                param=self.path(str(key)[:100]),
                code="unknown_parameter",
            )


def _shown(value: Any) -> str:
    """A value in a message, not longer than a line."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
