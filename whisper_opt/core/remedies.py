"""Installation commands for error messages."""

from __future__ import annotations

import sys

__all__ = ["install_hint", "quoted", "repair_hint"]


def install_hint(*extras: str, arguments: str = "") -> str:
    """The command that installs an extra of this package.

    Args:
        extras: alternatives; one of them is needed.
        arguments: options of pip, before the package.
    """
    if getattr(sys, "frozen", False):
        named = " or ".join(f"[{extra}]" for extra in extras)
        return (
            "this is a frozen application: build it again with the packages of whisper-opt's extra"
            f" {named} installed"
        )
    command = f"pip install {arguments}".strip()
    local, named = (
        " or ".join(quoted(f"{source}[{extra}]") for extra in extras)
        for source in (".", "whisper-opt")
    )
    return f"{command} {local} in a clone of whisper-opt (or {named} from a package index)"


def quoted(requirement: str) -> str:
    """A requirement in the quotes of this system's shells; single ones are letters to cmd.exe."""
    return f'"{requirement}"' if sys.platform == "win32" else f"'{requirement}'"


def repair_hint() -> str:
    """How to restore missing or damaged files of this package."""
    if getattr(sys, "frozen", False):
        return (
            "this is a frozen application: build it again with the data files of whisper_opt"
            " (PyInstaller: the hook of the package does it, or --collect-all whisper_opt)"
        )
    return "install it again: pip install --force-reinstall --no-deps . in a clone of whisper-opt"
