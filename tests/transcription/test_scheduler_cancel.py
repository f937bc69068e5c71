"""Streams and batches that are closed or interrupted: nothing stays open."""

from __future__ import annotations

import gc
from typing import Any

import pytest

from tests.audio.test_vad import made_up
from tests.support.watched_backend import (
    BATCHED,
    PLAIN,
    OpenStreams,
    WatchedBackend,
    many,
    noises,
    spoken,
)
from whisper_opt import TranscribeOptions, Whisper


def interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


@made_up()
@pytest.mark.parametrize("after", [0, 1, 2])
def test_closing_many_early(
    model: Whisper, watched: WatchedBackend, open_streams: OpenStreams, after: int
) -> None:
    sound = spoken([1, 28, 32, 60, 64, 90, 100, 128], 200.0)
    audios = [sound, *noises(5.0, 40.0), sound]
    options = [
        TranscribeOptions(**(BATCHED if i % 3 == 0 else PLAIN), max_new_tokens=4 + i)
        for i in range(4)
    ]
    results: Any = model.transcribe_many(audios, options=options, batch_size=3)
    for _ in range(after):
        next(results)
    assert (watched.sessions == []) == (after == 0)
    assert (open_streams.n_opened > 0) == (after > 0)
    results.close()
    assert watched.sessions == []
    assert open_streams.n_open == 0


@made_up()
@pytest.mark.parametrize(
    ("how", "after"),
    [
        ("stream", 0),
        ("stream", 1),
        ("stream", 4),
        ("segments", 1),
        ("segments", 4),
        ("forgotten", 0),
        ("forgotten", 1),
        ("forgotten", 4),
    ],
)
def test_closing_a_stream_early(
    model: Whisper, watched: WatchedBackend, open_streams: OpenStreams, after: int, how: str
) -> None:
    sound = spoken([1, 28, 32, 60, 64, 90, 100, 128], 200.0)
    stream: Any = model.stream(sound, **BATCHED, batch_size=2)
    assert open_streams.n_open == 1
    for _ in range(after):
        next(stream.segments)
    if how == "stream":
        stream.close()
    elif how == "segments":
        stream.segments.close()
    else:
        del stream
        gc.collect()
    assert watched.sessions == []
    assert open_streams.n_open == 0
    decoded = len(watched.diary)
    if how == "stream":
        assert len(list(stream)) < 5  # what was already there
    assert len(watched.diary) == decoded


@pytest.mark.parametrize("what", ["encode", "open", "extend", "join"])
@pytest.mark.parametrize("which", [0, 1, 4])
def test_an_interrupt_leaves_nothing_behind(
    model: Whisper, watched: WatchedBackend, what: str, which: int
) -> None:
    audios = noises(31.0, 5.0, 64.0, 95.0, 12.0)
    expected = many(model, audios, batch_size=3, **PLAIN)
    calls = [i for i, (name, _) in enumerate(watched.diary) if name == what]
    watched.diary.clear()
    watched.fail = calls[which]
    with pytest.raises(KeyboardInterrupt):
        many(model, audios, batch_size=3, **PLAIN)
    assert watched.sessions == []
    assert many(model, audios, batch_size=3, **PLAIN) == expected


def test_an_interrupt_while_progress_is_shown(model: Whisper, watched: WatchedBackend) -> None:
    with pytest.raises(KeyboardInterrupt):
        many(model, noises(31.0, 5.0, 64.0), batch_size=3, on_progress=interrupt, **PLAIN)
    assert watched.sessions == []


@made_up()
def test_an_interrupt_while_progress_of_a_stream_is_shown(
    model: Whisper, watched: WatchedBackend, open_streams: OpenStreams
) -> None:
    sound = spoken([1, 28, 32, 60, 64, 90, 100, 128], 200.0)
    with pytest.raises(KeyboardInterrupt):
        model.transcribe(sound, on_progress=interrupt, **BATCHED)
    assert watched.sessions == []
    assert open_streams.n_open == 0
