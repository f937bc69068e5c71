"""Recordings of a benchmark: files, manifests with transcripts, and audio of a given duration."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Union

import numpy as np

from whisper_opt.audio.decode import load_audio
from whisper_opt.core.arrays import F32
from whisper_opt.core.dims import SAMPLE_RATE
from whisper_opt.core.errors import OptionError

__all__ = ["Recording", "from_files", "from_manifest", "of_length", "write_wav"]


@dataclasses.dataclass(frozen=True)
class Recording:
    """A recording, its duration and, if known, its language and transcript.

    Attributes:
        name: name in tables.
        path: the file.
        seconds: its duration.
        language: language code, if known.
        text: transcript, if known and suitable for counting errors.
    """

    name: str
    path: Path
    seconds: float
    language: Union[str, None] = None
    text: Union[str, None] = None


def from_files(paths: Iterable[Path]) -> list[Recording]:
    """Recordings without language and transcript.

    Raises:
        AudioError: one cannot be read.
    """
    return [Recording(path.name, path, len(load_audio(path)) / SAMPLE_RATE) for path in paths]


def from_manifest(manifest: Path, only: Sequence[str] = ()) -> list[Recording]:
    """Recordings of a manifest: one JSON object per line, with ``path`` relative to the manifest.

    ``text``, ``language`` and ``id`` are optional; ``"wer": false`` excludes a recording from the
    error counts.

    Args:
        manifest: the file.
        only: conditions ``FIELD=VALUE``, all of which must hold.

    Raises:
        OptionError: it is not a manifest, or no recording fulfils the conditions.
        AudioError: a recording cannot be read.
    """
    wanted = [condition.partition("=") for condition in only]
    found = []
    for number, line in enumerate(_lines(manifest), 1):
        if not line.strip():
            continue
        try:
            entry: dict[str, Any] = json.loads(line)
            path = manifest.parent / entry["path"]
        except (ValueError, KeyError, TypeError) as error:
            raise OptionError(
                f"line {number} of {manifest} is not a recording ({type(error).__name__}: {error});"
                ' expected a JSON object with "path" and perhaps "text" and "language"'
            ) from error
        if all(_as_text(entry.get(field)) == value for field, _, value in wanted):
            text = entry.get("text") if entry.get("wer", True) else None
            seconds = len(load_audio(path)) / SAMPLE_RATE
            name = str(entry.get("id", entry["path"]))
            found.append(Recording(name, path, seconds, entry.get("language"), text or None))
    if not found:
        chosen = f" with {' and '.join(only)}" if only else ""
        raise OptionError(f"{manifest} lists no recording{chosen}")
    return found


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise OptionError(f"cannot read the manifest {path}: {error}") from error


def of_length(recordings: Sequence[Recording], seconds: float, folder: Path) -> Recording:
    """A recording of the given duration in ``folder``: all of them joined, then repeated or cut.

    It may end in the middle of a word, so it has no transcript.
    """
    whole = np.concatenate([load_audio(recording.path) for recording in recordings])
    n = round(seconds * SAMPLE_RATE)
    samples = np.tile(whole, -(-n // len(whole)))[:n]
    path = folder / f"{seconds:g}s.wav"
    write_wav(path, samples)
    languages = {recording.language for recording in recordings}
    language = languages.pop() if len(languages) == 1 else None
    return Recording(f"{seconds:g} s", path, n / SAMPLE_RATE, language)


def write_wav(path: Path, samples: F32) -> None:
    """Write 16 kHz mono samples [n] as 16-bit PCM, which every system can read."""
    import soundfile

    soundfile.write(path, samples, SAMPLE_RATE, "PCM_16")
