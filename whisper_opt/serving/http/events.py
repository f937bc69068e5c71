"""Server-sent events: the text of a recording while it is decoded."""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import Any, Callable

from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from whisper_opt.serving import Handle
from whisper_opt.serving.http.errors import ApiError, error_response
from whisper_opt.serving.http.responses import Deltas
from whisper_opt.text.results import Segment, Transcript

__all__ = ["EventStream", "Mailbox", "disconnected"]

HEARTBEAT = 10.0
"""Seconds without an event after which a comment is sent, so that no proxy closes the stream."""


class Mailbox:
    """Segments of one recording, and its end, from the engine's thread to the event loop."""

    def __init__(self) -> None:
        """Must be created in the event loop."""
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[Segment | None] = asyncio.Queue()
        self.begun = asyncio.Event()
        """Set when there is a segment."""

    def put(self, segment: Segment) -> None:
        """Add a segment, from any thread."""
        self._put(segment)

    def end(self, *_: object) -> None:
        """There is nothing more, from any thread."""
        self._put(None)

    def _put(self, item: Segment | None) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody reads it
            self._loop.call_soon_threadsafe(self._take, item)

    def _take(self, item: Segment | None) -> None:
        self._queue.put_nowait(item)
        if item is not None:
            self.begun.set()

    async def ended(self) -> None:
        """Wait for the end."""
        while await self._queue.get() is not None:
            pass

    async def get(self, timeout: float) -> Segment | None:
        """The next segment, or None at the end.

        Raises:
            asyncio.TimeoutError: there is neither within ``timeout`` seconds.
        """
        return await asyncio.wait_for(self._queue.get(), timeout)


class EventStream(Response):
    """The response of ``stream=true``: deltas, and one event with the whole text.

    If decoding fails before the first event, the response is a plain error; later, an event with
    the error ends it. If the client disconnects, decoding is cancelled.
    """

    def __init__(
        self,
        handle: Handle,
        mailbox: Mailbox,
        deltas: Deltas,
        event_of: Callable[[Segment], dict[str, Any]] | None,
        failure: Callable[[BaseException], ApiError],
        on_end: Callable[[Transcript | None, ApiError | None], None],
        resources: contextlib.AsyncExitStack,
        arrival: asyncio.Future[contextlib.AsyncExitStack] | None = None,
    ) -> None:
        """Create the response.

        Args:
            handle: the recording, submitted with ``mailbox.put`` and ``mailbox.end`` as callbacks.
            mailbox: its segments.
            deltas: turns segments into text to append.
            event_of: the further event of a segment, or None: there are none.
            failure: turns an error of the recording into that of the API.
            on_end: called once with the result: a transcript, an error, or neither if the client
                disconnected.
            resources: what is released at the end.
            arrival: the end of the upload, if it is still to come, and what is released then; its
                error ends the stream.
        """
        super().__init__(media_type="text/event-stream", headers={"cache-control": "no-cache"})
        self.raw_headers = [(k, v) for k, v in self.raw_headers if k != b"content-length"]
        self._handle = handle
        self._mailbox = mailbox
        self._deltas = deltas
        self._event_of = event_of
        self._failure = failure
        self._on_end = on_end
        self._resources = resources
        self._arrival = arrival
        self._begun = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events."""
        events = asyncio.ensure_future(self._events(scope, receive, send))
        gone = asyncio.ensure_future(self._until_gone(receive))
        transcript: Transcript | None = None
        error: ApiError | None = None
        try:
            await asyncio.wait({events, gone}, return_when=asyncio.FIRST_COMPLETED)
            if events.done():
                transcript, error = events.result()
        finally:
            self._handle.cancel()  # without effect after the end
            for task in (events, gone):
                task.cancel()
            await asyncio.gather(events, gone, return_exceptions=True)
            await self._end_arrival()
            self._on_end(transcript, error)
            await self._resources.aclose()

    async def _until_gone(self, receive: Receive) -> None:
        """Wait until the client disconnects; an upload that fails ends the transcription."""
        if self._arrival is not None:
            try:
                await asyncio.shield(self._arrival)
            except ClientDisconnect:
                return
            except Exception:
                self._handle.cancel()  # `_deltas_until_end` raises the error
        await disconnected(receive)

    async def _end_arrival(self) -> None:
        if self._arrival is not None:
            self._arrival.cancel()  # without effect after its end
            (found,) = await asyncio.gather(self._arrival, return_exceptions=True)
            if isinstance(found, contextlib.AsyncExitStack):
                self._resources.push_async_exit(found)

    async def _events(
        self, scope: Scope, receive: Receive, send: Send
    ) -> tuple[Transcript | None, ApiError | None]:
        try:
            transcript = await self._deltas_until_end(send)
        except ClientDisconnect:
            return None, None
        except Exception as raised:
            error = self._failure(raised)
            if not self._begun:
                await error_response(error)(scope, receive, send)
            else:
                await self._send(send, error.body)
                await send({"type": "http.response.body", "body": b"", "more_body": False})
            return None, error
        await self._send(send, self._deltas.done(transcript))
        await send({"type": "http.response.body", "body": b"", "more_body": False})
        return transcript, None

    async def _deltas_until_end(self, send: Send) -> Transcript:
        while True:
            try:
                segment = await self._mailbox.get(HEARTBEAT)
            except asyncio.TimeoutError:
                await self._write(send, b": ping\n\n")
                continue
            if segment is None:
                if self._arrival is not None:
                    await asyncio.shield(self._arrival)
                transcript: Transcript = self._handle.result(0)
                await self._delta(send, self._deltas.event(None))
                return transcript
            await self._delta(send, self._deltas.event(segment))
            if self._event_of is not None:
                await self._send(send, self._event_of(segment))

    async def _delta(self, send: Send, event: dict[str, Any] | None) -> None:
        if event is not None:
            await self._send(send, event)

    async def _send(self, send: Send, event: dict[str, Any]) -> None:
        await self._write(send, f"data: {json.dumps(event, ensure_ascii=False)}\n\n".encode())

    async def _write(self, send: Send, data: bytes) -> None:
        if not self._begun:
            self._begun = True
            start = {"status": self.status_code, "headers": self.raw_headers}
            await send({"type": "http.response.start", **start})
        await send({"type": "http.response.body", "body": data, "more_body": True})


async def disconnected(receive: Receive) -> None:
    """Wait until the client disconnects."""
    while (await receive())["type"] != "http.disconnect":
        pass
