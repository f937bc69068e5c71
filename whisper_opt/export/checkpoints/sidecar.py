"""Text and JSON files beside the weights, and values of the configuration."""

from __future__ import annotations

import json
import logging
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from whisper_opt.core.dims import ModelDims
from whisper_opt.core.errors import CheckpointError

__all__ = [
    "alignment_heads",
    "optional_bool",
    "parse_json",
    "positive_int",
    "read_json",
    "read_text",
    "token_ids",
    "warn_of_forced_prompt",
]

_log = logging.getLogger(__name__)

_MAX_BYTES = 1 << 24
"""Largest size of a text file; the largest of a Whisper model is a tokenizer of 4 MB."""


def read_text(path: Path) -> str:
    """Read a text file of a checkpoint.

    Raises:
        CheckpointError: the file is missing or too large, or is not UTF-8.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise CheckpointError(
            f"cannot read {path.name} in {path.parent.name!r}: {error.strerror}; the checkpoint"
            " needs it"
        ) from error
    if len(raw) > _MAX_BYTES:
        raise CheckpointError(
            f"{path.name} has more than {_MAX_BYTES} bytes, which no Whisper model's has; fetch it"
            " again"
        )
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path.name} is not UTF-8 text; fetch it again") from error


def read_json(path: Path) -> dict[str, Any]:
    """Parse a JSON object.

    Raises:
        CheckpointError: the file is missing, is not UTF-8 JSON, or is not an object.
    """
    return parse_json(read_text(path), path.name)


def parse_json(text: str, name: str) -> dict[str, Any]:
    """Parse a JSON object; ``name`` is the file name for messages.

    Raises:
        CheckpointError: not JSON, or not an object.
    """
    try:
        value = json.loads(text)
    except (ValueError, RecursionError, MemoryError) as error:
        raise CheckpointError(f"{name} is not valid JSON ({error}); fetch it again") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{name} holds a {type(value).__name__}; expected an object")
    return value


def positive_int(config: Mapping[str, Any], key: str, file: str) -> int:
    """A required positive integer of a configuration.

    Raises:
        CheckpointError: absent, or not a positive integer.
    """
    value = config.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise CheckpointError(
            f"{file} has {key} = {reprlib.repr(value)}; expected a positive integer"
        )
    return value


def token_ids(config: Mapping[str, Any], key: str, n_vocab: int) -> tuple[int, ...] | None:
    """An optional list of token ids below ``n_vocab``; None if absent, null or empty.

    Fine-tuning scripts empty these lists for training, and they are saved empty.

    Raises:
        CheckpointError: not a list of ids of this vocabulary.
    """
    value = config.get(key)
    if value is None:
        return None
    if not isinstance(value, list) or not all(_is_index(item, n_vocab) for item in value):
        raise CheckpointError(
            f"{key} in the checkpoint's configuration is {reprlib.repr(value)}; expected a list of"
            f" token ids from 0 to {n_vocab - 1}"
        )
    return tuple(value) or None


def optional_bool(config: Mapping[str, Any], key: str) -> bool | None:
    """An optional boolean; None if absent or null.

    Raises:
        CheckpointError: something else.
    """
    value = config.get(key)
    if value is not None and not isinstance(value, bool):
        raise CheckpointError(
            f"{key} in the checkpoint's configuration is {value!r:.80}; expected true or false"
        )
    return value


def alignment_heads(
    config: Mapping[str, Any], dims: ModelDims
) -> tuple[tuple[int, int], ...] | None:
    """The optional ``alignment_heads`` pairs (decoder layer, head); None if absent or null.

    Distilled models often keep the list of their teacher. A list with a head that the model does
    not have is ignored with a warning: its other heads belong to the teacher too.

    Raises:
        CheckpointError: not a list of pairs of integers.
    """
    value = config.get("alignment_heads")
    if value is None:
        return None
    if not isinstance(value, list) or not all(_is_pair(pair) for pair in value):
        raise CheckpointError(
            f"alignment_heads in the checkpoint's configuration is {reprlib.repr(value)}; expected"
            " a list of [layer, head] pairs"
        )
    beyond = [
        (layer, head)
        for layer, head in value
        if layer >= dims.n_text_layer or head >= dims.n_text_head
    ]
    if beyond:
        _log.warning(
            "alignment_heads in the checkpoint's configuration has %s, but the model has %d decoder"
            " layers of %d heads: the list is left out. Word times come from all heads of the upper"
            " half of the layers, unless alignment heads are given",
            beyond[0],
            dims.n_text_layer,
            dims.n_text_head,
        )
        return None
    return tuple((layer, head) for layer, head in value)


def warn_of_forced_prompt(config: Mapping[str, Any], generation: Mapping[str, Any]) -> None:
    """Warn if the files of a model force a language, as transformers then does for every call.

    An engine has no such default: the language is detected unless ``language`` is given.
    transformers reads ``language`` of ``generation``; without it and ``task``, pairs (position,
    token id) in ``forced_decoder_ids`` of ``generation`` or else of ``config``, the first of which
    is the language, or null if it is detected.
    """
    forced = generation.get("language")
    if forced is None and generation.get("task") is None:
        pairs = generation.get("forced_decoder_ids") or config.get("forced_decoder_ids")
        first = pairs[0] if isinstance(pairs, list) and pairs else None
        forced = first[1] if isinstance(first, list) and len(first) == 2 else None
    if forced is not None:
        _log.warning(
            "the checkpoint's configuration forces a language (%s) in transformers; the engine"
            " detects it, unless language= is given",
            reprlib.repr(forced),
        )


def _is_pair(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(_is_index(item) for item in value)


def _is_index(value: Any, stop: int | None = None) -> bool:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        return False
    return stop is None or value < stop
