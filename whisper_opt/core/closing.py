"""What holds files, processes or memory until it is closed."""

from __future__ import annotations

import abc
from types import TracebackType
from typing import TypeVar

__all__ = ["Closing"]

_Self = TypeVar("_Self", bound="Closing")


class Closing(abc.ABC):
    """A context manager that is closed where the ``with`` block ends, also by an error."""

    @abc.abstractmethod
    def close(self) -> None:
        """Release everything; closing again does nothing."""

    def __enter__(self: _Self) -> _Self:
        """Return the object itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Call :meth:`close`."""
        self.close()
