"""Damaged inputs by the thousand, tried in a child process.

``fuzz("tests.test_x:read", {"name": data}, n)`` changes valid inputs at random, always in the same
way for the same seed, and calls ``read`` with each. The target runs in a child process with little
memory and a time limit per input, so that a crash, a hang or an allocation without bound is found
too, and reported with the number that makes the input again::

    data = mutated(seed, number, corpus)

A target returns, or raises an error of the library. Everything else is a failure.
"""

from __future__ import annotations

import dataclasses
import importlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Callable

__all__ = ["Failure", "fuzz", "mutated", "mutations", "n_inputs"]

_ROOT = Path(__file__).parents[2]
_VARIABLE = "WHISPER_OPT_FUZZ"
_UNCHANGED = "WHISPER_OPT_FUZZ_UNCHANGED"
"""For tests of this file: the child takes the corpus as it is."""
_EXTREMES = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
_HEAD = 256
"""Half of all changes are made in the first bytes, which are those of a header."""


def n_inputs(default: int) -> int:
    """How many inputs to try: what the environment variable WHISPER_OPT_FUZZ says, or else this."""
    return int(os.environ.get(_VARIABLE) or default)


def mutations(seed: int, corpus: Sequence[bytes], n: int) -> Iterator[bytes]:
    """``n`` changed inputs, always the same for the same seed and corpus."""
    for number in range(n):
        yield mutated(seed, number, corpus)


def mutated(seed: int, number: int, corpus: Sequence[bytes]) -> bytes:
    """The input of this number."""
    chance = random.Random(f"{seed}/{number}")
    data = bytearray(corpus[number % len(corpus)])
    for _ in range(chance.choice((1, 1, 1, 2, 4, 8, 32))):
        chance.choice(_CHANGES)(chance, data, corpus)
    return bytes(data)


def _place(chance: random.Random, data: bytearray) -> int:
    size = len(data) if chance.random() < 0.5 else min(len(data), _HEAD)
    return chance.randrange(size) if size else 0


def _span(chance: random.Random, data: bytearray) -> slice:
    start = _place(chance, data)
    return slice(start, start + int(2 ** chance.uniform(0, 11)))


def _flip_bit(chance: random.Random, data: bytearray, _: Sequence[bytes]) -> None:
    if data:
        data[_place(chance, data)] ^= 1 << chance.randrange(8)


def _set_byte(chance: random.Random, data: bytearray, _: Sequence[bytes]) -> None:
    if data:
        data[_place(chance, data)] = chance.randrange(256)


def _set_integer(chance: random.Random, data: bytearray, _: Sequence[bytes]) -> None:
    size, start = chance.choice((1, 2, 4, 8)), _place(chance, data)
    value = chance.choice(_EXTREMES) + chance.choice((0, 0, 1, -1)) & (1 << 8 * size) - 1
    data[start : start + size] = value.to_bytes(size, chance.choice(("little", "big")))


def _cut(chance: random.Random, data: bytearray, _: Sequence[bytes]) -> None:
    del data[_place(chance, data) :]


def _delete(chance: random.Random, data: bytearray, _: Sequence[bytes]) -> None:
    del data[_span(chance, data)]


def _repeat(chance: random.Random, data: bytearray, _: Sequence[bytes]) -> None:
    span = _span(chance, data)
    data[span.start : span.start] = data[span]


def _overwrite(chance: random.Random, data: bytearray, _: Sequence[bytes]) -> None:
    span = _span(chance, data)
    data[span] = bytes(chance.randrange(256) for _ in data[span])


def _splice(chance: random.Random, data: bytearray, corpus: Sequence[bytes]) -> None:
    other = bytearray(chance.choice(corpus))
    start = _place(chance, data)
    data[start : start + 64] = other[_span(chance, other)]


_CHANGES: Sequence[Callable[[random.Random, bytearray, Sequence[bytes]], None]] = (
    _flip_bit,
    _flip_bit,
    _set_byte,
    _set_byte,
    _set_integer,
    _set_integer,
    _cut,
    _delete,
    _repeat,
    _overwrite,
    _splice,
)


_MEMORY = "/dev/shm" if os.path.isdir("/dev/shm") else None
"""A file system in memory, on which inputs are written twice as fast; None: the default folder."""


@dataclasses.dataclass(frozen=True)
class Failure:
    """An input for which the target neither returned nor raised an error of the library."""

    seed: int
    number: int
    reason: str

    def __str__(self) -> str:
        return f"mutated(seed={self.seed}, number={self.number}, corpus): {self.reason}"


def fuzz(
    target: str,
    corpus: Mapping[str, bytes],
    n: int,
    *,
    seed: int = 1,
    seconds: int = 10,
    memory: int = 1 << 30,
    most_failures: int = 10,
) -> list[Failure]:
    """Call ``target`` with ``n`` inputs made of ``corpus``, in a child process.

    Args:
        target: "module:function", which takes bytes. The current folder is an empty one of its own,
            the same for all calls: files may be written there.
        corpus: valid inputs by name. Names only order them.
        n: how many inputs.
        seed: another one gives other inputs.
        seconds: time for one input.
        memory: bytes that may be allocated beyond what is there before the first input.
        most_failures: stop at this many.
    """
    failures: list[Failure] = []
    number = 0
    with tempfile.TemporaryDirectory(prefix="fuzz-", dir=_MEMORY) as folder:
        for i, name in enumerate(sorted(corpus)):
            Path(folder, f"corpus-{i:04}").write_bytes(corpus[name])
        while number < n and len(failures) < most_failures:
            number, reason = _run(target, folder, seed, number, n, seconds, memory)
            if reason:
                failures.append(Failure(seed, number, reason))
            number += 1
    return failures


def _run(
    target: str, folder: str, seed: int, first: int, n: int, seconds: int, memory: int
) -> tuple[int, str]:
    """Number of the input that ended the child, and why; (n, "") if none did."""
    with open(Path(folder, "log"), "w+b") as log:
        arguments = [target, folder, *map(str, (seed, first, n, seconds, memory))]
        command = [sys.executable, "-X", "faulthandler", "-m", "tests.support.fuzzing", *arguments]
        path = os.pathsep.join([str(_ROOT), *filter(None, sys.path)])
        child = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=_ROOT,
            env={**os.environ, "PYTHONPATH": path},
            check=False,
        )
        if child.returncode == 0:
            return n, ""
        log.seek(0)
        said = log.read()[-4000:].decode("utf-8", "replace").strip()
    place = Path(folder, "number")
    if not place.exists():
        raise RuntimeError(f"{target} could not be started:\n{said}")
    if child.returncode == -signal.SIGALRM:
        reason = f"took longer than {seconds} s"
    elif child.returncode < 0:
        reason = f"ended the process by {signal.Signals(-child.returncode).name}"
    else:
        reason = "raised something else"
    return int(place.read_bytes() or first), f"{reason}\n{said}"


def _child(target: str, folder: str, *numbers: str) -> None:
    """Try inputs one after the other; the number of the current one is in a file."""
    from whisper_opt.core.errors import WhisperOptError

    seed, first, n, seconds, memory = map(int, numbers)
    module, _, name = target.partition(":")
    function: Callable[[bytes], Any] = getattr(importlib.import_module(module), name)
    corpus = [path.read_bytes() for path in sorted(Path(folder).glob("corpus-*"))]
    work = Path(folder, "work")
    work.mkdir(exist_ok=True)
    os.chdir(work)
    _limit_memory(memory)
    with open(Path(folder, "number"), "w+b", buffering=0) as place:
        for number in range(first, n):
            os.pwrite(place.fileno(), f"{number:020}".encode(), 0)
            data = _input(seed, number, corpus)
            signal.alarm(seconds)  # its default action ends the process, even inside C code
            try:
                function(data)
            except WhisperOptError:
                pass
            except BaseException:
                traceback.print_exc()
                sys.exit(1)
            signal.alarm(0)
    os._exit(0)  # without exit handlers of libraries, which are not tested


def _input(seed: int, number: int, corpus: Sequence[bytes]) -> bytes:
    if os.environ.get(_UNCHANGED):
        return corpus[number % len(corpus)]
    return mutated(seed, number, corpus)


def _limit_memory(extra: int) -> None:
    if sys.platform != "linux":
        return
    import resource

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + extra
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


if __name__ == "__main__":
    _child(*sys.argv[1:])
