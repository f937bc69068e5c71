"""Endpoints of jobs: submit, list, watch, cancel, result."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
from pathlib import Path
from typing import Any, Callable, TypeVar, Union

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from whisper_opt.core.options import ServeOptions
from whisper_opt.serving.http.call import LOGPROBS, Call, read_call
from whisper_opt.serving.http.errors import ApiError, invalid, queue_full
from whisper_opt.serving.http.jobs.results import loaded
from whisper_opt.serving.http.jobs.runner import JobRunner
from whisper_opt.serving.http.jobs.store import COMPLETED, Job, JobStore, described
from whisper_opt.serving.http.jobs.webhooks import Announcer, check_webhook
from whisper_opt.serving.http.observe import named_route
from whisper_opt.serving.http.responses import rendered
from whisper_opt.serving.http.routes import Received, Service, json_response

__all__ = ["Jobs"]

_T = TypeVar("_T")
_MOST_LISTED = 100
_OF_RESULT = ("response_format", "timestamp_granularities", "stream")
"""Fields that are about the response: those of the request for the result count."""
_OF_LOGPROBS = ("include", "token_logprobs")


class Jobs:
    """The jobs of a server."""

    def __init__(self, service: Service, folder: Path) -> None:
        """Open the directory; nothing runs before :meth:`start`.

        Raises:
            WhisperOptError: the directory cannot be used.
        """
        self._service = service
        self._options: ServeOptions = service.options
        self.store = JobStore(folder)
        self.runner = JobRunner(self.store, service.models, service.options)
        self._announcer = Announcer(self.store)

    def start(self) -> None:
        """Run jobs."""
        self.runner.start()
        self._announcer.start()

    def close(self) -> None:
        """Stop; unfinished jobs are queued again for the next start."""
        self._announcer.stop()
        self.runner.stop()
        self.store.close()

    def routes(self) -> list[Route]:
        """Where the endpoints are."""
        return [
            named_route("/v1/jobs", self.submit, methods=["POST"]),
            named_route("/v1/jobs", self.list, methods=["GET"]),
            named_route("/v1/jobs/{job}", self.show, methods=["GET"]),
            named_route("/v1/jobs/{job}", self.remove, methods=["DELETE"]),
            named_route("/v1/jobs/{job}/cancel", self.cancel, methods=["POST"]),
            named_route("/v1/jobs/{job}/result", self.result, methods=["GET"]),
        ]

    async def submit(self, request: Request) -> Response:
        """Accept a job: it is on disk when the response is sent."""
        async with self._service.received(request, translate=False, others=("webhook",)) as (
            received,
            _,
        ):
            if received.call.stream:
                raise invalid("stream", "is true for a job, which has no stream", "false")
            webhook = received.others.get("webhook") or None
            if webhook is not None:
                check_webhook(webhook, self._options.webhook_origins)
            job = await _in_thread(self._add, received, _client(request), webhook)
        return json_response(described(job), 202)

    def _add(self, received: Received, client: str, webhook: Union[str, None]) -> Job:
        if self.store.n_unfinished >= self._options.max_jobs:
            raise queue_full(60.0)
        job_id = self.store.new_id()
        path = self.store.recording(job_id)
        received.form.save(path)
        try:
            job = self.store.add(
                job_id,
                client,
                received.call.model,
                received.call.options.task == "translate",
                received.fields,
                received.form.n_bytes or 0,
                webhook,
            )
        except BaseException:
            path.unlink()
            raise
        self.runner.wake()
        return job

    async def list(self, request: Request) -> Response:
        """Jobs of this client, the newest first."""
        limit = _whole(request, "limit", 20, _MOST_LISTED)
        after = request.query_params.get("after")
        before = None if after is None else (await self._job(request, after)).number
        found = await _in_thread(self.store.of_client, _client(request), limit + 1, before)
        data = [self._described(job) for job in found[:limit]]
        return json_response({"object": "list", "data": data, "has_more": len(found) > limit})

    async def show(self, request: Request) -> Response:
        """One job."""
        return json_response(self._described(await self._job(request)))

    async def cancel(self, request: Request) -> Response:
        """Cancel a job; without effect if it has ended."""
        job = await self._job(request)
        await _in_thread(self.runner.cancel, job.id)
        return json_response(self._described(await self._job(request)))

    async def remove(self, request: Request) -> Response:
        """Cancel a job and forget it."""
        job = await self._job(request)
        await _in_thread(self.runner.cancel, job.id)
        await _in_thread(self.store.remove, job.id)
        return json_response({"id": job.id, "object": "transcription.job", "deleted": True})

    async def result(self, request: Request) -> Response:
        """The transcript of a completed job, in any format."""
        job = await self._job(request)
        if job.status != COMPLETED or job.result is None:
            raise ApiError(
                409,
                f"the job is {job.status}; only a completed one has a result",
                code=f"job_{job.status}",
                headers={"x-should-retry": "false"},
            )
        call = self._call_of(job, request)
        transcript = await _in_thread(loaded, job.result)
        vocab = None
        if call.options.token_logprobs:
            vocab = self._service.models.find(job.model).whisper.vocab
        body, media_type = rendered(transcript, call, vocab)
        return Response(body, media_type=media_type)

    def _call_of(self, job: Job, request: Request) -> Call:
        """What a request for the result asks for; options of the transcription are the job's."""
        before = read_call(job.fields, self._options, translate=job.translate)
        asked = request.query_params.multi_items()
        given = {name.replace("[]", "") for name, _ in asked}
        kept = [pair for pair in job.fields if pair[0].replace("[]", "") not in _OF_RESULT]
        if "response_format" not in given:
            kept += [pair for pair in job.fields if pair[0] == "response_format"]
        if before.options.word_timestamps and "word_timestamps" not in dict(kept):
            kept.append(("word_timestamps", "true"))
        form = dict([*kept, *asked]).get("response_format", "json")
        if form not in LOGPROBS:  # the job may have log-probabilities, but this format has none
            kept = [pair for pair in kept if pair[0].replace("[]", "") not in _OF_LOGPROBS]
        call = read_call([*kept, *asked], self._options, translate=job.translate)
        options = before.options
        if form not in LOGPROBS:
            options = dataclasses.replace(options, token_logprobs=False)
        if call.options != options:
            raise invalid(
                "timestamp_granularities" if "timestamp_granularities" in given else min(given),
                "asks for another transcription than that of the job",
                "a format, or options of subtitles",
            )
        return call

    async def _job(self, request: Request, job_id: Union[str, None] = None) -> Job:
        """The job of a path, if it is one of this client."""
        name = request.path_params["job"] if job_id is None else job_id
        job = await _in_thread(self.store.get, name)
        if job is None or job.client != _client(request):
            raise ApiError(
                404, f"there is no job {name[:100]!r}", param="job", code="job_not_found"
            )
        return job

    def _described(self, job: Job) -> dict[str, Any]:
        return described(job, self.runner.progress(job.id))


def _client(request: Request) -> str:
    name: str = request.scope["whisper_opt.client"]
    return name


def _whole(request: Request, name: str, default: int, most: int) -> int:
    text = request.query_params.get(name, str(default))
    if not text.isascii() or not text.isdigit() or not 1 <= int(text[:9]) <= most:
        raise invalid(name, f"is {text[:100]!r}", f"an integer from 1 to {most}")
    return int(text)


async def _in_thread(function: Callable[..., _T], *arguments: Any) -> _T:
    call = functools.partial(function, *arguments)
    return await asyncio.get_running_loop().run_in_executor(None, call)
