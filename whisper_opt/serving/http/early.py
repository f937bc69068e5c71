"""Transcriptions that begin while their recording is still arriving."""

from __future__ import annotations

import asyncio
import time
from typing import Callable, Generic, Protocol, TypeVar, Union

from whisper_opt.audio.decode import decoded_on_arrival
from whisper_opt.serving.http.errors import ApiError
from whisper_opt.serving.http.upload import Form

__all__ = ["Early", "Slots"]

AFTER = 0.5
"""Seconds that an upload takes before it is decoded as it arrives: most are whole by then."""
LEAST_BYTES = 1 << 16
"""Bytes of the recording that must be there."""


class _Begun(Protocol):
    is_streaming: bool

    async def text(self) -> None:
        """Wait for text that can be sent."""

    def cancel(self) -> None:
        """Transcribe no further."""


_W = TypeVar("_W", bound=_Begun)


class Slots:
    """How many uploads are decoded as they arrive; each keeps a thread of the readers."""

    def __init__(self, n: int) -> None:
        """``n``: at most so many."""
        self.free = n


class Early(Generic[_W]):
    """One upload, whose transcription begins before its end if it is slow.

    It needs to know how the recording is to be transcribed, so all fields must come before the
    file; and its size, so the request must have a Content-Length.

    Attributes:
        work: what was begun; None if nothing was, or if it cannot be used.
    """

    def __init__(self, begin: Callable[[Form], Union[_W, None]], slots: Slots) -> None:
        """The upload begins now.

        Args:
            begin: begins to transcribe ``form.arriving``; None if that is not possible.
            slots: one is taken until the end of the upload.
        """
        self.work: _W | None = None
        self._begin = begin
        self._slots = slots
        self._since = time.monotonic()
        self._offered = False
        self._has_begun = asyncio.Event()
        self._fields: list[tuple[str, str]] = []

    async def text(self) -> None:
        """Wait until something was begun and has text that can be sent."""
        await self._has_begun.wait()
        if self.work is not None:
            await self.work.text()

    def offer(self, form: Form) -> None:
        """Called after every part of the body that arrives."""
        n_bytes, size = form.n_bytes or 0, form.size_by_header
        if self._offered or size is None or not LEAST_BYTES <= n_bytes < size:
            return
        if time.monotonic() - self._since < AFTER or not self._slots.free:
            return
        self._offered = True
        if not decoded_on_arrival(form.read_at(0, 12)):
            return
        form.begin_arriving()
        self._fields = list(form.fields)
        self.work = self._begin(form)
        if self.work is not None:
            self._slots.free -= 1
            self._has_begun.set()

    def end(self, form: Union[Form, None]) -> None:
        """The upload ended, without ``form`` if it failed; drops the work if it was another.

        Raises:
            ApiError: text of the other was sent already.
        """
        if self.work is None:
            return
        self._slots.free += 1
        same = form is not None and form.n_bytes == form.size_by_header
        if same and form is not None and form.fields == self._fields:
            return
        was_streaming = self.work.is_streaming
        self.cancel()
        if form is not None and form.arriving is not None:
            form.arriving.break_off()
        if form is not None and was_streaming:
            raise ApiError(
                400,
                "a part of the form comes after the file, of which text was sent already; send the"
                " file last",
                code="file_not_last",
            )

    def cancel(self) -> None:
        """Drop the work."""
        work, self.work = self.work, None
        if work is not None:
            work.cancel()
