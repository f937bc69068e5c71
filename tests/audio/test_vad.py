"""Voice activity detection: probabilities and spans against silero-vad, streams, packing."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import json
import math
import random
import sys
import threading
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Union

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import whisper_opt.audio.vad
from whisper_opt.audio.decode import STREAM_BLOCK, load_audio, open_audio
from whisper_opt.audio.vad import (
    FRAME,
    Span,
    SpeechDetector,
    VadOptions,
    cut,
    detect,
    detect_speech,
    merge,
    network,
    pack,
)
from whisper_opt.core.arrays import F32
from whisper_opt.core.errors import AudioError, BackendUnavailable, OptionError

DATA = Path(__file__).parents[1] / "data"
SPEECH = DATA / "speech"
LONGEST = 30 * 16_000


def golden(name: str) -> Any:
    return json.loads(gzip.decompress((DATA / "vad" / name).read_bytes()))


def manifest() -> list[dict[str, Any]]:
    with open(SPEECH / "manifest.jsonl", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


CLIPS: dict[str, list[int]] = golden("probabilities.json.gz")["clips"]
CASES: list[dict[str, Any]] = golden("spans.json.gz")["cases"]
RECORDINGS = {clip["id"]: clip for clip in manifest() if clip["id"] != "edge-empty"}


# The network


@pytest.mark.parametrize("name", CLIPS)
def test_probabilities_are_those_of_the_package(name: str) -> None:
    samples = load_audio(SPEECH / name)
    found = SpeechDetector().probabilities(samples)
    assert found.dtype == np.float32
    expected = np.array(CLIPS[name]) / 1e6
    np.testing.assert_allclose(found, expected, atol=1e-4, rtol=0)


def pieces(samples: F32, seed: int) -> Iterator[F32]:
    """The samples in blocks of random sizes, from 0 to many frames."""
    dice = random.Random(seed)
    at = 0
    while at < len(samples):
        size = dice.choice([0, 1, 63, FRAME, dice.randrange(5_000), dice.randrange(60_000)])
        yield samples[at : at + size]
        at += size


@pytest.mark.parametrize("seed", range(5))
def test_results_do_not_depend_on_the_blocks(seed: int) -> None:
    samples = load_audio(SPEECH / "en/en-leopard-test.wav")
    frames = network.Frames()
    found = [frames.feed(piece) for piece in pieces(samples, seed)]
    found.append(frames.finish())
    expected = SpeechDetector().probabilities(samples)
    np.testing.assert_array_equal(np.concatenate(found), expected)


@pytest.mark.parametrize("n_samples", [0, 1, 511, 512, 513, 16 * FRAME, 16 * FRAME + 1])
def test_one_probability_per_frame(n_samples: int) -> None:
    found = SpeechDetector().probabilities(np.zeros(n_samples, np.float32))
    assert found.shape == (math.ceil(n_samples / FRAME),)


def test_recordings_in_several_threads_do_not_disturb_one_another() -> None:
    detector = SpeechDetector()
    clips = [load_audio(SPEECH / name) for name in list(CLIPS)[:4]]
    expected = [detector.probabilities(clip) for clip in clips]
    found: dict[int, F32] = {}

    def work(index: int) -> None:
        found[index] = detector.probabilities(clips[index])

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(clips))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index, probabilities in enumerate(expected):
        np.testing.assert_array_equal(found[index], probabilities)


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        (np.zeros(10), r"float64 \[10\]; expected a float32"),
        (np.zeros((10, 2), np.float32), r"float32 \[10, 2\]"),
        ([0.0], "samples are list"),
        (np.array([np.nan], np.float32), "NaN"),
        (np.array([np.inf], np.float32), "infinity"),
    ],
)
def test_invalid_samples_are_refused(samples: Any, message: str) -> None:
    for call in (SpeechDetector().probabilities, SpeechDetector().spans):
        with pytest.raises(AudioError, match=message):
            call(samples)


@pytest.fixture
def fresh_network() -> Iterator[None]:
    network._load.cache_clear()
    yield
    network._load.cache_clear()


@pytest.mark.usefixtures("fresh_network")
def test_without_onnxruntime_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(BackendUnavailable, match=r"pip install '\.\[cpu\]'"):
        SpeechDetector().spans(np.zeros(16_000, np.float32))


@pytest.mark.usefixtures("fresh_network")
@pytest.mark.parametrize("damage", ["missing", "cut", "changed"])
def test_a_missing_or_damaged_model_file(
    damage: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    whole = (Path(whisper_opt.audio.vad.__file__).with_name("silero_vad.onnx")).read_bytes()
    if damage != "missing":
        broken = whole[:1000] if damage == "cut" else whole[:-1] + bytes([whole[-1] ^ 1])
        (tmp_path / "silero_vad.onnx").write_bytes(broken)
    monkeypatch.setattr(network, "_model_path", lambda: tmp_path / "silero_vad.onnx")
    said = "cannot be read" if damage == "missing" else "is damaged: .*expected"
    with pytest.raises(BackendUnavailable, match=f"silero_vad.onnx {said}.*install it again"):
        SpeechDetector().stream()


def test_the_model_comes_with_its_licence() -> None:
    folder = Path(whisper_opt.audio.vad.__file__).parent
    assert (folder / "silero_vad.onnx").stat().st_size < 2_500_000
    text = (folder / "LICENSE.silero-vad").read_text(encoding="utf-8")
    assert text.startswith("MIT License")
    assert "Silero Team" in text


def test_the_model_is_made_by_its_script(tmp_path: Path) -> None:
    """Its input is the weights of the file itself, converted back to their original layout."""
    import onnx
    from make_vad_model import rewrite

    folder = Path(whisper_opt.audio.vad.__file__).parent
    made = onnx.load(str(folder / "silero_vad.onnx"))
    remade = rewrite(package_form(made)).SerializeToString(deterministic=True)
    assert hashlib.sha256(remade).hexdigest() == network._SHA256


def package_form(made: Any) -> Any:
    """The weights of the model with the names and shapes of the package, and an LSTM node."""
    from onnx import helper, numpy_helper

    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in made.graph.initializer}

    def kernel(name: str, n_in: int, *places: int) -> F32:
        rows = arrays[name].reshape(-1, n_in, arrays[name].shape[1])
        found: F32 = np.zeros((arrays[name].shape[1], n_in, 3), np.float32)
        for row, place in zip(rows, places):
            found[:, :, place] = row.T
        return found

    old = {
        "stft.forward_basis_buffer": arrays["stft"].T[:, None],
        "encoder.0.weight": kernel("conv_0", 129, 0, 1, 2),
        "encoder.1.weight": kernel("conv_1", 128, 0, 1, 2),
        "encoder.2.weight": kernel("conv_2", 64, 1, 2),
        "encoder.3.weight": kernel("conv_3", 64, 1),
        **{f"encoder.{i}.bias": arrays[f"conv_{i}_bias"] for i in range(4)},
        "output.weight": arrays["last"][None],
        "output.bias": arrays["last_bias"],
        **{name: arrays[name] for name in ("lstm_w", "lstm_r", "lstm_b")},
    }
    tensors = [numpy_helper.from_array(array, name) for name, array in old.items()]
    lstm = helper.make_node("LSTM", ["x", "lstm_w", "lstm_r", "lstm_b"], ["y"])
    return helper.make_model(helper.make_graph([lstm], "package", [], [], tensors))


# The second look


def at_level(samples: F32, dbfs: float) -> F32:
    """The samples scaled to a root mean square in dB of full scale."""
    level = np.sqrt(np.mean(np.square(samples, dtype=np.float64)))
    scaled: F32 = (samples * (10 ** (dbfs / 20) / level)).astype(np.float32)
    return scaled


def after_music(level: float) -> tuple[F32, F32]:
    """Speech at a level, alone and after loud music."""
    music = at_level(load_audio(SPEECH / "nonspeech/ns-music-brahms-32s.ogg"), -20)
    speech = at_level(load_audio(SPEECH / "en/en-jfk.flac"), level)
    return speech, np.concatenate([music, speech])


@pytest.mark.parametrize("level", [-25, -35, -45])
def test_quiet_speech_is_found_after_loud_music(level: float) -> None:
    alone, both = after_music(level)
    start = len(both) - len(alone)
    found = [(s.start - start, s.end - start) for s in SpeechDetector().spans(both)]
    expected = [(s.start, s.end) for s in SpeechDetector().spans(alone)]
    assert found[0][0] > -FRAME * 16
    share = sum(end - begin for begin, end in found) / sum(end - begin for begin, end in expected)
    assert 0.9 < share < 1.15


@pytest.mark.parametrize("n_dropped", [0, FRAME * 8, FRAME * 16])
def test_the_first_words_after_loud_music_are_found(n_dropped: int) -> None:
    alone, both = after_music(-35)
    found = SpeechDetector().spans(both[n_dropped:])[0].start - (len(both) - len(alone) - n_dropped)
    assert abs(found - SpeechDetector().spans(alone)[0].start) < 0.25 * 16_000


def test_the_second_look_does_not_depend_on_the_blocks() -> None:
    _, both = after_music(-45)
    stream = SpeechDetector().stream()
    found = [span for piece in pieces(both, 1) for span in stream.feed(piece)]
    assert found + stream.finish() == SpeechDetector().spans(both)


@pytest.mark.parametrize(
    ("name", "n_looks"), [("en/en-jfk.flac", 0), ("nonspeech/ns-white-12s.flac", 22)]
)
def test_only_audio_without_speech_gets_a_second_look(
    name: str, n_looks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    n_calls = 0
    infer = network.Frames._infer

    def counted(frames: network.Frames, batch: F32, state: network.State) -> Any:
        nonlocal n_calls
        n_calls += 1
        return infer(frames, batch, state)

    monkeypatch.setattr(network.Frames, "_infer", counted)
    samples = load_audio(SPEECH / name)
    SpeechDetector().spans(samples)
    assert n_calls == math.ceil(len(samples) / (16 * FRAME)) + n_looks


# The rules, on synthetic probabilities


class MadeUp:
    """Replaces the network: the first sample of each frame is its probability."""

    def __init__(self) -> None:
        self._held = np.empty(0, np.float32)

    def feed(self, samples: F32) -> F32:
        self._held = np.concatenate([self._held, samples])
        n_whole = len(self._held) // FRAME * FRAME
        found, self._held = self._held[:n_whole:FRAME], self._held[n_whole:]
        return found

    def finish(self) -> F32:
        return self._held[:1]


@contextlib.contextmanager
def made_up() -> Iterator[None]:
    """Also a decorator of tests, as hypothesis does not work with fixtures."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(detect, "Frames", MadeUp)
        patch.setattr(detect, "SecondLook", lambda threshold: MadeUp())
        yield


def recording(probabilities: Any, n_samples: Union[int, None] = None) -> F32:
    samples = np.repeat(np.asarray(probabilities, np.float32), FRAME)
    return samples[:n_samples]


def options_of(case: dict[str, Any]) -> VadOptions:
    given = case["options"]
    return VadOptions(
        threshold=given["threshold"],
        min_speech_duration=given["min_speech_duration_ms"] / 1000,
        min_silence_duration=given["min_silence_duration_ms"] / 1000,
        speech_pad=given["speech_pad_ms"] / 1000,
        max_speech_duration=given.get("max_speech_duration_s", math.inf),
    )


@made_up()
@pytest.mark.parametrize("number", range(len(CASES)))
def test_spans_are_those_of_the_package(number: int) -> None:
    case = CASES[number]
    # a float32 may fall on the other side of a threshold that a double meets exactly
    levels = np.nextafter(np.array(case["probabilities"], np.float32) / 1000, np.float32(2))
    samples = recording(levels, case["n_samples"])
    found = SpeechDetector(options_of(case)).spans(samples)
    assert [[span.start, span.end] for span in found] == case["kept"]


def test_the_documented_exception_is_the_only_difference_from_the_package() -> None:
    differ = [case for case in CASES if case["spans"] != case["kept"]]
    assert 0 < len(differ) < len(CASES) / 10
    assert all("max_speech_duration_s" in case["options"] for case in differ)


def frames(*runs: tuple[float, float]) -> list[float]:
    """(seconds, probability) pairs as one probability a frame."""
    return [level for seconds, level in runs for _ in range(round(seconds * 16_000 / FRAME))]


@made_up()
def test_long_speech_is_split_at_every_good_silence() -> None:
    levels = frames((4.0, 0.9), (0.4, 0), (3.0, 0.9), (0.2, 0), (20.0, 0.9))
    options = VadOptions(max_speech_duration=8.0, speech_pad=0, min_silence_duration=0.5)
    found = [span.seconds for span in SpeechDetector(options).spans(recording(levels))]
    ends = [end for _, end in found]
    assert ends[:2] == pytest.approx([4.0, 7.4], abs=0.1)  # the package would split at 4 and 12 s
    assert all(end - start <= 8.0 for start, end in found)


@made_up()
def test_a_span_is_returned_as_soon_as_it_is_final() -> None:
    options = VadOptions(min_silence_duration=0.5, speech_pad=0.2)
    stream = SpeechDetector(options).stream()
    assert stream.feed(recording(frames((1.0, 0.0), (2.0, 0.9)))) == []
    silence = recording([0.0])
    waited = 0
    found: list[Span] = []
    while not found:
        found = stream.feed(silence)
        waited += FRAME
    assert waited == pytest.approx(0.5 * 16_000, abs=2 * FRAME)
    assert found[0].seconds == pytest.approx((0.8, 3.2), abs=0.05)
    assert stream.settled > found[0].end
    assert stream.finish() == []


@made_up()
@pytest.mark.parametrize(
    ("runs", "expected"),
    [
        ([(3.0, 0.0)], None),
        ([], None),
        ([(2.0, 0.0), (1.5, 0.9), (3.0, 0.0)], 2.0),
        ([(2.0, 0.0), (0.3, 0.9), (2.0, 0.0), (40.0, 0.9)], 4.3),  # the first is too short
        ([(2.0, 0.0), (0.3, 0.9), (2.0, 0.0)], 2.0),  # no longer speech
        ([(5.0, 0.0), (1.5, 0.9)], 5.0),  # until the end
    ],
)
def test_where_speech_begins(runs: list[tuple[float, float]], expected: float | None) -> None:
    found = SpeechDetector().first_speech(recording(frames(*runs)))
    if expected is None:
        assert found is None
    else:
        assert found is not None
        assert found / 16_000 == pytest.approx(expected, abs=0.25)  # with padding or without


@made_up()
def test_the_search_for_speech_stops_early() -> None:
    sound = recording(frames((1.0, 0.0), (60.0, 0.9)))
    sound[5 * 16_000 :] = np.nan
    assert SpeechDetector().first_speech(sound) is not None


@made_up()
def test_nothing_comes_after_the_end() -> None:
    stream = SpeechDetector().stream()
    stream.feed(recording(frames((2.0, 0.9))))
    assert len(stream.finish()) == 1
    assert stream.finish() == []
    with pytest.raises(AudioError, match="open another stream"):
        stream.feed(np.zeros(1, np.float32))


levels_of = st.lists(
    st.tuples(st.integers(1, 40), st.sampled_from([0.0, 0.3, 0.45, 0.6, 0.95])), max_size=30
).map(lambda runs: [level for length, level in runs for _ in range(length)])
vad_options = st.builds(
    VadOptions,
    threshold=st.sampled_from([0.5, 0.2]),
    min_speech_duration=st.sampled_from([0.0, 0.1, 0.5]),
    min_silence_duration=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    speech_pad=st.sampled_from([0.0, 0.01, 0.1, 0.2]),
    max_speech_duration=st.sampled_from([2.0, 5.0, math.inf]),
)


@made_up()
@settings(max_examples=300, deadline=None)
@given(
    levels=levels_of,
    options=vad_options,
    n_missing=st.integers(0, FRAME - 1),
    seed=st.integers(0, 1000),
)
def test_a_stream_gives_the_same_spans(
    levels: list[float], options: VadOptions, n_missing: int, seed: int
) -> None:
    samples = recording(levels, len(levels) * FRAME - n_missing if levels else 0)
    detector = SpeechDetector(options)
    expected = detector.spans(samples)
    stream = detector.stream()
    found, settled = [], 0
    for piece in pieces(samples, seed):
        new = stream.feed(piece)
        assert all(span.start >= settled for span in new)
        assert stream.settled >= settled
        settled = stream.settled
        found += new
    last = stream.finish()
    assert all(span.start >= settled for span in last)
    assert found + last == expected
    edges = [edge for span in expected for edge in (span.start, span.end)]
    assert edges == sorted(edges)
    assert all(0 <= span.start < span.end <= len(samples) for span in expected)
    assert all(span.end - span.start <= options.max_speech_duration * 16_000 for span in expected)


# Real recordings


SOUND = [name for name, clip in RECORDINGS.items() if clip["kind"] not in ("non-speech", "edge")]
SILENT = [name for name in RECORDINGS if name not in SOUND]


@pytest.fixture(scope="module")
def spoken() -> dict[str, list[Span]]:
    """The speech of every clip, found once, with the default options."""
    return {name: detect_speech(SPEECH / clip["path"]) for name, clip in RECORDINGS.items()}


def covered(start: float, end: float, spans: list[Span]) -> float:
    """Seconds of [start, end] within spans."""
    overlaps = (min(end, span.seconds[1]) - max(start, span.seconds[0]) for span in spans)
    return sum(max(0.0, overlap) for overlap in overlaps)


@pytest.mark.parametrize("name", SOUND)
def test_speech_is_found(name: str, spoken: dict[str, list[Span]]) -> None:
    clip, spans = RECORDINGS[name], spoken[name]
    share = covered(0, clip["duration_s"], spans) / clip["duration_s"]
    quiet_around = {"en-derived-pad-silence": 0.12, "mul-derived-en-de-fr": 0.5}
    assert share >= quiet_around.get(name, 0.5)
    assert all(span.end - span.start <= LONGEST for span in spans)


@pytest.mark.parametrize("name", [n for n in SOUND if "words" in RECORDINGS[n]])
def test_words_are_within_spans(name: str, spoken: dict[str, list[Span]]) -> None:
    words = RECORDINGS[name]["words"]
    assert len(words) > 5
    for word in words:
        length = word["end"] - word["start"]
        assert covered(word["start"], word["end"], spoken[name]) >= 0.9 * length, word


def test_utterances_joined_in_one_recording_are_all_found(spoken: dict[str, list[Span]]) -> None:
    n_seen = 0
    for name in SOUND:
        for utterance in RECORDINGS[name].get("segments", []):
            inside = covered(utterance["start"], utterance["end"], spoken[name])
            # the utterances begin and end with silence, some with seconds of it
            assert inside >= 0.5 * (utterance["end"] - utterance["start"]), (name, utterance)
            n_seen += 1
    assert n_seen > 40


def test_silence_around_speech_is_not_speech(spoken: dict[str, list[Span]]) -> None:
    (utterance,) = RECORDINGS["en-derived-pad-silence"]["segments"]
    (span,) = spoken["en-derived-pad-silence"]
    assert span.seconds == pytest.approx((utterance["start"], utterance["end"]), abs=0.5)


@pytest.mark.parametrize("name", SILENT)
def test_noise_silence_and_music_are_not_speech(name: str, spoken: dict[str, list[Span]]) -> None:
    assert spoken[name] == []


def test_an_array_at_another_rate() -> None:
    samples = load_audio(SPEECH / "formats/jfk-16k-mono-s16.wav")
    every_other = np.ascontiguousarray(samples[::2])
    sure = VadOptions(threshold=0.5)
    found = detect_speech(every_other, sample_rate=8_000, options=sure)
    expected = detect_speech(samples, options=sure)
    assert len(found) == len(expected) == 4
    for mine, other in zip(found, expected):
        assert mine.seconds == pytest.approx(other.seconds, abs=0.2)


def test_a_recording_that_cannot_be_read() -> None:
    with pytest.raises(AudioError, match="no samples"):
        detect_speech(SPEECH / "nonspeech/edge-empty.wav")


# Packing


def seconds(*pairs: tuple[float, float]) -> list[Span]:
    return [Span(round(start * 16_000), round(end * 16_000)) for start, end in pairs]


def test_merging() -> None:
    spans = seconds((0, 1), (1.2, 2), (2.5, 3), (9, 10))
    assert list(merge(spans, 0)) == spans
    assert list(merge(spans, 8_000)) == seconds((0, 2), (2.5, 3), (9, 10))
    assert list(merge(spans, 8_001)) == seconds((0, 3), (9, 10))
    assert list(merge([], 10)) == []


def test_packing_fills_a_chunk_and_keeps_the_silence_inside() -> None:
    spans = seconds((1, 5), (8, 20), (20.5, 30.9), (31.5, 40))
    assert list(pack(spans, LONGEST)) == seconds((1, 30.9), (31.5, 40))


def test_packing_ends_at_the_widest_gap_of_the_last_third() -> None:
    spans = seconds((0, 10), (14, 21), (23, 25), (25.5, 29), (29.5, 35))
    # 10-14 is wider but too early; 29-29.5 and 25-25.5 are narrower
    assert list(pack(spans, LONGEST)) == seconds((0, 21), (23, 35))


def test_packing_takes_the_later_of_equal_gaps() -> None:
    spans = seconds((0, 22), (23, 25), (26, 28), (29, 33))
    assert list(pack(spans, LONGEST)) == seconds((0, 28), (29, 33))


def test_packing_splits_long_spans() -> None:
    spans = seconds((0, 2), (3, 73), (73.5, 75))
    cut_at = [3 + 70 / 3, 3 + 140 / 3]
    expected = [(0, 2), (3, cut_at[0]), (cut_at[0], cut_at[1]), (cut_at[1], 75)]
    found = [span.seconds for span in pack(spans, LONGEST)]
    for mine, other in zip(found, expected):
        assert mine == pytest.approx(other, abs=1e-3)
    assert len(found) == len(expected)


def test_packing_does_not_bridge_long_gaps() -> None:
    spans = seconds((0, 2), (4, 5), (7.1, 8))
    assert list(pack(spans, LONGEST, max_gap=32_000)) == seconds((0, 5), (7.1, 8))
    assert list(pack(spans, LONGEST)) == seconds((0, 8))


def test_packing_is_lazy() -> None:
    n_read = 0

    def endless() -> Iterator[Span]:
        nonlocal n_read
        while True:
            yield Span(n_read * 100, n_read * 100 + 60)
            n_read += 1

    first = next(pack(endless(), 1000))
    assert first == Span(0, 960)
    assert n_read == 10


@pytest.mark.parametrize(("longest", "gap"), [(0, None), (-1, None), (1, -1)])
def test_impossible_sizes(longest: int, gap: Union[int, None]) -> None:
    with pytest.raises(OptionError, match="expected a"):
        list(pack([], longest, max_gap=gap))


@settings(max_examples=300, deadline=None)
@given(
    steps=st.lists(st.tuples(st.integers(0, 30), st.integers(1, 60)), max_size=30),
    longest=st.integers(1, 100),
    gap=st.sampled_from([None, 0, 5, 20]),
)
def test_chunks_contain_every_span(
    steps: list[tuple[int, int]], longest: int, gap: Union[int, None]
) -> None:
    spans, at = [], 0
    for silence, length in steps:
        spans.append(Span(at + silence, at + silence + length))
        at += silence + length
    found = list(pack(spans, longest, max_gap=gap))
    assert all(0 < chunk.end - chunk.start <= longest for chunk in found)
    assert all(before.end <= after.start for before, after in zip(found, found[1:]))
    kept = {sample for chunk in found for sample in range(chunk.start, chunk.end)}
    assert {sample for span in spans for sample in range(span.start, span.end)} <= kept
    starts, ends = {span.start for span in spans}, {span.end for span in spans}
    whole = [s for s in spans if s.end - s.start <= longest]
    if len(whole) == len(spans):
        assert all(s.start in starts and s.end in ends for s in found)
    if gap is not None:
        wide = {
            before.end for before, after in zip(spans, spans[1:]) if after.start - before.end > gap
        }
        assert not wide & kept


@made_up()
@settings(max_examples=200, deadline=None)
@given(
    levels=levels_of,
    options=vad_options,
    longest=st.sampled_from([500, 16_000, 60_000]),
    gap=st.sampled_from([None, 3_000, 20_000]),
    seed=st.integers(0, 1000),
)
def test_cutting_a_stream_equals_packing_the_whole(
    levels: list[float], options: VadOptions, longest: int, gap: Union[int, None], seed: int
) -> None:
    samples = recording(levels) + np.linspace(0, 1e-6, len(levels) * FRAME, dtype=np.float32)
    detector = SpeechDetector(options)
    expected = list(pack(detector.spans(samples), longest, max_gap=gap))
    found = list(cut(pieces(samples, seed), detector, longest, max_gap=gap))
    assert [chunk for chunk, _ in found] == expected
    for chunk, held in found:
        np.testing.assert_array_equal(held, samples[chunk.start : chunk.end])


def test_cutting_a_real_recording() -> None:
    path = SPEECH / "long/en-long-ls-367.flac"
    samples, detector = load_audio(path), SpeechDetector()
    with open_audio(path) as stream:
        found = list(cut(stream, detector, LONGEST))
    assert [chunk for chunk, _ in found] == list(pack(detector.spans(samples), LONGEST))
    assert len(found) == 4
    for chunk, held in found:
        np.testing.assert_array_equal(held, samples[chunk.start : chunk.end])


@made_up()
def test_cutting_keeps_a_chunk_not_the_recording() -> None:
    def blocks() -> Iterator[F32]:
        rng = random.Random(0)
        left = 0
        level = 0.0
        for number in range(400):  # 27 minutes, 102 MB
            if number == 200:
                left, level = 2500, 0.0  # a silence longer than any chunk
            block = np.empty(STREAM_BLOCK, np.float32)
            for at in range(0, STREAM_BLOCK, FRAME):
                if not left:
                    level = 0.9 - level
                    left = rng.randrange(20, 120) if level else rng.randrange(5, 40)
                left -= 1
                block[at : at + FRAME] = level
            yield block

    tracemalloc.start()
    try:
        total = sum(len(held) for _, held in cut(blocks(), SpeechDetector(), LONGEST))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert total > 400 * STREAM_BLOCK / 2
    # float32: a chunk and a span in the buffer, copies of this chunk and of the one before
    assert peak < 4 * 4 * LONGEST
