"""What a benchmark transcribes: files, manifests with transcripts, and sound of a wanted length."""

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
    """A file, how long it is, and what is known of it.

    Attributes:
        name: what tables call it.
        path: the file.
        seconds: its length.
        language: code of what is spoken, if known.
        text: what is said, if known and if errors may be counted against it.
    """

    name: str
    path: Path
    seconds: float
    language: Union[str, None] = None
    text: Union[str, None] = None


def from_files(paths: Iterable[Path]) -> list[Recording]:
    """Recordings of which nothing is known.

    Raises:
        AudioError: one cannot be read.
    """
    return [Recording(path.name, path, len(load_audio(path)) / SAMPLE_RATE) for path in paths]


def from_manifest(manifest: Path, only: Sequence[str] = ()) -> list[Recording]:
    """Recordings of a manifest: a JSON object a line, with ``path`` relative to the manifest.

    ``text``, ``language`` and ``id`` are used where they are; ``"wer": false`` says that errors are
    not to be counted.

    Args:
        manifest: the file.
        only: ``FIELD=VALUE``, each of which a line must fulfil.

    Raises:
        OptionError: it is no manifest, or nothing in it is wanted.
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
                f"line {number} of {manifest} is no recording ({type(error).__name__}: {error});"
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
    """A recording of a wanted length: all of them joined, repeated or cut; written to ``folder``.

    Speech may be cut off in the middle of a word, so it has no transcript.
    """
    pieces = [load_audio(recording.path) for recording in recordings]
    whole = np.concatenate(pieces)
    n = round(seconds * SAMPLE_RATE)
    samples = np.tile(whole, -(-n // len(whole)))[:n]
    path = folder / f"{seconds:g}s.wav"
    write_wav(path, samples)
    languages = {recording.language for recording in recordings}
    language = languages.pop() if len(languages) == 1 else None
    return Recording(f"{seconds:g} s", path, n / SAMPLE_RATE, language)


def write_wav(path: Path, samples: F32) -> None:
    """16 kHz mono samples [n] as 16-bit PCM, which any system's reader knows."""
    import soundfile

    soundfile.write(path, samples, SAMPLE_RATE, "PCM_16")
