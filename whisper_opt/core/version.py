"""Versions of this library and of installed packages."""

from __future__ import annotations

__all__ = ["__version__", "installed_version"]

__version__ = "0.1.0"


def installed_version(distribution: str) -> str | None:
    """Version of an installed distribution; None if it is not installed."""
    import importlib.metadata  # half as slow to import as numpy

    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None
