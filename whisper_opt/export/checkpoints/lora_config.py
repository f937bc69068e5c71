"""``LoraSettings``: the part of PEFT's ``adapter_config.json`` that decides the merged weights.

Which modules an adapter changes is read from the names of its tensors, which PEFT writes for the
modules of ``target_modules`` and ``layers_to_transform`` alone.
"""

from __future__ import annotations

import dataclasses
import math
import re
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from whisper_opt.core.errors import CheckpointError
from whisper_opt.export.checkpoints.sidecar import optional_bool, read_json

__all__ = ["ADAPTER_CONFIG", "LoraSettings", "read_lora_settings"]

ADAPTER_CONFIG = "adapter_config.json"
_MERGE = "merge it with PEFT (merge_and_unload, then save_pretrained) and export the result"
_VARIANTS = {
    "alora_invocation_tokens": "aLoRA, which acts only after certain tokens",
    "arrow_config": "Arrow, which chooses among adapters token by token",
    "ensure_weight_tying": "adapters of tied layers that PEFT ties itself",
    "kasa_config": "KaSA, which truncates the base's weights",
    "layer_replication": "layers that are repeated",
    "monteclora_config": "MonteCLoRA, which samples its weights",
    "target_parameters": "parameters outside modules, which Whisper does not have",
    "use_bdlora": "BD-LoRA, whose matrices are stored as blocks",
    "use_qalora": "QALoRA, which pools the inputs",
}
"""Fields of variants that are not merged here, and what they are."""
_INITS = (None, True, False, "gaussian", "eva", "orthogonal")
"""Values of ``init_lora_weights`` that leave the base's weights as they are."""
_MAX_PATTERN, _MAX_REPEATS = 200, 4
"""Limits of a pattern, so that matching ends soon whatever a file says."""
_PLAIN = re.compile(r"[\w.]*")


@dataclasses.dataclass(frozen=True)
class LoraSettings:
    """Settings of a LoRA adapter, under PEFT's names.

    Attributes:
        base: ``base_model_name_or_path``, or None if it is not given.
        revision: branch, tag or commit of ``base``.
        r: rank of modules that ``rank_pattern`` does not match.
        lora_alpha: the like for ``alpha_pattern``.
        use_rslora: divide by the square root of the rank (Kalajdzievski 2023, arXiv:2312.03732).
        rank_pattern: regular expressions of module names -> rank.
        alpha_pattern: regular expressions of module names -> alpha.
        modules_to_save: ends of the names of modules that the adapter replaces as a whole.
        trainable_tokens: end of the name of an embedding -> ids whose rows the adapter replaces.
    """

    base: str | None
    revision: str | None
    r: int
    lora_alpha: float
    use_rslora: bool
    rank_pattern: Mapping[str, int]
    alpha_pattern: Mapping[str, float]
    modules_to_save: tuple[str, ...]
    trainable_tokens: Mapping[str, tuple[int, ...]]

    def rank(self, module: str) -> int:
        """Rank of the adapter of a module, by its name inside the base model."""
        return self.rank_pattern.get(_first_match(self.rank_pattern, module), self.r)

    def scaling(self, module: str) -> float:
        """Factor of the product of the two matrices of a module."""
        alpha = self.alpha_pattern.get(_first_match(self.alpha_pattern, module), self.lora_alpha)
        rank = self.rank(module)
        return alpha / (math.sqrt(rank) if self.use_rslora else rank)

    def replaces(self, module: str) -> bool:
        """Whether a module, or one that holds it, is in ``modules_to_save``."""
        parts = module.split(".")
        outer = [".".join(parts[: i + 1]) for i in range(len(parts))]
        return any(name.endswith(end) for name in outer for end in self.modules_to_save)


def _first_match(patterns: Mapping[str, Any], module: str) -> str:
    """The first pattern that matches the end of a module's name, as PEFT's get_pattern_key."""
    return next((key for key in patterns if re.match(rf"(.*\.)?({key})$", module)), module)


def read_lora_settings(directory: Path) -> LoraSettings:
    """Read ``adapter_config.json``.

    Raises:
        CheckpointError: it is missing or damaged, or describes an adapter that is not merged here.
    """
    config = read_json(directory / ADAPTER_CONFIG)
    kind = config.get("peft_type")
    if kind != "LORA":
        raise CheckpointError(
            f"{directory.resolve().name!r} is an adapter with peft_type = {reprlib.repr(kind)};"
            f" only LORA is merged here (DoRA and rsLoRA included): {_MERGE}. Prompts and prefixes"
            " (PROMPT_TUNING, PREFIX_TUNING, P_TUNING) cannot be merged at all"
        )
    for key, what in _VARIANTS.items():
        if config.get(key):
            raise CheckpointError(f"{ADAPTER_CONFIG} has {key}, for {what}: {_MERGE}")
    init = config.get("init_lora_weights")
    if not any(init is value for value in _INITS[:3]) and init not in _INITS[3:]:
        raise CheckpointError(
            f"{ADAPTER_CONFIG} has init_lora_weights = {reprlib.repr(init)}, which changed the"
            f" base's weights before training: {_MERGE}, or save the adapter with PEFT's"
            " path_initial_model_for_weight_conversion"
        )
    return LoraSettings(
        base=_text(config, "base_model_name_or_path"),
        revision=_text(config, "revision"),
        r=_number(config, "r", config.get("r"), int),
        lora_alpha=_number(config, "lora_alpha", config.get("lora_alpha"), float),
        use_rslora=bool(optional_bool(config, "use_rslora")),
        rank_pattern=_patterns(config, "rank_pattern", int),
        alpha_pattern=_patterns(config, "alpha_pattern", float),
        modules_to_save=_names(config, "modules_to_save"),
        trainable_tokens=_tokens(config),
    )


def _wrong(key: str, value: Any, expected: str) -> CheckpointError:
    return CheckpointError(
        f"{ADAPTER_CONFIG} has {key} = {reprlib.repr(value)}; expected {expected}"
    )


def _text(config: Mapping[str, Any], key: str) -> str | None:
    value = config.get(key)
    if value is not None and not isinstance(value, str):
        raise _wrong(key, value, "text")
    return value or None


def _number(config: Mapping[str, Any], key: str, value: Any, kind: type[Any]) -> Any:
    """A positive ``int``, or a finite ``float`` below 1e6."""
    good = isinstance(value, int if kind is int else (int, float)) and not isinstance(value, bool)
    if not good or not abs(value) < 1e6 or (kind is int and value < 1):
        raise _wrong(key, value, "a positive integer" if kind is int else "a number")
    return kind(value)


def _patterns(config: Mapping[str, Any], key: str, kind: type[Any]) -> dict[str, Any]:
    value = config.get(key) or {}
    if not isinstance(value, dict):
        raise _wrong(key, value, "an object of patterns and numbers")
    return {_checked(key, name): _number(config, key, n, kind) for name, n in value.items()}


def _checked(key: str, pattern: str) -> str:
    """A regular expression that is valid and is matched in short time."""
    if _PLAIN.fullmatch(pattern) and len(pattern) <= _MAX_PATTERN:
        return pattern
    n_repeats = sum(pattern.count(mark) for mark in "*+?{")
    n_groups = pattern.count("(")
    nested = re.search(r"\)[*+{]", pattern)
    if len(pattern) > _MAX_PATTERN or max(n_repeats, n_groups) > _MAX_REPEATS or nested:
        raise _wrong(key, pattern, "module names or simple regular expressions")
    try:
        re.compile(rf"(.*\.)?({pattern})$")
    except (re.error, RecursionError, OverflowError) as error:
        raise _wrong(key, pattern, f"a regular expression ({error})") from error
    return pattern


def _names(config: Mapping[str, Any], key: str) -> tuple[str, ...]:
    value = config.get(key)
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(name, str) and name for name in value):
        raise _wrong(key, value, "a list of module names")
    return tuple(value)


def _tokens(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    key = "trainable_token_indices"
    value = config.get(key) or {}
    found = {"embed_tokens": value} if isinstance(value, list) else value
    if not isinstance(found, dict):
        raise _wrong(key, value, "token ids")
    for ids in found.values():
        if not isinstance(ids, list) or not all(type(i) is int and 0 <= i < 1 << 20 for i in ids):
            raise _wrong(key, value, "token ids")
    return {name: tuple(ids) for name, ids in found.items()}
