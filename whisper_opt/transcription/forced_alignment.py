"""Alignment of a given text with a recording, as numbers and as word times.

The method is that of word times (:mod:`whisper_opt.transcription.alignment`), which openai-whisper
applies to text that it has decoded (whisper/timing.py). Here the text is given.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from whisper_opt.audio.decode import AudioSource, load_audio
from whisper_opt.audio.features import log_mel
from whisper_opt.core.arrays import F32
from whisper_opt.core.dims import CHUNK_LENGTH, N_FRAMES, N_SAMPLES, SAMPLE_RATE
from whisper_opt.core.errors import OptionError
from whisper_opt.core.options import TranscribeOptions
from whisper_opt.text.results import Word
from whisper_opt.transcription.alignment import align_words, aligner, attention_matrix
from whisper_opt.transcription.language import language_probabilities
from whisper_opt.transcription.words import merge_punctuations

if TYPE_CHECKING:
    from whisper_opt.transcription.model import Whisper

__all__ = ["Alignment", "align_text"]


@dataclasses.dataclass(frozen=True)
class Alignment:
    """Where a model hears each token of a text.

    Attributes:
        words: the words with their times and probabilities.
        tokens: text of each token; the last is empty and stands for the end of the text.
        attention: float32 [n_tokens, n_positions]: attention of the alignment heads, standardised,
            smoothed and averaged. Row i belongs to the token that predicts token i.
        seconds_per_position: duration of a column, 0.02 s in released models.
    """

    words: tuple[Word, ...]
    tokens: tuple[str, ...]
    attention: F32
    seconds_per_position: float


def align_text(
    model: Whisper,
    audio: AudioSource,
    text: str,
    *,
    language: str | None = None,
    sample_rate: int | None = None,
) -> Alignment:
    """Find the times of a text that is known, in a recording of up to 30 s.

    The text is taken as said: words that are not in the recording get times too, with low
    probabilities.

    Args:
        model: a loaded model.
        audio: as for :meth:`Whisper.transcribe`.
        text: what is said.
        language: its code; default: detected.
        sample_rate: rate of an array in Hz (default 16,000).

    Raises:
        AudioError: the recording cannot be read, or is empty.
        OptionError: it is longer than 30 s, there is no text or too much for one window, or the
            model does not know the language.
    """
    samples = load_audio(audio, sample_rate=sample_rate)
    if len(samples) > N_SAMPLES:
        raise OptionError(
            f"the recording has {len(samples) / SAMPLE_RATE:.1f} s; expected at most"
            f" {CHUNK_LENGTH} s, one window: cut it, or transcribe with word_timestamps=True"
        )
    vocab = model.vocab
    code = vocab.check_language(language, "transcribe")
    mel = log_mel(samples, model.dims.n_mels)
    with model._shared.use() as backend:
        encoded = backend.encode(mel.window(0, N_FRAMES)[None])
        if code is None:
            code = next(iter(language_probabilities(backend, vocab, encoded)[0]))
        start = vocab.start(code, "transcribe", timestamps=False)
        tokens = vocab.encode_sentence(text, code)
        limit = model.dims.n_text_ctx - len(start) - 1
        if not 0 < len(tokens) <= limit:
            raise OptionError(
                f"the text has {len(tokens)} tokens; expected 1 to {limit}, as many as a window"
                " holds: give the text of one window"
            )
        attention = aligner(backend, vocab, encoded, start)(tokens)
    words, word_tokens = vocab.split_words(tokens, code)
    n_positions = attention.scores.shape[-1]
    used = max(1, mel.n_frames // (N_FRAMES // n_positions))
    marks = TranscribeOptions()
    timings = merge_punctuations(
        align_words(attention, words, word_tokens, mel.n_frames),
        marks.prepend_punctuations,
        marks.append_punctuations,
    )
    return Alignment(
        words=tuple(
            Word(round(one.start, 2), round(one.end, 2), one.word, one.probability)
            for one in timings
        ),
        tokens=(*(vocab.decode([token]) for token in tokens), ""),
        attention=attention_matrix(attention, used),
        seconds_per_position=CHUNK_LENGTH / n_positions,
    )
