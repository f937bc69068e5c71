"""Transcribe datasets of Ray Data (2.51 or later); the actors keep their continuous batch full.

>>> import ray
>>> from whisper_opt.integrations.ray_data import transcribe
>>> rows = ray.data.read_binary_files("talks/", include_paths=True)  # doctest: +SKIP
>>> transcribe(rows, "base", workers=2).write_json("transcripts")  # doctest: +SKIP

A batch of Ray ends with its slowest row. Each actor has one model and one engine; ``__call__`` is a
coroutine, so Ray runs it for several batches at a time, and their rows share the continuous batch
of the engine. Rows are returned in the order in which they came: if an actor dies, Ray runs a task
again and skips as many rows as it has already, which is right only if their order is the same.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from whisper_opt import (
    EngineClosed,
    OptionError,
    QueueFull,
    TranscribeOptions,
    Whisper,
    WhisperOptError,
    render,
)
from whisper_opt.serving import (
    Corpus,
    Engine,
    Handle,
    Recording,
    read_manifest,
    transcribe_recording,
)

__all__ = ["CorpusTranscriber", "Transcriber", "corpus_rows", "transcribe"]

_PAUSE = 0.1
"""Seconds after which a row is submitted again when the queue of the engine was full."""


def corpus_rows(
    manifest: str | os.PathLike[str], options: TranscribeOptions | None = None
) -> list[dict[str, str]]:
    """The rows of a manifest of ``whisper-opt corpus``, for ``ray.data.from_items``.

    Args:
        manifest: the file; its format is described in docs/corpus.md.
        options: how to transcribe recordings whose rows say nothing else.

    Returns:
        For each recording ``id``, ``audio`` (an absolute path) and ``options`` (a JSON object).

    Raises:
        OptionError: it is no manifest, or ``options`` has something that a row cannot hold: a clip
            of a known speaker that is no path, or a draft that is not JSON.
    """
    found = read_manifest(Path(manifest), options or TranscribeOptions()).recordings
    return [
        {"id": each.id, "audio": str(each.audio.resolve()), "options": _as_json(each.options)}
        for each in found
    ]


def _as_json(options: TranscribeOptions) -> str:
    """The options that are not the default ones, with absolute paths."""
    clips = options.speaker_options.clips
    if not all(isinstance(clip, (str, os.PathLike)) for _, clip in clips):
        raise OptionError(
            "known_speakers has a clip that is no path, which a row cannot hold; write it to a file"
            " that all nodes see"
        )
    default = TranscribeOptions()
    values = {
        name: value for name, value in vars(options).items() if value != getattr(default, name)
    }
    if clips:
        values["known_speakers"] = {name: os.path.abspath(clip) for name, clip in clips}
    try:
        return json.dumps(values)
    except (TypeError, ValueError) as error:
        raise OptionError(f"the options cannot be written as JSON: {error}") from error


def transcribe(
    dataset: Any,
    model: str,
    *,
    workers: int = 1,
    out: str | None = None,
    batch_size: int = 8,
    resources: Mapping[str, Any] | None = None,
    **arguments: Any,
) -> Any:
    """Transcribe the rows of a dataset with a pool of actors.

    Args:
        dataset: a ``ray.data.Dataset`` with the columns of :class:`Transcriber`.
        model: what :meth:`whisper_opt.Whisper.load` takes, on every node.
        workers: number of actors.
        out: directory that all nodes share, for :class:`CorpusTranscriber`; default: the
            transcripts are columns.
        batch_size: rows of a call; several calls run at a time.
        resources: arguments of ``map_batches`` such as ``num_gpus`` or ``num_cpus``.
        **arguments: other arguments of :class:`Transcriber` or :class:`CorpusTranscriber`.

    Returns:
        The dataset of the results, to be consumed.
    """
    from ray.data import ActorPoolStrategy

    into = {} if out is None else {"out": os.path.abspath(out)}
    return dataset.map_batches(
        Transcriber if out is None else CorpusTranscriber,
        fn_constructor_args=(model,),
        fn_constructor_kwargs={**into, **arguments},
        batch_size=batch_size,
        batch_format="numpy",
        compute=ActorPoolStrategy(size=workers),
        # two tasks per actor: while one ends, the rows of the other keep the batch full
        **{"max_concurrency": 2, **(resources or {})},
    )


class Transcriber:
    """An actor class for ``Dataset.map_batches`` with ``batch_format="numpy"``.

    Columns that it reads: ``bytes``, the contents of a file; or else ``audio`` or ``path``, a file,
    or in ``audio`` samples at 16 kHz [n]; and perhaps ``options``, a JSON object of fields of
    :class:`whisper_opt.TranscribeOptions`. It keeps all columns but ``bytes`` and samples, and adds
    ``text``, ``language``, ``duration`` (seconds), ``transcript`` (as ``transcribe --format json``
    writes it) and ``error``; for a row that failed the others are empty or 0.
    """

    def __init__(
        self,
        model: str,
        *,
        load: Mapping[str, Any] | None = None,
        options: Mapping[str, Any] | None = None,
        max_batch: int = 8,
    ) -> None:
        """Load the model.

        Args:
            model: what :meth:`whisper_opt.Whisper.load` takes.
            load: fields of :class:`whisper_opt.LoadOptions`.
            options: fields of :class:`whisper_opt.TranscribeOptions`, for rows that say nothing
                else.
            max_batch: windows that are decoded at once.

        Raises:
            WhisperOptError: the model cannot be loaded.
        """
        self._options = TranscribeOptions(**(options or {}))
        self._model = Whisper.load(model, **(load or {}))
        self._engine = Engine(self._model, max_batch=max_batch)

    async def __call__(self, batch: Mapping[str, Any]) -> dict[str, list[Any]]:
        """Transcribe the rows of a batch, together with those of other calls.

        Raises:
            EngineClosed: the engine failed, so that Ray tries elsewhere.
        """
        rows = list(_rows(batch))
        found = await asyncio.gather(*map(self._row, rows))
        return {name: [row[name] for row in found] for name in (found[0] if found else ())}

    async def _row(self, row: dict[str, Any]) -> dict[str, Any]:
        kept = {name: value for name, value in row.items() if _is_small(name, value)}
        try:
            added = await self._transcribed(row)
        except WhisperOptError as error:
            if self._engine.closed:
                raise EngineClosed(f"the engine was closed: {error}") from error
            added = {"error": str(error)}
        empty = {"text": "", "language": "", "duration": 0.0, "transcript": "", "error": ""}
        return {**kept, **empty, **added}

    async def _transcribed(self, row: Mapping[str, Any]) -> dict[str, Any]:
        audio = row.get("bytes")
        options = recording_of(row, self._options).options
        if audio is None:
            audio = row["audio"] if "audio" in row else row["path"]
        if options.strategy == "sequential":  # the engine has a batch of its own
            options = TranscribeOptions(**{**vars(options), "batch_size": 1})
        found = await (await self._submitted(audio, options))
        return {
            "text": found.text,
            "language": found.language,
            "duration": found.duration,
            "transcript": render(found, "json"),
        }

    async def _submitted(self, audio: Any, options: TranscribeOptions) -> Handle:
        while True:
            with contextlib.suppress(QueueFull):
                return self._engine.submit(audio, options)
            await asyncio.sleep(_PAUSE)


class CorpusTranscriber:
    """An actor class that writes the files of ``whisper-opt corpus``; what is there is skipped.

    Columns that it reads: ``audio`` or ``path``, a file that all nodes see under that name; ``id``
    (default: that name); ``options``, as :class:`Transcriber`. :func:`corpus_rows` makes them. It
    returns ``id``, ``seconds`` (duration; 0 if it failed) and ``error``. If it is run again, only
    what is missing or has changed is transcribed (docs/corpus.md).
    """

    def __init__(
        self,
        model: str,
        out: str,
        *,
        load: Mapping[str, Any] | None = None,
        options: Mapping[str, Any] | None = None,
        formats: Sequence[str] = ("json",),
        max_batch: int = 8,
    ) -> None:
        """Load the model, and prepare the directory.

        Args:
            model: what :meth:`whisper_opt.Whisper.load` takes.
            out: the directory; it is created.
            load: fields of :class:`whisper_opt.LoadOptions`.
            options: fields of :class:`whisper_opt.TranscribeOptions`, for rows that say nothing
                else.
            formats: formats of the files.
            max_batch: windows that are decoded at once.

        Raises:
            WhisperOptError: the model cannot be loaded, or the directory cannot be written.
        """
        self._options = TranscribeOptions(**(options or {}))
        self._model = Whisper.load(model, **(load or {}))
        self._engine = Engine(self._model, max_batch=max_batch)
        self._corpus = Corpus(Path(out), self._model, formats=formats, worker=_worker())
        self._corpus.__enter__()  # held until the process ends

    async def __call__(self, batch: Mapping[str, Any]) -> dict[str, list[Any]]:
        """Transcribe the rows of a batch, together with those of other calls.

        Raises:
            WhisperOptError: a file cannot be written, or the engine failed.
        """
        rows = list(_rows(batch))
        found = await asyncio.gather(*map(self._row, rows))
        return {name: [row[name] for row in found] for name in ("id", "seconds", "error")}

    async def _row(self, row: Mapping[str, Any]) -> dict[str, Any]:
        try:
            recording = recording_of(row, self._options)
        except OptionError as error:
            return {"id": str(row.get("id", "")), "seconds": 0.0, "error": str(error)}
        outcome = self._corpus.outcome(recording)
        if outcome is None:
            outcome = await transcribe_recording(self._engine, self._corpus, recording)
        return {"id": recording.id, "seconds": outcome.seconds, "error": outcome.error or ""}


def recording_of(row: Mapping[str, Any], options: TranscribeOptions) -> Recording:
    """The recording of a row; what is not a path has the name ``audio``.

    Raises:
        OptionError: a column is wrong.
    """
    source = row.get("audio", row.get("path"))
    path = str(source) if isinstance(source, (str, os.PathLike)) else "audio"
    if source is None and row.get("bytes") is None:
        raise OptionError("the row has no audio; expected a column audio, path or bytes")
    try:
        given = json.loads(row.get("options") or "{}")
    except ValueError as error:
        raise OptionError(f"the column options is no JSON object: {error}") from error
    if not isinstance(given, dict) or {"audio", "path", "id"} & set(given):
        raise OptionError(f"the column options is {given!r}; expected a JSON object of options")
    unknown = set(given) - set(vars(options))
    if unknown:
        raise OptionError(f"the column options has {min(unknown)!r}, which is no option")
    identity = {} if row.get("id") is None else {"id": row["id"]}
    return Recording.of({"audio": path, **identity, **given}, options, Path())


def _rows(batch: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Rows of columns; numpy's scalars become those of Python."""
    names = list(batch)
    for values in zip(*batch.values()):
        plain = [each.item() if getattr(each, "shape", None) == () else each for each in values]
        yield dict(zip(names, plain))


def _is_small(name: str, value: Any) -> bool:
    return name != "bytes" and not (name == "audio" and not isinstance(value, str))


def _worker() -> str:
    """A name of this actor; the same when Ray starts it again."""
    ray = sys.modules.get("ray")
    if ray is not None and ray.is_initialized():
        actor: str | None = ray.get_runtime_context().get_actor_id()
        if actor:
            return f"ray-{actor}"
    return uuid.uuid4().hex
