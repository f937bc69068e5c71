"""All options: the API, the command line and docs/options.md are generated from these classes.

Every option is validated here, once. A mode that cannot honour an option refuses it.
"""

from __future__ import annotations

from whisper_opt.core.options.checks import AUTO, LANGUAGE_OPTIONS
from whisper_opt.core.options.drafts import DraftSegment, draft_segments
from whisper_opt.core.options.fields import KINDS
from whisper_opt.core.options.live import FINALS, POLICIES, LiveOptions
from whisper_opt.core.options.load import (
    DEVICES,
    ENCODER_PRECISIONS,
    KERNELS,
    LIBRARIES,
    PADDINGS,
    PRECISIONS,
    LoadOptions,
)
from whisper_opt.core.options.serve import ServeOptions
from whisper_opt.core.options.speakers import CHANNELS, SpeakerOptions
from whisper_opt.core.options.subtitles import SubtitleOptions
from whisper_opt.core.options.transcribe import (
    STRATEGIES,
    TASKS,
    VAD_MODES,
    TranscribeOptions,
)
from whisper_opt.core.options.vad import VadOptions

__all__ = [
    "AUTO",
    "CHANNELS",
    "DEVICES",
    "ENCODER_PRECISIONS",
    "FINALS",
    "KERNELS",
    "KINDS",
    "LANGUAGE_OPTIONS",
    "LIBRARIES",
    "PADDINGS",
    "POLICIES",
    "PRECISIONS",
    "STRATEGIES",
    "TASKS",
    "VAD_MODES",
    "DraftSegment",
    "LiveOptions",
    "LoadOptions",
    "ServeOptions",
    "SpeakerOptions",
    "SubtitleOptions",
    "TranscribeOptions",
    "VadOptions",
    "draft_segments",
]
