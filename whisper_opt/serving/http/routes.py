"""Endpoints: transcriptions, translations, models, health, metrics."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import json
from collections.abc import AsyncIterator, Collection, Iterator
from typing import Any, Callable, TypeVar, Union

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from whisper_opt.core.arrays import F32
from whisper_opt.core.options import ServeOptions
from whisper_opt.serving.http.call import Call, read_call
from whisper_opt.serving.http.early import LEAST_BYTES, Early, Slots
from whisper_opt.serving.http.errors import ApiError, api_error, loading, shutting_down
from whisper_opt.serving.http.limits import Admission, Rate
from whisper_opt.serving.http.live.gate import Gate
from whisper_opt.serving.http.metrics import CONTENT_TYPE, Metrics
from whisper_opt.serving.http.models import Models, ServedModel
from whisper_opt.serving.http.observe import notes_of
from whisper_opt.serving.http.realtime.secrets import Secrets
from whisper_opt.serving.http.recordings import check_recording, likely_language
from whisper_opt.serving.http.upload import Form, read_form
from whisper_opt.serving.http.work import Work

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
        self._slots = Slots(max(1, options.max_batch // 2))

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
        begin = functools.partial(self._begun, request, translate)
        early: Early[Work] = Early(begin, self._slots)
        rest = asyncio.ensure_future(self._rest(request, translate, early))
        try:
            if not _is_small(request):
                await _until_text(rest, early)
            if rest.done() or early.work is None or not early.work.has_text:
                response = await rest
                assert isinstance(response, Response)
                return response
        except BaseException:
            rest.cancel()
            raise
        return early.work.streamed(contextlib.AsyncExitStack(), rest)

    async def _rest(
        self, request: Request, translate: bool, early: Early[Work]
    ) -> Union[Response, contextlib.AsyncExitStack]:
        """Receive a request and answer it.

        Returns:
            The response; what is to be released at its end, if a stream of it was begun before.
        """
        with contextlib.ExitStack() as stack:
            stack.callback(early.cancel)
            async with self.received(request, translate=translate, early=early) as found:
                received, resources = found
                work = early.work
                if work is None:
                    call = await self._with_language(received)
                    work = Work(self.metrics, request, received.model, call)
                    work.uploaded()
                    whole = received.samples
                    work.submit(received.form.source if whole is None else whole)
                else:
                    work.uploaded()
                stack.pop_all()
                if work.is_streaming:
                    return resources.pop_all()
                if work.is_stream:
                    return work.streamed(resources.pop_all())
                return await work.whole()

    def _begun(self, request: Request, translate: bool, form: Form) -> Work | None:
        """The transcription of a form whose file is arriving; None if it has to be whole first."""
        try:
            self.check_open()
            call = read_call(_fields_of(form, request), self.options, translate=translate)
            model = self.models.find(call.model)
            if call.languages:  # one of them is chosen first
                return None
            work = Work(self.metrics, request, model, call)
            work.submit(form.arriving)
        except Exception:  # raised again when the form is whole
            return None
        notes_of(request.scope)["early"] = True
        return work

    @contextlib.asynccontextmanager
    async def received(
        self,
        request: Request,
        *,
        translate: bool,
        others: Collection[str] = (),
        early: Early[Work] | None = None,
    ) -> AsyncIterator[tuple[Received, contextlib.AsyncExitStack]]:
        """Receive a recording and check all that can be checked before it is decoded.

        Args:
            request: the request.
            translate: whether it was sent to the translations endpoint.
            others: names of further fields.
            early: begins the transcription before the end of the upload.

        Yields:
            The request, and what is released at the end of the context.

        Raises:
            ApiError: it is refused; errors within the context are counted and become one too.
            ClientDisconnect: the client is gone.
        """
        notes = notes_of(request.scope)
        try:
            async with contextlib.AsyncExitStack() as resources:
                found = await self._receive(request, resources, translate, others, early)
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
        early: Early[Work] | None,
    ) -> Received:
        notes = notes_of(request.scope)
        self.check_open()
        self._rate.take(request.scope["whisper_opt.client"])
        resources.enter_context(self._admission.one(self._wait()))
        form = await self._form(request, early)
        resources.callback(form.close)
        notes["bytes"] = form.n_bytes
        self.metrics.upload_bytes.inc(form.n_bytes or 0)
        fields = [pair for pair in _fields_of(form, request) if pair[0] not in others]
        call = read_call(fields, self.options, translate=translate)
        model = self.models.find(call.model)
        notes.update(model=model.name, format=call.response_format, stream=call.stream or None)
        samples = await self._check(form, call, model)
        rest = {name: value for name, value in form.fields if name in others}
        return Received(form, fields, rest, call, model, samples)

    async def _form(self, request: Request, early: Early[Work] | None) -> Form:
        if early is None:
            return await read_form(request, self.options)
        try:
            form = await read_form(request, self.options, early.offer)
        except BaseException:
            early.end(None)
            raise
        try:
            early.end(form)
        except ApiError:
            form.close()
            raise
        return form

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
            raise shutting_down()
        if not self.models.ready:
            raise loading()

    def _wait(self) -> float:
        """Estimated seconds until a request that is sent now begins."""
        return max((model.engine.stats().estimated_wait for model in self.models), default=1.0)

    async def _check(self, form: Form, call: Call, model: ServedModel) -> F32 | None:
        """Check the recording, and whether the model supports the options.

        Returns what :func:`check_recording` returns.
        """
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
            return await _in_thread(check_recording, form, self.options, call.options)

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


def _is_small(request: Request) -> bool:
    """Whether a request is too small to be transcribed while it arrives."""
    length = request.headers.get("content-length", "")
    return not length.isdigit() or int(length) < LEAST_BYTES


async def _until_text(rest: asyncio.Future[Any], early: Early[Work]) -> None:
    """Wait until the request is answered, or a stream that began early has text."""
    waits: set[asyncio.Future[Any]] = {rest, asyncio.ensure_future(early.text())}
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        (waits - {rest}).pop().cancel()


def _fields_of(form: Form, request: Request) -> list[tuple[str, str]]:
    """The fields of a form; the path of a request may name the model."""
    deployment = request.path_params.get("deployment")
    if deployment is None:
        return list(form.fields)
    return [("model", deployment), *(pair for pair in form.fields if pair[0] != "model")]


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
        samples: of a short recording, which was decoded when it was checked.
    """

    form: Form
    fields: list[tuple[str, str]]
    others: dict[str, str]
    call: Call
    model: ServedModel
    samples: F32 | None = None
