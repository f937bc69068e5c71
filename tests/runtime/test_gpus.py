"""Queries of the CUDA driver, against a library of Python functions."""

from __future__ import annotations

import ctypes
import sys
from typing import Any

import pytest

from whisper_opt.runtime import gpus
from whisper_opt.runtime.gpus import Gpu, find_gpus

CARDS = [("NVIDIA GeForce RTX 3060", (8, 6), 12 << 30), ("NVIDIA H100", (9, 0), 80 << 30)]


class Library:
    """The seven functions of libcuda that are used; ``failing`` names one that returns an error."""

    def __init__(self, cards: list[Any], failing: str = "nothing", status: int = 3) -> None:
        self._cards, self._failing, self._status = cards, failing, status

    def _return(self, name: str, target: Any, value: Any) -> int:
        if name == self._failing:
            return self._status
        target._obj.value = value
        return 0

    def cuInit(self, flags: int) -> int:  # noqa: N802  # CUDA's names, here and below
        return self._status if self._failing == "cuInit" else 0

    def cuDriverGetVersion(self, target: Any) -> int:  # noqa: N802
        return self._return("cuDriverGetVersion", target, 13010)

    def cuDeviceGetCount(self, target: Any) -> int:  # noqa: N802
        return self._return("cuDeviceGetCount", target, len(self._cards))

    def cuDeviceGet(self, target: Any, index: int) -> int:  # noqa: N802
        return self._return("cuDeviceGet", target, index + 40)

    def cuDeviceGetName(self, target: Any, size: int, device: Any) -> int:  # noqa: N802
        assert size == ctypes.sizeof(target)
        target.value = self._cards[device.value - 40][0].encode()
        return 0

    def cuDeviceGetAttribute(self, target: Any, which: int, device: Any) -> int:  # noqa: N802
        return self._return("", target, self._cards[device.value - 40][1][{75: 0, 76: 1}[which]])

    def cuDeviceTotalMem_v2(self, target: Any, device: Any) -> int:  # noqa: N802
        return self._return("cuDeviceTotalMem_v2", target, self._cards[device.value - 40][2])


def test_gpus_are_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpus, "_load", lambda: Library(CARDS))
    driver = find_gpus()
    assert driver.gpus == tuple(Gpu(i, *card) for i, card in enumerate(CARDS))
    assert driver.cuda == (13, 1)
    assert driver.error == ""


def test_a_missing_driver_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> Any:
        raise OSError("libcuda.so.1: cannot open shared object file")

    monkeypatch.setattr(gpus, "_load", missing)
    driver = find_gpus()
    assert driver.gpus == ()
    assert "no NVIDIA driver (libcuda.so.1" in driver.error


@pytest.mark.parametrize(
    ("failing", "status", "words"),
    [
        ("cuInit", 100, "CUDA_VISIBLE_DEVICES may hide them"),
        ("cuInit", 803, "cuInit gave CUDA error 803"),
        ("cuDeviceTotalMem_v2", 2, "cuDeviceTotalMem_v2 gave CUDA error 2"),
    ],
)
def test_driver_errors_are_reported(
    monkeypatch: pytest.MonkeyPatch, failing: str, status: int, words: str
) -> None:
    monkeypatch.setattr(gpus, "_load", lambda: Library(CARDS, failing, status))
    driver = find_gpus()
    assert driver.gpus == ()
    assert words in driver.error


def test_a_driver_without_gpus_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpus, "_load", lambda: Library([]))
    assert find_gpus().error == "the driver sees no GPU"


def test_a_wrong_library_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpus, "_load", lambda: object())
    assert "does not respond" in find_gpus().error


@pytest.mark.parametrize(
    ("system", "name"),
    [("linux", "libcuda.so.1"), ("win32", "nvcuda.dll"), ("darwin", "libcuda.so.1")],
)
def test_the_library_of_each_system(
    system: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def load(name: str) -> Any:
        asked.append(name)
        raise OSError("no such file")

    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(ctypes, "CDLL", load)
    assert find_gpus().error == "no NVIDIA driver (no such file)"
    assert asked == [name]
