"""File name of the compiled kernels on each system (``hatch_build.py`` compiles them)."""

from __future__ import annotations

import sys

__all__ = ["library_name"]


def library_name(system: str = sys.platform) -> str:
    """File name of the library on a system, which is named as ``sys.platform``."""
    if system == "win32":
        return "whisper_opt.dll"
    return "libwhisper_opt.dylib" if system == "darwin" else "libwhisper_opt.so"
