"""Options of live sessions."""

from __future__ import annotations

import dataclasses

from whisper_opt.core.errors import OptionError
from whisper_opt.core.options.fields import check_fields, option

__all__ = ["FINALS", "POLICIES", "LiveOptions"]

POLICIES = ("agreement", "align_att", "both")
FINALS = ("full", "none")


@dataclasses.dataclass(frozen=True)
class LiveOptions:
    """How a live session divides its audio, and when it commits words.

    Raises:
        OptionError: a value is of the wrong type or out of range.
    """

    policy: str = option(
        "both",
        "text",
        "when a word is committed; agreement: results of several updates agree on it; align_att:"
        " the model attends to audio well before the end while it writes the word; both: if both"
        " hold",
        choices=POLICIES,
    )
    agreement: int = option(
        2, "integer", "consecutive results that must agree on a word", low=2, high=10, metavar="N"
    )
    frame_threshold: int = option(
        50,
        "integer",
        "align_att commits a word if the model attends to audio at least this far before the end,"
        " in positions of 20 ms; less is sooner, with more errors",
        low=0,
        high=1500,
        metavar="N",
    )
    update_s: float = option(
        0.5,
        "number",
        "new audio after which the audio that has no committed words is decoded again, in seconds;"
        " more if the model is busy",
        low=0.1,
        high=30,
        metavar="SECONDS",
    )
    update_beam_size: int = option(
        3,
        "integer",
        "number of hypotheses of beam search in an update; 1: greedy decoding, which is faster,"
        " with more errors",
        low=1,
        high=100,
        metavar="N",
    )
    buffer_s: float = option(
        20.0,
        "number",
        "audio in an update after which its beginning, whose words are committed, is left out, in"
        " seconds",
        low=2,
        high=28,
        metavar="SECONDS",
    )
    vad: bool = option(
        True,
        "flag",
        "find utterances by voice activity detection, and decode nothing else; off: all audio is"
        " speech, and only commit() and max_utterance_s end an utterance",
    )
    threshold: float = option(
        0.5,
        "number",
        "with vad: speech probability from which audio is speech",
        low=0.01,
        high=1,
        metavar="P",
    )
    silence_ms: int = option(
        1000,
        "integer",
        "with vad: silence that ends an utterance, in milliseconds; less towards max_utterance_s",
        low=100,
        high=10_000,
        metavar="MS",
    )
    pre_roll_ms: int = option(
        300,
        "integer",
        "with vad: audio before the speech that is part of an utterance, in milliseconds",
        low=0,
        high=2_000,
        metavar="MS",
    )
    tail_ms: int = option(
        200,
        "integer",
        "with vad: audio after the speech that is part of an utterance, in milliseconds",
        low=0,
        high=2_000,
        metavar="MS",
    )
    max_utterance_s: float = option(
        30.0,
        "number",
        "an utterance that lasts longer is divided, in seconds",
        low=5,
        high=600,
        metavar="SECONDS",
    )
    final: str = option(
        "full",
        "text",
        "result at the end of an utterance; full: it is transcribed again as a recording of its"
        " own, with all options; none: the committed words",
        choices=FINALS,
    )
    resume_s: float = option(
        60.0,
        "number",
        "time for which a session without connection can be resumed, in seconds",
        low=0,
        high=86_400,
        metavar="SECONDS",
    )

    def __post_init__(self) -> None:
        check_fields(self)
        if self.tail_ms > self.silence_ms:
            raise OptionError(
                f"tail_ms is {self.tail_ms}; expected at most silence_ms ({self.silence_ms}),"
                " because the utterance ends after that silence"
            )
