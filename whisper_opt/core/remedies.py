"""What to install, in the words of every message that says so."""

from __future__ import annotations

import sys

__all__ = ["install_hint", "repair_hint"]


def install_hint(*extras: str, arguments: str = "") -> str:
    """The command that installs an extra of this package, for a message.

    Args:
        extras: any one of them helps.
        arguments: of pip, before what is installed.
    """
    if getattr(sys, "frozen", False):
        what = " or ".join(f"[{extra}]" for extra in extras)
        return (
            "this is a frozen application: build it again where the packages of whisper-opt's extra"
            f" {what} are installed"
        )
    command = f"pip install {arguments}".strip()
    local, named = (
        " or ".join(f"'{source}[{extra}]'" for extra in extras) for source in (".", "whisper-opt")
    )
    return f"{command} {local} in a clone of whisper-opt (or {named} where an index has it)"


def repair_hint() -> str:
    """How files of this package that are missing or damaged are put back, for a message."""
    if getattr(sys, "frozen", False):
        return (
            "this is a frozen application: build it again with the data files of whisper_opt"
            " (PyInstaller takes them by the package's own hook, or by --collect-all whisper_opt)"
        )
    return "install it again: pip install --force-reinstall --no-deps . in a clone of whisper-opt"
