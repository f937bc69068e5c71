"""The configurations that are measured: every combination of the values listed."""

from __future__ import annotations

import dataclasses
import importlib
import itertools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Union

from whisper_opt.core.errors import BackendUnavailable, OptionError
from whisper_opt.core.model_names import find_name, is_hub_id
from whisper_opt.core.remedies import install_hint

__all__ = ["Configuration", "Grid", "is_engine", "read_grid"]

_CHECKPOINT_FILES = (".pt", ".bin")
_AUDIO_FILES = (
    *(".wav", ".flac", ".mp3", ".ogg", ".opus", ".m4a", ".aac", ".aiff", ".wma"),
    *(".mp4", ".m4v", ".mkv", ".mov", ".webm", ".avi"),
)


def is_engine(argument: str) -> bool:
    """Whether an argument names an engine; others name recordings.

    A path is that of an engine if it is a directory or a checkpoint file. Without such a path, a
    short name or a hub id is one, unless its directory exists or it ends like a recording.
    """
    path = Path(argument)
    if path.exists():
        return path.is_dir() or path.suffix in _CHECKPOINT_FILES
    if find_name(argument) is not None:
        return True
    is_recording = path.parent.is_dir() or path.suffix.lower() in _AUDIO_FILES
    return is_hub_id(argument.partition("@")[0]) and not is_recording


@dataclasses.dataclass(frozen=True)
class Configuration:
    """One configuration to measure.

    Attributes:
        engine: engine directory, or the name, hub id or checkpoint of one.
        threads: CPU threads; None leaves the choice to the library.
        beam_size: hypotheses of beam search; 1 is greedy.
        batch_size: windows decoded together; 1: one recording after another.
        seconds: duration of the audio; None: the recordings as they are.
        encoder_precision: of ``LoadOptions``; None leaves the default.
    """

    engine: Path
    encoder_precision: Union[str, None] = None
    threads: Union[int, None] = None
    beam_size: int = 1
    batch_size: int = 1
    seconds: Union[float, None] = None

    @property
    def name(self) -> str:
        """Name in progress and tables; the same in every run of the same grid."""
        parts = [self.engine.name]
        encoder = self.encoder_precision
        parts += [] if encoder is None else [f"{encoder} encoder"]
        parts += [] if self.threads is None else [f"{self.threads} thread{'s'[: self.threads > 1]}"]
        parts.append("greedy" if self.beam_size == 1 else f"beam {self.beam_size}")
        parts += [] if self.batch_size == 1 else [f"batch {self.batch_size}"]
        parts += [] if self.seconds is None else [f"{self.seconds:g} s"]
        return ", ".join(parts)


@dataclasses.dataclass(frozen=True)
class Grid:
    """Lists of values, all combinations of which are measured.

    Raises:
        OptionError: a list is empty or has an invalid value.
    """

    engines: tuple[Path, ...]
    encoder_precision: tuple[Union[str, None], ...] = (None,)
    threads: tuple[Union[int, None], ...] = (None,)
    beam_size: tuple[int, ...] = (1,)
    batch_size: tuple[int, ...] = (1,)
    seconds: tuple[Union[float, None], ...] = (None,)

    def __post_init__(self) -> None:
        """Check."""
        for field in dataclasses.fields(self):
            values = getattr(self, field.name)
            if not values:
                raise OptionError(f"{field.name} is empty; expected at least one value")
            if len(set(values)) < len(values):
                raise OptionError(f"{field.name} names a value twice: {_listed(values)}")
        names = [path.name for path in self.engines]
        if len(set(names)) < len(names):
            raise OptionError(
                f"two engines have the same name ({_listed(names)}); results are identified by it:"
                " rename one, or use a link"
            )
        for name in ("threads", "beam_size", "batch_size"):
            _check(name, getattr(self, name), (int,), "integers")
        _check("seconds", self.seconds, (int, float), "numbers")

    def configurations(self) -> list[Configuration]:
        """All combinations; the first list changes slowest."""
        return [
            Configuration(*values)
            for values in itertools.product(
                self.engines,
                self.encoder_precision,
                self.threads,
                self.beam_size,
                self.batch_size,
                self.seconds,
            )
        ]


def _check(name: str, values: Sequence[Any], types: Any, expected: str) -> None:
    for value in values:
        if value is None and name in ("threads", "seconds"):
            continue
        if isinstance(value, bool) or not isinstance(value, types) or value <= 0:
            raise OptionError(f"{name} has {value!r}; expected positive {expected}")


def _listed(values: Sequence[Any]) -> str:
    return ", ".join(map(str, values))


def read_grid(path: Path) -> dict[str, Any]:
    """Read the lists and options of a TOML file; its relative paths are relative to the file.

    An engine without a path there may be a short name or a hub id.

    ``engines``, ``audio``, ``encoder_precision``, ``threads``, ``beam_size``, ``batch_size`` and
    ``seconds`` are lists (or single values), ``manifest`` and ``only`` choose recordings, and the
    tables ``load`` and ``options`` hold fields of ``LoadOptions`` and ``TranscribeOptions``.

    Raises:
        OptionError: it cannot be read, or has other keys.
        BackendUnavailable: Python before 3.11 needs a package to parse TOML.
    """
    try:
        found: dict[str, Any] = _toml().loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise OptionError(f"cannot read the grid {path}: {error}") from error
    unknown = set(found) - {*_LISTS, *_PATHS, "manifest", "load", "options"}
    if unknown:
        raise OptionError(
            f"the grid {path} has {_listed(sorted(unknown))}; expected"
            f" {_listed([*_PATHS, 'manifest', *_LISTS, 'load', 'options'])}"
        )
    for name in (*_LISTS, *_PATHS):
        if name in found and not isinstance(found[name], list):
            found[name] = [found[name]]
    for name in _PATHS:
        if name in found:
            found[name] = [_in(path.parent, str(value), name) for value in found[name]]
    if "manifest" in found:
        found["manifest"] = path.parent / str(found["manifest"])
    return found


def _in(folder: Path, value: str, kind: str) -> Path:
    """A path relative to a folder; the name of a model stays as it is."""
    path = folder / value
    if kind == "engines" and not path.exists() and (find_name(value) or not path.parent.is_dir()):
        return Path(value)
    return path


_LISTS = ("encoder_precision", "threads", "beam_size", "batch_size", "seconds", "only")
_PATHS = ("engines", "audio")


def _toml() -> Any:
    if sys.version_info >= (3, 11):
        return importlib.import_module("tomllib")
    try:
        return importlib.import_module("tomli")
    except ImportError as error:
        raise BackendUnavailable(
            f"Python before 3.11 needs the package tomli to read TOML; {install_hint('bench')}"
        ) from error
