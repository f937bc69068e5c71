"""Logs as JSON lines on standard error, without audio, text, file names or keys."""

from __future__ import annotations

import json
import logging
import sys
import time
import traceback
from typing import Any

__all__ = ["JsonFormatter", "log_event", "set_up"]

LOGGER = logging.getLogger("whisper_opt.server")


class JsonFormatter(logging.Formatter):
    """One JSON object per record: time, level, logger, event and the fields of :func:`log_event`.

    Of an exception only the types of it and of its causes are written, and the lines of code of
    the last cause: its message may quote the request.
    """

    def format(self, record: logging.LogRecord) -> str:
        """The record as one line."""
        moment = time.gmtime(record.created)
        entry: dict[str, Any] = {
            "time": f"{time.strftime('%Y-%m-%dT%H:%M:%S', moment)}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info and record.exc_info[1] is not None:
            entry.update(_described(record.exc_info[1]))
        return json.dumps(entry, default=str)


def _described(error: BaseException) -> dict[str, Any]:
    kinds, cause = [type(error).__name__], error
    while cause.__cause__ is not None and len(kinds) < 10:
        cause = cause.__cause__
        kinds.append(type(cause).__name__)
    frames = traceback.extract_tb(cause.__traceback__)
    return {
        "exception": kinds,
        "trace": [f"{frame.filename}:{frame.lineno}" for frame in frames],
    }


def log_event(event: str, level: int = logging.INFO, exc: Any = None, **fields: Any) -> None:
    """Log an event with its fields; those that are None are left out."""
    given = {name: value for name, value in fields.items() if value is not None}
    LOGGER.log(level, event, exc_info=exc, extra={"fields": given})


def set_up() -> None:
    """Send the records of this package and of uvicorn to standard error as JSON lines."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    for name in ("whisper_opt", "uvicorn"):
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.setLevel(logging.INFO)
        logger.propagate = False
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
    # its messages quote the form
    logging.getLogger("python_multipart").setLevel(logging.CRITICAL)
