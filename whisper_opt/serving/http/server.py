"""Running the server: socket, loading in the background, drain at SIGTERM."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import socket
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Callable, Union

import uvicorn
import websockets  # noqa: F401 # uvicorn needs it, and imports it late

from whisper_opt.core.errors import OptionError, WhisperOptError
from whisper_opt.core.options import ServeOptions
from whisper_opt.serving import Engine
from whisper_opt.serving.http.app import create_app
from whisper_opt.serving.http.auth import VARIABLE, Keys
from whisper_opt.serving.http.jobs.routes import Jobs
from whisper_opt.serving.http.logs import log_event
from whisper_opt.serving.http.models import Models
from whisper_opt.serving.http.routes import Service
from whisper_opt.serving.names import named_source
from whisper_opt.serving.turns import Turns
from whisper_opt.serving.wyoming.listener import Wyoming
from whisper_opt.transcription.model import Whisper

__all__ = ["Server"]

_KEEP_ALIVE = 75
"""Seconds for which an idle connection is kept: longer than clients keep theirs."""
_CLOSING = 10.0
"""Seconds for what is left after all connections are closed."""
_LOOK = 0.1
"""Seconds between looks for a second signal."""


class Server:
    """An HTTP server of models.

    Examples:
        >>> Server(["engines/base"], load=Whisper.load).run()  # doctest: +SKIP
    """

    def __init__(
        self,
        sources: Sequence[str],
        options: Union[ServeOptions, None] = None,
        *,
        load: Callable[[str], Whisper] = Whisper.load,
    ) -> None:
        """Bind the address and read the keys; models are loaded by :meth:`run`.

        Args:
            sources: what ``load`` opens, each as ``SOURCE`` or ``NAME=SOURCE``; the first has the
                aliases.
            options: address, limits, keys.
            load: opens a model.

        Raises:
            OptionError: an option or a name is not usable, or there are no keys for an address that
                other machines can reach.
            WhisperOptError: the address is in use or not one of this machine.
        """
        chosen = options or ServeOptions()
        self.options = chosen
        keys = Keys.read(chosen.api_key_file)
        _check_reach(chosen, keys)
        self.models = Models(
            [named_source(source) for source in sources],
            [alias.strip() for alias in chosen.aliases.split(",") if alias.strip()],
            load,
            self._engine,
        )
        self._turns = Turns() if len(sources) > 1 else None
        self.service = Service(self.models, chosen)
        self._failure: BaseException | None = None
        self._loader = threading.Thread(target=self._load, name="whisper-opt-load", daemon=True)
        self._socket = _bound(chosen.host, chosen.port)
        self.address: tuple[str, int] = self._socket.getsockname()[:2]
        """Host and port that the server listens on."""
        folder = chosen.jobs_dir
        self.jobs = None if folder is None else Jobs(self.service, Path(folder))
        port = chosen.wyoming_port
        other = None if port is None else _bound(chosen.wyoming_host, port)
        self.wyoming = None if other is None else Wyoming(self.service, other)
        app = create_app(self.service, keys, self.jobs, self._start, self._close)
        self._server = _Uvicorn(app, self)

    @property
    def url(self) -> str:
        """Base URL for clients."""
        host, port = self.address
        return f"http://{f'[{host}]' if ':' in host else host}:{port}"

    def run(self) -> None:
        """Serve until SIGTERM, SIGINT or :meth:`stop`; then complete what was accepted.

        Raises:
            WhisperOptError: a model cannot be loaded.
        """
        log_event("listening", url=self.url, models=list(self.models.names))
        with contextlib.closing(self._socket):
            self._server.run(sockets=[self._socket])
        log_event("stopped")
        if self._failure is not None:
            raise self._failure

    def stop(self) -> None:
        """Stop accepting requests; :meth:`run` returns when those that were accepted are done."""
        self.service.draining = True
        self._server.should_exit = True

    def _engine(self, model: Whisper) -> Engine:
        """The engine loop of a model; on the CPU, those of several models take turns."""
        return Engine(
            model,
            max_batch=self.options.max_batch,
            max_queued=self.options.max_queued,
            turns=self._turns if model.device == "cpu" else None,
        )

    def _load(self) -> None:
        try:
            self.models.load()
        except BaseException as error:
            self._failure = error
            log_event("loading failed", logging.ERROR, exc=error)
            self.stop()
        else:
            log_event("ready", models=list(self.models.names))

    async def _start(self) -> None:
        self._loader.start()
        if self.wyoming is not None:
            await self.wyoming.start()
        if self.jobs is not None:
            self.jobs.start()

    async def _close(self) -> None:
        loop = asyncio.get_running_loop()
        if self.wyoming is not None:
            await self.wyoming.close()
        if self.jobs is not None:
            await loop.run_in_executor(None, self.jobs.close)
        await loop.run_in_executor(None, self.models.close, _CLOSING)


class _Uvicorn(uvicorn.Server):
    """uvicorn with this server's reaction to signals: it drains, and exits with status 0."""

    def __init__(self, app: object, server: Server) -> None:
        logging.getLogger("uvicorn.access").disabled = True  # it writes whole paths
        super().__init__(
            uvicorn.Config(
                app,  # type: ignore[arg-type] # ASGI applications have no common class
                log_config=None,
                access_log=False,
                server_header=False,
                ws="websockets-sansio",
                ws_max_size=server.options.live_message_bytes,
                ws_per_message_deflate=False,  # audio does not get smaller
                http="h11",
                loop="asyncio",
                lifespan="on",
                timeout_keep_alive=_KEEP_ALIVE,
                timeout_graceful_shutdown=max(1, round(server.options.drain_timeout)),
            )
        )
        self._whole = server

    async def shutdown(self, sockets: Union[list[socket.socket], None] = None) -> None:
        """Close the ports; let live connections end; then as uvicorn does."""
        for server in self.servers:
            server.close()
        end = time.monotonic() + self._whole.options.drain_timeout
        gate = self._whole.service.gate
        draining = asyncio.ensure_future(gate.drain(self._whole.options.drain_timeout))
        while not self.force_exit and not draining.done():
            await asyncio.wait({draining}, timeout=_LOOK)
        draining.cancel()
        self.config.timeout_graceful_shutdown = max(1, round(end - time.monotonic()))
        await super().shutdown(sockets)

    def handle_exit(self, sig: int, frame: Union[FrameType, None]) -> None:
        """Stop at the first signal; at the second, at once."""
        if self.should_exit:
            self.force_exit = True
            return
        log_event("draining", signal=sig)
        self._whole.stop()


def _check_reach(options: ServeOptions, keys: Keys) -> None:
    if keys or options.allow_anonymous or _is_loopback(options.host):
        return
    raise OptionError(
        f"host is {options.host!r}, which other machines can reach, and there are no API keys; give"
        f" api_key_file or the environment variable {VARIABLE}, or turn allow_anonymous on"
    )


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _bound(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(2048)  # connections wait from now on
    except OSError as error:
        listener.close()
        raise WhisperOptError(
            f"cannot listen on {host}:{port}: {error.strerror or error}; choose another host or"
            " port"
        ) from error
    return listener
