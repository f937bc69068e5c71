"""Compiled kernels of the operators of int8 and int4 engines (``export/graphs/operators.py``).

A custom-operator library for ONNX Runtime, written in C and compiled when the package is built, if
there is a compiler (``hatch_build.py``). It is optional: engines run without it, only slower. It
has one variant per instruction set; all of them compute the same bits. The fastest one that the
processor supports is used, unless the environment variable ``WHISPER_OPT_KERNELS`` names another.
"""

from __future__ import annotations

import ctypes
import functools
import logging
import os
from pathlib import Path
from typing import Any

from whisper_opt.core.errors import BackendUnavailable, OptionError
from whisper_opt.core.native_library import ABI, LIBRARY, load_kernels

__all__ = [
    "ABI",
    "LIBRARY",
    "VARIABLE",
    "VARIANTS",
    "check_choice",
    "copies_panels",
    "has_vnni",
    "kernel_library",
    "select_variant",
    "supported_variants",
    "variant",
    "why_no_kernels",
]

VARIABLE = "WHISPER_OPT_KERNELS"
"""Environment variable that names the variant to use; empty or not set: the fastest."""
VARIANTS = {
    "avx512vnni": "AVX-512 VNNI",
    "avxvnni": "AVX-VNNI",
    "avx2": "AVX2",
    "i8mm": "NEON I8MM",
    "dotprod": "NEON DotProd",
    "generic": "plain C",
}
"""Instruction set of every variant by name, the fastest first."""

_log = logging.getLogger(__name__)


@functools.lru_cache(maxsize=1)
def why_no_kernels() -> str | None:
    """Why the kernels cannot be used here; None if they can.

    Variants that compute wrong results on this processor are not used; a warning is logged.
    """
    library, problem = load_kernels(LIBRARY)
    if library is None:
        return problem
    failed = _names(library.whisper_opt_failed)
    if failed:
        _log.warning(
            "compiled kernels for %s failed their self-test on this processor and are not used;"
            " please report it with the output of whisper-opt doctor",
            " and ".join(VARIANTS.get(name, name) for name in failed),
        )
    return _text(library.whisper_opt_problem)


def kernel_library() -> Path | None:
    """The library to register with ONNX Runtime; None if it cannot be used.

    Raises:
        BackendUnavailable: see :func:`check_choice`.
    """
    check_choice()
    return None if why_no_kernels() else LIBRARY


def check_choice() -> None:
    """Refuse a variant that was requested by environment variable and cannot be used.

    Raises:
        BackendUnavailable: the variant is unknown, or this processor does not support it, or the
            kernels were not compiled.
    """
    requested, problem = os.environ.get(VARIABLE), why_no_kernels()
    if requested and problem:
        raise BackendUnavailable(f"{VARIABLE} is {requested!r}: {problem}; or unset {VARIABLE}")


def variant() -> str | None:
    """The variant of new sessions, a key of VARIANTS; None if the kernels cannot be used."""
    library, _ = load_kernels(LIBRARY)
    return None if library is None else _text(library.whisper_opt_variant)


def supported_variants() -> tuple[str, ...]:
    """The variants that this processor supports and that passed their self-test, fastest first."""
    library, _ = load_kernels(LIBRARY)
    if library is None:
        return ()
    failed = _names(library.whisper_opt_failed)
    return tuple(name for name in _names(library.whisper_opt_variants) if name not in failed)


def select_variant(name: str) -> None:
    """Use a variant in all sessions that are opened from now on; an empty name: the fastest.

    Raises:
        BackendUnavailable: there is no compiled library.
        OptionError: the variant cannot be used.
    """
    library, problem = load_kernels(LIBRARY)
    if library is None:
        raise BackendUnavailable(str(problem))
    library.whisper_opt_select.argtypes = [ctypes.c_char_p]
    refused = _text(library.whisper_opt_select, name.encode())
    if refused:
        raise OptionError(refused)
    why_no_kernels.cache_clear()


def copies_panels() -> bool:
    """Whether sessions copy packed weights, in panels of another width (docs/kernels.md)."""
    library, _ = load_kernels(LIBRARY)
    return library is not None and bool(library.whisper_opt_copies_panels())


def has_vnni() -> bool | None:
    """Whether this x86 processor has AVX-512 VNNI or AVX-VNNI; None without a compiled library."""
    library, _ = load_kernels(LIBRARY)
    return None if library is None else bool(library.whisper_opt_has_vnni())


def _text(function: Any, *arguments: bytes) -> str | None:
    """The result of a C function that returns a string or NULL."""
    function.restype = ctypes.c_char_p
    found: bytes | None = function(*arguments)
    return None if found is None else found.decode()


def _names(function: Any) -> tuple[str, ...]:
    return tuple(filter(None, (_text(function) or "").split(",")))
