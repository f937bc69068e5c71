"""The JSON configuration that sits beside the weights."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from whisper_opt.core.dims import ModelDims
from whisper_opt.core.errors import CheckpointError

__all__ = ["flag", "heads", "positive", "read_json", "token_ids"]

_log = logging.getLogger(__name__)


def read_json(path: Path) -> dict[str, Any]:
    """Parse a JSON object.

    Raises:
        CheckpointError: the file is missing, is not UTF-8 JSON, or is not an object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(
            f"cannot read {path.name} in {path.parent.name!r}: {error.strerror}; the checkpoint"
            " needs it"
        ) from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path.name} is not valid JSON ({error}); fetch it again") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path.name} holds a {type(value).__name__}; expected an object")
    return value


def positive(config: Mapping[str, Any], key: str, file: str) -> int:
    """A required positive integer of a configuration.

    Raises:
        CheckpointError: absent, or not a positive integer.
    """
    value = config.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise CheckpointError(f"{file} has {key} = {value!r}; expected a positive integer")
    return value


def token_ids(config: Mapping[str, Any], key: str, n_vocab: int) -> tuple[int, ...] | None:
    """An optional list of token ids below ``n_vocab``; None when absent, null or empty.

    Fine-tuning scripts empty these lists for training, and so they are saved.

    Raises:
        CheckpointError: not a list of ids of this vocabulary.
    """
    value = config.get(key)
    if value is None:
        return None
    if not isinstance(value, list) or not all(_is_index(item, n_vocab) for item in value):
        raise CheckpointError(
            f"{key} in the checkpoint's configuration is {value!r:.80}; expected a list of token"
            f" ids from 0 to {n_vocab - 1}"
        )
    return tuple(value) or None


def flag(config: Mapping[str, Any], key: str) -> bool | None:
    """An optional true or false; None when absent or null.

    Raises:
        CheckpointError: something else.
    """
    value = config.get(key)
    if value is not None and not isinstance(value, bool):
        raise CheckpointError(
            f"{key} in the checkpoint's configuration is {value!r:.80}; expected true or false"
        )
    return value


def heads(config: Mapping[str, Any], dims: ModelDims) -> tuple[tuple[int, int], ...] | None:
    """The optional ``alignment_heads`` pairs (decoder layer, head); None when absent or null.

    Distilled models often keep the list of their teacher. A list with heads that the model does not
    have is left out with a warning, whole: its other heads are those of another model too.

    Raises:
        CheckpointError: not a list of pairs of integers.
    """
    value = config.get("alignment_heads")
    if value is None:
        return None
    if not isinstance(value, list) or not all(_is_pair(pair) for pair in value):
        raise CheckpointError(
            f"alignment_heads in the checkpoint's configuration is {value!r:.80}; expected a list"
            " of [layer, head] pairs"
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


def _is_pair(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(_is_index(item) for item in value)


def _is_index(value: Any, stop: int | None = None) -> bool:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        return False
    return stop is None or value < stop
