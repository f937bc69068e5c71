"""The name of the compiled kernels on each system."""

from __future__ import annotations

import sys

import pytest

from whisper_opt.core.native_library import library_name
from whisper_opt.runtime.native import LIBRARY


@pytest.mark.parametrize(
    ("system", "name"),
    [
        ("linux", "libwhisper_opt.so"),
        ("darwin", "libwhisper_opt.dylib"),
        ("win32", "whisper_opt.dll"),
    ],
)
def test_names(system: str, name: str) -> None:
    assert library_name(system) == name


def test_the_package_uses_that_of_this_system() -> None:
    assert LIBRARY.name == library_name(sys.platform)
