"""Pictures of recordings and transcripts."""

from __future__ import annotations

import base64
import io
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from tests.support.results import segment, transcript, word
from whisper_opt import Alignment, BackendUnavailable, OptionError
from whisper_opt.plots import player, plot_alignment, plot_log_mel, plot_timeline

TONE = (0.1 * np.sin(np.arange(32_000) * 0.2)).astype(np.float32)


@pytest.fixture(autouse=True)
def without_a_screen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MPLBACKEND", "Agg")


def test_log_mel() -> None:
    axes = plot_log_mel(TONE)
    assert list(axes.images[0].get_extent()) == [0, 2.0, 0, 80]


def test_log_mel_of_an_hour_has_few_columns() -> None:
    (image,) = plot_log_mel(np.zeros(16_000 * 100, np.float32)).images
    values = image.get_array()
    assert values is not None
    assert values.shape[1] <= 4_000


def test_alignment() -> None:
    words = (word("a", 0.0, 0.5), word("b", 0.5, 1.0))
    axes = plot_alignment(Alignment(words, (" a", " b", ""), np.eye(3, 50, dtype=np.float32), 0.02))
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b"]
    assert [np.asarray(line.get_xdata())[0] for line in axes.lines] == [0.0, 0.5]


def test_timeline_has_a_row_for_each_kind() -> None:
    dropped = segment(0, 0.0, 1.0, " x")
    axes = plot_timeline(transcript(dropped, dropped=("no speech", 1.0, 2.0)), TONE)
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names == ["level", "speech", "segments", "no text"]


def test_speakers_may_have_the_names_of_rows() -> None:
    said = [segment(i, i, i + 1.0, " x", speaker=name) for i, name in enumerate(("level", "B"))]
    axes = plot_timeline(transcript(*said, dropped=("no speech", 1.0, 2.0)), TONE)
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names == ["level", "speech", "level", "B", "no text"]
    assert axes.get_yticks().tolist() == [4, 3, 2, 1, 0]


def test_timeline_without_segments() -> None:
    assert len(plot_timeline(transcript()).get_yticks()) == 1


def test_a_missing_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(BackendUnavailable, match="install matplotlib"):
        plot_log_mel(TONE)


def test_player_contains_the_recording() -> None:
    said = segment(0, 0.0, 1.0, " Hi", words=(word(" Hi", 0.0, 1.0),))
    html = player(transcript(said), TONE)._repr_html_()
    (data,) = re.findall(r"data:audio/flac;base64,([^\"]+)", html)
    samples, rate = soundfile.read(io.BytesIO(base64.b64decode(data)))
    assert rate == 16_000
    assert len(samples) == len(TONE)
    assert 'data-start="0.00"' in html


def test_player_needs_words() -> None:
    with pytest.raises(OptionError, match="word_timestamps=True"):
        player(transcript(segment(0, 0.0, 1.0, " Hi")), TONE)


def test_player_of_hours_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="expected at most 3600"):
        player(transcript(duration=4000.0), TONE)
