"""Every argument of transformers' pipeline is mapped, without effect, or refused by name."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import whisper_opt
import whisper_opt.integrations.transformers as integration
from tests.support.engines import random_engine
from tests.support.models import random_dims
from tests.support.signatures import Argument, arguments_of, check_argument, originals
from whisper_opt import OptionError

ORIGINALS = originals("transformers")
TASK = "automatic-speech-recognition"
SECOND = np.zeros(16_000, np.float32)
MINUTE = np.zeros(960_000, np.float32)
CONFIG = "transformers:GenerationConfig"
GENERATE = "transformers:WhisperForConditionalGeneration.generate"
CALLED = "transformers:AutomaticSpeechRecognitionPipeline._sanitize_parameters"
IN_MEMORY = object()
TIMED = {"return_timestamps": True}
LONG: dict[str, Any] = {"inputs": MINUTE}
SAMPLED = {"temperature": (0.0, 0.5)}


@pytest.mark.parametrize(
    "path",
    [
        "transformers:pipeline",
        "transformers:AutomaticSpeechRecognitionPipeline.__init__",
        "transformers:AutomaticSpeechRecognitionPipeline.__call__",
    ],
)
def test_arguments_and_defaults_are_the_originals(path: str) -> None:
    function: Any = integration
    for part in path.partition(":")[2].split("."):
        function = getattr(function, part)
    assert arguments_of(function) == ORIGINALS[path]


# a recording fake of the public API


class Recorder:
    """What the public API receives in one call."""

    def __init__(self) -> None:
        self.seen: dict[str, Any] = {}

    def load(self, source: Any, **options: Any) -> Any:
        self.seen.update(options, source=source)
        return self.model

    def transcribe_many(
        self, audios: Iterator[Any], *, options: Iterator[Any], batch_size: int | None
    ) -> Iterator[tuple[int, whisper_opt.Transcript]]:
        for i, samples in enumerate(audios):
            self.seen.update(dataclasses.asdict(next(options)))
            self.seen.update(n_samples=len(samples), together=batch_size)
            word = whisper_opt.Word(0.1, 0.5, " Hi", 1.0)
            begin = self.model.vocab.timestamp_begin
            segment = whisper_opt.Segment(
                0, 0.0, 0.5, " Hi", (begin, 1, begin + 25), 0, 0, 1, 0, 0, words=(word,)
            )
            yield i, whisper_opt.Transcript((segment,), "de", 1.0, " Hi")

    model: Any


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> whisper_opt.Whisper:
    engine = random_engine(tmp_path_factory.mktemp("engine") / "tiny", random_dims())
    return whisper_opt.Whisper.load(engine.path, device="cpu", threads=1)


@pytest.fixture
def recorder(real: whisper_opt.Whisper, monkeypatch: pytest.MonkeyPatch) -> Recorder:
    found = Recorder()
    found.model = types.SimpleNamespace(
        vocab=real.vocab,
        dims=real.dims,
        device="cpu",
        engine=real.engine,
        is_multilingual=True,
        transcribe_many=found.transcribe_many,
    )
    monkeypatch.setattr(whisper_opt.Whisper, "load", found.load)
    return found


# loading

LOADING = (
    Argument("task", TASK),
    Argument("task", "translation", refused="or transformers itself"),
    Argument("model", "openai/whisper-tiny", {"source": "openai/whisper-tiny"}),
    Argument("model", IN_MEMORY, {"source": IN_MEMORY}),
    Argument("config", "base"),
    Argument("config", "other", refused="an engine has its own"),
    Argument("tokenizer", object()),
    Argument("tokenizer", "other", refused="whisper-opt export"),
    Argument("feature_extractor", object()),
    Argument("feature_extractor", "other", refused="an engine has its own"),
    Argument("processor", object()),
    Argument("processor", "other", refused="an engine has its own"),
    Argument("image_processor", object(), refused="no images"),
    Argument("video_processor", object(), refused="no video"),
    Argument("revision", "main", {"revision": "main"}),
    Argument("use_fast", False),
    Argument("token", True),
    Argument("token", "hf_secret", refused="HF_TOKEN"),
    Argument("token", False, refused="HF_HUB_DISABLE_IMPLICIT_TOKEN"),
    Argument("device", -1, {"device": "cpu"}),
    Argument("device", 0, {"device": "auto"}),
    Argument("device", 1, {"device": "auto", "device_index": 1}),
    Argument("device", "cuda:1", {"device": "cuda", "device_index": 1}),
    Argument("device", "mps", refused="expected 'cpu', 'cuda', 'cuda:1'"),
    Argument("device_map", "auto", {"device": "auto"}),
    Argument("device_map", {"": 0}, {"device": "auto"}),
    Argument("device_map", {"model.encoder": 0}, refused="runs on one device"),
    Argument("device_map", "auto", refused="leave one of them out", given={"device": 0}),
    Argument("dtype", "float32", {"precision": "fp32"}),
    Argument("dtype", "float16", {"precision": "fp16"}),
    Argument("dtype", "bfloat16", refused="no engine is exported"),
    Argument("torch_dtype", "float32", {"precision": "fp32"}),
    Argument("trust_remote_code", True),
    Argument("model_kwargs", {"attn_implementation": "sdpa", "low_cpu_mem_usage": True}),
    Argument(
        "model_kwargs", {"precision": "int8", "threads": 2}, {"precision": "int8", "threads": 2}
    ),
    Argument("model_kwargs", {"torch_dtype": "float16"}, {"precision": "fp16"}),
    Argument("model_kwargs", {"cache_dir": "cache"}, {"cache_dir": "cache"}),
    Argument("model_kwargs", {"load_in_8bit": True}, refused="'int8' or 'int4'"),
    Argument("model_kwargs", {"max_memory": {}}, refused="load option of this library"),
    Argument("pipeline_class", integration.AutomaticSpeechRecognitionPipeline),
    Argument("pipeline_class", object, refused="other classes run torch"),
    # arguments of the class and of Pipeline
    Argument("decoder", object(), refused="language model for CTC"),
    Argument("binary_output", True),
    Argument("local_files_only", True, {"local_files_only": True}),
    Argument("framework", "pt"),
    Argument("framework", "tf", refused="ONNX Runtime or TensorRT"),
    Argument("assistant_model", object(), refused="no assisted decoding"),
    Argument("num_workers", 2),
)


@pytest.mark.parametrize("argument", LOADING, ids=str)
def test_arguments_of_a_pipeline(argument: Argument, recorder: Recorder) -> None:
    def call(**given: Any) -> Mapping[str, Any]:
        recorder.seen = {}
        integration.pipeline(**{"task": TASK, "model": "base", **given})
        return recorder.seen

    check_argument(argument, call)


def test_a_token_is_not_in_the_message(recorder: Recorder) -> None:
    with pytest.raises(OptionError) as caught:
        integration.pipeline(TASK, "base", token="hf_secret")
    assert "hf_secret" not in str(caught.value)


def test_a_model_is_needed(recorder: Recorder) -> None:
    with pytest.raises(OptionError, match=r"model is None.*expected a short name"):
        integration.pipeline(TASK)


def test_a_directory_has_no_revision(recorder: Recorder, tmp_path: Path) -> None:
    integration.pipeline(TASK, str(tmp_path), revision="main")
    assert "revision" not in recorder.seen


def test_a_loaded_model_is_used_as_it_is(real: whisper_opt.Whisper) -> None:
    assert integration.pipeline(TASK, real, device="cpu", dtype="auto").model is real
    with pytest.raises(OptionError, match="device is 'cuda' for a model that is loaded already"):
        integration.pipeline(TASK, real, device="cuda")
    with pytest.raises(OptionError, match=r"precision is 'fp16'.*Whisper\.load"):
        integration.pipeline(TASK, real, dtype="float16")


# calls

WORD = {"text": " Hi", "timestamp": (0.1, 0.5)}
CALLING = (
    Argument("inputs", MINUTE, {"n_samples": 960_000, "without_timestamps": False}),
    Argument(
        "chunk_length_s",
        20,
        {
            "strategy": "batched",
            "vad": "cut",
            "vad_max_speech_duration": 20.0,
            "without_timestamps": True,
        },
        given=LONG,
    ),
    Argument("chunk_length_s", 30),  # the recording is shorter
    Argument("chunk_length_s", 0, given=LONG),
    Argument("chunk_length_s", 60, refused="a model hears 30 s"),
    Argument("stride_length_s", (4, 2)),
    Argument("ignore_warning", True),
    Argument("decoder_kwargs", {}, refused="language model for CTC"),
    Argument(
        "return_timestamps",
        True,
        {
            "without_timestamps": False,
            "output": {"text": " Hi", "chunks": [{"timestamp": (0.0, 0.5), "text": " Hi"}]},
        },
    ),
    Argument(
        "return_timestamps",
        "word",
        {
            "without_timestamps": False,
            "word_timestamps": True,
            "prepend_punctuations": "\"'“¡¿([{-",
            "output": {"text": " Hi", "chunks": [WORD]},
        },
    ),
    Argument("return_timestamps", "char", refused="True for segments, 'word', or False"),
    Argument(
        "return_language",
        True,
        {"output": {"text": " Hi", "chunks": [{"language": "german", "text": " Hi"}]}},
    ),
    Argument("batch_size", 4, {"together": 4, "batch_size": 4}),
    Argument("num_workers", 2),
    Argument("generate_kwargs", {"task": "translate"}, {"task": "translate"}),
    Argument("task", "translate", {"task": "translate"}),
    Argument("unheard_of", 1, refused="no argument of the pipeline or of Whisper's generate"),
)


def _called(recorder: Recorder, **given: Any) -> Mapping[str, Any]:
    pipeline = integration.pipeline(TASK, "base")
    recorder.seen = {}
    output = pipeline(**{"inputs": SECOND, **given})
    return {**recorder.seen, "output": output}


@pytest.mark.parametrize("argument", CALLING, ids=str)
def test_arguments_of_a_call(argument: Argument, recorder: Recorder) -> None:
    check_argument(argument, lambda **given: _called(recorder, **given))


def test_arguments_of_a_pipeline_are_those_of_its_calls(recorder: Recorder) -> None:
    given = {"task": "translate", "num_beams": 1}
    pipeline = integration.pipeline(
        TASK, "base", batch_size=4, generate_kwargs=given, return_timestamps=True
    )
    assert pipeline(SECOND)["chunks"] == [{"timestamp": (0.0, 0.5), "text": " Hi"}]
    assert (recorder.seen["task"], recorder.seen["batch_size"]) == ("translate", 4)
    assert pipeline(SECOND, return_timestamps=False, num_beams=3) == {"text": " Hi"}
    assert recorder.seen["beam_size"] == 3
    pipeline(SECOND, generate_kwargs={"num_beams": 4})
    assert {**recorder.seen, "task": "translate", "beam_size": 4} == recorder.seen
    with pytest.raises(OptionError, match="top_k is 10"):
        integration.pipeline(TASK, "base", top_k=10)


# generate


def _beams(real: whisper_opt.Whisper) -> list[int]:
    return sorted({*real.vocab.encode(" "), real.vocab.eot})


NO_EFFECT: Mapping[str, Any] = {
    "synced_gpus": True,
    "return_segments": True,
    "return_dict_in_generate": True,
    "return_token_timestamps": True,
    "do_sample": True,
    "use_mtp": True,
    "use_cache": False,
    "cache_implementation": "static",
    "cache_config": {},
    "max_cache_len": 9,
    "remove_invalid_values": True,
    "token_healing": True,
    "output_attentions": True,
    "output_hidden_states": True,
    "output_scores": True,
    "output_logits": True,
    "pad_token_id": 1,
    "is_assistant": True,
    "num_assistant_tokens": 3,
    "num_assistant_tokens_schedule": "constant",
    "assistant_confidence_threshold": 0.4,
    "max_matching_ngram_size": 2,
    "assistant_early_exit": 1,
    "assistant_lookbehind": 1,
    "target_lookbehind": 1,
    "assistant_ensemble_weight": 0.5,
    "speculation_type": "x",
    "compile_config": object(),
    "disable_compile": True,
    "continuous_batching_config": object(),
    "low_memory": True,
    "prefill_chunk_size": 1,
    "transformers_version": "5",
    "early_stopping": True,
    "num_beam_groups": 1,
    "num_return_sequences": 1,
    "top_k": 0,
    "top_p": 1.0,
    "time_precision": 0.02,
    "num_segment_frames": 3000,
}
REFUSED: Mapping[str, tuple[Any, str]] = {
    "input_features": (SECOND, "computes it from the recording"),
    "attention_mask": (SECOND, "computes it from the recording"),
    "num_segment_frames": (1500, "computes it from the recording"),
    "time_precision": (0.04, "computes it from the recording"),
    "time_precision_features": (0.02, "computes it from the recording"),
    "generation_config": (object(), "in generate_kwargs"),
    "logits_processor": ([], "suppress_tokens"),
    "stopping_criteria": ([], "no code of the caller"),
    "prefix_allowed_tokens_fn": (print, "no code of the caller"),
    "monitor_progress": (print, "on_progress"),
    "force_unique_generate_call": (True, "give parts of 30 s"),
    "min_length": (3, "use max_new_tokens"),
    "min_new_tokens": (3, "use max_new_tokens"),
    "max_time": (1.0, "use max_new_tokens"),
    "stop_strings": (["."], "use max_new_tokens"),
    "early_stopping": ("never", "num_beams hypotheses are complete"),
    "top_k": (10, "use temperature alone"),
    "top_p": (0.9, "use temperature alone"),
    "min_p": (0.1, "use temperature alone"),
    "top_h": (0.1, "use temperature alone"),
    "typical_p": (0.9, "use temperature alone"),
    "epsilon_cutoff": (0.1, "use temperature alone"),
    "eta_cutoff": (0.1, "use temperature alone"),
    "encoder_repetition_penalty": (2.0, "repetition_penalty"),
    "encoder_no_repeat_ngram_size": (2, "no_repeat_ngram_size"),
    "bad_words_ids": ([[1]], "suppress_tokens"),
    "renormalize_logits": (True, "suppress_tokens"),
    "forced_bos_token_id": (1, "language, task and prompt_ids"),
    "forced_eos_token_id": (1, "use max_new_tokens"),
    "exponential_decay_length_penalty": ((1, 1.1), "suppress_tokens"),
    "sequence_bias": ({(1,): 1.0}, "suppress_tokens"),
    "guidance_scale": (2.0, "suppress_tokens"),
    "watermarking_config": (object(), "suppress_tokens"),
    "num_return_sequences": (2, "call again"),
    "bos_token_id": (1, "that of this model"),
    "eos_token_id": (1, "that of this model"),
    "decoder_start_token_id": (1, "that of this model"),
    "prompt_lookup_num_tokens": (3, "no assisted decoding"),
    "penalty_alpha": (0.6, "num_beams and length_penalty"),
    "dola_layers": ("low", "num_beams and length_penalty"),
    "diversity_penalty": (0.5, "num_beams and length_penalty"),
    "num_beam_groups": (2, "num_beams and length_penalty"),
    "constraints": ([], "num_beams and length_penalty"),
    "force_words_ids": ([[1]], "num_beams and length_penalty"),
}
MAPPED = (
    Argument("task", "translate", {"task": "translate"}),
    Argument("language", "german", {"language": "german"}),
    Argument("language", "<|de|>", {"language": "de"}),
    Argument("language", ["de", "fr"], refused="call once per language"),
    Argument("is_multilingual", True),
    Argument("is_multilingual", False, refused="this model is multilingual"),
    Argument("prompt_ids", "Quilter", {"initial_prompt": "Quilter", "carry_initial_prompt": True}),
    Argument("prompt_ids", [5, 6, 7], refused="a text after a space"),
    Argument(
        "prompt_condition_type",
        "all-segments",
        {"carry_initial_prompt": True},
        given={"prompt_ids": "Quilter", "condition_on_prev_tokens": True},
    ),
    Argument("prompt_condition_type", "all-segments", refused="needs condition_on_prev_tokens"),
    Argument("prompt_condition_type", "first", refused="'first-segment' or 'all-segments'"),
    Argument("condition_on_prev_tokens", True, {"condition_on_previous_text": True}),
    Argument(
        "temperature",
        (0.0, 0.5),
        {
            "temperature": (0.0, 0.5),
            "compression_ratio_threshold": None,
            "logprob_threshold": None,
        },
    ),
    Argument(
        "compression_ratio_threshold", 1.35, {"compression_ratio_threshold": 2.4}, given=SAMPLED
    ),
    Argument("compression_ratio_threshold", 1.35),  # one temperature: nothing is decided
    Argument("logprob_threshold", -0.5, {"logprob_threshold": -0.5}, given=SAMPLED),
    Argument("no_speech_threshold", 0.4, {"no_speech_threshold": 0.4}, given=SAMPLED),
    Argument("num_beams", 1, {"beam_size": None}),
    Argument("num_beams", 3, {"beam_size": 3}),
    Argument("length_penalty", 0.0, {"length_penalty": 0.0}),
    Argument("length_penalty", 1.0),
    Argument("length_penalty", 0.6, refused="Google NMT"),
    Argument("repetition_penalty", 1.2, {"repetition_penalty": 1.2}),
    Argument("no_repeat_ngram_size", 3, {"no_repeat_ngram_size": 3}),
    Argument("max_new_tokens", 7, {"max_new_tokens": 7}),
    Argument("max_length", 7, {"max_new_tokens": 7}),
    Argument("suppress_tokens", [5, 6], {"suppress_tokens": (5, 6)}),
    Argument("suppress_tokens", [], {"suppress_tokens": ()}),
    Argument("begin_suppress_tokens", [], {"suppress_blank": False}),
    Argument("begin_suppress_tokens", [5], refused="use suppress_tokens for others"),
    Argument("max_initial_timestamp_index", 25, {"max_initial_timestamp": 0.5}, given=TIMED),
    Argument("return_timestamps", True, {"without_timestamps": False}),  # the text only
    *(Argument(name, value) for name, value in NO_EFFECT.items()),
    *(Argument(name, value, refused=reason) for name, (value, reason) in REFUSED.items()),
)


@pytest.mark.parametrize("argument", MAPPED, ids=str)
def test_arguments_of_generate(argument: Argument, recorder: Recorder) -> None:
    def call(**given: Any) -> Mapping[str, Any]:
        return _called(recorder, generate_kwargs=given)

    check_argument(argument, call)


def test_ids_of_the_model_are_accepted(recorder: Recorder, real: whisper_opt.Whisper) -> None:
    vocab = real.vocab
    _called(
        recorder,
        decoder_start_token_id=vocab.sot,
        eos_token_id=[vocab.eot],
        begin_suppress_tokens=_beams(real),
    )
    assert recorder.seen["suppress_blank"] is True


def test_the_prompt_may_be_what_the_tokenizer_returns(recorder: Recorder) -> None:
    pipeline = integration.pipeline(TASK, "base")
    ids = pipeline.tokenizer.get_prompt_ids("Mr. Quilter")
    pipeline(SECOND, prompt_ids=ids, condition_on_prev_tokens=True)
    assert recorder.seen["initial_prompt"].strip() == "Mr. Quilter"
    assert recorder.seen["carry_initial_prompt"] is False


# all of them


def _left_out(cases: tuple[Argument, ...], *paths: str) -> set[str]:
    """Arguments of the originals that no case is about."""
    names = {name for path in paths for name in ORIGINALS[path] if name[0] not in "*_"}
    return names - {case.name for case in cases}


@pytest.mark.parametrize(
    ("cases", "paths"),
    [
        (
            LOADING,
            (
                "transformers:pipeline",
                "transformers:Pipeline.__init__",
                "transformers:AutomaticSpeechRecognitionPipeline.__init__",
            ),
        ),
        (
            CALLING,
            (
                CALLED,
                "transformers:AutomaticSpeechRecognitionPipeline.__call__",
                "transformers:AutomaticSpeechRecognitionPipeline.preprocess",
                "transformers:Pipeline.__call__",
            ),
        ),
        (MAPPED, (GENERATE, CONFIG)),
    ],
    ids=["loading", "calling", "generate"],
)
def test_every_argument_has_a_case(cases: tuple[Argument, ...], paths: tuple[str, ...]) -> None:
    assert _left_out(cases, *paths) == set()


def test_the_docs_say_what_every_argument_does() -> None:
    docs = (Path(__file__).parents[3] / "docs" / "compat.md").read_text("utf-8")
    listed = docs.split("## transformers")[1]
    for name in {case.name for case in (*LOADING, *CALLING, *MAPPED)} - {"inputs", "unheard_of"}:
        assert f"`{name}`" in listed, name


def test_engines_of_8_bits_are_not_given_the_silence_after_a_recording(recorder: Recorder) -> None:
    padded = _called(recorder)["n_samples"]
    manifest = dataclasses.replace(recorder.model.engine.manifest, precision="int8")
    recorder.model.engine = types.SimpleNamespace(manifest=manifest)
    assert (padded, _called(recorder)["n_samples"]) == (480_000, 16_000)
