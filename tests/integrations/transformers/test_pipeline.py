"""transformers' speech recognition pipeline on a tiny random model."""

from __future__ import annotations

import inspect
import io
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import whisper_opt
from tests.support.engines import random_engine
from tests.support.models import random_dims
from whisper_opt import AudioError, OptionError
from whisper_opt.integrations.transformers import AutomaticSpeechRecognitionPipeline, pipeline

TASK = "automatic-speech-recognition"
JFK = Path(__file__).parents[2] / "data" / "speech" / "formats" / "jfk-16k-mono-s16.wav"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> whisper_opt.Whisper:
    engine = random_engine(tmp_path_factory.mktemp("engine") / "tiny", random_dims())
    return whisper_opt.Whisper.load(engine.path, device="cpu", threads=1)


@pytest.fixture(scope="module")
def transcriber(model: whisper_opt.Whisper) -> AutomaticSpeechRecognitionPipeline:
    return pipeline(TASK, model, num_beams=1, max_new_tokens=8)


@pytest.fixture(scope="module")
def samples() -> Any:
    return whisper_opt.load_audio(JFK)


def direct(model: whisper_opt.Whisper, samples: Any, **options: Any) -> whisper_opt.Transcript:
    """The library itself, on a whole window."""
    padded = np.pad(samples, (0, 480_000 - len(samples)))
    return model.transcribe(
        padded,
        vad="off",
        temperature=0.0,
        max_new_tokens=8,
        condition_on_previous_text=False,
        no_speech_threshold=None,
        **options,
    )


# results


def test_text(
    transcriber: AutomaticSpeechRecognitionPipeline, model: whisper_opt.Whisper, samples: Any
) -> None:
    expected = direct(model, samples, without_timestamps=True).text
    assert expected
    assert transcriber(samples) == {"text": expected}


def test_segments(
    transcriber: AutomaticSpeechRecognitionPipeline, model: whisper_opt.Whisper, samples: Any
) -> None:
    expected = [segment for segment in direct(model, samples) if segment.text]
    found = transcriber(samples, return_timestamps=True)
    assert list(found) == ["text", "chunks"]
    assert found["text"] == "".join(chunk["text"] for chunk in found["chunks"])
    assert [list(chunk) for chunk in found["chunks"]] == [["timestamp", "text"]] * len(expected)
    assert [chunk["text"] for chunk in found["chunks"]] == [s.text for s in expected]
    assert [chunk["timestamp"][0] for chunk in found["chunks"]] == [
        round(s.start, 2) for s in expected
    ]


def test_words(
    transcriber: AutomaticSpeechRecognitionPipeline, model: whisper_opt.Whisper, samples: Any
) -> None:
    segments = direct(model, samples, word_timestamps=True)
    expected = [word for segment in segments for word in segment.words or ()]
    found = transcriber(samples, return_timestamps="word")
    assert found["chunks"] == [
        {"text": w.word, "timestamp": (min(w.start, 11.0), min(w.end, 11.0))} for w in expected
    ]


def test_the_end_of_text_that_goes_on_is_not_known(
    transcriber: AutomaticSpeechRecognitionPipeline,
    model: whisper_opt.Whisper,
    samples: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    begin = model.vocab.timestamp_begin
    parts = [
        whisper_opt.Segment(i, float(i), i + 1.0, " Hi", tokens, 0, 0, 1, 0, 0)
        for i, tokens in enumerate([(begin, 1, begin + 50), (begin + 50, 1)])
    ]
    found = whisper_opt.Transcript(tuple(parts), "en", 11.0, " Hi Hi")
    monkeypatch.setattr(transcriber, "model", _Answering(model, found))
    assert transcriber(samples, return_timestamps=True)["chunks"] == [
        {"timestamp": (0.0, 1.0), "text": " Hi"},
        {"timestamp": (1.0, None), "text": " Hi"},
    ]


class _Answering:
    """A model that returns one transcript."""

    def __init__(self, model: whisper_opt.Whisper, transcript: whisper_opt.Transcript) -> None:
        self._model, self._transcript = model, transcript

    def transcribe_many(self, audios: Any, **options: Any) -> Iterator[tuple[int, Any]]:
        return ((i, self._transcript) for i, _ in enumerate(audios) if next(options["options"]))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


def test_languages(transcriber: AutomaticSpeechRecognitionPipeline, samples: Any) -> None:
    found = transcriber(samples, return_language=True, language="fr")
    assert found["chunks"] == [{"language": "french", "text": found["text"]}]
    found = transcriber(samples, return_language=True, language="fr", return_timestamps="word")
    assert {chunk["language"] for chunk in found["chunks"]} == {"french"}


def test_an_english_only_model_has_no_language(tmp_path: Path, samples: Any) -> None:
    engine = random_engine(tmp_path / "tiny.en", random_dims(n_vocab=51864))
    found = pipeline(TASK, str(engine.path), device="cpu", num_beams=1, max_new_tokens=8)
    assert found(samples, return_language=True)["chunks"][0]["language"] is None
    with pytest.raises(OptionError, match="English-only"):
        found(samples, language="de")


def test_results_are_plain(transcriber: AutomaticSpeechRecognitionPipeline, samples: Any) -> None:
    found = transcriber([samples], return_timestamps="word")
    assert type(found) is list
    assert type(found[0]) is dict
    word = found[0]["chunks"][0]
    assert [type(value) for value in (word, word["timestamp"], word["timestamp"][0])] == [
        dict,
        tuple,
        float,
    ]


# recordings


class Tensor:
    """The methods of a tensor that lead to an array."""

    def __init__(self, values: Any) -> None:
        self._values = values

    def detach(self) -> Tensor:
        return self

    cpu = detach

    def numpy(self) -> Any:
        return self._values


class Decoder:
    """The method of torchcodec's ``AudioDecoder`` that datasets' recordings have."""

    def __init__(self, values: Any) -> None:
        self._values = values

    def get_all_samples(self) -> Any:
        return types.SimpleNamespace(data=Tensor(self._values[None]), sample_rate=16_000)


class Column:
    """A dataset of torch, which is not iterable."""

    def __init__(self, items: list[Any]) -> None:
        self._items = items

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, i: int) -> Any:
        if i >= len(self._items):
            raise ValueError("an index beyond the end")
        return self._items[i]


def test_one_recording_in_many_forms(
    transcriber: AutomaticSpeechRecognitionPipeline, samples: Any
) -> None:
    expected = transcriber(samples)
    forms = [
        str(JFK),
        JFK,
        JFK.read_bytes(),
        io.BytesIO(JFK.read_bytes()),
        samples.astype(np.float64),
        samples[None],
        np.stack([samples, samples]),
        Tensor(samples),
        Decoder(samples),
        {"raw": samples, "sampling_rate": 16_000},
        {"array": Tensor(samples), "sampling_rate": 16_000, "path": "not/there.wav"},
        {"path": str(JFK)},
        {"bytes": JFK.read_bytes(), "path": None},
    ]
    for form in forms:
        assert transcriber(form) == expected, type(form)


def test_an_array_of_another_rate_is_resampled(
    transcriber: AutomaticSpeechRecognitionPipeline, model: whisper_opt.Whisper, samples: Any
) -> None:
    half = samples[::2]
    resampled = whisper_opt.load_audio(half, sample_rate=8_000)
    found = transcriber({"raw": half, "sampling_rate": 8_000})
    assert found == transcriber(resampled)


def test_further_entries_are_returned_as_lists(
    transcriber: AutomaticSpeechRecognitionPipeline, samples: Any
) -> None:
    given = {"raw": samples, "sampling_rate": 16_000, "id": 7}
    found = transcriber([given, {**given, "id": 8}])
    assert [entry["id"] for entry in found] == [[7], [8]]
    assert given.keys() == {"raw", "sampling_rate", "id"}


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ("https://example.org/a.wav", "nothing is fetched; download it"),
        (np.zeros((16_000, 2), np.float32), r"transpose \[n, channels\]"),
        (np.zeros((1, 2, 3), np.float32), r"expected \[n\], or \[channels, n\]"),
        ({"raw": np.zeros(9)}, "without 'sampling_rate'"),
        ({"raw": np.zeros(9), "sampling_rate": 16_000, "stride": (1, 1)}, "about CTC models"),
        ({"audio": {}, "text": ""}, "give the column with the recordings"),
        (7, "inputs has a int; expected a path"),
    ],
)
def test_other_inputs_are_refused(
    given: Any, reason: str, transcriber: AutomaticSpeechRecognitionPipeline
) -> None:
    with pytest.raises(OptionError, match=reason) as caught:
        transcriber(given)
    assert "inputs" in str(caught.value)


def test_a_recording_that_is_not_there(transcriber: AutomaticSpeechRecognitionPipeline) -> None:
    with pytest.raises(AudioError, match="nowhere"):
        transcriber("nowhere.wav")


# several recordings


def test_lists_give_lists(transcriber: AutomaticSpeechRecognitionPipeline, samples: Any) -> None:
    parts = [samples, samples[:48_000], samples[60_000:]]
    expected = [transcriber(part, return_timestamps=True) for part in parts]
    for batch_size in (None, 1, 2):
        found = transcriber(parts, return_timestamps=True, batch_size=batch_size)
        assert found == expected
    assert transcriber(tuple(parts), return_timestamps=True) == expected
    assert transcriber([]) == []


def test_generators_give_generators(
    transcriber: AutomaticSpeechRecognitionPipeline, samples: Any
) -> None:
    taken: list[int] = []

    def recordings() -> Iterator[Any]:
        for i in range(6):
            taken.append(i)
            yield samples[: 16_000 * (i + 1)]

    found = transcriber(recordings(), batch_size=1)
    assert inspect.isgenerator(found)
    assert taken == []
    first = next(found)
    assert len(taken) < 6
    assert [first, *found] == transcriber([samples[: 16_000 * (i + 1)] for i in range(6)])


def test_datasets_give_generators(
    transcriber: AutomaticSpeechRecognitionPipeline, samples: Any
) -> None:
    items = [{"array": samples, "sampling_rate": 16_000}, {"path": str(JFK)}]
    found = transcriber(Column(items))
    assert inspect.isgenerator(found)
    assert list(found) == transcriber(items)


def test_long_and_short_recordings_together(
    transcriber: AutomaticSpeechRecognitionPipeline, samples: Any
) -> None:
    parts = [np.tile(samples, 4), samples]
    for given in ({}, {"return_timestamps": True}, {"chunk_length_s": 15.0}):
        assert transcriber(parts, **given) == [transcriber(part, **given) for part in parts]


def test_chunks_are_parts_with_speech(
    transcriber: AutomaticSpeechRecognitionPipeline, model: whisper_opt.Whisper, samples: Any
) -> None:
    tiled = np.tile(samples, 4)
    found = transcriber(tiled, return_timestamps=True, chunk_length_s=10)
    expected = model.transcribe(
        tiled,
        strategy="batched",
        vad_max_speech_duration=10.0,
        temperature=0.0,
        max_new_tokens=8,
        no_speech_threshold=None,
        condition_on_previous_text=False,
    )
    assert found["text"] == "".join(segment.text for segment in expected)
    assert len(found["chunks"]) >= 4


def test_an_error_names_the_recording(
    transcriber: AutomaticSpeechRecognitionPipeline, samples: Any
) -> None:
    with pytest.raises(AudioError, match="nowhere"):
        transcriber([samples, "nowhere.wav"])


def test_other_parts_are_refused(transcriber: AutomaticSpeechRecognitionPipeline) -> None:
    with pytest.raises(AttributeError, match="no 'feature_extractor': it runs ONNX engines"):
        transcriber.feature_extractor  # noqa: B018
    with pytest.raises(AttributeError, match="no 'batch_decode'; use get_prompt_ids"):
        transcriber.tokenizer.batch_decode  # noqa: B018
    assert (transcriber.task, transcriber.device) == (TASK, "cpu")
