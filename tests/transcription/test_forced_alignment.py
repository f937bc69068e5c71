"""A given text is aligned as a decoded one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.conftest import ROOT, Engines
from whisper_opt import AudioError, OptionError, Whisper, align_text

JFK = ROOT / "examples" / "jfk.flac"


@pytest.fixture(scope="module")
def model(tiny: Path) -> Whisper:
    return Whisper.load(tiny, device="cpu", threads=1)


def test_shape(model: Whisper) -> None:
    found = align_text(model, np.zeros(32_000, np.float32), "two words", language="en")
    assert "".join(word.word for word in found.words) == " two words"
    assert "".join(found.tokens) == " two words"
    assert found.attention.shape == (len(found.tokens), 100)
    assert found.attention.dtype == np.float32
    assert found.seconds_per_position == 0.02


def test_language_is_detected(model: Whisper) -> None:
    samples = np.zeros(32_000, np.float32)
    detected = next(iter(model.detect_language(samples)))
    given = align_text(model, samples, "word", language=detected)
    assert align_text(model, samples, "word").words == given.words


@pytest.mark.parametrize("text", ["", "  ", "word " * 40])
def test_no_text_or_too_much(model: Whisper, text: str) -> None:
    with pytest.raises(OptionError, match=r"expected 1 to \d+, as many as a window holds"):
        align_text(model, np.zeros(16_000, np.float32), text, language="en")


def test_more_than_a_window(model: Whisper) -> None:
    with pytest.raises(OptionError, match="expected at most 30 s"):
        align_text(model, np.zeros(16_000 * 31, np.float32), "word", language="en")


def test_an_empty_recording(model: Whisper) -> None:
    with pytest.raises(AudioError, match="holds no samples"):
        align_text(model, np.zeros(0, np.float32), "word", language="en")


def test_text_is_that_of_a_result(model: Whisper) -> None:
    """Without spaces around it in Japanese, and with single ones between words elsewhere."""
    samples = np.zeros(32_000, np.float32)
    japanese = align_text(model, samples, " \u3042\n", language="ja")
    assert "".join(word.word for word in japanese.words) == "\u3042"
    assert "".join(align_text(model, samples, "two \n words", language="en").tokens) == " two words"


@pytest.mark.slow
def test_times_are_those_of_the_transcript(engines: Engines) -> None:
    """But for the rules that :meth:`transcribe` has for pauses and ends of sentences."""
    model = engines.model("tiny.en")
    found = model.transcribe(JFK, word_timestamps=True)
    decoded = [word for segment in found for word in segment.words or ()]
    given = align_text(model, JFK, found.text)
    assert [word.word for word in given.words] == [word.word for word in decoded]
    for ours, theirs in zip(given.words, decoded):
        assert ours.start == pytest.approx(theirs.start, abs=0.021)
        assert ours.probability == pytest.approx(theirs.probability, abs=1e-4)
