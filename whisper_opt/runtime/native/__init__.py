"""Compiled kernels of the operators of 8-bit engines (``export/graphs/operators.py``).

A custom-operator library for ONNX Runtime, written in C for processors with AVX-512 VNNI and
compiled when the package is built, if there is a compiler (``hatch_build.py``). It is optional:
engines run without it, only slower.
"""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path

from whisper_opt.core.native_library import library_name

__all__ = ["ABI", "LIBRARY", "kernel_library", "why_no_kernels"]

ABI = 1
"""``WHISPER_OPT_ABI`` of ``layout.h``; a library must have been compiled with the same."""
LIBRARY = Path(__file__).with_name(library_name())
"""Path of the compiled library, if there is one."""


@functools.lru_cache(maxsize=1)
def why_no_kernels() -> str | None:
    """Why the kernels cannot be used here; None if they can."""
    if not LIBRARY.exists():
        return (
            "not compiled: the package was built without a C compiler, or not for Linux on x86-64;"
            " install a compiler (gcc or clang), then reinstall whisper-opt from source"
        )
    try:
        library = ctypes.CDLL(str(LIBRARY))
        supported = library.whisper_opt_supported
    except (OSError, AttributeError) as error:
        return f"{LIBRARY} cannot be loaded ({error}); reinstall whisper-opt"
    # old libraries do not have the function
    abi = library.whisper_opt_abi() if hasattr(library, "whisper_opt_abi") else 0
    if abi != ABI:
        return (
            f"{LIBRARY} was compiled from other sources (ABI {abi}, expected {ABI}); compile again:"
            " python hatch_build.py, or reinstall whisper-opt"
        )
    return None if supported() else "this processor has no AVX-512 VNNI"


def kernel_library() -> Path | None:
    """The library to register with ONNX Runtime; None if it cannot be used."""
    return None if why_no_kernels() else LIBRARY
