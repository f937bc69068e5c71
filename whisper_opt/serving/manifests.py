"""Lists of recordings: files with a path or a JSON object per line; shards; names of files."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from whisper_opt.core.errors import OptionError
from whisper_opt.core.options import TranscribeOptions
from whisper_opt.transcription.model import Whisper

__all__ = ["Manifest", "Recording", "Shard", "check_options", "file_name", "read_manifest"]

_MAX_NAME = 160
"""Bytes of the name of a file without its extension; file systems allow 255 in all."""
_UNSAFE = re.compile(r"[^\w.+=@-]|^[.-]|[. ]$")
"""Characters with a meaning for shells or file systems, and dots and dashes where they have one."""
_DEVICE = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\.|$)", re.IGNORECASE)
"""Names that Windows reserves for devices."""
_OPTIONS = {field.name for field in dataclasses.fields(TranscribeOptions)} - {"batch_size"}
"""Options that a row may have; the batch is shared by all recordings."""
_OWN = ("audio", "path", "id")
"""Keys of a row that are not options."""


class Recording(NamedTuple):
    """A row of a manifest.

    Attributes:
        id: what identifies it, whatever the order of the rows.
        audio: the file.
        options: how to transcribe it.
        line: its line in the manifest, from 1; 0 if it comes from elsewhere.
    """

    id: str
    audio: Path
    options: TranscribeOptions
    line: int

    @property
    def name(self) -> str:
        """The name of its files, without extension."""
        return file_name(self.id)

    @classmethod
    def of(cls, row: Mapping[str, Any], options: TranscribeOptions, folder: Path) -> Recording:
        """The recording of a row that does not come from a file; keys as in a manifest.

        Args:
            row: its keys and values.
            options: how to transcribe it where the row says nothing else.
            folder: what its path is relative to.

        Raises:
            OptionError: the row is none of a manifest.
        """
        try:
            return _recording(folder, row, options, 0)
        except ValueError as error:
            raise OptionError(f"the row {dict(row)!r}: {error}") from error


class Manifest(NamedTuple):
    """A list of recordings.

    Attributes:
        recordings: in the order of the file.
        ignored: keys of its JSON objects that are neither options nor anything else known.
    """

    recordings: tuple[Recording, ...]
    ignored: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Shard:
    """One of ``count`` parts of a list of recordings, numbered from 0.

    The part of a recording depends on its id alone, so the parts of all shards are disjoint and
    complete whatever the order of the list, and a list that grows keeps its parts.
    """

    index: int = 0
    count: int = 1

    @classmethod
    def parse(cls, text: str) -> Shard:
        """The shard ``index/count``.

        Raises:
            OptionError: it is none.
        """
        found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
        shard = cls(*map(int, found.groups())) if found else cls(0, 0)
        if shard.index >= shard.count:
            raise OptionError(
                f"shard is {text!r}; expected i/n with i from 0 to n - 1, such as 0/4 to 3/4"
            )
        return shard

    def has(self, identity: str) -> bool:
        """Whether the recording of an id belongs to it."""
        digest = hashlib.sha256(identity.encode()).digest()
        return int.from_bytes(digest[:8], "big") % self.count == self.index

    @property
    def suffix(self) -> str:
        """Part of the names of its own files; empty if there is one shard only."""
        return "" if self.count == 1 else f"-{self.index}-of-{self.count}"


def check_options(model: Whisper, recordings: Iterable[Recording]) -> None:
    """Refuse options of recordings that a model cannot honour.

    Raises:
        OptionError: a language, a task or another option needs another model.
    """
    for options in {id(each.options): each.options for each in recordings}.values():
        model.vocab.check_language(options.language, options.task)
        options.check_model(
            is_multilingual=model.is_multilingual, n_audio_ctx=model.dims.n_audio_ctx
        )


def file_name(identity: str) -> str:
    """The id as a name of files on every system, without extension.

    Letters, digits and ``_ . + = @ -`` stay, in Unicode's composed form. Everything else, such as
    the ``/`` of a path, becomes ``_``. A long one is cut, and ends with a digest of the whole.
    """
    name = _UNSAFE.sub("_", unicodedata.normalize("NFC", identity))
    if _DEVICE.match(name):
        name = f"_{name}"
    if len(name.encode()) > _MAX_NAME:
        digest = hashlib.sha256(identity.encode()).hexdigest()[:16]
        name = f"{name.encode()[: _MAX_NAME - 17].decode('utf-8', 'ignore')}-{digest}"
    return name


def read_manifest(path: Path, options: TranscribeOptions) -> Manifest:
    """Read a list of recordings.

    A line is the path of a recording, or a JSON object with ``audio`` or ``path``, perhaps ``id``
    (default: the path as it is written there), and perhaps fields of
    :class:`~whisper_opt.TranscribeOptions`, which replace those of ``options`` unless they are
    null. Paths are relative to the manifest. Blank lines are skipped.

    Args:
        path: the manifest, UTF-8.
        options: how to transcribe recordings whose rows say nothing else.

    Raises:
        OptionError: it is no manifest, has no recordings, or two of them would have the same names
            of files.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise OptionError(f"cannot read the manifest {path}: {error}") from error
    ignored: dict[str, None] = {}
    found = []
    for line, text in enumerate(map(str.strip, lines), 1):
        if text:
            try:
                row = _row(text)
                ignored.update(dict.fromkeys(_unknown(row)))
                found.append(_recording(path.parent, row, options, line))
            except ValueError as error:
                raise OptionError(f"line {line} of {path}: {error}") from error
    if not found:
        raise OptionError(f"{path} lists no recording; expected a path or JSON object per line")
    _refuse_collisions(path, found)
    return Manifest(tuple(found), tuple(ignored))


def _row(text: str) -> dict[str, Any]:
    if not text.startswith("{"):
        return {"audio": text}
    try:
        row: dict[str, Any] = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"not a JSON object ({error}); write a path that begins with a brace as ./{{..."
        ) from error
    return row


def _unknown(row: dict[str, Any]) -> Iterator[str]:
    return (key for key in row if key not in _OWN and key not in _OPTIONS)


def _recording(
    folder: Path, row: Mapping[str, Any], options: TranscribeOptions, line: int
) -> Recording:
    if "audio" in row and "path" in row:
        raise ValueError('it has "audio" and "path"; expected one of them')
    if "batch_size" in row:
        raise ValueError(
            '"batch_size" is given, but all recordings share one batch; give --batch-size'
        )
    audio = _text("audio", row.get("audio", row.get("path")))
    identity = row.get("id")
    if isinstance(identity, int) and not isinstance(identity, bool):
        identity = str(identity)
    given = {key: row[key] for key in row if key in _OPTIONS and row[key] is not None}
    chosen = dataclasses.replace(options, **given) if given else options
    if "known_speakers" in given:
        clips = [(name, _below(folder, clip)) for name, clip in chosen.speaker_options.clips]
        chosen = dataclasses.replace(chosen, known_speakers=clips)
    return Recording(
        audio if identity is None else _text("id", identity), folder / audio, chosen, line
    )


def _below(folder: Path, clip: object) -> str:
    """The path of the clip of a known speaker, which is relative to the manifest."""
    return str(folder / _text("known_speakers", clip))


def _text(name: str, value: object) -> str:
    """Text that can be written as UTF-8, and be part of a path."""
    if not isinstance(value, str) or not value or re.search("[\0\ud800-\udfff]", value):
        raise ValueError(f'"{name}" is {value!r}; expected text that is not empty')
    return value


def _refuse_collisions(path: Path, recordings: Iterable[Recording]) -> None:
    """Refuse names that are equal, or are so where the case of letters is ignored."""
    seen: dict[str, Recording] = {}
    for each in recordings:
        other = seen.setdefault(each.name.casefold(), each)
        if other is not each:
            ids = f"the id {each.id!r}" if each.id == other.id else f"{other.id!r} and {each.id!r}"
            raise OptionError(
                f"lines {other.line} and {each.line} of {path} would both be written to"
                f" {each.name}: {ids}; give each recording an id of its own"
            )
