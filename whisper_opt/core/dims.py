"""Model dimensions, and the audio and time constants of Whisper.

Names follow ``ModelDimensions`` of openai-whisper (whisper/model.py); the constants follow
whisper/audio.py and section 2.2 of Radford et al. 2022, "Robust Speech Recognition via Large-Scale
Weak Supervision" (arXiv:2212.04356).
"""

from __future__ import annotations

import dataclasses
import reprlib
from collections.abc import Callable, Mapping
from typing import Any

from whisper_opt.core.errors import CheckpointError

__all__ = [
    "CHUNK_LENGTH",
    "FRAMES_PER_SECOND",
    "HEAD_DIM",
    "HOP_LENGTH",
    "N_FFT",
    "N_FRAMES",
    "N_SAMPLES",
    "SAMPLE_RATE",
    "ModelDims",
]

SAMPLE_RATE = 16_000
"""Sample rate of all audio inside the library (Hz)."""
N_FFT = 400
"""Samples in one analysis window (25 ms)."""
HOP_LENGTH = 160
"""Samples between two mel frames (10 ms)."""
CHUNK_LENGTH = 30
"""Seconds in one encoder window."""
N_SAMPLES = CHUNK_LENGTH * SAMPLE_RATE
"""Samples in one window (480,000)."""
N_FRAMES = N_SAMPLES // HOP_LENGTH
"""Mel frames in one window (3,000)."""
FRAMES_PER_SECOND = SAMPLE_RATE // HOP_LENGTH
"""Mel frames per second (100)."""
HEAD_DIM = 64
"""Width of one attention head in every released Whisper model."""


_LARGEST, _MOST_LAYERS = 1 << 20, 256
"""Limits of the dimensions; the largest released models have 51,866 and 32."""


@dataclasses.dataclass(frozen=True)
class ModelDims:
    """Dimensions of one Whisper model, under OpenAI's names.

    Attributes:
        n_mels: mel bins (80, or 128 from large-v3 on).
        n_audio_ctx: encoder positions in one window (1,500).
        n_audio_state: encoder width.
        n_audio_head: encoder attention heads.
        n_audio_layer: encoder layers.
        n_vocab: size of the output vocabulary, including timestamps.
        n_text_ctx: decoder positions (448).
        n_text_state: decoder width.
        n_text_head: decoder attention heads.
        n_text_layer: decoder layers; differs from ``n_audio_layer`` in turbo and distil models.
    """

    n_mels: int
    n_audio_ctx: int
    n_audio_state: int
    n_audio_head: int
    n_audio_layer: int
    n_vocab: int
    n_text_ctx: int
    n_text_state: int
    n_text_head: int
    n_text_layer: int

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise CheckpointError(
                    f"model dimension {field.name} is {reprlib.repr(value)}; expected a positive"
                    " integer"
                )
            if value > (_MOST_LAYERS if field.name.endswith("_layer") else _LARGEST):
                raise CheckpointError(
                    f"model dimension {field.name} is {reprlib.repr(value)}; no Whisper model is of"
                    " that size"
                )
        for side in ("audio", "text"):
            state, heads = getattr(self, f"n_{side}_state"), getattr(self, f"n_{side}_head")
            if state != heads * HEAD_DIM:
                raise CheckpointError(
                    f"n_{side}_state is {state} with {heads} heads; expected {HEAD_DIM} values per"
                    f" head ({heads * HEAD_DIM}), as in every Whisper model"
                )
        if self.n_audio_state != self.n_text_state:
            raise CheckpointError(
                f"encoder width {self.n_audio_state} differs from decoder width"
                f" {self.n_text_state}; Whisper's cross-attention needs them equal"
            )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ModelDims:
        """Build from a mapping such as ``checkpoint["dims"]`` or a manifest entry.

        Raises:
            CheckpointError: a field is missing or is not a positive integer.
        """
        names = [field.name for field in dataclasses.fields(cls)]
        missing = [name for name in names if name not in values]
        if missing:
            raise CheckpointError(f"model dimensions lack {', '.join(missing)}")
        return cls(**{name: values[name] for name in names})

    @classmethod
    def from_huggingface(cls, number: Callable[[str], int]) -> ModelDims:
        """Build from the ``config.json`` of transformers.

        Args:
            number: the positive integer under a key of the configuration; raises if it is none.

        Raises:
            CheckpointError: the dimensions are not those of a Whisper model.
        """
        return cls(
            n_mels=number("num_mel_bins"),
            n_audio_ctx=number("max_source_positions"),
            n_audio_state=number("d_model"),
            n_audio_head=number("encoder_attention_heads"),
            n_audio_layer=number("encoder_layers"),
            n_vocab=number("vocab_size"),
            n_text_ctx=number("max_target_positions"),
            n_text_state=number("d_model"),
            n_text_head=number("decoder_attention_heads"),
            n_text_layer=number("decoder_layers"),
        )

    def to_dict(self) -> dict[str, int]:
        """The ten dimensions under OpenAI's names."""
        return dataclasses.asdict(self)

    @property
    def is_multilingual(self) -> bool:
        """Whether the vocabulary has the multilingual layout (as in openai-whisper's model.py)."""
        return self.n_vocab >= 51865

    @property
    def frames_per_position(self) -> int:
        """Mel frames per encoder position (2)."""
        return N_FRAMES // self.n_audio_ctx

    @property
    def default_alignment_heads(self) -> tuple[tuple[int, int], ...]:
        """(decoder layer, head) pairs of the upper half of the layers.

        openai-whisper uses them for word times if the alignment heads of a model are not known.
        """
        layers = range(self.n_text_layer // 2, self.n_text_layer)
        return tuple((layer, head) for layer in layers for head in range(self.n_text_head))

    @property
    def time_precision(self) -> float:
        """Seconds between two timestamp tokens (0.02)."""
        return CHUNK_LENGTH / self.n_audio_ctx
