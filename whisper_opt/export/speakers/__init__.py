"""Export of the networks that tell speakers apart: ``whisper-opt export-speakers``."""

from __future__ import annotations

from whisper_opt.export.speakers.export import export_speakers

__all__ = ["export_speakers"]
