"""The transcription of one request, and its response."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import math
import time
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from whisper_opt.serving.handle import Handle
from whisper_opt.serving.http.call import Call
from whisper_opt.serving.http.errors import ApiError, api_error
from whisper_opt.serving.http.events import EventStream, Mailbox, disconnected
from whisper_opt.serving.http.logs import log_event
from whisper_opt.serving.http.metrics import Metrics
from whisper_opt.serving.http.models import ServedModel
from whisper_opt.serving.http.observe import notes_of
from whisper_opt.serving.http.responses import Deltas, rendered, segment_event
from whisper_opt.text.results import Segment, Transcript

__all__ = ["Work"]


class Work:
    """The transcription of one request."""

    def __init__(self, metrics: Metrics, request: Request, model: ServedModel, call: Call) -> None:
        self._metrics = metrics
        self._request = request
        self._model = model
        self._call = call
        self._began = math.inf
        self._mailbox = Mailbox()
        self._n_segments = 0
        self._handle: Handle | None = None
        self.is_streaming = False
        """Whether the response was begun."""

    @property
    def is_stream(self) -> bool:
        """Whether text is to be sent as it is decoded."""
        return self._call.stream

    def _on_segment(self, segment: Segment) -> None:
        if not self._n_segments:
            elapsed = max(0.0, time.perf_counter() - self._began)
            self._metrics.first_segment.labels(self._model.name).observe(elapsed)
        self._n_segments += 1
        if self._call.stream:
            self._mailbox.put(segment)

    def submit(self, source: Any) -> None:
        """Begin to transcribe.

        Raises:
            ApiError: the recording is refused.
        """
        try:
            self._handle = self._model.engine.submit(
                source, self._call.options, on_segment=self._on_segment
            )
        except Exception as error:
            raise self._failure(error) from error
        self._handle.add_done_callback(self._mailbox.end)

    @property
    def handle(self) -> Handle:
        """The recording in the engine."""
        assert self._handle is not None, "submit was called"
        return self._handle

    def uploaded(self) -> None:
        """The recording is whole: time counts from now on."""
        self._began = time.perf_counter()

    def cancel(self) -> None:
        """Transcribe no further."""
        self.handle.cancel()

    async def text(self) -> None:
        """Wait for text that can be sent; there is none before the end without a stream."""
        await (self._mailbox.begun if self.is_stream else asyncio.Event()).wait()

    @property
    def has_text(self) -> bool:
        """Whether there is text that can be sent."""
        return self.is_stream and self._mailbox.begun.is_set()

    def _failure(self, error: BaseException) -> ApiError:
        wait = self._model.engine.stats().estimated_wait
        refused = api_error(error, self._call.parameters, wait)
        if refused.status == 500:
            request_id = self._request.scope["whisper_opt.id"]
            log_event("transcription failed", logging.ERROR, exc=error, id=request_id)
        return refused

    def _note(self, transcript: Transcript) -> None:
        metrics, name = self._metrics, self._model.name
        metrics.total.labels(name).observe(time.perf_counter() - self._began)
        metrics.audio.labels(name).observe(transcript.duration)
        notes_of(self._request.scope)["audio_s"] = round(transcript.duration, 3)

    async def whole(self) -> Response:
        """Wait for the transcript; if the client disconnects, the transcription is cancelled."""
        handle = self.handle
        ended = asyncio.ensure_future(self._mailbox.ended())
        gone = asyncio.ensure_future(disconnected(self._request.receive))
        try:
            await asyncio.wait({ended, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not ended.done():
                raise ClientDisconnect
        finally:
            handle.cancel()  # without effect after the end
            ended.cancel()
            gone.cancel()
        try:
            transcript: Transcript = handle.result(0)
            body, media_type = rendered(transcript, self._call, self._model.whisper.vocab)
        except Exception as error:
            raise self._failure(error) from error
        self._note(transcript)
        return Response(body, media_type=media_type)

    def streamed(
        self, resources: contextlib.AsyncExitStack, rest: asyncio.Future[Any] | None = None
    ) -> Response:
        """The response that sends text as it is decoded, and releases the file at its end.

        ``rest`` is the end of the upload, if it is still to come; its errors were counted.
        """
        notes = notes_of(self._request.scope)
        self.is_streaming = True

        def on_end(transcript: Transcript | None, error: ApiError | None) -> None:
            if transcript is not None:
                self._note(transcript)
            elif rest is not None and rest.done() and (rest.cancelled() or rest.exception()):
                pass
            elif error is not None:
                notes["code"] = error.code or str(error.status)
                self._metrics.refused.labels(notes["code"]).inc()
            else:
                notes["disconnected"] = True

        logprobs = self._call.options.token_logprobs
        deltas, event_of = Deltas(self._model.whisper.vocab, logprobs=logprobs), None
        if self._call.response_format in ("verbose_json", "diarized_json"):
            event_of = functools.partial(segment_event, call=self._call)
        return EventStream(
            self.handle,
            self._mailbox,
            deltas,
            event_of,
            self._failure,
            on_end,
            resources,
            rest,
        )
