"""A deployment for Ray Serve on the continuous batch of an engine, without ``@serve.batch``.

>>> from ray import serve
>>> from whisper_opt.integrations.ray_serve import deployment
>>> serve.run(deployment("base", num_replicas=2))  # doctest: +SKIP

    curl --data-binary @talk.mp3 'http://localhost:8000/?language=en&word_timestamps=true'

``@serve.batch`` waits for requests to arrive together, and answers all when the slowest is done.
Here requests join the batch of the engine at its next step, and leave it one by one. A client that
goes away cancels its transcription.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from typing import Any

from whisper_opt import (
    AudioError,
    OptionError,
    QueueFull,
    TranscribeOptions,
    Whisper,
    WhisperOptError,
)
from whisper_opt.serving import Engine

__all__ = ["Transcription", "deployment"]

_TEXTS = {"text": (str, type(None)), "transcript": (str, type(None), list, dict)}
"""What JSON may be in a query for options that are text; other JSON is itself the text."""


class Transcription:
    """What a replica runs: one model, one engine."""

    def __init__(
        self,
        model: str,
        *,
        load: Mapping[str, Any] | None = None,
        options: Mapping[str, Any] | None = None,
        max_batch: int = 8,
        max_queued: int = 256,
    ) -> None:
        """Load the model.

        Args:
            model: what :meth:`whisper_opt.Whisper.load` takes.
            load: fields of :class:`whisper_opt.LoadOptions`.
            options: fields of :class:`whisper_opt.TranscribeOptions`; requests replace them.
            max_batch: windows that are decoded at once.
            max_queued: recordings that wait to be read; further ones are refused.

        Raises:
            WhisperOptError: the model cannot be loaded.
        """
        self._options = dict(options or {})
        self._engine = Engine(
            Whisper.load(model, **(load or {})), max_batch=max_batch, max_queued=max_queued
        )

    async def transcribe(self, audio: Any, **options: Any) -> dict[str, Any]:
        """Transcribe a recording; for handles of the deployment.

        Args:
            audio: the bytes of a file, a path, or samples at 16 kHz [n].
            **options: fields of :class:`whisper_opt.TranscribeOptions`.

        Returns:
            openai-whisper's schema, and ``duration`` in seconds.

        Raises:
            WhisperOptError: as :meth:`whisper_opt.serving.Engine.submit` and ``Handle.result``.
        """
        found = await self._engine.submit(audio, self._chosen(options))
        return {**found.to_dict(), "duration": found.duration}

    async def segments(self, audio: Any, **options: Any) -> AsyncIterator[dict[str, Any]]:
        """Yield the segments as they are decoded; for handles with ``stream=True``.

        Args and errors are those of :meth:`transcribe`.
        """
        loop = asyncio.get_running_loop()
        ready: asyncio.Queue[Any] = asyncio.Queue()

        def put(value: Any) -> None:
            loop.call_soon_threadsafe(ready.put_nowait, value)

        handle = self._engine.submit(audio, self._chosen(options), on_segment=put)
        handle.add_done_callback(lambda _: put(None))
        try:
            segment = await ready.get()
            while segment is not None:
                yield segment.to_dict()
                segment = await ready.get()
            handle.result(0)
        finally:
            handle.cancel()

    async def __call__(self, request: Any) -> Any:
        """Answer an HTTP request: the body is a file, the query has options."""
        from starlette.responses import JSONResponse

        try:
            options = {name: _value(name, text) for name, text in request.query_params.items()}
            return JSONResponse(await self.transcribe(await request.body(), **options))
        except (OptionError, AudioError) as error:
            return JSONResponse({"error": str(error)}, 400)
        except QueueFull as error:
            return JSONResponse({"error": str(error)}, 429)
        except WhisperOptError as error:
            return JSONResponse({"error": str(error)}, 500)

    def check_health(self) -> None:
        """Tell Serve whether to replace this replica.

        Raises:
            RuntimeError: the engine was closed.
        """
        if self._engine.closed:
            raise RuntimeError("the engine was closed")

    def _chosen(self, options: Mapping[str, Any]) -> TranscribeOptions:
        fields = TranscribeOptions.__dataclass_fields__
        unknown = [name for name in options if name not in fields]
        if unknown:
            raise OptionError(f"there is no option {unknown[0]!r}; docs/options.md lists them")
        return TranscribeOptions(**{**self._options, **options})


def _value(name: str, text: str) -> Any:
    """An option in a query: JSON, or else text, which needs no quotes.

    Raises:
        OptionError: it would make the replica read a file.
    """
    if name == "known_speakers":
        raise OptionError("known_speakers names files of the server; give it with a handle")
    field = TranscribeOptions.__dataclass_fields__.get(name)
    kind = "" if field is None else field.metadata["kind"]
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return value if isinstance(value, _TEXTS.get(kind, object)) else text  # the prompt 1984


def deployment(
    model: str,
    *,
    max_batch: int = 8,
    max_queued: int = 256,
    load: Mapping[str, Any] | None = None,
    options: Mapping[str, Any] | None = None,
    **settings: Any,
) -> Any:
    """An application of Ray Serve.

    Args:
        model: what :meth:`whisper_opt.Whisper.load` takes, on every node.
        max_batch: windows that a replica decodes at once.
        max_queued: recordings that wait to be read by a replica; further ones are refused.
        load: fields of :class:`whisper_opt.LoadOptions`.
        options: fields of :class:`whisper_opt.TranscribeOptions`.
        **settings: arguments of ``serve.deployment``, such as ``num_replicas``,
            ``autoscaling_config`` or ``ray_actor_options={"num_gpus": 1}``.

    Returns:
        What ``serve.run`` takes.
    """
    from ray import serve

    # enough that the batch is full while others are read; more wait where Serve can place them
    chosen = {"max_ongoing_requests": 4 * max_batch, **settings}
    made = serve.deployment(**chosen)(Transcription)
    return made.bind(model, load=load, options=options, max_batch=max_batch, max_queued=max_queued)
