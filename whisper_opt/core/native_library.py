"""The library of compiled kernels: its name on each system, its place, and loading it.

``hatch_build.py`` compiles it from ``runtime/native``. :mod:`whisper_opt.runtime.native` chooses
among its variants.
"""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path
from typing import Any

__all__ = ["ABI", "LIBRARY", "library_name", "load_kernels"]

ABI = 6
"""``WHISPER_OPT_ABI`` of ``layout.h``; a library must have been compiled with the same."""


def library_name(system: str = sys.platform) -> str:
    """File name of the library on a system, which is named as ``sys.platform``."""
    if system == "win32":
        return "whisper_opt.dll"
    return "libwhisper_opt.dylib" if system == "darwin" else "libwhisper_opt.so"


LIBRARY = Path(__file__).parents[1] / "runtime" / "native" / library_name()
"""Path of the compiled library, if there is one."""


def load_kernels(path: Path = LIBRARY) -> tuple[Any, str | None]:
    """The library and None, or None and why it cannot be used on any processor."""
    if not path.exists():
        return None, (
            "not compiled: the package was built without a C compiler; install one (gcc or clang),"
            " then reinstall whisper-opt from source"
        )
    try:
        library = ctypes.CDLL(str(path))
        library.whisper_opt_supported  # noqa: B018 (it exists)
    except (OSError, AttributeError) as error:
        return None, f"{path} cannot be loaded ({error}); reinstall whisper-opt"
    # old libraries do not have the function
    abi = library.whisper_opt_abi() if hasattr(library, "whisper_opt_abi") else 0
    if abi != ABI:
        return None, (
            f"{path} was compiled from other sources (ABI {abi}, expected {ABI}); compile again:"
            " python hatch_build.py, or reinstall whisper-opt"
        )
    return library, None
