"""Short names of models and the Hugging Face repositories that they stand for."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple, Union

__all__ = [
    "MODEL_NAMES",
    "ModelName",
    "available_models",
    "find_name",
    "is_hub_id",
    "similar_names",
]

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_FILE_SUFFIXES = {".pt", ".bin", ".safetensors", ".msgpack", ".json"}


class ModelName(NamedTuple):
    """A repository of the Hugging Face hub.

    Attributes:
        hub_id: ``organisation/model``.
        revision: pinned commit, or None for the newest one.
    """

    hub_id: str
    revision: Union[str, None]


def _openai(size: str, revision: str) -> ModelName:
    return ModelName(f"openai/whisper-{size}", revision)


_LARGE_V3 = _openai("large-v3", "06f233fe06e710322aca913c1bc4249a0d71fce1")
_TURBO = _openai("large-v3-turbo", "41f01f3fe87f28c78e2fbf8b568835947dd65ed9")

MODEL_NAMES: Mapping[str, ModelName] = {
    "tiny.en": _openai("tiny.en", "87c7102498dcde7456f24cfd30239ca606ed9063"),
    "tiny": _openai("tiny", "169d4a4341b33bc18d8881c4b69c2e104e1cc0af"),
    "base.en": _openai("base.en", "911407f4214e0e1d82085af863093ec0b66f9cd6"),
    "base": _openai("base", "e37978b90ca9030d5170a5c07aadb050351a65bb"),
    "small.en": _openai("small.en", "e8727524f962ee844a7319d92be39ac1bd25655a"),
    "small": _openai("small", "973afd24965f72e36ca33b3055d56a652f456b4d"),
    "medium.en": _openai("medium.en", "2e98eb6279edf5095af0c8dedb36bdec0acd172b"),
    "medium": _openai("medium", "abdf7c39ab9d0397620ccaea8974cc764cd0953e"),
    "large-v1": _openai("large", "4ef9b41f0d4fe232daafdb5f76bb1dd8b23e01d7"),
    "large-v2": _openai("large-v2", "ae4642769ce2ad8fc292556ccea8e901f1530655"),
    "large-v3": _LARGE_V3,
    "large": _LARGE_V3,
    "large-v3-turbo": _TURBO,
    "turbo": _TURBO,
    **{
        name: ModelName(f"distil-whisper/{name}", None)
        for name in (
            *("distil-small.en", "distil-medium.en", "distil-large-v2"),
            *("distil-large-v3", "distil-large-v3.5"),
        )
    },
}
"""The repositories by short name; those without a revision have no commit that was checked."""


def available_models() -> list[str]:
    """Short names that ``Whisper.load`` and the command line accept."""
    return list(MODEL_NAMES)


def find_name(name: str) -> ModelName | None:
    """The repository of a short name; None if there is no such name."""
    return MODEL_NAMES.get(name)


def is_hub_id(name: str) -> bool:
    """Whether a name has the form ``organisation/model`` and is not that of a weight file."""
    return _HUB_ID.fullmatch(name) is not None and Path(name).suffix not in _FILE_SUFFIXES


def similar_names(name: str) -> list[str]:
    """Short names spelled like ``name``, the most similar first."""
    return difflib.get_close_matches(name, MODEL_NAMES, n=3, cutoff=0.6)
