"""Installation hints for error messages."""

from __future__ import annotations

import sys

__all__ = ["install_hint", "repair_hint"]


def install_hint(*extras: str, arguments: str = "") -> str:
    """The command that installs an extra of this package.

    Args:
        extras: names of extras, any one of which is enough.
        arguments: further arguments of ``pip install``.
    """
    if getattr(sys, "frozen", False):
        names = " or ".join(f"[{extra}]" for extra in extras)
        return (
            "this is a frozen application: install the packages of whisper-opt's extra"
            f" {names} and build it again"
        )
    command = f"pip install {arguments}".strip()
    local, named = (
        " or ".join(f"'{source}[{extra}]'" for extra in extras) for source in (".", "whisper-opt")
    )
    return f"{command} {local} in a clone of whisper-opt (or {named} from a package index)"


def repair_hint() -> str:
    """How to restore files of this package that are missing or damaged."""
    if getattr(sys, "frozen", False):
        return (
            "this is a frozen application: build it again with the data files of whisper_opt"
            " (PyInstaller collects them by the package's hook, or by --collect-all whisper_opt)"
        )
    return "install it again: pip install --force-reinstall --no-deps . in a clone of whisper-opt"
