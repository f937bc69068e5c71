"""Endpoints: transcriptions, translations, models, health, metrics."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import json
import logging
import time
from collections.abc import AsyncIterator, Collection, Iterator
from typing import Any, Callable, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from whisper_opt.core.options import ServeOptions
from whisper_opt.serving.http.call import Call, read_call
from whisper_opt.serving.http.errors import ApiError, api_error
from whisper_opt.serving.http.events import EventStream, Mailbox, disconnected
from whisper_opt.serving.http.limits import Admission, Rate
from whisper_opt.serving.http.live.gate import Gate
from whisper_opt.serving.http.logs import log_event
from whisper_opt.serving.http.metrics import CONTENT_TYPE, Metrics
from whisper_opt.serving.http.models import Models, ServedModel
from whisper_opt.serving.http.observe import notes_of
from whisper_opt.serving.http.realtime.secrets import Secrets
from whisper_opt.serving.http.recordings import check_recording, likely_language
from whisper_opt.serving.http.responses import Deltas, rendered, segment_event
from whisper_opt.serving.http.upload import Form, read_form
from whisper_opt.text.results import Segment, Transcript

__all__ = ["Received", "Service", "json_response"]


_T = TypeVar("_T")


def json_response(value: Any, status: int = 200) -> Response:
    """A response of JSON."""
    return Response(json.dumps(value), status, media_type="application/json")


class Service:
    """What the endpoints share.

    Attributes:
        models: the models.
        options: options of the server.
        metrics: its metrics.
        draining: whether the server is shutting down.
        gate: limits on live connections.
        secrets: client secrets of the realtime API.
    """

    def __init__(self, models: Models, options: ServeOptions) -> None:
        self.models = models
        self.options = options
        self.metrics = Metrics(models)
        self.draining = False
        self.gate = Gate(options)
        self.secrets = Secrets()
        self._rate = Rate(options.requests_per_minute)
        self._admission = Admission(options.max_queued + options.max_batch)

    # health, models

    async def healthz(self, request: Request) -> Response:
        """The process answers."""
        return json_response({"status": "ok"})

    async def readyz(self, request: Request) -> Response:
        """The models are loaded and warm, and the server is not shutting down."""
        if self.draining:
            return json_response({"status": "draining"}, 503)
        if not self.models.ready:
            return json_response({"status": "loading"}, 503)
        return json_response({"status": "ready"})

    async def metrics_text(self, request: Request) -> Response:
        """Metrics in Prometheus' format."""
        return Response(self.metrics.text(), media_type=CONTENT_TYPE)

    async def list_models(self, request: Request) -> Response:
        """All models and aliases."""
        data = [self.models.described(name) for name in self.models.names]
        return json_response({"object": "list", "data": data})

    async def one_model(self, request: Request) -> Response:
        """One model; a name may contain slashes."""
        return json_response(self.models.described(request.path_params["name"]))

    # transcription

    async def transcriptions(self, request: Request) -> Response:
        """Transcribe a recording."""
        return await self._audio(request, translate=False)

    async def translations(self, request: Request) -> Response:
        """Translate a recording to English."""
        return await self._audio(request, translate=True)

    async def _audio(self, request: Request, *, translate: bool) -> Response:
        async with self.received(request, translate=translate) as (received, resources):
            work = _Work(self, request, received.model, await self._with_language(received))
            source = received.form.source
            if work.is_stream:
                return work.streamed(source, resources.pop_all())
            return await work.whole(source)

    @contextlib.asynccontextmanager
    async def received(
        self, request: Request, *, translate: bool, others: Collection[str] = ()
    ) -> AsyncIterator[tuple[Received, contextlib.AsyncExitStack]]:
        """Receive a recording and check all that can be checked before it is decoded.

        Args:
            request: the request.
            translate: whether it was sent to the translations endpoint.
            others: names of further fields.

        Yields:
            The request, and what is released at the end of the context.

        Raises:
            ApiError: it is refused; errors within the context are counted and become one too.
            ClientDisconnect: the client is gone.
        """
        notes = notes_of(request.scope)
        try:
            async with contextlib.AsyncExitStack() as resources:
                found = await self._receive(request, resources, translate, others)
                yield found, resources
        except ClientDisconnect:
            notes["disconnected"] = True
            raise
        except Exception as error:
            refused = api_error(error, {})
            self.metrics.refused.labels(refused.code or str(refused.status)).inc()
            notes["code"] = refused.code
            if refused.status == 500:
                raise
            raise refused from None

    async def _receive(
        self,
        request: Request,
        resources: contextlib.AsyncExitStack,
        translate: bool,
        others: Collection[str],
    ) -> Received:
        notes = notes_of(request.scope)
        self.check_open()
        self._rate.take(request.scope["whisper_opt.client"])
        resources.enter_context(self._admission.one(self._wait()))
        form = await read_form(request, self.options)
        resources.callback(form.close)
        notes["bytes"] = form.n_bytes
        self.metrics.upload_bytes.inc(form.n_bytes or 0)
        fields = [pair for pair in form.fields if pair[0] not in others]
        deployment = request.path_params.get("deployment")
        if deployment is not None:
            fields = [("model", deployment), *(pair for pair in fields if pair[0] != "model")]
        call = read_call(fields, self.options, translate=translate)
        model = self.models.find(call.model)
        notes.update(model=model.name, format=call.response_format, stream=call.stream or None)
        await self._check(form, call, model)
        rest = {name: value for name, value in form.fields if name in others}
        return Received(form, fields, rest, call, model)

    def admitted(self) -> contextlib.AbstractContextManager[None]:
        """Count a request that arrives in another way as long as the context lasts.

        Raises:
            ApiError: the server is not ready, or too many requests are in progress.
        """
        self.check_open()
        return self._admission.one(self._wait())

    def check_live(self, client: str) -> None:
        """Count the request of a client for a live connection.

        Raises:
            ApiError: the server is not ready, or the client has sent too many requests.
        """
        self.check_open()
        self._rate.take(client)

    def check_open(self) -> None:
        """Raise ApiError, 503, if the server is not ready or is shutting down."""
        if self.draining:
            raise ApiError(503, "the server is shutting down; use another", retry_after=5)
        if not self.models.ready:
            raise ApiError(
                503, "the models are being loaded; send the request again", retry_after=1
            )

    def _wait(self) -> float:
        """Estimated seconds until a request that is sent now begins."""
        return max((model.engine.stats().estimated_wait for model in self.models), default=1.0)

    async def _check(self, form: Form, call: Call, model: ServedModel) -> None:
        """Check the recording, and whether the model supports the options."""
        if form.n_bytes is None:
            raise ApiError(
                400,
                "the form has no file; send the recording as the part 'file'",
                param="file",
                code="missing_required_parameter",
            )
        whisper = model.whisper
        with _refusals(call):
            call.options.check_model(
                is_multilingual=whisper.is_multilingual, n_audio_ctx=whisper.dims.n_audio_ctx
            )
            await _in_thread(check_recording, form, self.options)

    async def _with_language(self, received: Received) -> Call:
        """The call with the most probable of several candidate languages."""
        call = received.call
        if not call.languages:
            return call
        with _refusals(call):
            language = await _in_thread(
                likely_language, received.model.whisper, received.form.source, call.languages
            )
        options = dataclasses.replace(call.options, language=language)
        return dataclasses.replace(call, options=options)


@contextlib.contextmanager
def _refusals(call: Call) -> Iterator[None]:
    """Errors of the library become those of the API, with the field that is wrong."""
    try:
        yield
    except Exception as error:
        raise api_error(error, call.parameters) from error


async def _in_thread(function: Callable[..., _T], *arguments: Any) -> _T:
    return await asyncio.get_running_loop().run_in_executor(None, function, *arguments)


@dataclasses.dataclass(frozen=True)
class Received:
    """A request that was received and checked.

    Attributes:
        form: its form, with the recording.
        fields: the fields of the form but the others.
        others: the other fields.
        call: what it asks for.
        model: the model.
    """

    form: Form
    fields: list[tuple[str, str]]
    others: dict[str, str]
    call: Call
    model: ServedModel


class _Work:
    """The transcription of one request."""

    def __init__(self, service: Service, request: Request, model: ServedModel, call: Call) -> None:
        self._service = service
        self._request = request
        self._model = model
        self._call = call
        self._began = time.perf_counter()
        self._mailbox = Mailbox()
        self._n_segments = 0

    @property
    def is_stream(self) -> bool:
        """Whether text is to be sent as it is decoded."""
        return self._call.stream

    def _on_segment(self, segment: Segment) -> None:
        if not self._n_segments:
            elapsed = time.perf_counter() - self._began
            self._service.metrics.first_segment.labels(self._model.name).observe(elapsed)
        self._n_segments += 1
        if self._call.stream:
            self._mailbox.put(segment)

    def _submitted(self, source: Any) -> Any:
        try:
            handle = self._model.engine.submit(
                source, self._call.options, on_segment=self._on_segment
            )
        except Exception as error:
            raise self._failure(error) from error
        handle.add_done_callback(self._mailbox.end)
        return handle

    def _failure(self, error: BaseException) -> ApiError:
        wait = self._model.engine.stats().estimated_wait
        refused = api_error(error, self._call.parameters, wait)
        if refused.status == 500:
            request_id = self._request.scope["whisper_opt.id"]
            log_event("transcription failed", logging.ERROR, exc=error, id=request_id)
        return refused

    def _note(self, transcript: Transcript) -> None:
        metrics, name = self._service.metrics, self._model.name
        metrics.total.labels(name).observe(time.perf_counter() - self._began)
        metrics.audio.labels(name).observe(transcript.duration)
        notes_of(self._request.scope)["audio_s"] = round(transcript.duration, 3)

    async def whole(self, source: Any) -> Response:
        """Wait for the transcript; if the client disconnects, the transcription is cancelled."""
        handle = self._submitted(source)
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
            body, media_type = rendered(transcript, self._call)
        except Exception as error:
            raise self._failure(error) from error
        self._note(transcript)
        return Response(body, media_type=media_type)

    def streamed(self, source: Any, resources: contextlib.AsyncExitStack) -> Response:
        """The response that sends text as it is decoded, and releases the file at its end."""
        notes = notes_of(self._request.scope)

        def on_end(transcript: Transcript | None, error: ApiError | None) -> None:
            if transcript is not None:
                self._note(transcript)
            elif error is not None:
                notes["code"] = error.code or str(error.status)
                self._service.metrics.refused.labels(notes["code"]).inc()
            else:
                notes["disconnected"] = True

        handle = self._submitted(source)
        deltas, event_of = Deltas(self._model.whisper.vocab), None
        if self._call.response_format == "verbose_json":
            event_of = functools.partial(segment_event, call=self._call)
        return EventStream(
            handle, self._mailbox, deltas, event_of, self._failure, on_end, resources
        )
