"""Arguments of ``generate`` that have no effect here, or are refused unless they are off."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import whisper_opt

__all__ = ["check_unused", "number"]

_IDLE = frozenset(
    {
        # about how torch computes
        *("use_cache", "cache_implementation", "cache_config", "max_cache_len", "compile_config"),
        *("disable_compile", "prefill_chunk_size", "low_memory", "synced_gpus", "use_mtp"),
        *("continuous_batching_config", "remove_invalid_values"),
        # about what generate returns, which the pipeline does not
        *("output_attentions", "output_hidden_states", "output_scores", "output_logits"),
        *("return_dict_in_generate", "return_segments", "return_token_timestamps"),
        # chosen by the temperature, or without a meaning for this model; ignored there as well
        *("do_sample", "pad_token_id", "transformers_version"),
        # about assisted decoding, without an assistant
        *("is_assistant", "num_assistant_tokens", "num_assistant_tokens_schedule"),
        *("assistant_confidence_threshold", "assistant_lookbehind", "target_lookbehind"),
        *("assistant_early_exit", "assistant_ensemble_weight", "speculation_type"),
        *("max_matching_ngram_size", "token_healing"),
    }
)
_SAMPLING = "samples are drawn from all tokens here; use temperature alone"
_SEARCH = "beam search here is openai-whisper's; use num_beams and length_penalty"
_SCORES = "scores are not changed here; use suppress_tokens, repetition_penalty or" + (
    " no_repeat_ngram_size"
)
_ENDING = "a result ends with the end of text; use max_new_tokens, or cut the text"
_FEATURES = "the pipeline computes it from the recording; leave it out"
_PROMPT = "the prompt is that of the model; use language, task and prompt_ids"
_CALLBACK = "no code of the caller runs while decoding"
_REFUSED: Mapping[str, tuple[str, tuple[Any, ...]]] = {
    **dict.fromkeys(("top_k",), (_SAMPLING, (0,))),
    **dict.fromkeys(("top_p", "typical_p"), (_SAMPLING, (1.0,))),
    **dict.fromkeys(("min_p", "top_h", "epsilon_cutoff", "eta_cutoff"), (_SAMPLING, (0.0,))),
    "early_stopping": (
        "beam search ends when num_beams hypotheses are complete; expected True or False",
        (True, False),
    ),
    "num_beam_groups": (_SEARCH, (1,)),
    "diversity_penalty": (_SEARCH, (0.0,)),
    "num_return_sequences": ("a recording has one result; call again for another", (1,)),
    **dict.fromkeys(("constraints", "force_words_ids", "penalty_alpha"), (_SEARCH, ())),
    "dola_layers": (_SEARCH, ()),
    "encoder_repetition_penalty": (_SCORES, (1.0,)),
    "encoder_no_repeat_ngram_size": (_SCORES, (0,)),
    "renormalize_logits": (_SCORES, (False,)),
    "guidance_scale": (_SCORES, (1.0, 1)),
    **dict.fromkeys(("bad_words_ids", "sequence_bias", "watermarking_config"), (_SCORES, ())),
    "exponential_decay_length_penalty": (_SCORES, ()),
    **dict.fromkeys(("min_length", "min_new_tokens"), (_ENDING, (0,))),
    **dict.fromkeys(("max_time", "stop_strings", "forced_eos_token_id"), (_ENDING, ())),
    **dict.fromkeys(("input_features", "attention_mask", "encoder_outputs"), (_FEATURES, ())),
    "time_precision": (_FEATURES, (0.02,)),
    "time_precision_features": (_FEATURES, (0.01,)),
    "num_segment_frames": (_FEATURES, (3000,)),
    **dict.fromkeys(("forced_decoder_ids", "decoder_input_ids"), (_PROMPT, ())),
    "forced_bos_token_id": (_PROMPT, ()),
    "force_unique_generate_call": (
        "every window of a recording is decoded; give parts of 30 s for one window each",
        (False,),
    ),
    "prompt_lookup_num_tokens": ("there is no assisted decoding here; leave it out", ()),
    **dict.fromkeys(
        ("logits_processor", "stopping_criteria", "prefix_allowed_tokens_fn"),
        (f"{_CALLBACK}; use suppress_tokens, or another argument", ()),
    ),
    "monitor_progress": (
        f"{_CALLBACK}; use whisper_opt.Whisper.transcribe with on_progress",
        (),
    ),
    "generation_config": ("it is not read; give its fields in generate_kwargs", ()),
}
"""The reason and the alternative, and the values beside None that are accepted."""
_IDS = {"decoder_start_token_id": "sot", "bos_token_id": "eot", "eos_token_id": "eot"}
"""Ids that must be those of the vocabulary."""


def check_unused(given: Mapping[str, Any], vocab: Any, known: Sequence[str]) -> None:
    """Check the arguments of ``generate`` that no option of this library honours.

    Args:
        given: arguments by name.
        vocab: vocabulary of the model.
        known: names of the arguments that are honoured.

    Raises:
        OptionError: one would change the result, or is unknown.
    """
    for name, value in given.items():
        if name in _IDS:
            _check_id(name, value, getattr(vocab, _IDS[name]))
        elif name in _REFUSED:
            reason, accepted = _REFUSED[name]
            if value is not None and not any(
                value is a or (number(value) and value == a) for a in accepted
            ):
                raise whisper_opt.OptionError(f"{name} is {_shown(value)}, but {reason}")
        elif name not in _IDLE:
            raise whisper_opt.OptionError(
                f"{name} is given, which is no argument of the pipeline or of Whisper's generate;"
                f" expected one of {', '.join(known)}"
            )


def _check_id(name: str, value: Any, own: int) -> None:
    values = value if isinstance(value, (list, tuple)) else [value]
    if any(each not in (None, own) for each in values):
        raise whisper_opt.OptionError(
            f"{name} is {value}, but that of this model is {own}; leave it out"
        )


def _shown(value: Any) -> str:
    """The value in short."""
    return repr(value) if isinstance(value, (int, float, str)) else f"a {type(value).__name__}"


def number(value: Any) -> bool:
    """Whether ``value`` is a number, not True or False."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)
