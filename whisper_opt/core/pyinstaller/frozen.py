"""What a frozen application needs of this package, besides the modules that are imported."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from pathlib import Path

__all__ = ["binary_files", "data_files", "hidden_modules"]

_PACKAGE = Path(__file__).resolve().parents[2]
_VAD, _KERNELS = Path("audio", "vad"), Path("runtime", "native")
_IMPORTED = ("onnxruntime", "soundfile", "soxr", "av")
"""Packages that are imported when they are needed, which analysis of the source may not see."""


def data_files() -> list[tuple[str, str]]:
    """Files to read, each with the directory of the application that it belongs in."""
    home = f"whisper_opt/{_VAD.as_posix()}"
    found = [(str(path), home) for path in sorted((_PACKAGE / _VAD).glob("*silero*"))]
    return found + _metadata()


def _metadata() -> list[tuple[str, str]]:
    """The directories of metadata from which versions are read."""
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
    library = _PACKAGE / _KERNELS / "libwhisper_opt.so"
    return [(str(library), f"whisper_opt/{_KERNELS.as_posix()}")] if library.exists() else []


def hidden_modules() -> list[str]:
    """Modules to take along that are installed here."""
    return [name for name in _IMPORTED if importlib.util.find_spec(name) is not None]
