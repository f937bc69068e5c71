"""Facts about a model from its tokenizer: number of tokens, multilingual or not."""

from __future__ import annotations

import dataclasses
import json
import logging
import re
from collections.abc import Mapping
from typing import Any

from whisper_opt.core.dims import ModelDims
from whisper_opt.core.errors import CheckpointError
from whisper_opt.export.checkpoints.blob import Stored
from whisper_opt.export.checkpoints.checkpoint import EMBEDDING, OUTPUT_HEAD

__all__ = ["check_token_ids", "is_multilingual", "without_padding_rows"]

_log = logging.getLogger(__name__)
_END_OF_TEXT, _NO_TIMESTAMPS = "<|endoftext|>", "<|notimestamps|>"
_LANGUAGE = re.compile(r"<\|[a-z]{2,3}\|>")
_TOKEN_ROWS = (EMBEDDING, OUTPUT_HEAD)
"""Tensors with one row per token."""
_ENGLISH_END = 50256
"""End of text in OpenAI's English-only vocabulary, which is GPT-2's. It has language tokens too,
but English-only models do not use them."""
_ROW_MULTIPLE, _MAX_PADDING = 8, 256
"""Embeddings are padded to multiples of 8, 64 or 128 rows, for speed in training."""


def check_token_ids(value: Mapping[str, Any], name: str, dims: ModelDims) -> None:
    """Check that the ids of a tokenizer are those of the model, apart from padding rows.

    Args:
        value: parsed ``tokenizer.json``.
        name: file name for messages.
        dims: dimensions of the model.

    Raises:
        CheckpointError: it belongs to another model, or the model has no timestamp tokens.
    """
    try:
        largest, first_timestamp = _id_bounds(value)
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"the tokenizer in {name!r} has no {_NO_TIMESTAMPS} or no BPE vocabulary; expected the"
            " tokenizer.json of a Whisper model"
        ) from error
    n_ids = max(largest + 1, first_timestamp + dims.n_audio_ctx + 1)
    if dims.n_vocab == first_timestamp:
        raise CheckpointError(
            f"the model has {dims.n_vocab} token rows, which end before the first timestamp"
            f" ({first_timestamp}): it has no timestamp tokens, which are needed"
        )
    if n_ids != dims.n_vocab and not _is_padding(dims.n_vocab - n_ids, dims.n_vocab):
        raise CheckpointError(
            f"the tokenizer in {name!r} has {n_ids} ids (timestamps included), the model has"
            f" {dims.n_vocab}: it belongs to another model; pass the right one as tokenizer="
        )


def _id_bounds(value: Mapping[str, Any]) -> tuple[int, int]:
    """The largest id of a parsed tokenizer and the id of the first timestamp."""
    ids = {token["content"]: int(token["id"]) for token in value["added_tokens"]}
    largest = max([*ids.values(), *value["model"]["vocab"].values()])
    return largest, ids.get("<|0.00|>", ids[_NO_TIMESTAMPS] + 1)


def _is_padding(more: int, n_rows: int) -> bool:
    """Whether ``more`` rows than tokens can be padding of an embedding of ``n_rows``."""
    return 0 < more < _MAX_PADDING and n_rows % _ROW_MULTIPLE == 0


def without_padding_rows(
    tokenizer_json: str, dims: ModelDims, blobs: Mapping[str, Stored]
) -> tuple[ModelDims, Mapping[str, Stored]]:
    """Dimensions and tensors without padding rows of the embedding.

    Args:
        tokenizer_json: result of :func:`find_tokenizer` for ``dims``.
        dims: dimensions in the files.
        blobs: tensors by canonical name.
    """
    largest, first_timestamp = _id_bounds(json.loads(tokenizer_json))
    n_ids = max(largest + 1, first_timestamp + dims.n_audio_ctx + 1)
    if n_ids == dims.n_vocab:
        return dims, blobs
    _log.info("the last %d rows of the token embedding are padding", dims.n_vocab - n_ids)
    cut = {
        name: blob.rows(0, n_ids) if name in _TOKEN_ROWS else blob for name, blob in blobs.items()
    }
    return dataclasses.replace(dims, n_vocab=n_ids), cut


def is_multilingual(tokenizer_json: str, stated: bool | None) -> bool:
    """Whether a model is multilingual, so that its prompts contain language and task.

    Args:
        tokenizer_json: its tokenizer.
        stated: ``is_multilingual`` of its configuration, if present.

    Raises:
        CheckpointError: it is stated, but the tokenizer has no tokens for it.
    """
    ids = {token["content"]: token["id"] for token in json.loads(tokenizer_json)["added_tokens"]}
    can = "<|transcribe|>" in ids and any(map(_LANGUAGE.fullmatch, ids))
    if stated and not can:
        raise CheckpointError(
            "generation_config.json says is_multilingual, but the tokenizer has no language tokens"
            " or no <|transcribe|>; pass the model's own tokenizer as tokenizer=, or correct it"
        )
    if stated is not None:
        return stated
    return can and ids.get(_END_OF_TEXT) != _ENGLISH_END
