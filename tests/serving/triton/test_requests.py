"""What a request to Triton asks for."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
import pytest

from whisper_opt import OptionError, TranscribeOptions
from whisper_opt.serving.triton.requests import read_request

BYTES = np.frombuffer(b"RIFF", np.uint8)


def test_a_file_as_bytes_and_in_base64() -> None:
    sent = read_request({"audio": BYTES}, {})
    coded = read_request({}, {"audio_base64": base64.b64encode(b"RIFF").decode()})
    assert sent == coded
    assert (sent.audio, sent.sample_rate, sent.stream) == (b"RIFF", None, True)
    assert sent.options == TranscribeOptions()


def test_samples_are_copied() -> None:
    samples = np.ones(3, np.float32)
    asked = read_request({"samples": samples}, {"sample_rate": 8000})
    samples[:] = 0  # Triton uses the memory again
    assert asked.sample_rate == 8000
    assert np.array_equal(asked.audio, np.ones(3, np.float32))
    assert read_request({"samples": samples}, {}).sample_rate == 16000


def test_options_are_parameters_or_json() -> None:
    given = {"options": '{"temperature": [0.0, 0.4], "language": "de"}', "language": "fr"}
    asked = read_request({"audio": BYTES}, {**given, "stream": False, "triton_own": 1})
    assert not asked.stream
    assert asked.options == TranscribeOptions(temperature=(0.0, 0.4), language="fr")


@pytest.mark.parametrize(
    ("inputs", "parameters", "message"),
    [
        ({}, {}, "the request has no recording; expected one of the inputs audio and samples"),
        ({"audio": BYTES, "samples": BYTES}, {}, "the request has audio and samples; expected"),
        ({"audio": BYTES}, {"stream": "no"}, "stream is 'no'; expected true or false"),
        ({"audio": BYTES}, {"sample_rate": 8000}, "a file, which has its own"),
        ({"samples": BYTES}, {"sample_rate": 0}, "sample_rate is 0; expected a rate in Hz"),
        ({"samples": BYTES}, {"sample_rate": True}, "sample_rate is True; expected"),
        ({}, {"audio_base64": "!"}, "audio_base64 is no base64"),
        ({}, {"audio_base64": 3}, "audio_base64 is no base64"),
        ({"audio": BYTES}, {"options": "{"}, "options is no JSON"),
        ({"audio": BYTES}, {"options": "[]"}, "options is .*; expected a JSON object"),
        ({"audio": BYTES}, {"lang": "de"}, "there is no parameter 'lang'; expected audio_base64"),
        ({"audio": BYTES}, {"language": 7}, "language"),
    ],
)
def test_refused(inputs: dict[str, Any], parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        read_request(inputs, parameters)
