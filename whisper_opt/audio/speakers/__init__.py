"""Who speaks when: diarization on ONNX Runtime, with networks that ``export-speakers`` writes."""

from __future__ import annotations

from whisper_opt.audio.speakers.diarizer import Diarizer
from whisper_opt.audio.speakers.networks import SpeakerNetworks, open_speakers

__all__ = ["Diarizer", "SpeakerNetworks", "open_speakers"]
