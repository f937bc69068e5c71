"""Files and modules of this package that a frozen application needs, besides its imports."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from pathlib import Path

from whisper_opt.core.native_library import library_name

__all__ = ["binary_files", "data_files", "hidden_modules"]

_PACKAGE = Path(__file__).resolve().parents[2]
_VAD, _KERNELS = Path("audio", "vad"), Path("runtime", "native")
_IMPORTED = ("onnxruntime", "soundfile", "soxr", "av")
"""Packages that are imported on first use, which static analysis may miss."""


def data_files() -> list[tuple[str, str]]:
    """Data files, each with its target directory in the application."""
    home = f"whisper_opt/{_VAD.as_posix()}"
    found = [(str(path), home) for path in sorted((_PACKAGE / _VAD).glob("*silero*"))]
    return found + _metadata()


def _metadata() -> list[tuple[str, str]]:
    """Distribution metadata, from which versions are read."""
    found: list[tuple[str, str]] = []
    for name in ("whisper-opt", "onnxruntime", "onnxruntime-gpu"):
        try:
            files = importlib.metadata.distribution(name).files or []
        except importlib.metadata.PackageNotFoundError:
            continue
        listed = [file for file in files if file.name == "METADATA"]
        found += [(str(file.locate()), file.parent.name) for file in listed]
    return found


def binary_files() -> list[tuple[str, str]]:
    """The compiled kernels, if there are any."""
    library = _PACKAGE / _KERNELS / library_name()
    return [(str(library), f"whisper_opt/{_KERNELS.as_posix()}")] if library.exists() else []


def hidden_modules() -> list[str]:
    """Those of the packages imported on first use that are installed."""
    return [name for name in _IMPORTED if importlib.util.find_spec(name) is not None]
