"""Transcribe lists of recordings into a directory, so that it can be killed and continued.

OUT/NAME.FORMAT                        the transcript of a recording; NAME is its id, made safe
OUT/failed[-I-of-N].jsonl              the recordings that failed
OUT/.whisper-opt/NAME.json             the record of a recording: what its files were made from
OUT/.whisper-opt/shard[-I-of-N].lock   held while a shard is transcribed
OUT/.whisper-opt/shard[-I-of-N].tmp    the file that is being written, or was when it was killed

Processes that are given recordings by something else than shards have locks and temporary files of
their own names, worker-NAME.lock and worker-NAME.tmp.

A record is written after the files that it is about. All files are renamed into place.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import re
import types
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Union

import numpy as np

from whisper_opt.audio.speakers.networks import MANIFEST
from whisper_opt.core.errors import OptionError, WhisperOptError
from whisper_opt.core.files import replace_file, write_remedy
from whisper_opt.core.locks import LockHeldError, file_lock
from whisper_opt.core.options import SubtitleOptions, TranscribeOptions
from whisper_opt.core.version import __version__
from whisper_opt.runtime.engine import sha256
from whisper_opt.runtime.engine_cache import Fingerprint, fingerprint
from whisper_opt.serving.manifests import Recording, Shard
from whisper_opt.text.results import Transcript
from whisper_opt.text.subtitles import PLAIN
from whisper_opt.text.writers import SUBTITLE_FORMATS, render
from whisper_opt.transcription.model import Whisper

__all__ = ["Corpus", "Outcome"]

RECORDS = ".whisper-opt"
"""Directory of the records in the output directory."""
_WITHOUT_EFFECT = ("batch_size", "max_duration", "max_audio_bytes")
"""Options that do not change a transcript: they say how fast, or whether, it is made."""


class Outcome(NamedTuple):
    """How a recording ended.

    Attributes:
        recording: the recording.
        seconds: duration; 0 if it failed.
        error: why it failed; None if its files are written.
    """

    recording: Recording
    seconds: float
    error: Union[str, None] = None


class Corpus:
    """An output directory: which recordings are done, and their files. A context manager.

    A recording is done if its record says that it was made by the same model with the same options
    and version of this library, if its files are those of the record, and if it is unchanged: its
    size, times and inode are those of the record, or else its sha256 is. The model is the same if
    the sha256 of all files of the engine and the precision of the encoder are.
    """

    def __init__(
        self,
        folder: Path,
        model: Whisper,
        shard: Shard | None = None,
        formats: Sequence[str] = ("json",),
        subtitles: SubtitleOptions = PLAIN,
        worker: str | None = None,
    ) -> None:
        """Describe the directory; nothing is read or written before the context is entered.

        Args:
            folder: the directory, which is created.
            model: what transcribes.
            shard: which part of the recordings this process transcribes (default: all).
            formats: keys of ``FORMATS``.
            subtitles: layout of words in subtitle formats.
            worker: name of this process among several that are given recordings by something else
                than shards; each has a lock of its own. Letters, digits, ``_`` and ``-``.

        Raises:
            OptionError: ``worker`` is no such name.
        """
        if worker is not None and not re.fullmatch(r"[\w-]{1,64}", worker, re.ASCII):
            raise OptionError(f"worker is {worker!r}; expected up to 64 letters, digits, _ and -")
        self.folder = folder
        self.shard = shard or Shard()
        self._owner, self._part = f"worker-{worker}", f"as worker-{worker}"
        if worker is None:
            self._owner = f"shard{self.shard.suffix}"
            self._part = f"shard {self.shard.index}/{self.shard.count}"
        self._formats = tuple(formats)
        self._subtitles = subtitles
        self._maker = [__version__, _identity(model), dataclasses.asdict(subtitles)]
        self._held = contextlib.ExitStack()
        self._partial: Union[Path, None] = None
        self._digests: dict[Path, tuple[Any, Union[str, None]]] = {}  # of clips, and their states

    # --- the directory ----------------------------------------------------------------------------

    def __enter__(self) -> Corpus:
        """Create the directory, and take the lock of the shard.

        Raises:
            WhisperOptError: the directory cannot be written, or another process has the lock.
        """
        lock = self._own("lock")
        try:
            lock.parent.mkdir(parents=True, exist_ok=True)
            lock.touch()
        except OSError as error:
            raise self._unusable(error) from error
        try:
            self._held.enter_context(file_lock(lock, timeout=0))
        except LockHeldError as error:
            raise WhisperOptError(
                f"another process transcribes {self._part} into {self.folder}; wait for it, or end"
                " it"
            ) from error
        except OSError:  # a file system without locks: two processes would do the work twice
            return self
        self._partial = self._own("tmp")
        with contextlib.suppress(OSError):  # of a process that was killed
            self._partial.unlink()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: types.TracebackType | None,
    ) -> None:
        """Release the lock."""
        self._held.close()

    def _own(self, extension: str) -> Path:
        return self.folder / RECORDS / f"{self._owner}.{extension}"

    def _unusable(self, error: OSError) -> WhisperOptError:
        return WhisperOptError(
            f"cannot write to {self.folder}: {error.strerror or error}. {write_remedy(error)}; the"
            " same command then continues"
        )

    def _write(self, path: Path, text: str) -> bytes:
        data = text.encode()
        try:
            replace_file(path, data, partial=self._partial)
        except OSError as error:
            raise self._unusable(error) from error
        return data

    # --- recordings -------------------------------------------------------------------------------

    def targets(self, recording: Recording) -> dict[str, Path]:
        """The files of a recording by format."""
        return {form: self.folder / f"{recording.name}.{form}" for form in self._formats}

    def outcome(self, recording: Recording) -> Outcome | None:
        """How a recording ended before; None if it is to be transcribed."""
        record = self._record(recording)
        if record.get("key") != self._key(recording.options):
            return None
        now = fingerprint(recording.audio)
        files = now.files if now is not None else None
        error = record.get("error")
        if isinstance(error, str):
            return Outcome(recording, 0.0, error) if record.get("files") == files else None
        if files is None or not self._whole(recording, record):
            return None
        if record.get("files") != files:
            found = _sha256(recording.audio)
            if found is None or record.get("sha256") != found:
                return None
            self._save_record(recording, {**record, "files": _settled(now)})
        seconds = record.get("seconds")
        return Outcome(recording, float(seconds) if isinstance(seconds, (int, float)) else 0.0)

    def save(self, recording: Recording, before: Fingerprint | None, found: Transcript) -> Outcome:
        """Write the files of a transcript, then the record.

        Args:
            recording: the recording.
            before: its fingerprint before it was read.
            found: its transcript.

        Raises:
            WhisperOptError: a file cannot be written.
        """
        digest = _sha256(recording.audio)
        after = fingerprint(recording.audio)
        if before is None or after is None or before.files != after.files or digest is None:
            return self.save_error(
                recording, before, "it was changed while it was transcribed; run the command again"
            )
        try:
            texts = {form: self._rendered(found, form, recording.audio) for form in self._formats}
        except WhisperOptError as error:  # for example a negative time
            return self.save_error(recording, before, str(error))
        old = self._record(recording)
        same = old.get("key") == self._key(recording.options) and old.get("sha256") == digest
        outputs = dict(old.get("outputs", {})) if same else {}  # of other formats
        for form, target in self.targets(recording).items():
            data = self._write(target, texts[form])
            outputs[form] = hashlib.sha256(data).hexdigest()
        record = {
            "id": recording.id,
            "key": self._key(recording.options),
            "files": _settled(before),
            "sha256": digest,
            "seconds": found.duration,
            "outputs": outputs,
        }
        self._save_record(recording, record)
        return Outcome(recording, found.duration)

    def _rendered(self, found: Transcript, form: str, audio: Path) -> str:
        layout = self._subtitles if form in SUBTITLE_FORMATS else PLAIN
        return render(found, form, layout, name=audio.stem)

    def save_error(
        self,
        recording: Recording,
        before: Fingerprint | None,
        error: str,
        *,
        lasting: bool = True,
    ) -> Outcome:
        """Record that a recording failed; files of an older transcript are removed.

        Args:
            recording: the recording.
            before: its fingerprint before it was read.
            error: the reason.
            lasting: it would fail again; else nothing is recorded, so that the next run tries.

        Raises:
            WhisperOptError: a file cannot be written or removed.
        """
        record = self._record_file(recording)
        try:
            for path in (*self.targets(recording).values(), record):
                with contextlib.suppress(FileNotFoundError):
                    path.unlink()
        except OSError as reason:
            raise self._unusable(reason) from reason
        if lasting:
            values = {
                "id": recording.id,
                "key": self._key(recording.options),
                "files": _settled(before),
                "error": error,
            }
            self._save_record(recording, values)
        return Outcome(recording, 0.0, error)

    def list_failed(self, failed: Iterable[Outcome]) -> Path | None:
        """Write the list of recordings that failed; without any the list is removed.

        Args:
            failed: their outcomes.

        Returns:
            The list: a JSON object per line, with ``id``, ``audio`` and ``error``.

        Raises:
            WhisperOptError: it cannot be written.
        """
        path = self.folder / f"failed{self.shard.suffix}.jsonl"
        rows = [
            {"id": each.recording.id, "audio": str(each.recording.audio), "error": each.error}
            for each in sorted(failed, key=lambda each: each.recording.id)
        ]
        if rows:
            self._write(path, "".join(f"{json.dumps(row)}\n" for row in rows))
            return path
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
        return None

    # --- records ----------------------------------------------------------------------------------

    def _key(self, options: TranscribeOptions) -> str:
        """Digest of what determines a transcript beside the recording."""
        values = dataclasses.asdict(options)
        for name in _WITHOUT_EFFECT:
            del values[name]
        values["known_speakers"] = [
            (name, self._digest(clip)) for name, clip in options.speaker_options.clips
        ]
        text = json.dumps([self._maker, values], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def _digest(self, clip: Any) -> str | None:
        """sha256 of the clip of a known speaker; a file that has not changed is not read again."""
        if isinstance(clip, np.ndarray):
            return hashlib.sha256(f"{clip.dtype}{clip.shape}".encode() + clip.tobytes()).hexdigest()
        if not isinstance(clip, (str, os.PathLike)):
            return hashlib.sha256(clip).hexdigest()
        path = Path(clip)
        now = _settled(fingerprint(path))
        state, digest = self._digests.get(path, (None, None))
        if now is None or now != state:
            digest = _sha256(path)
            self._digests[path] = now, digest
        return digest

    def _record_file(self, recording: Recording) -> Path:
        return self.folder / RECORDS / f"{recording.name}.json"

    def _record(self, recording: Recording) -> Mapping[str, Any]:
        try:
            found = json.loads(self._record_file(recording).read_text("utf-8"))
        except (OSError, ValueError, RecursionError):  # none yet, or damaged: made again
            return {}
        mine = isinstance(found, dict) and found.get("id") == recording.id
        return found if mine else {}

    def _save_record(self, recording: Recording, record: Mapping[str, Any]) -> None:
        self._write(self._record_file(recording), json.dumps(record))

    def _whole(self, recording: Recording, record: Mapping[str, Any]) -> bool:
        """Whether the files of a recording are those that were written."""
        outputs = record.get("outputs")
        return isinstance(outputs, dict) and all(
            form in outputs and _sha256(path) == outputs[form]
            for form, path in self.targets(recording).items()
        )


def _identity(model: Whisper) -> list[Any]:
    """What determines the arithmetic of a model, whatever machine and directory it is in."""
    engine = model.engine
    files = {
        name: entry.sha256 or sha256(engine.file(name))  # directories of Optimum have no digests
        for name, entry in engine.manifest.files.items()
    }
    networks = model._speakers
    speakers = [] if networks is None else [sha256(networks.path / MANIFEST)]
    return [files, model.encoder_precision, *speakers]


def _sha256(path: Path) -> str | None:
    try:
        return sha256(path)
    except OSError:
        return None


def _settled(found: Fingerprint | None) -> list[list[Any]] | None:
    """The state of a file by which it is known; None if a change may leave it as it is."""
    return found.files if found is not None and found.settled else None
