"""``Checkpoint``: the weights of a model, read on demand, independent of the file format.

Tensors have openai-whisper's names (``encoder.blocks.0.attn.query.weight``), layouts
(``nn.Linear``: [n_out, n_in]; ``nn.Conv1d``: [n_out, n_in, 3]) and values. :meth:`Tensor.read`
reads one tensor and keeps nothing, so a model larger than memory can be converted.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Callable

from whisper_opt.core.arrays import F32
from whisper_opt.core.dims import CHUNK_LENGTH, N_FRAMES, ModelDims
from whisper_opt.core.errors import CheckpointError
from whisper_opt.runtime import head_names

__all__ = [
    "EMBEDDING",
    "OUTPUT_HEAD",
    "Checkpoint",
    "Source",
    "Tensor",
    "check_window",
    "expected_shapes",
]

EMBEDDING = head_names.EMBEDDING
"""The token embedding, which is the output head too in most models."""
OUTPUT_HEAD = head_names.OWN_HEAD
"""The output head of untied models; openai-whisper has no such tensor."""


@dataclasses.dataclass(frozen=True)
class Tensor:
    """One weight, read on demand.

    Attributes:
        shape: dimensions in the canonical layout.
        read: returns the values as a C-contiguous float32 array of ``shape``; may raise
            :class:`CheckpointError` if the file is damaged.
    """

    shape: tuple[int, ...]
    read: Callable[[], F32]


@dataclasses.dataclass(frozen=True)
class Source:
    """Provenance of a checkpoint, for the manifest.

    Attributes:
        format: ``huggingface``, ``openai``, ``ctranslate2`` or ``ggml``.
            With ``+lora`` if an adapter was merged into it.
        name: hub id, or the name of the file or directory (never a full path).
        dtype: storage type of the weights, e.g. ``float16``.
        sha256: digests of the weight files by name; ``weights`` and ``configuration`` for a model
            in memory; those of an adapter's base have ``base/`` before the name.
    """

    format: str
    name: str
    dtype: str
    sha256: Mapping[str, str]


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A model as an export needs it.

    Attributes:
        dims: model dimensions.
        tensors: all tensors of :func:`expected_shapes` by name, and :data:`OUTPUT_HEAD` if the
            model is untied; without it the head is the token embedding.
        tokenizer_json: text of a Hugging Face ``tokenizer.json`` for this vocabulary.
        alignment_heads: (decoder layer, head) pairs whose cross-attention follows the audio, or
            None if the files do not say.
        suppress_tokens: ids never sampled, or None if the files do not say.
        begin_suppress_tokens: ids not sampled first, or None if the files do not say.
        source: provenance.
        multilingual: whether prompts contain language and task, or None if the files do not say.
    """

    dims: ModelDims
    tensors: Mapping[str, Tensor]
    tokenizer_json: str
    alignment_heads: tuple[tuple[int, int], ...] | None
    suppress_tokens: tuple[int, ...] | None
    begin_suppress_tokens: tuple[int, ...] | None
    source: Source
    multilingual: bool | None = None

    def __post_init__(self) -> None:
        check_shapes(self.dims, {name: tensor.shape for name, tensor in self.tensors.items()})
        for layer, head in self.alignment_heads or ():
            if not (0 <= layer < self.dims.n_text_layer and 0 <= head < self.dims.n_text_head):
                raise CheckpointError(
                    f"alignment head ({layer}, {head}) lies outside the model's"
                    f" {self.dims.n_text_layer} decoder layers of {self.dims.n_text_head} heads"
                )

    @property
    def heads(self) -> tuple[tuple[int, int], ...]:
        """``alignment_heads`` in the order of layers, or the default if none are known."""
        return tuple(sorted(self.alignment_heads or self.dims.default_alignment_heads))

    def configuration_sha256(self) -> str:
        """Digest of all but dimensions and weights that an engine depends on."""
        values = [
            self.tokenizer_json,
            self.alignment_heads,
            self.suppress_tokens,
            self.begin_suppress_tokens,
            self.multilingual,
        ]
        return hashlib.sha256(json.dumps(values).encode()).hexdigest()


def _attention(prefix: str, state: int) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for name in ("query", "key", "value", "out"):
        shapes[f"{prefix}.{name}.weight"] = (state, state)
        if name != "key":  # Whisper's key projection has no bias
            shapes[f"{prefix}.{name}.bias"] = (state,)
    return shapes


def _norm(prefix: str, state: int) -> dict[str, tuple[int, ...]]:
    return {f"{prefix}.weight": (state,), f"{prefix}.bias": (state,)}


def _block(prefix: str, state: int, *, cross: bool) -> dict[str, tuple[int, ...]]:
    shapes = {**_attention(f"{prefix}.attn", state), **_norm(f"{prefix}.attn_ln", state)}
    if cross:
        shapes.update(_attention(f"{prefix}.cross_attn", state))
        shapes.update(_norm(f"{prefix}.cross_attn_ln", state))
    shapes[f"{prefix}.mlp.0.weight"] = (4 * state, state)
    shapes[f"{prefix}.mlp.0.bias"] = (4 * state,)
    shapes[f"{prefix}.mlp.2.weight"] = (state, 4 * state)
    shapes[f"{prefix}.mlp.2.bias"] = (state,)
    shapes.update(_norm(f"{prefix}.mlp_ln", state))
    return shapes


def expected_shapes(dims: ModelDims) -> dict[str, tuple[int, ...]]:
    """Canonical tensor names and shapes of a Whisper model (openai-whisper's ``state_dict``).

    They include ``encoder.positional_embedding``: a constant sinusoid in openai-whisper, but stored
    in every format.
    """
    audio, text = dims.n_audio_state, dims.n_text_state
    shapes: dict[str, tuple[int, ...]] = {
        "encoder.conv1.weight": (audio, dims.n_mels, 3),
        "encoder.conv1.bias": (audio,),
        "encoder.conv2.weight": (audio, audio, 3),
        "encoder.conv2.bias": (audio,),
        "encoder.positional_embedding": (dims.n_audio_ctx, audio),
    }
    for i in range(dims.n_audio_layer):
        shapes.update(_block(f"encoder.blocks.{i}", audio, cross=False))
    shapes.update(_norm("encoder.ln_post", audio))
    shapes[EMBEDDING] = (dims.n_vocab, text)
    shapes["decoder.positional_embedding"] = (dims.n_text_ctx, text)
    for i in range(dims.n_text_layer):
        shapes.update(_block(f"decoder.blocks.{i}", text, cross=True))
    shapes.update(_norm("decoder.ln", text))
    return shapes


def check_window(dims: ModelDims) -> None:
    """Raise :class:`CheckpointError` unless the encoder takes windows of 30 s.

    The second convolution halves the frames, so the number of positions gives the window's length.
    """
    if dims.n_audio_ctx != N_FRAMES // 2:
        seconds = CHUNK_LENGTH * dims.n_audio_ctx / (N_FRAMES // 2)
        raise CheckpointError(
            f"the encoder has {dims.n_audio_ctx} positions (max_source_positions), for windows of"
            f" {seconds:g} s; expected {N_FRAMES // 2}, for windows of {CHUNK_LENGTH} s: models of"
            " another window cannot be exported"
        )


def check_shapes(dims: ModelDims, found: Mapping[str, tuple[int, ...]]) -> None:
    """Raise :class:`CheckpointError` unless ``found`` has every expected tensor and shape."""
    expected = expected_shapes(dims)
    if OUTPUT_HEAD in found:
        expected[OUTPUT_HEAD] = (dims.n_vocab, dims.n_text_state)
    missing = [name for name in expected if name not in found]
    if missing:
        raise CheckpointError(
            f"checkpoint lacks {len(missing)} of {len(expected)} tensors, first {missing[0]!r};"
            " the file is incomplete or is not a Whisper model"
        )
    for name, shape in expected.items():
        if tuple(found[name]) != shape:
            raise CheckpointError(
                f"tensor {name!r} has shape {list(found[name])}; the model's dimensions require"
                f" {list(shape)}"
            )
