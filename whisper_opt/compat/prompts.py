"""Prompts that the original programs also accept as token ids."""

from __future__ import annotations

from collections.abc import Iterable

import whisper_opt

__all__ = ["text_of_prompt"]


def text_of_prompt(
    name: str, given: str | Iterable[int] | None, model: whisper_opt.Whisper
) -> str | None:
    """A prompt as text; None if it is empty.

    Args:
        name: the argument, for the error.
        given: text, or the ids of one.
        model: the model whose ids they are.

    Raises:
        OptionError: the ids are not those of a text after a space, which is how text is tokenized.
    """
    if given is None or isinstance(given, str):
        return given or None
    ids, vocab = list(given), model.vocab
    text = vocab.decode(ids)
    if ids and vocab.encode(" " + text.strip()) != ids:
        raise whisper_opt.OptionError(
            f"{name} is a list of ids that are not those of a text after a space; give the text"
        )
    return text or None
