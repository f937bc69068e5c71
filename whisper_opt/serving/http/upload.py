"""Forms of multipart/form-data, read while they arrive: fields, and one file.

A file is kept in memory up to a size, then in a temporary file that has no name where the system
allows it (Linux), so that nothing stays on disk even if the process is killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import shutil
import tempfile
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import IO, Any, Callable, Union

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect, Request

from whisper_opt.audio.arriving import Arriving
from whisper_opt.core.options import ServeOptions
from whisper_opt.serving.http.errors import ApiError

__all__ = ["Form", "read_form", "too_large"]

_MAX_FIELD_BYTES = 1 << 20
"""Size of all fields together, without the file and clips."""
_CLIPS = ("known_speaker_references", "known_speaker_references[]")
_MAX_CLIP_BYTES = 12 << 20
"""Size of all clips of known speakers: four of 10 s in any format."""
_MOST_BESIDE = _MAX_FIELD_BYTES + _MAX_CLIP_BYTES
_MAX_PARTS = 2_000
_MAX_HEADER_BYTES = 8 << 10
"""Size of the headers of one part."""
_CLOSING = b"\r\n----\r\n"
"""What is after the last part, without the boundary."""
_FLUSH = 1 << 20
"""Bytes that are collected before they are written to the temporary file."""


def too_large(limit: int) -> ApiError:
    """The error of a file of more than ``limit`` bytes."""
    return ApiError(
        413,
        f"the file is larger than the {limit} bytes that this server accepts; compress it (opus,"
        " mp3, m4a) or split it",
        param="file",
        code="file_too_large",
    )


class Form:
    """The fields and the file of a request. :meth:`close` deletes the file.

    Attributes:
        fields: (name, value) of every field, in order.
        n_bytes: size of the file; None if there is none.
        size_by_header: size of the file by the length of the request, if nothing comes after it;
            None if the length is not known.
        arriving: the file while it arrives; None without :meth:`begin_arriving`.
    """

    def __init__(self, options: ServeOptions) -> None:
        self.fields: list[tuple[str, str]] = []
        self.n_bytes: int | None = None
        self.size_by_header: int | None = None
        self.arriving: Arriving | None = None
        self._options = options
        self._lock = threading.Lock()  # of the contents
        self._held = bytearray()
        self._file: IO[bytes] | None = None
        self._path: str | None = None  # of a file that must be deleted

    def add(self, data: bytes) -> None:
        """Add contents of the file; they are held until :meth:`flush`.

        Raises:
            ApiError: the file is larger than the limit.
        """
        self.n_bytes = (self.n_bytes or 0) + len(data)
        if self.n_bytes > self._options.max_upload_bytes:
            raise too_large(self._options.max_upload_bytes)
        with self._lock:
            self._held += data
        if self.arriving is not None:
            self.arriving.arrived(self.n_bytes)

    def begin_arriving(self) -> None:
        """Let other threads read the file while it arrives; its size must be known."""
        assert self.size_by_header is not None
        self.arriving = Arriving(self.size_by_header, self.read_at)
        self.arriving.arrived(self.n_bytes or 0)

    def read_at(self, start: int, n_bytes: int) -> bytes:
        """Bytes of the file that have arrived; fewer at their end. In any thread."""
        with self._lock:
            n_written = 0 if self._file is None else self._file.tell()
            found = b""
            if self._file is not None and start < n_written:
                self._file.seek(start)
                found = self._file.read(min(n_bytes, n_written - start))
                self._file.seek(n_written)
            first = max(0, start - n_written)
            return found + bytes(self._held[first : first + n_bytes - len(found)])

    @property
    def must_flush(self) -> bool:
        """Whether so much is held that it should be written to the temporary file."""
        size = len(self._held)
        return size > (_FLUSH if self._file else max(0, self._options.spool_bytes))

    def flush(self) -> None:
        """Write what is held to the temporary file, which is created if need be."""
        with self._lock:
            if self._file is None:
                self._file = self._create()
            self._file.write(self._held)
            self._file.flush()
            self._held.clear()

    def _create(self) -> IO[bytes]:
        folder = self._options.temp_dir
        unnamed = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - closed by `close`
        if os.path.exists(_descriptor(unnamed)):
            return unnamed
        unnamed.close()
        named = tempfile.NamedTemporaryFile(  # noqa: SIM115 - as above
            prefix="whisper-opt-upload-", dir=folder, delete=False
        )
        self._path = named.name
        return named

    @property
    def source(self) -> Union[str, bytes]:
        """The file, for the decoders: its bytes, or the path of the temporary file."""
        if self._file is None:
            return bytes(self._held)
        if self._held:
            self.flush()
        return self._path or _descriptor(self._file)

    def save(self, path: Path) -> None:
        """Write the file to ``path``, completely or not at all, and to the disk itself."""
        source = self.source
        with contextlib.ExitStack() as stack:
            if isinstance(source, bytes):
                given: IO[bytes] = io.BytesIO(source)
            else:
                given = stack.enter_context(open(source, "rb"))
            partial = path.with_name(f"{path.name}.part")
            stack.callback(partial.unlink, missing_ok=True)
            with open(partial, "wb") as target:
                shutil.copyfileobj(given, target, _FLUSH)
                target.flush()
                os.fsync(target.fileno())
            os.replace(partial, path)

    def close(self) -> None:
        """Delete the file."""
        if self.arriving is not None:
            self.arriving.break_off()
        with self._lock:
            self._held = bytearray()
            if self._file is not None:
                self._file.close()
                self._file = None
        if self._path is not None:
            with contextlib.suppress(OSError):
                os.unlink(self._path)


def _descriptor(file: IO[bytes]) -> str:
    """A path under which any decoder, a child process too, can open a file without a name."""
    return f"/proc/{os.getpid()}/fd/{file.fileno()}"


class _Reader:
    """Callbacks of the parser: collects the parts of a form."""

    def __init__(self, form: Form, n_after: int | None) -> None:
        """``n_after``: bytes from the start of the chunk to the closing boundary, if known."""
        self._form = form
        self.n_after = n_after
        self.ended = False
        self._n_parts = 0
        self._n_bytes = {True: 0, False: 0}  # of clips, and of other fields
        self._header = b""
        self._value = b""
        self._disposition = b""
        self._n_header_bytes = 0
        self._name = ""
        self._is_file = False
        self._data = bytearray()

    @property
    def callbacks(self) -> Any:
        names = (
            "on_part_begin",
            "on_part_data",
            "on_part_end",
            "on_header_field",
            "on_header_value",
            "on_header_end",
            "on_headers_finished",
            "on_end",
        )
        return {name: getattr(self, name) for name in names}

    def on_part_begin(self) -> None:
        self._n_parts += 1
        if self._n_parts > _MAX_PARTS:
            raise ApiError(400, f"the form has more than {_MAX_PARTS} parts; send fewer")
        self._disposition, self._n_header_bytes = b"", 0
        self._data = bytearray()

    def on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]
        self._count_header(end - start)

    def on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]
        self._count_header(end - start)

    def _count_header(self, size: int) -> None:
        self._n_header_bytes += size
        if self._n_header_bytes > _MAX_HEADER_BYTES:
            raise ApiError(400, f"the headers of a part exceed {_MAX_HEADER_BYTES} bytes")

    def on_header_end(self) -> None:
        if self._header.lower() == b"content-disposition":
            self._disposition = self._value
        self._header = self._value = b""

    def on_headers_finished(self) -> None:
        _, parameters = parse_options_header(self._disposition)
        if b"name" not in parameters:
            raise ApiError(400, "a part of the form has no name in its Content-Disposition header")
        self._name = _text(parameters[b"name"], "the name of a field")
        self._is_file = self._name == "file"
        if not self._is_file:
            if b"filename" in parameters:
                raise ApiError(
                    400,
                    f"{self._name} is a file; the only file of this request is named 'file'",
                    param=self._name,
                )
            return
        if self._form.n_bytes is not None:
            raise ApiError(400, "the form has several files; send one per request", param="file")
        self._form.n_bytes = 0

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        if self._is_file:
            if not self._form.n_bytes and self.n_after is not None:
                self._form.size_by_header = self.n_after - start
            self._form.add(data[start:end])
            return
        is_clip = self._name in _CLIPS
        self._n_bytes[is_clip] += end - start
        most = _MAX_CLIP_BYTES if is_clip else _MAX_FIELD_BYTES
        if self._n_bytes[is_clip] > most:
            what = "clips of known speakers" if is_clip else "fields"
            raise ApiError(
                400,
                f"the {what} exceed {most} bytes; only the part 'file' may be larger",
                param=self._name,
            )
        self._data += data[start:end]

    def on_part_end(self) -> None:
        if not self._is_file:
            value = _text(bytes(self._data), f"the field {self._name}")
            self._form.fields.append((self._name, value))

    def on_end(self) -> None:
        self.ended = True


def _text(data: bytes, what: str) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        raise ApiError(400, f"{what} is not UTF-8; expected text in that encoding") from None


async def read_form(
    request: Request, options: ServeOptions, on_data: Callable[[Form], None] | None = None
) -> Form:
    """Read the form of a request as it arrives.

    Args:
        request: the request.
        options: options of the server.
        on_data: called with what there is after every part of the body.

    Raises:
        ApiError: 413: the file is too large; 415: no multipart form; 408: the upload pauses too
            long; 400: the form is malformed, or has no file.
        ClientDisconnect: the client is gone.
    """
    boundary, form = _boundary(request), Form(options)
    length = request.headers.get("content-length", "")
    n_after = int(length) - len(boundary) - len(_CLOSING) if length.isdigit() else None
    reader = _Reader(form, n_after)
    try:
        if length.isdigit() and int(length) > options.max_upload_bytes + _MOST_BESIDE:
            raise too_large(options.max_upload_bytes)
        parser = MultipartParser(boundary, reader.callbacks)
        async for chunk in _chunks(request, options.upload_timeout):
            parser.write(chunk)
            if form.must_flush:
                await asyncio.get_running_loop().run_in_executor(None, form.flush)
            if reader.n_after is not None:
                reader.n_after -= len(chunk)
            if on_data is not None:
                on_data(form)
        parser.finalize()
        if not reader.ended:
            raise ApiError(400, "the form ends without its final boundary; send it whole")
        return form
    except FormParserError:
        form.close()
        raise ApiError(
            400, "the body is not the multipart form that Content-Type announces"
        ) from None
    except BaseException:
        form.close()
        raise


def _boundary(request: Request) -> bytes:
    kind, parameters = parse_options_header(request.headers.get("content-type", ""))
    if kind != b"multipart/form-data":
        raise ApiError(
            415,
            f"Content-Type is {request.headers.get('content-type', '')[:100]!r}; expected"
            " multipart/form-data",
        )
    boundary = parameters.get(b"boundary", b"")
    if not 0 < len(boundary) <= 70:  # RFC 2046
        raise ApiError(400, "Content-Type has no boundary of 1 to 70 characters")
    return boundary


async def _chunks(request: Request, timeout: float) -> AsyncIterator[bytes]:
    """The body as it arrives."""
    while True:
        try:
            message = await asyncio.wait_for(request.receive(), timeout)
        except asyncio.TimeoutError:
            raise ApiError(
                408, f"nothing of the request arrived in {timeout:g} s; send it again"
            ) from None
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        if message.get("body"):
            yield message["body"]
        if not message.get("more_body", False):
            return
