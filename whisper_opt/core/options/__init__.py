"""The single list of options: the API, the command line and the docs are made from it.

Every option is validated here, once, and honoured everywhere or refused with a reason.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Union

from whisper_opt.core.errors import OptionError
from whisper_opt.core.options.fields import KINDS, check_fields, items, option
from whisper_opt.text.languages import AUTO

__all__ = [
    "DEVICES",
    "ENCODER_PRECISIONS",
    "KERNELS",
    "KINDS",
    "LIBRARIES",
    "PADDINGS",
    "STRATEGIES",
    "TASKS",
    "VAD_MODES",
    "LoadOptions",
    "SubtitleOptions",
    "TranscribeOptions",
    "VadOptions",
    "option_help",
]

TASKS = ("transcribe", "translate")
STRATEGIES = ("sequential", "batched")
VAD_MODES = ("off", "check", "cut")
DEVICES = ("auto", "cpu", "cuda", "tensorrt")
LIBRARIES = ("tensorrt", "tensorrt-rtx")
ENCODER_PRECISIONS = ("engine", "bf16", "int8", "auto")
PADDINGS = ("auto", "whole")
KERNELS = ("auto", "native", "off")


@dataclasses.dataclass(frozen=True)
class LoadOptions:
    """What an engine runs on; whether the machine has it is found out by ``whisper_opt.runtime.devices``.

    Raises:
        OptionError: a value is of the wrong type or out of range, or two contradict one another.
    """

    device: str = option(
        "auto",
        "text",
        "what computes: cpu; cuda: ONNX Runtime on an NVIDIA GPU; tensorrt: plans of this engine on"
        " an NVIDIA GPU; auto: the best of them that this machine and this engine can use",
        choices=DEVICES,
    )
    device_index: int = option(0, "integer", "which GPU, counted from 0", low=0, metavar="N")
    threads: Union[int, None] = option(
        None,
        "integer",
        "threads of what the CPU computes; default: one a physical core",
        low=1,
        metavar="N",
    )
    encoder_precision: str = option(
        "engine",
        "text",
        "what the CPU computes the encoder of an fp32 engine in: engine: as it was exported, the"
        " words of the reference; bf16, int8: through OpenVINO; auto: the most exact of them that"
        " is clearly faster on this CPU",
        choices=ENCODER_PRECISIONS,
    )
    padding: str = option(
        "auto",
        "text",
        "how much of the padding behind a short sound an engine of 8 or 4 bits hears: auto: one"
        " position for every part of it, twice as fast for ten seconds of sound; whole: all of it,"
        " as every other engine does",
        choices=PADDINGS,
    )
    kernels: str = option(
        "auto",
        "text",
        "what computes the 8-bit operators of int8 and int4 engines on the CPU: native: this"
        " library's compiled kernels, or a refusal where they cannot be used; off: ONNX Runtime;"
        " auto: the kernels where they can be used",
        choices=KERNELS,
    )
    cuda_graphs: Union[bool, None] = option(
        None,
        "flag",
        "with tensorrt: replay decoding steps as CUDA graphs; default: yes",
    )
    tensorrt_library: Union[str, None] = option(
        None,
        "text",
        "with tensorrt: which library; default: the first that works and has plans of the engine",
        choices=LIBRARIES,
    )
    build_plans: bool = option(
        False,
        "flag",
        "with tensorrt: build plans that are missing or stale; seconds to minutes, once",
    )
    tensorrt_provider: bool = option(
        False,
        "flag",
        "with cuda: let ONNX Runtime's TensorRT execution provider (TensorRT 10) run the encoder",
    )

    def __post_init__(self) -> None:
        check_fields(self)
        if self.device == "cpu" and self.device_index:
            raise OptionError(
                f"device_index is {self.device_index}, but device is 'cpu', of which there is one;"
                " leave it out, or choose cuda or tensorrt"
            )
        if self.device == "tensorrt" and self.threads is not None:
            raise OptionError(
                f"threads is {self.threads}, but device is 'tensorrt', where the CPU computes"
                " nothing; leave it out"
            )
        if self.encoder_precision != "engine" and self.device in ("cuda", "tensorrt"):
            raise OptionError(
                f"encoder_precision is {self.encoder_precision!r}, but device is {self.device!r},"
                " which computes in the precision of the engine; leave it out, or use device='cpu'"
            )
        if self.kernels == "native" and self.device in ("cuda", "tensorrt"):
            raise OptionError(
                f"kernels is 'native', but device is {self.device!r}, and they are the CPU's; leave"
                " it out, or use device='cpu'"
            )
        self._only("cuda_graphs", self.cuda_graphs is not None, "tensorrt")
        self._only("tensorrt_library", self.tensorrt_library is not None, "tensorrt")
        self._only("build_plans", self.build_plans, "tensorrt")
        self._only("tensorrt_provider", self.tensorrt_provider, "cuda")

    def _only(self, name: str, given: bool, device: str) -> None:
        if given and self.device != device:
            raise OptionError(
                f"{name} is given, but device is {self.device!r}; it works with {device!r} only"
            )


@dataclasses.dataclass(frozen=True)
class VadOptions:
    """How speech is told from other sound; the names and their meaning are Silero VAD's.

    Raises:
        OptionError: a value is of the wrong type or out of range.
    """

    threshold: float = option(
        0.35, "number", "probability from which a frame is speech", low=0, high=1, metavar="P"
    )
    min_speech_duration: float = option(
        0.1,
        "number",
        "stretches of speech shorter than this, in seconds, are dropped",
        low=0,
        high=30,
        metavar="SECONDS",
    )
    min_silence_duration: float = option(
        0.5,
        "number",
        "silences shorter than this, in seconds, do not end a stretch of speech",
        low=0,
        high=30,
        metavar="SECONDS",
    )
    speech_pad: float = option(
        0.2,
        "number",
        "seconds of sound kept on either side of speech",
        low=0,
        high=5,
        metavar="SECONDS",
    )
    max_speech_duration: float = option(
        30.0,
        "number",
        "longer stretches of speech, in seconds, are split at their longest silence",
        low=1,
        high=math.inf,
        metavar="SECONDS",
    )

    def __post_init__(self) -> None:
        check_fields(self)
        if self.min_speech_duration > self.max_speech_duration:
            raise OptionError(
                f"min_speech_duration is {self.min_speech_duration}; expected at most"
                f" max_speech_duration ({self.max_speech_duration})"
            )
        if self.max_speech_duration <= 2 * self.speech_pad + 0.1:
            raise OptionError(
                f"max_speech_duration is {self.max_speech_duration}; expected more than twice"
                f" speech_pad ({self.speech_pad}), which is part of every stretch"
            )


@dataclasses.dataclass(frozen=True)
class SubtitleOptions:
    """How words are laid out in subtitles; every option needs word times.

    Raises:
        OptionError: a value is of the wrong type or out of range, or two contradict one another.
    """

    highlight_words: bool = option(
        False,
        "flag",
        "mark each word as it is spoken: underlined in srt and vtt, karaoke in ass, timed in lrc",
    )
    max_line_width: Union[int, None] = option(
        None, "integer", "characters in a line of a subtitle at most", low=1, metavar="N"
    )
    max_line_count: Union[int, None] = option(
        None, "integer", "lines in a subtitle at most; needs max_line_width", low=1, metavar="N"
    )
    max_words_per_line: Union[int, None] = option(
        None,
        "integer",
        "words in a line of a subtitle at most; not together with max_line_width",
        low=1,
        metavar="N",
    )

    def __post_init__(self) -> None:
        check_fields(self)
        if self.max_line_count is not None and self.max_line_width is None:
            raise OptionError(
                f"max_line_count is {self.max_line_count}, but lines only end at max_line_width;"
                " give that too"
            )
        if self.max_words_per_line is not None and self.max_line_width is not None:
            raise OptionError(
                "max_words_per_line and max_line_width are both given; lines can be broken by one"
                " of them only"
            )

    @property
    def needs_words(self) -> bool:
        """Whether any option is set."""
        return self != SubtitleOptions()


def _vad(name: str) -> Any:
    """The field of :class:`TranscribeOptions` that stands for one of :class:`VadOptions`."""
    meta = VadOptions.__dataclass_fields__[name]
    return dataclasses.field(default=meta.default, metadata=meta.metadata)


@dataclasses.dataclass(frozen=True)
class TranscribeOptions:
    """How to transcribe one recording. Names and defaults are openai-whisper's where it has them.

    Raises:
        OptionError: a value is of the wrong type or out of range.
    """

    language: Union[str, None] = option(
        None,
        "text",
        "spoken language, by code or English name; default: detected in the first 30 s",
    )
    task: str = option(
        "transcribe", "text", "write what is said, or translate it to English", choices=TASKS
    )
    without_timestamps: bool = option(False, "flag", "sample text only, no segment times")
    max_initial_timestamp: Union[float, None] = option(
        1.0,
        "number",
        "latest start of the first segment of a window, in seconds",
        metavar="SECONDS",
        low=0,
        high=30,
        optional=True,
    )
    condition_on_previous_text: Union[bool, None] = option(
        None,
        "flag",
        "give each window the text before it as a prompt; default: yes, in batched mode that of the"
        " same stretch of speech",
    )
    initial_prompt: Union[str, None] = option(
        None,
        "text",
        "text the model takes as said before the first window: names, spelling, style",
    )
    carry_initial_prompt: bool = option(
        False, "flag", "put the initial prompt before every window, not the first only"
    )
    prefix: Union[str, None] = option(
        None, "text", "text that every window's answer must begin with"
    )
    hotwords: Union[str, None] = option(
        None, "text", "words to expect: put before the previous text in every window's prompt"
    )
    suppress_tokens: Union[Sequence[int], None] = option(
        (-1,),
        "integers",
        "token ids never to sample; -1 stands for the model's list of non-speech symbols",
        metavar="ID",
    )
    suppress_blank: bool = option(
        True, "flag", "do not let a window begin with a blank or end at once"
    )
    max_new_tokens: Union[int, None] = option(
        None,
        "integer",
        "tokens sampled per window at most; default: half the model's context",
        metavar="N",
        low=1,
    )
    repetition_penalty: float = option(
        1.0,
        "number",
        "divides the score of tokens already in the answer; above 1 discourages repetition",
        low=0.01,
        high=100,
        metavar="FACTOR",
    )
    no_repeat_ngram_size: int = option(
        0,
        "integer",
        "never repeat a run of N text tokens in an answer; 0: no limit",
        low=0,
        metavar="N",
    )
    temperature: Union[float, Sequence[float]] = option(
        (0.0, 0.2, 0.4, 0.6, 0.8, 1.0),
        "numbers",
        "sampling temperatures, tried in turn until an answer passes the thresholds; 0 always takes"
        " the likeliest",
        metavar="T",
    )
    beam_size: Union[int, None] = option(
        None,
        "integer",
        "hypotheses of beam search at temperature 0; default: greedy",
        metavar="N",
        low=1,
    )
    patience: Union[float, None] = option(
        None,
        "number",
        "beam search ends when beam_size * patience answers are complete; default: 1",
        metavar="FACTOR",
        low=0,
        high=1000,
    )
    length_penalty: Union[float, None] = option(
        None,
        "number",
        "exponent of Google NMT's length penalty, 0 to 1; default: the plain length",
        metavar="ALPHA",
        low=0,
        high=1,
    )
    best_of: Union[int, None] = option(
        None,
        "integer",
        "answers drawn above temperature 0, the best of which is kept",
        metavar="N",
        low=1,
    )
    seed: int = option(0, "integer", "seed of the draws above temperature 0", low=0, metavar="N")
    compression_ratio_threshold: Union[float, None] = option(
        2.4,
        "number",
        "text that compresses better than this repeats itself: try the next temperature",
        metavar="RATIO",
        low=0,
        high=math.inf,
        optional=True,
    )
    no_speech_threshold: Union[float, None] = option(
        0.6,
        "number",
        "skip a window whose no-speech probability exceeds this (unless its text is likely)",
        metavar="P",
        low=0,
        high=1,
        optional=True,
    )
    logprob_threshold: Union[float, None] = option(
        -1.0,
        "number",
        "mean log-probability below which a window's text is unlikely: try the next temperature",
        metavar="LOGPROB",
        low=-math.inf,
        high=0,
        optional=True,
    )
    clip_timestamps: Sequence[float] = option(
        (),
        "numbers",
        "start,end,start,end,... in seconds: transcribe these parts only; default: all",
        metavar="SECONDS",
    )

    word_timestamps: bool = option(False, "flag", "find when each word is spoken")
    prepend_punctuations: str = option(
        "\"'“¿([{-", "text", "punctuation that belongs to the word after it"
    )
    append_punctuations: str = option(
        "\"'.。,，!！?？:：”)]}、",  # noqa: RUF001 - full-width marks are meant
        "text",
        "punctuation that belongs to the word before it",
    )
    hallucination_silence_threshold: Union[float, None] = option(
        None,
        "number",
        "with word times: skip silences longer than this, in seconds, around text that was"
        " probably made up",
        low=0,
        high=math.inf,
        metavar="SECONDS",
    )
    multilingual: bool = option(
        False, "flag", "detect the language of every window: for recordings in several languages"
    )
    language_detection_segments: int = option(
        1, "integer", "windows of 30 s to look at until the language is sure", low=1, metavar="N"
    )
    language_detection_threshold: float = option(
        0.5, "number", "probability from which a language is sure", low=0, high=1, metavar="P"
    )
    strategy: str = option(
        "sequential",
        "text",
        "sequential: each window begins where the one before ended, as openai-whisper does;"
        " batched: stretches of speech are decoded side by side",
        choices=STRATEGIES,
    )
    batch_size: int = option(
        8,
        "integer",
        "windows decoded at once: batched mode, or several recordings",
        low=1,
        metavar="N",
    )
    vad: Union[str, None] = option(
        None,
        "text",
        "voice activity detection; off; check: drop text where nobody speaks; cut: transcribe only"
        " the speech; default: cut in batched mode without clip_timestamps, else check",
        choices=VAD_MODES,
    )
    vad_threshold: float = _vad("threshold")
    vad_min_speech_duration: float = _vad("min_speech_duration")
    vad_min_silence_duration: float = _vad("min_silence_duration")
    vad_speech_pad: float = _vad("speech_pad")
    vad_max_speech_duration: float = _vad("max_speech_duration")

    max_duration: float = option(
        86_400.0,
        "number",
        "refuse a recording that lasts longer, in seconds",
        low=0,
        high=math.inf,
        metavar="SECONDS",
    )
    max_audio_bytes: int = option(
        2 << 30,
        "integer",
        "refuse a recording of which more has to be held in memory, in bytes: samples of the"
        " sequential strategy (64,000 bytes per second), or what a pipe or file object gives",
        low=1,
        metavar="N",
    )
    strict_audio: bool = option(
        False,
        "flag",
        "refuse a recording that is damaged or cut off; default: put silence in place of what"
        " cannot be decoded, and log a warning",
    )

    def __post_init__(self) -> None:
        check_fields(self)
        self._check_search()
        self._check_suppress_tokens()
        self._check_clips()
        self._check_words()
        self._check_language()
        self._check_strategy()
        if self.carry_initial_prompt and self.initial_prompt is None:
            raise OptionError(
                "carry_initial_prompt is on without an initial_prompt to carry; give one"
            )

    @property
    def conditions(self) -> bool:
        """Whether a window is told the text that is known to come before it."""
        return self.condition_on_previous_text is not False

    @property
    def vad_mode(self) -> str:
        """``vad``, decided."""
        if self.vad is None:
            cut = self.strategy == "batched" and not self.clip_timestamps
            return "cut" if cut else "check"
        return self.vad

    @property
    def vad_options(self) -> VadOptions:
        """The options of voice activity detection."""
        names = [field.name for field in dataclasses.fields(VadOptions)]
        return VadOptions(**{name: getattr(self, f"vad_{name}") for name in names})

    @property
    def temperatures(self) -> tuple[float, ...]:
        """``temperature`` as a ladder of at least one."""
        given = self.temperature
        return (given,) if isinstance(given, float) else tuple(given)

    @property
    def reading(self) -> dict[str, Any]:
        """The arguments of ``load_audio`` and ``open_audio`` that are options."""
        names = ("max_duration", "max_audio_bytes", "strict_audio")
        return {name: getattr(self, name) for name in names}

    def for_speech(self, clip_timestamps: Sequence[float] = ()) -> TranscribeOptions:
        """The same options for sound already known to be speech: sequential, without VAD."""
        plain: dict[str, Any] = {
            f"vad_{field.name}": field.default for field in dataclasses.fields(VadOptions)
        }
        return dataclasses.replace(
            self,
            strategy="sequential",
            condition_on_previous_text=self.conditions,
            clip_timestamps=clip_timestamps,
            vad="off",
            **plain,
        )

    def _check_search(self) -> None:
        given = self.temperature
        ladder = (given,) if isinstance(given, (int, float)) else items(given)
        if not ladder or not all(
            isinstance(t, (int, float)) and not isinstance(t, bool) and 0 <= t <= 10 for t in ladder
        ):
            raise OptionError(f"temperature is {given!r}; expected numbers from 0 to 10")
        object.__setattr__(self, "temperature", tuple(float(t) for t in ladder))
        if self.beam_size is not None and 0 not in ladder:
            raise OptionError(
                "beam_size is given, but no temperature is 0, and beam search works at 0 only"
            )
        if self.best_of is not None and not any(t > 0 for t in ladder):
            raise OptionError(
                "best_of is given, but every temperature is 0, where all answers are the same;"
                " give a temperature above 0"
            )
        if self.patience is not None:
            if self.beam_size is None:
                raise OptionError(
                    f"patience is {self.patience!r}; without beam_size, expected None"
                )
            if round(self.beam_size * self.patience) < 1:
                raise OptionError(
                    f"patience is {self.patience}; with beam_size {self.beam_size} the search would"
                    " end before any answer"
                )

    def _check_words(self) -> None:
        if self.word_timestamps:
            return
        for name in (
            "prepend_punctuations",
            "append_punctuations",
            "hallucination_silence_threshold",
        ):
            if getattr(self, name) != _default(name):
                raise OptionError(f"{name} is given, but it needs word_timestamps; turn them on")

    def _check_language(self) -> None:
        if self.language is None or self.language.strip().lower() == AUTO:
            return
        for name in (
            "multilingual",
            "language_detection_segments",
            "language_detection_threshold",
        ):
            if getattr(self, name) != _default(name):
                raise OptionError(
                    f"{name} is given, but so is language ({self.language!r}), so that none is"
                    " detected; leave one of them out"
                )

    def _check_strategy(self) -> None:
        self.vad_options  # noqa: B018 - checks their ranges together
        if self.strategy == "batched":
            if self.condition_on_previous_text:
                raise OptionError(
                    "condition_on_previous_text is on, but in batched mode the text before a"
                    " stretch of speech is not known when it is decoded; leave the option out"
                    " (windows are told the text of their own stretch) or use the sequential"
                    " strategy"
                )
            if self.vad_mode != "cut" and not self.clip_timestamps:
                raise OptionError(
                    f"vad is {self.vad!r}, but batched mode needs to know where to cut; expected"
                    " 'cut', or clip_timestamps"
                )
        if self.vad_mode == "cut" and self.clip_timestamps:
            raise OptionError(
                "vad is 'cut' and clip_timestamps are given; only one of them can say what to"
                " transcribe: leave one out"
            )
        if self.vad_mode == "off":
            for name in (field.name for field in dataclasses.fields(VadOptions)):
                if getattr(self, f"vad_{name}") != _default(f"vad_{name}"):
                    raise OptionError(f"vad_{name} is given, but vad is 'off'; leave one out")

    def _check_suppress_tokens(self) -> None:
        value = self.suppress_tokens
        tokens = () if value is None else items(value)
        if tokens is None or not all(
            isinstance(token, int) and not isinstance(token, bool) and token >= -1
            for token in tokens
        ):
            raise OptionError(
                f"suppress_tokens is {value!r}; expected a sequence of token ids, where -1 stands"
                " for the non-speech symbols"
            )
        object.__setattr__(self, "suppress_tokens", tokens)

    def _check_clips(self) -> None:
        value = self.clip_timestamps
        seconds_given = items(value)
        if seconds_given is None or not all(
            isinstance(second, (int, float)) and not isinstance(second, bool)
            for second in seconds_given
        ):
            raise OptionError(
                f"clip_timestamps is {value!r}; expected a sequence of seconds: start, end, ..."
            )
        seconds = tuple(float(second) for second in seconds_given)
        if any(not math.isfinite(second) or second < 0 for second in seconds) or any(
            later <= sooner for sooner, later in zip(seconds[::2], seconds[1::2])
        ):
            raise OptionError(
                f"clip_timestamps is {list(seconds)}; expected non-negative seconds, every end"
                " after its start"
            )
        object.__setattr__(self, "clip_timestamps", seconds)


def _default(name: str) -> Any:
    return TranscribeOptions.__dataclass_fields__[name].default


def option_help() -> dict[str, str]:
    """Every option's explanation by name."""
    return {field.name: field.metadata["help"] for field in dataclasses.fields(TranscribeOptions)}
