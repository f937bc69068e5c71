"""What options of transcription mean for the updates of a live session."""

from __future__ import annotations

from whisper_opt.core.options import LiveOptions, TranscribeOptions
from whisper_opt.text.vocabulary import Vocab
from whisper_opt.transcription.windows import text_tokens

__all__ = ["first_ids", "update_options"]


def update_options(options: TranscribeOptions, live: LiveOptions) -> TranscribeOptions:
    """The options of updates: one attempt without timestamps."""
    kept = (
        *("task", "suppress_tokens", "suppress_blank", "repetition_penalty"),
        *("no_repeat_ngram_size", "prepend_punctuations", "append_punctuations"),
    )
    return TranscribeOptions(
        **{name: getattr(options, name) for name in kept},
        without_timestamps=True,
        word_timestamps=True,
        temperature=0.0,
        beam_size=live.update_beam_size if live.update_beam_size > 1 else None,
        vad="off",
    )


def first_ids(vocab: Vocab, options: TranscribeOptions) -> list[int]:
    """Ids that every prompt begins with: hotwords and the initial prompt."""
    texts = [(text or "").strip() for text in (options.hotwords, options.initial_prompt)]
    return [i for text in texts for i in text_tokens(vocab, text or None)]
