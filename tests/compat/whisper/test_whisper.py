"""The interface of openai-whisper on a tiny random model."""

from __future__ import annotations

import inspect
import json
import types
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import whisper_opt.compat.whisper as whisper
from tests.support.engines import random_engine
from tests.support.models import random_dims
from whisper_opt import OptionError
from whisper_opt.compat.whisper import audio, tokenizer, utils

DATA = Path(__file__).parents[2] / "data"
ORIGINAL = json.loads((DATA / "signatures" / "openai_whisper.json").read_text("utf-8"))
QUICK: dict[str, Any] = {"fp16": False, "temperature": 0.0, "sample_len": 4}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> whisper.Whisper:
    engine = random_engine(tmp_path_factory.mktemp("engine") / "tiny", random_dims())
    return whisper.load_model(str(engine.path), device="cpu", threads=1)


@pytest.fixture(scope="module")
def samples() -> Any:
    return (np.random.default_rng(0).standard_normal(48_000) * 0.1).astype(np.float32)


class Tensor:
    """As much of a tensor as the functions use."""

    def __init__(self, values: Any) -> None:
        self._values = values

    def detach(self) -> Tensor:
        return self

    cpu = detach

    def numpy(self) -> Any:
        return self._values


# signatures


@pytest.mark.parametrize("name", ORIGINAL["functions"])
def test_arguments_and_defaults_are_the_originals(name: str) -> None:
    home: Any = {"get_writer": utils, "get_tokenizer": tokenizer}.get(name, whisper)
    found = {
        parameter.name: None
        if parameter.default is parameter.empty or parameter.name == "options"
        else repr(parameter.default)
        for parameter in inspect.signature(getattr(home, name)).parameters.values()
    }
    if name == "load_model":
        assert found.pop("options") is None  # further options of this library
    assert found == ORIGINAL["functions"][name]


EFFECTS: dict[str, Any] = {
    "task": "translate",
    "language": "de",
    "sample_len": 3,
    "best_of": 2,
    "beam_size": 2,
    "patience": 2.0,
    "length_penalty": 0.5,
    "prefix": "And",
    "suppress_tokens": "-1,220",
    "suppress_blank": False,
    "without_timestamps": True,
    "max_initial_timestamp": None,
    "fp16": False,
}


def test_every_decoding_option_is_accepted_by_transcribe(
    model: whisper.Whisper, samples: Any
) -> None:
    names = set(ORIGINAL["functions"]["DecodingOptions"])
    assert names - {*EFFECTS, "prompt", "temperature"} == set()
    result = model.transcribe(samples, temperature=(0.0, 0.5), **EFFECTS)
    assert list(result) == ["text", "segments", "language"]


@pytest.mark.parametrize(
    ("refused", "reason"),
    [({"prompt": "text"}, "initial_prompt"), ({"prefix": [300, 2]}, "not those of a text")],
)
def test_what_transcribe_refuses_is_named(
    refused: dict[str, Any], reason: str, model: whisper.Whisper, samples: Any
) -> None:
    with pytest.raises(OptionError, match=f"{next(iter(refused))} is .*{reason}"):
        model.transcribe(samples, fp16=False, **refused)


def test_an_unknown_option_is_a_type_error(model: whisper.Whisper, samples: Any) -> None:
    with pytest.raises(TypeError, match="beams"):
        model.transcribe(samples, beams=5)


# transcribe


def test_a_result_has_the_keys_of_the_original(model: whisper.Whisper, samples: Any) -> None:
    result = model.transcribe(samples, no_speech_threshold=None, word_timestamps=True, **QUICK)
    assert result["segments"]
    keys = "id seek start end text tokens temperature avg_logprob compression_ratio no_speech_prob"
    for segment in result["segments"]:
        assert list(segment) == [*keys.split(), "words"]
    assert result["text"] == "".join(segment["text"] for segment in result["segments"])


def test_the_language_is_returned_as_it_was_given(model: whisper.Whisper, samples: Any) -> None:
    assert model.transcribe(samples, language="German", **QUICK)["language"] == "German"


def test_a_tensor_is_transcribed_like_its_array(model: whisper.Whisper, samples: Any) -> None:
    assert model.transcribe(Tensor(samples), **QUICK) == model.transcribe(samples, **QUICK)


@pytest.mark.parametrize("given", ["1,2", [1, 2], (1.0, 2.0)])
def test_clips_are_text_or_numbers(given: Any, model: whisper.Whisper, samples: Any) -> None:
    found = model.transcribe(
        samples, clip_timestamps=given, no_speech_threshold=None, language="en", **QUICK
    )
    assert {segment["seek"] for segment in found["segments"]} == {100}


def test_verbose_prints_the_language_and_the_segments(
    model: whisper.Whisper, samples: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    result = model.transcribe(samples, verbose=True, no_speech_threshold=None, **QUICK)
    first, second, *lines = capsys.readouterr().out.splitlines()
    assert first.startswith("Detecting language using up to the first 30 seconds.")
    code = result["language"]
    assert second == f"Detected language: {tokenizer.LANGUAGES[code].title()}"
    printed = [segment for segment in result["segments"] if segment["text"]]
    assert [line.startswith("[00:0") and " --> " in line for line in lines] == [True] * len(lines)
    assert "\n".join(lines).count(" --> ") == len(printed)


def test_half_precision_on_a_cpu_warns(model: whisper.Whisper, samples: Any) -> None:
    with pytest.warns(UserWarning, match="FP16 is not supported on CPU"):
        model.transcribe(samples, temperature=0.0, sample_len=1, language="en")


def test_words_of_a_translation_warn(model: whisper.Whisper, samples: Any) -> None:
    with pytest.warns(UserWarning, match="may not be reliable"):
        model.transcribe(samples, task="translate", word_timestamps=True, **QUICK)


# windows


def test_windows_are_decoded_one_by_one_or_together(model: whisper.Whisper, samples: Any) -> None:
    mel = whisper.log_mel_spectrogram(whisper.pad_or_trim(samples)).to(model.device)
    options = whisper.DecodingOptions(sample_len=4, prompt=[50, 51], fp16=False)
    one = whisper.decode(model, mel, options)
    both = model.decode(np.stack([mel, mel]), options)
    assert isinstance(one, whisper.DecodingResult)
    assert both == [one, one]
    tokens, probs = model.detect_language(mel)
    assert one.language_probs is None
    assert one.language == max(probs, key=probs.__getitem__)
    assert tokens == tokenizer.get_tokenizer(True).to_language_token(one.language)


def test_language_identification_decodes_nothing(model: whisper.Whisper, samples: Any) -> None:
    mel = whisper.log_mel_spectrogram(whisper.pad_or_trim(samples))
    found = model.decode(Tensor(mel.astype(np.float16)), task="lang_id")
    assert isinstance(found, whisper.DecodingResult)
    assert found.tokens == []
    assert found.language_probs is not None
    assert sum(found.language_probs.values()) == pytest.approx(1, abs=1e-5)


def test_encoded_audio_is_refused(model: whisper.Whisper) -> None:
    with pytest.raises(OptionError, match=r"\[1, 1500, 128\]; expected \[n, 80, 3000\]"):
        model.decode(np.zeros((1500, 128), np.float32), language="en")


# the model


def test_the_model_describes_itself(model: whisper.Whisper) -> None:
    assert (model.device, model.device.type) == ("cpu", "cpu")
    assert (model.is_multilingual, model.num_languages) == (True, 99)
    assert model.dims.n_audio_state == 128
    assert model.to("cpu").eval().float().half() is model


def test_another_device_is_refused(model: whisper.Whisper) -> None:
    with pytest.raises(OptionError, match="device is 'cuda:0', but this model was loaded on cpu"):
        model.to("cuda:0")
    with pytest.raises(OptionError, match="device is 'mps', for which there is no backend"):
        whisper.load_model("tiny", device="mps")


def test_parts_of_a_torch_module_are_refused(model: whisper.Whisper) -> None:
    with pytest.raises(AttributeError, match="no 'encoder': it is no torch module"):
        model.encoder  # noqa: B018


# audio


def test_a_path_and_its_samples_have_the_same_spectrogram() -> None:
    path = str(DATA / "speech" / "en" / "en-ls-1998-15444-0000.flac")
    samples = audio.load_audio(path)
    assert samples.dtype == np.float32
    assert np.array_equal(audio.log_mel_spectrogram(path), audio.log_mel_spectrogram(samples))


def test_another_rate_is_refused() -> None:
    with pytest.raises(OptionError, match="sr is 8000; expected 16000"):
        audio.load_audio("talk.wav", sr=8000)


@pytest.mark.parametrize(("length", "axis"), [(3, -1), (9, -1), (1, 0), (4, 0)])
def test_arrays_are_padded_or_trimmed(length: int, axis: int) -> None:
    given = np.arange(10.0).reshape(2, 5)
    found = audio.pad_or_trim(given, length, axis=axis)
    assert found.shape[axis] == length
    kept = tuple(slice(0, min(a, b)) for a, b in zip(given.shape, found.shape))
    assert np.array_equal(found[kept], given[kept])
    assert found.sum() == given[kept].sum()


# vocabularies


def test_a_tokenizer_is_that_of_the_loaded_model(model: whisper.Whisper) -> None:
    found = tokenizer.get_tokenizer(True, language="German", task="translate")
    assert found.sot_sequence == (found.sot, found.to_language_token("de"), found.translate)
    ids = [found.timestamp_begin, *found.encode(" A"), found.timestamp_begin + 54]
    assert found.decode(ids) == " A"
    assert found.decode_with_timestamps(ids) == "<|0.00|> A<|1.08|>"
    assert len(found.all_language_codes) == len(found.all_language_tokens) == 99


def test_a_vocabulary_that_was_not_loaded_is_refused(model: whisper.Whisper) -> None:
    with pytest.raises(OptionError, match="no multilingual model with 98 languages was loaded"):
        tokenizer.get_tokenizer(True, num_languages=98)
    with pytest.raises(OptionError, match="Unsupported language: klingon"):
        tokenizer.get_tokenizer(True, language="klingon")


# writers


@pytest.mark.parametrize("form", ["txt", "vtt", "srt", "tsv", "json"])
def test_files_are_those_of_the_original(form: str, tmp_path: Path) -> None:
    case = json.loads((DATA / "whisper_command.json").read_text("utf-8"))["cases"][0]
    result = json.loads(case["files"]["json"])
    utils.get_writer("all", str(tmp_path))(result, "some/talk.mp3", {})
    assert (tmp_path / f"talk.{form}").read_text("utf-8") == case["files"][form]


def test_options_without_effect_are_ignored(tmp_path: Path) -> None:
    result = {"segments": [{"start": 0.0, "end": 1.0, "text": " A"}], "text": " A"}
    writer = utils.get_writer("srt", str(tmp_path))
    writer(result, "a.wav", {"max_line_width": 5}, max_line_count=2, highlight_words=True)
    assert (tmp_path / "a.srt").read_text() == "1\n00:00:00,000 --> 00:00:01,000\nA\n\n"


def test_an_unknown_format_is_refused() -> None:
    with pytest.raises(OptionError, match="output_format is 'doc'; expected all, txt"):
        utils.get_writer("doc", ".")


def test_modules_are_imported_as_those_of_the_original() -> None:
    for name in ("audio", "decoding", "model", "tokenizer", "utils"):
        assert isinstance(getattr(whisper, name), types.ModuleType)


def test_importing_warns_of_nothing() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert utils.str2bool("True")
        assert utils.optional_int("None") is None
        assert utils.optional_float("0.5") == 0.5
        assert utils.format_timestamp(3661.5, decimal_marker=",") == "01:01:01,500"
