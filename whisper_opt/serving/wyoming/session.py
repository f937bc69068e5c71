"""One connection of the Wyoming protocol: describe, transcribe, audio, transcript."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import Any, Union

import numpy as np

from whisper_opt.core.arrays import NDArray
from whisper_opt.core.options import TranscribeOptions
from whisper_opt.core.version import __version__
from whisper_opt.serving import Handle
from whisper_opt.serving.http.errors import ApiError, api_error
from whisper_opt.serving.http.events import Mailbox
from whisper_opt.serving.http.logs import log_event
from whisper_opt.serving.http.models import ServedModel
from whisper_opt.serving.http.recordings import LEAST_SECONDS
from whisper_opt.serving.http.responses import Deltas, text_of
from whisper_opt.serving.http.routes import Service
from whisper_opt.serving.wyoming.events import Event, WyomingError, read_event, write_event
from whisper_opt.serving.wyoming.live_text import LiveText

__all__ = ["Session"]

_IDLE = 600.0
"""Seconds without an event after which a connection is closed."""
_LOOK = 0.2
"""Seconds between looks whether the client is still there."""
_DTYPES = {1: "u1", 2: "<i2", 4: "<i4"}
"""Types of samples by their width in bytes, as in wav files."""
_AUTHOR = {"name": "OpenAI", "url": "https://github.com/openai/whisper"}
_PROGRAM = {"name": "whisper-opt", "url": "https://pypi.org/project/whisper-opt/"}


class Session:
    """Serves a connection until its end."""

    def __init__(
        self, service: Service, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._service = service
        self._reader = reader
        self._writer = writer
        self._asked: dict[str, Any] = {}
        self._format: dict[str, Any] = {}
        self._audio = bytearray()
        self._refused = False
        self._live: Union[LiveText, None] = None

    async def run(self) -> None:
        """Serve; errors are sent to the client. What is no event ends the connection."""
        try:
            while True:
                event = await read_event(self._reader, _IDLE)
                if event is None:
                    return
                await self._answer(event)
        except WyomingError as error:
            await self._error(error.text, error.code)
        except ConnectionError:
            pass
        except Exception as error:
            log_event("wyoming failed", logging.ERROR, exc=error)
            await self._error(api_error(error, {}).message, "server_error")
        finally:
            await self._end_live()
            self._writer.close()

    async def _error(self, text: str, code: str) -> None:
        with contextlib.suppress(ConnectionError):
            await write_event(self._writer, Event("error", {"text": text, "code": code}))

    async def _answer(self, event: Event) -> None:
        """Handle an event; after an error the rest of its recording is ignored."""
        try:
            await self._handle(event)
        except WyomingError as error:
            await self._refuse(error.text, error.code)
        except ApiError as error:
            await self._refuse(error.message, error.code or str(error.status))

    async def _refuse(self, text: str, code: str) -> None:
        self._refused, self._audio = True, bytearray()
        await self._end_live()
        await self._error(text, code)

    async def _handle(self, event: Event) -> None:
        """Unknown events are ignored, as the protocol asks."""
        if event.type == "describe":
            await write_event(self._writer, Event("info", self._info()))
        elif event.type == "transcribe":
            self._asked = event.data
        elif event.type == "audio-start":
            await self._end_live()
            self._format = event.data
            self._audio, self._refused = bytearray(), False
        elif event.type == "audio-chunk" and not self._refused:
            self._add(event)
            self._add_live(event.payload)
        elif event.type == "audio-stop" and not self._refused:
            asked, self._asked = self._asked, {}
            await self._transcribe(asked)
            self._audio = bytearray()

    def _info(self) -> dict[str, Any]:
        models = [
            {
                "name": model.name,
                "attribution": _AUTHOR,
                "installed": True,
                "description": model.name,
                "version": None,
                "languages": list(model.whisper.languages),
            }
            for model in self._service.models
        ]
        program = {
            "name": "whisper-opt",
            "attribution": _PROGRAM,
            "installed": True,
            "description": "Whisper on ONNX Runtime",
            "version": __version__,
            "models": models,
            "supports_transcript_streaming": True,
            "requires_external_vad": True,
            "prefers_auto_gain_enabled": False,
            "prefers_noise_reduction_enabled": False,
        }
        return {"asr": [program]}

    def _add(self, event: Event) -> None:
        self._format = {**self._format, **event.data}
        self._audio += event.payload
        options = self._service.options
        rate, width, n_channels = self._layout()
        seconds = len(self._audio) / (rate * width * n_channels)
        if seconds > options.max_audio_seconds or len(self._audio) > options.max_upload_bytes:
            raise WyomingError(
                f"the recording is longer than this server accepts: {options.max_audio_seconds:g} s"
                f" or {options.max_upload_bytes} bytes",
                "audio-too-long",
            )

    def _add_live(self, data: bytes) -> None:
        """Hear the audio while it comes, if it is of the usual kind: whole samples of 16 bits."""
        rate, width, n_channels = self._layout()
        if width != 2 or len(data) % (2 * n_channels) or not self._service.options.wyoming_live:
            return
        if self._live is None:
            name = str(self._asked.get("name") or self._service.models.names[0])
            model, options = self._service.models.find(name), self._options(self._asked)
            self._live = LiveText(model, options, rate, n_channels, self._first_chunks)
        self._live.push(np.frombuffer(data, "<i2").reshape(-1, n_channels))

    async def _first_chunks(self, text: str) -> None:
        assert self._live is not None
        if self._live.text == text:
            await write_event(self._writer, Event("transcript-start"))
        await self._chunk(text)

    async def _end_live(self) -> str:
        """End the live session, if any; the text that was sent."""
        live, text = self._live, ""
        if live is not None:
            await live.end()
            self._live, text = None, live.text
        return text

    def _layout(self) -> tuple[int, int, int]:
        """Rate, width and channels of the audio."""
        found: list[Any] = [self._format.get(name) for name in ("rate", "width", "channels")]
        rate, width, n_channels = found
        if (
            any(isinstance(value, bool) or not isinstance(value, int) for value in found)
            or not 1000 <= rate <= 768_000
            or width not in _DTYPES
            or not 1 <= n_channels <= self._service.options.max_channels
        ):
            raise WyomingError(
                f"audio has rate, width and channels {found}; expected 1000 to 768000 Hz, 1, 2 or 4"
                f" bytes, and 1 to {self._service.options.max_channels} channels",
                "unsupported-audio",
            )
        return rate, width, n_channels

    def _samples(self) -> tuple[NDArray, int]:
        rate, width, n_channels = self._layout()
        whole = len(self._audio) - len(self._audio) % (width * n_channels)
        samples = np.frombuffer(bytes(self._audio[:whole]), _DTYPES[width])
        return samples.reshape(-1, n_channels), rate

    async def _transcribe(self, asked: dict[str, Any]) -> None:
        samples, rate = self._samples()
        model = self._service.models.find(str(asked.get("name") or self._service.models.names[0]))
        sent = await self._end_live()
        if not sent:
            await write_event(self._writer, Event("transcript-start"))
        if len(samples) < LEAST_SECONDS * rate:
            await self._end("", None)
            return
        mailbox = Mailbox()
        with self._service.admitted():
            options = self._options(asked)
            try:
                handle = model.engine.submit(
                    samples, options, sample_rate=rate, on_segment=mailbox.put
                )
            except Exception as error:
                raise api_error(error, {"language": "language"}) from error
            handle.add_done_callback(mailbox.end)
            try:
                await self._send(model, handle, mailbox, sent)
            finally:
                handle.cancel()  # without effect after the end

    def _options(self, asked: dict[str, Any]) -> TranscribeOptions:
        terms = [
            term
            for name in ("transcript_names", "transcript_terms")
            for term in asked.get(name) or ()
            if isinstance(term, str)
        ]
        language = asked.get("language")
        try:
            return TranscribeOptions(
                language=language if isinstance(language, str) else None,
                hotwords=", ".join(terms) or None,
                max_duration=self._service.options.max_audio_seconds,
            )
        except Exception as error:
            raise api_error(error, {}) from error

    async def _send(self, model: ServedModel, handle: Handle, mailbox: Mailbox, sent: str) -> None:
        """Send the text as it is decoded; what was sent before is its beginning, or stays alone."""
        deltas = Deltas(model.whisper.vocab)
        while True:
            try:
                segment = await mailbox.get(_LOOK)
            except asyncio.TimeoutError:
                if self._reader.at_eof() or self._writer.is_closing():
                    raise ConnectionResetError from None
                continue
            if segment is None:
                break
            text = deltas.add(segment)
            if not sent:
                await self._chunk(text)
        try:
            transcript = handle.result(0)
        except Exception as error:
            raise api_error(error, {}) from error
        whole = text_of(transcript)
        await self._chunk(whole[len(sent) :] if sent and whole.startswith(sent) else "")
        if not sent:
            await self._chunk(deltas.end())
        self._service.metrics.audio.labels(model.name).observe(transcript.duration)
        log_event("wyoming", model=model.name, audio_s=round(transcript.duration, 3))
        await self._end(whole, transcript.language)

    async def _chunk(self, text: str) -> None:
        if text:
            await write_event(self._writer, Event("transcript-chunk", {"text": text}))

    async def _end(self, text: str, language: str | None) -> None:
        data = {"text": text, **({"language": language} if language else {})}
        await write_event(self._writer, Event("transcript", data))
        await write_event(self._writer, Event("transcript-stop"))
