"""Checks of an uploaded recording before it is queued, and its language among candidates."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Union

import numpy as np

from whisper_opt.audio.decode import AudioStream, open_audio
from whisper_opt.core.arrays import F32
from whisper_opt.core.dims import SAMPLE_RATE
from whisper_opt.core.errors import OptionError
from whisper_opt.core.options import ServeOptions, TranscribeOptions
from whisper_opt.serving.http.errors import ApiError
from whisper_opt.serving.http.upload import Form
from whisper_opt.transcription.model import Whisper

__all__ = ["LEAST_SECONDS", "check_recording", "likely_language"]

LEAST_SECONDS = 0.1
"""Duration of the shortest recording that is accepted, as in OpenAI's API."""
_WHOLE = 12.0
"""Seconds up to which a recording is decoded once, when it is checked. Its samples, 64,000 bytes
per second, are then in memory while it waits."""
_LISTENED = 300
"""Seconds from the start of a recording in which its language is looked for."""


def check_recording(form: Form, limits: ServeOptions, options: TranscribeOptions) -> F32 | None:
    """Decode the beginning of a recording, so that an unusable one is refused before it waits.

    Args:
        form: the form.
        limits: options of the server.
        options: how the recording is to be transcribed.

    Returns:
        F32 [n], all samples of the recording at 16 kHz, if it is short: it need not be
        decoded again. None if it is longer, or if the strategy is not sequential.

    Raises:
        ApiError: it is empty, too short, too long, or has too many channels.
        AudioError: it cannot be decoded.
    """
    if not form.n_bytes:
        raise ApiError(
            400, "the file is empty; send a recording", param="file", code="invalid_audio"
        )
    with open_audio(
        form.source,
        max_duration=limits.max_audio_seconds,
        strict_audio=options.strict_audio,
    ) as stream:
        if stream.n_channels > limits.max_channels:
            raise ApiError(
                400,
                f"the recording has {stream.n_channels} channels; this server accepts at most"
                f" {limits.max_channels}: mix it to mono first",
                param="file",
                code="too_many_channels",
            )
        if stream.duration is not None and stream.duration > limits.max_audio_seconds:
            raise ApiError(
                400,
                f"the recording lasts {stream.duration:.1f} s; this server accepts at most"
                f" {limits.max_audio_seconds:g} s: split it",
                param="file",
                code="audio_too_long",
            )
        blocks = [next(stream)]
        if len(blocks[0]) < LEAST_SECONDS * SAMPLE_RATE:
            raise ApiError(
                400,
                f"the recording is too short; expected at least {LEAST_SECONDS} s of audio",
                param="file",
                code="audio_too_short",
            )
        if options.strategy != "sequential" or (stream.duration or math.inf) > _WHOLE:
            return None
        blocks += stream
        return np.concatenate(blocks)


def likely_language(model: Whisper, source: Union[str, bytes], candidates: Sequence[str]) -> str:
    """The most probable language of a recording among candidates.

    Args:
        model: a multilingual model.
        source: the recording.
        candidates: codes of languages.

    Raises:
        OptionError: the model does not support one of them.
        AudioError: the recording cannot be decoded.
    """
    for code in candidates:
        if code not in model.languages:
            raise OptionError(
                f"languages has {code!r}, which this model does not support; it has"
                f" {', '.join(model.languages)}"
            )
    with open_audio(source) as stream:
        found = model.detect_language(_beginning(stream))
    return max(candidates, key=lambda code: found.get(code, 0.0))


def _beginning(stream: AudioStream) -> F32:
    blocks: list[F32] = []
    for block in stream:
        blocks.append(block)
        if sum(map(len, blocks)) >= _LISTENED * SAMPLE_RATE:
            break
    return np.concatenate(blocks)
