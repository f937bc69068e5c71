"""``faster_whisper.utils``: names of models, formats of times."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import whisper_opt
from whisper_opt.compat.timestamps import format_timestamp

__all__ = [
    "ModelNotCachedError",
    "available_models",
    "download_model",
    "format_timestamp",
    "get_end",
    "get_logger",
    "load_model",
    "source_options",
]


def available_models() -> list[str]:
    """Short names of models; a model may also be given as ``Whisper.load`` accepts it."""
    return whisper_opt.available_models()


class ModelNotCachedError(whisper_opt.CheckpointError, FileNotFoundError):
    """There is no such model on this machine, and ``local_files_only`` is on.

    Programs expect an ``OSError``, and then try again with the network.
    """


def load_model(source: Any, options: Mapping[str, Any]) -> whisper_opt.Whisper:
    """``Whisper.load``, which raises :class:`ModelNotCachedError` if it may use no network."""
    try:
        return whisper_opt.Whisper.load(source, **options)
    except (whisper_opt.CheckpointError, whisper_opt.EngineError) as error:
        if options.get("local_files_only"):
            raise ModelNotCachedError(str(error)) from error
        raise


def get_logger() -> logging.Logger:
    """The logger of the drop-in, ``faster_whisper``."""
    return logging.getLogger("faster_whisper")


def download_model(
    size_or_id: str,
    output_dir: str | None = None,
    local_files_only: bool = False,
    cache_dir: str | None = None,
    revision: str | None = None,
    use_auth_token: str | bool | None = None,
) -> str:
    """The engine directory of a model, which is exported to the engine cache if it is not there.

    Args:
        size_or_id: short name, hub id, or a local checkpoint.
        output_dir: refused.
        local_files_only: use no network.
        cache_dir: directory of the engine cache; default: that of the user.
        revision: of a hub id.
        use_auth_token: None or True; see :class:`WhisperModel`.

    Raises:
        WhisperOptError: there is no such model; with ``local_files_only`` it is a
            ``FileNotFoundError`` too.
        OptionError: an argument is not supported.
    """
    if output_dir is not None:
        raise whisper_opt.OptionError(
            f"output_dir is {output_dir!r}, but models are exported to the engine cache; leave it"
            f" out, or run `whisper-opt export {size_or_id} {output_dir}` and load that directory"
        )
    options = source_options(cache_dir, local_files_only, revision, use_auth_token)
    with load_model(size_or_id, options) as model:
        return str(model.engine.path)


def source_options(
    cache_dir: str | None,
    local_files_only: bool,
    revision: str | None,
    use_auth_token: str | bool | None,
) -> dict[str, Any]:
    """Load options about where a model comes from; only those that are given.

    Raises:
        OptionError: ``use_auth_token`` is a token or False.
    """
    if use_auth_token not in (None, True):
        raise whisper_opt.OptionError(
            f"use_auth_token is {'a token' if use_auth_token else use_auth_token}; tokens are not"
            " passed on: set HF_TOKEN, or log in with `hf auth login`, and leave it out; set"
            " HF_HUB_DISABLE_IMPLICIT_TOKEN=1 to send none"
        )
    given = {
        "cache_dir": cache_dir,
        "local_files_only": local_files_only or None,
        "revision": revision,
    }
    return {name: value for name, value in given.items() if value is not None}


def get_end(segments: Sequence[Mapping[str, Any]]) -> float | None:
    """End of the last word, else of the last segment, else None."""
    words = (word["end"] for segment in reversed(segments) for word in reversed(segment["words"]))
    return next(words, segments[-1]["end"] if segments else None)
