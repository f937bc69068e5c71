"""openai-whisper's windowing as one plain loop: the reference of ``transcribe``.

Written from the behaviour of whisper/transcribe.py, without temperature fallback and word times.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Callable

from tests.support.models import random_dims, tokenizer_json
from whisper_opt.core.options import TranscribeOptions
from whisper_opt.text.results import Segment
from whisper_opt.text.vocabulary import Vocab
from whisper_opt.transcription.fallback import WindowResult

__all__ = ["BEGIN", "DIMS", "VOCAB", "DecodeWindow", "Decoded", "reference", "reference_cut"]

DIMS = random_dims(n_vocab=2000, n_text_ctx=32)
"""English-only, 1,500 positions per window, prompts of at most 15 tokens."""
VOCAB = Vocab(tokenizer_json(DIMS), DIMS)
BEGIN = VOCAB.timestamp_begin

DecodeWindow = Callable[[int, int, tuple[int, ...]], WindowResult]
"""(seek, size, prompt) -> the result of the model."""


@dataclasses.dataclass
class Decoded:
    """Decoded windows (seek, size, prompt) and their segments."""

    windows: list[tuple[int, int, tuple[int, ...]]]
    segments: list[Segment]


def split_at_timestamps(tokens: Sequence[int]) -> tuple[list[list[int]], list[int]]:
    """Tokens split between adjacent timestamps; the last part is separate."""
    parts: list[list[int]] = []
    current: list[int] = []
    for token in tokens:
        if current and token >= BEGIN and current[-1] >= BEGIN:
            parts.append(current)
            current = []
        current.append(token)
    return parts, current


def reference_cut(
    tokens: Sequence[int], seek: int, size: int
) -> tuple[list[tuple[float, float, list[int]]], int]:
    """(start, end, tokens) of a window's segments, and the next seek."""
    offset = float(seek * 160 / 16000)
    parts, tail = split_at_timestamps(tokens)
    if not parts:
        duration = size * 160 / 16000
        times = [token for token in tokens if token >= BEGIN]
        if times and times[-1] != BEGIN:
            duration = (times[-1] - BEGIN) * 0.02
        return [(offset, offset + duration, list(tokens))], seek + size
    if len(tail) > 1 and tail[-1] >= BEGIN:  # one timestamp at the end: silence follows
        parts.append(tail)
        following = seek + size
    else:
        following = seek + 2 * (parts[-1][-1] - BEGIN)
    spans = [
        (offset + (part[0] - BEGIN) * 0.02, offset + (part[-1] - BEGIN) * 0.02, part)
        for part in parts
    ]
    return spans, following


def reference_prompt(
    options: TranscribeOptions, initial: list[int], history: list[int], reset: int
) -> tuple[int, ...]:
    room = DIMS.n_text_ctx // 2 - 1
    if options.carry_initial_prompt:
        since = max(len(initial), reset)
        previous = initial + history[since:][-(room - len(initial)) :]
    else:
        previous = history[reset:]
    prompt = [VOCAB.sot_prev, *previous[-room:]] if previous else []
    prompt.append(VOCAB.sot)
    if options.without_timestamps:
        prompt.append(VOCAB.no_timestamps)
    if options.prefix:
        prefix = VOCAB.encode(" " + options.prefix.strip())
        room = DIMS.n_text_ctx // 2 - (options.max_new_tokens or DIMS.n_text_ctx // 2)
        prompt += prefix[-room:] if room > 0 else prefix
    return tuple(prompt)


def reference_skips(options: TranscribeOptions, result: WindowResult) -> bool:
    threshold, likely = options.no_speech_threshold, options.logprob_threshold
    if threshold is None:
        return False
    skip = result.no_speech_prob > threshold
    if likely is not None and result.avg_logprob > likely:
        skip = False
    return skip


def reference(n_frames: int, options: TranscribeOptions, decode: DecodeWindow) -> Decoded:
    """Result of whisper/transcribe.py without fallback and word times."""
    decoded = Decoded([], [])
    initial: list[int] = []
    if options.initial_prompt is not None:
        initial = VOCAB.encode(" " + options.initial_prompt.strip())
    history, reset = list(initial), 0
    points = [round(second * 100) for second in options.clip_timestamps] or [0]
    if len(points) % 2 == 1:
        points.append(n_frames)
    for clip in range(0, len(points), 2):
        seek, end = points[clip : clip + 2]
        while seek < end:
            size = min(3000, n_frames - seek, end - seek)
            prompt = reference_prompt(options, initial, history, reset)
            decoded.windows.append((seek, size, prompt))
            result = decode(seek, size, prompt)
            if reference_skips(options, result):
                seek += size
                continue
            spans, following = reference_cut(result.tokens, seek, size)
            for start, stop, tokens in spans:
                text = VOCAB.decode([token for token in tokens if token < VOCAB.eot])
                if start == stop or text.strip() == "":
                    text, tokens = "", []
                values = dataclasses.asdict(result)
                del values["has_speech"], values["truncated"]  # not the reference's
                values.update(tokens=tuple(tokens), id=len(decoded.segments), seek=seek)
                decoded.segments.append(Segment(start=start, end=stop, text=text, **values))
                history += tokens
            if not options.conditions or result.temperature > 0.5:
                reset = len(history)
            seek = following
    return decoded
