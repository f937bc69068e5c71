"""Options of ``whisper-opt serve``: address, limits, keys."""

from __future__ import annotations

import dataclasses
import math
from typing import Union

from whisper_opt.core.errors import OptionError
from whisper_opt.core.options.fields import check_fields, option

__all__ = ["ServeOptions"]


@dataclasses.dataclass(frozen=True)
class ServeOptions:
    """The address of the server, what it accepts, and who may use it.

    Raises:
        OptionError: a value is of the wrong type or out of range.
    """

    host: str = option(
        "127.0.0.1",
        "text",
        "address to listen on; 0.0.0.0: all interfaces, which needs API keys unless"
        " allow_anonymous is on",
        metavar="ADDRESS",
    )
    port: int = option(
        8000, "integer", "port to listen on; 0: any free one", low=0, high=65_535, metavar="N"
    )
    max_batch: int = option(
        8, "integer", "maximum windows decoded together by each model", low=1, metavar="N"
    )
    max_queued: int = option(
        256,
        "integer",
        "maximum requests that wait for each model; further ones are refused with status 429",
        low=1,
        metavar="N",
    )
    aliases: str = option(
        "whisper-1,gpt-transcribe,gpt-4o-transcribe,gpt-4o-mini-transcribe,"
        "gpt-4o-mini-transcribe-2025-12-15,gpt-4o-transcribe-diarize",
        "text",
        "other names of the first model, separated by commas",
        metavar="NAME,...",
    )
    api_key_file: Union[str, None] = option(
        None,
        "text",
        "file of API keys: on each line a key and, after a space, a name for logs; further keys are"
        " read from the environment variable WHISPER_OPT_API_KEYS, separated by commas",
        metavar="FILE",
    )
    allow_anonymous: bool = option(
        False, "flag", "serve without API keys on an address that other machines can reach"
    )
    requests_per_minute: int = option(
        0,
        "integer",
        "maximum requests per minute of each API key (or of all clients without keys); 0: no limit",
        low=0,
        metavar="N",
    )
    max_upload_bytes: int = option(
        500 << 20, "integer", "refuse larger files with status 413", low=1, metavar="N"
    )
    spool_bytes: int = option(
        1 << 20,
        "integer",
        "files larger than this are kept in a temporary file, smaller ones in memory",
        low=0,
        metavar="N",
    )
    temp_dir: Union[str, None] = option(
        None, "text", "directory of temporary files; default: the system's", metavar="DIR"
    )
    upload_timeout: float = option(
        60.0,
        "number",
        "an upload that pauses longer than this, in seconds, is refused with status 408",
        low=0.1,
        high=86_400,
        metavar="SECONDS",
    )
    max_audio_seconds: float = option(
        14_400.0, "number", "refuse longer recordings", low=0.1, high=math.inf, metavar="SECONDS"
    )
    max_channels: int = option(
        8, "integer", "refuse recordings with more channels", low=1, metavar="N"
    )
    max_hypotheses: int = option(
        10,
        "integer",
        "refuse requests with a larger beam_size or best_of",
        low=1,
        metavar="N",
    )
    cors_origins: Union[str, None] = option(
        None,
        "text",
        "origins of web pages that may call the server, separated by commas; *: all; default: none",
        metavar="ORIGIN,...",
    )
    jobs_dir: Union[str, None] = option(
        None,
        "text",
        "directory of the jobs of /v1/jobs, which survive a restart; default: there are no jobs",
        metavar="DIR",
    )
    jobs_keep: float = option(
        86_400.0,
        "number",
        "seconds for which a finished job and its result are kept",
        low=1,
        high=math.inf,
        metavar="SECONDS",
    )
    max_jobs: int = option(
        1000, "integer", "maximum unfinished jobs; further ones get status 429", low=1, metavar="N"
    )
    webhook_origins: Union[str, None] = option(
        None,
        "text",
        "where webhooks of jobs may be sent, as origins (https://example.com) separated by commas;"
        " default: nowhere",
        metavar="ORIGIN,...",
    )
    live_connections: int = option(
        64,
        "integer",
        "maximum live connections (WebSockets); further ones are refused with status 429, and so"
        " are those that the model cannot keep up with",
        low=1,
        metavar="N",
    )
    live_connections_per_key: int = option(
        0,
        "integer",
        "maximum live connections of each API key (or of all clients without keys); 0: no limit of"
        " its own",
        low=0,
        metavar="N",
    )
    live_idle_timeout: float = option(
        600.0,
        "number",
        "close a live connection that has sent nothing for so many seconds",
        low=0.1,
        high=86_400,
        metavar="SECONDS",
    )
    live_message_bytes: int = option(
        16 << 20,
        "integer",
        "close a live connection that sends a longer message",
        low=1 << 10,
        metavar="N",
    )
    wyoming_port: Union[int, None] = option(
        None,
        "integer",
        "also speak the protocol of Home Assistant's voice assistants, on this port (usually"
        " 10300); it knows no API keys; default: not",
        low=0,
        high=65_535,
        metavar="N",
    )
    wyoming_host: str = option(
        "127.0.0.1", "text", "address of wyoming_port; 0.0.0.0: all interfaces", metavar="ADDRESS"
    )
    wyoming_live: bool = option(
        True,
        "flag",
        "on wyoming_port, send text while the recording is still received; off: decode once, when"
        " it is complete",
    )
    drain_timeout: float = option(
        300.0,
        "number",
        "after SIGTERM, seconds in which requests that were accepted are completed",
        low=0,
        high=86_400,
        metavar="SECONDS",
    )

    def __post_init__(self) -> None:
        check_fields(self)
        if self.cors_origins == "":
            raise OptionError("cors_origins is empty; expected origins, or None")
