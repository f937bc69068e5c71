"""The comparison with other systems: weight formats, and one table with fake systems."""

from __future__ import annotations

import json
import struct
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from tests.support.models import random_checkpoint, random_dims
from tests.support.models_write import write_ctranslate2
from whisper_opt.audio.features import mel_filters
from whisper_opt.cli.bench.workers import Program
from whisper_opt.export.checkpoints import load_checkpoint

ROOT = Path(__file__).parents[2]


@pytest.fixture
def benchmarks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Makes scripts of ``benchmarks`` importable, without environments."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    monkeypatch.setenv("WHISPER_OPT_PEERS", str(tmp_path / "environments"))


def module(name: str) -> ModuleType:
    __import__(name)
    return sys.modules[name]


# weights


def _dequantized(data: bytes, kind: str, n: int) -> Any:
    """Values of blocks by the definition of ggml: y = d * q, y = d * (q - 16)."""
    size = {"q8_0": 34, "q5_0": 22}[kind]
    values = []
    for block in (data[i : i + size] for i in range(0, len(data), size)):
        (scale,) = struct.unpack("<e", block[:2])
        if kind == "q8_0":
            codes = list(struct.unpack("<32b", block[2:]))
        else:
            (high,) = struct.unpack("<I", block[2:6])
            low = [byte & 15 for byte in block[6:]] + [byte >> 4 for byte in block[6:]]
            codes = [(code | ((high >> i & 1) << 4)) - 16 for i, code in enumerate(low)]
        values += [scale * code for code in codes]
    assert len(values) == n
    return np.array(values, np.float32)


@pytest.mark.usefixtures("benchmarks")
@pytest.mark.parametrize(("kind", "steps"), [("q8_0", 127), ("q5_0", 16)])
def test_blocks_of_32_come_back(kind: str, steps: int) -> None:
    values = np.random.default_rng(0).standard_normal((6, 64)).astype(np.float32)
    values[0, :32] = 0
    data = module("peers.convert").quantized(values, kind)
    back = _dequantized(data, kind, values.size).reshape(-1, 32)
    blocks = values.reshape(-1, 32)
    step = np.abs(blocks).max(axis=1, keepdims=True) / steps
    # half a step of rounding; a whole step if 5 bits have no code for the largest value
    assert (np.abs(back - blocks) <= step * (0.51 if kind == "q8_0" else 1.01)).all()
    assert np.abs(back - blocks).mean() < step.mean() * 0.3


@pytest.mark.usefixtures("benchmarks")
def test_formats_have_the_weights_of_the_checkpoint(tmp_path: Path) -> None:
    convert = module("peers.convert")
    source = write_ctranslate2(random_checkpoint(random_dims(n_vocab=2100)), tmp_path / "source")
    forms = ("ctranslate2", "huggingface", "openai.pt", "ggml-f16.bin", "ggml-q8_0.bin")
    folder = tmp_path / "forms"
    convert.convert(source, folder, forms)
    assert sorted(path.name for path in folder.iterdir()) == sorted(forms)
    ours = load_checkpoint(source)
    for form in ("ctranslate2", "huggingface", "openai.pt"):
        tokenizer = folder / "huggingface" if form == "openai.pt" else None
        theirs = load_checkpoint(folder / form, tokenizer=tokenizer)
        assert theirs.dims == ours.dims
        for name, tensor in ours.tensors.items():
            np.testing.assert_array_equal(theirs.tensors[name].read(), tensor.read(), name)
    before = (folder / "openai.pt").stat().st_mtime_ns
    convert.convert(source, folder, forms)
    assert (folder / "openai.pt").stat().st_mtime_ns == before
    names = json.loads((folder / "huggingface" / "generation_config.json").read_text())
    assert names["no_timestamps_token_id"] == ours.dims.n_vocab - 1502
    _check_ggml((folder / "ggml-f16.bin").read_bytes(), ours)


def _check_ggml(data: bytes, checkpoint: Any) -> None:
    dims, at = checkpoint.dims, 0

    def take(form: str) -> tuple[Any, ...]:
        nonlocal at
        found = struct.unpack_from(form, data, at)
        at += struct.calcsize(form)
        return found

    header = take("<12i")
    assert header[0] == 0x67676D6C
    assert header[1:4] == (dims.n_vocab, dims.n_audio_ctx, dims.n_audio_state)
    assert header[6:8] == (dims.n_text_ctx, dims.n_text_state)
    assert header[10:] == (dims.n_mels, 1)
    rows, columns = take("<2i")
    filters = np.array(take(f"<{rows * columns}f"), np.float32).reshape(rows, columns)
    np.testing.assert_array_equal(filters, mel_filters(dims.n_mels))
    (n_words,) = take("<i")
    words = []
    for _ in range(n_words):
        (size,) = take("<i")
        words.append(take(f"{size}s")[0])
    assert words[220] == b" "
    found = {}
    while at < len(data):
        n_dims, length, kind = take("<3i")
        shape = take(f"<{n_dims}i")[::-1]
        (name,) = take(f"{length}s")
        dtype = np.dtype(("<f4", "<f2")[kind])
        size = int(np.prod(shape)) * dtype.itemsize
        found[name.decode()] = np.frombuffer(data[at : at + size], dtype).reshape(shape)
        at += size
    assert found.keys() == checkpoint.tensors.keys()
    for name, tensor in checkpoint.tensors.items():
        values = tensor.read().reshape(found[name].shape)
        np.testing.assert_array_equal(found[name], values.astype(found[name].dtype))
    assert found["encoder.conv1.bias"].shape == (dims.n_audio_state, 1)
    assert found["encoder.positional_embedding"].dtype == np.float32


# the table


@pytest.mark.usefixtures("benchmarks")
def test_every_peer_has_requirements_a_runner_and_a_form() -> None:
    catalog, convert = module("peers.catalog"), module("peers.convert")
    assert {peer.environment for peer in catalog.PEERS} == set(catalog.ENVIRONMENTS)
    for peer in catalog.PEERS:
        assert peer.form in convert.FORMS
        assert (ROOT / "benchmarks" / "peers" / f"{peer.module}.py").is_file()
    for name in catalog.ENVIRONMENTS:
        lines = (ROOT / "benchmarks" / "peers" / "requirements" / f"{name}.txt").read_text()
        pins = [line for line in lines.splitlines() if not line.startswith("#")]
        assert pins
        assert all("==" in pin and "/" not in pin for pin in pins)


@pytest.mark.usefixtures("benchmarks")
def test_one_table_and_systems_not_measured(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    compare, catalog = module("compare_peers"), module("peers.catalog")
    program = Program("whisper_opt", ROOT, "tests.support.fake_peer")

    class Fake(compare.System):  # type: ignore[name-defined,misc]
        def job(self, recording: Any, case: Any) -> dict[str, Any]:
            return {"audio": [str(recording.path)], "fail": "raise" if "sick" in self.name else ""}

    def ours(args: Any, model: str) -> list[Any]:
        names = ("whisper_opt", "healthy", "sick")
        return [Fake(name, "fp32", program, {"word": name}) for name in names]

    monkeypatch.setattr(compare, "ours", ours)
    out = tmp_path / "peers.json"
    arguments = ["--models", "m", "--sets", "jfk", "--beams", "1", "--converted", str(tmp_path)]
    arguments += ["--rounds", "2", "--pause", "0.01", "--no-convert", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", [str(ROOT / "benchmarks" / "compare_peers.py"), *arguments])
    assert compare.main() == 0
    text = capsys.readouterr().out
    assert "not measured: sick: whisper_opt: RuntimeError: no such sound" in text
    for peer in catalog.PEERS:
        assert f"not measured: {peer.name}: not installed" in text
    found = json.loads(out.read_text())
    assert str(tmp_path) not in out.read_text()
    (case,) = found["cases"]
    rows = {entry["system"]: entry for entry in case["systems"]}
    assert len(rows) == 3 + len(catalog.PEERS)
    assert rows["healthy"]["seconds"] == 0.5
    assert rows["healthy"]["rounds_s"] == {"en-jfk": [0.5, 0.5]}
    assert rows["healthy"]["texts"] == {"en-jfk": "healthy"}
    assert "| healthy" in text
    assert "1.00" in text


@pytest.mark.usefixtures("benchmarks")
def test_a_dry_run_has_little_audio(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    compare = module("compare_peers")

    def longest(*arguments: str) -> float:
        monkeypatch.setattr(sys, "argv", ["compare_peers.py", "--models", "m", *arguments])
        args = compare.arguments()
        found = compare.cases(args, tmp_path)
        lengths: list[float] = [each.seconds for case in found for each in case.recordings]
        return max(lengths)

    assert longest("--quick") < 300
    assert longest() > 600
    assert longest("--quick", "--sets", "joined") > 600


@pytest.mark.usefixtures("benchmarks")
def test_limitations_of_a_peer_are_reported(tmp_path: Path) -> None:
    compare, catalog = module("compare_peers"), module("peers.catalog")
    peers = {peer.name: peer for peer in catalog.PEERS}
    recording = compare.Recording("long", tmp_path / "x.wav", 40.0, "en")
    case = compare.Case("m", "long", [recording], 5, 8)

    def refusal(name: str, **changes: Any) -> str:
        system = compare.System(name, "", Program("x", ROOT, "x"), {}, peers[name])
        return str(system.refusal(compare.dataclasses.replace(case, **changes)))

    assert refusal("onnx-asr") == "no beam search"
    assert refusal("openai-whisper") == "one window at a time"
    assert refusal("onnx-asr", beam=1, batch=1) == "no more than 30 s at once"
    assert refusal("faster-whisper int8") == ""


@pytest.mark.usefixtures("benchmarks")
def test_times_of_whisper_cpp_without_loading() -> None:
    peer = module("peers.peer")
    lines = ["whisper_print_timings:     load time =   900.00 ms"]
    lines += [
        f"whisper_print_timings: {name} time = {ms:8.2f} ms /  5 runs"
        for name, ms in zip(("mel", "sample", "encode", "decode", "batchd", "prompt"), range(1, 7))
    ]
    lines += ["whisper_print_timings:    total time =  2000.00 ms"]
    assert peer.internal_seconds("\n".join(lines)) == pytest.approx(0.021)
    with pytest.raises(ValueError, match="printed no timings"):
        peer.internal_seconds("error: no model")


@pytest.mark.usefixtures("benchmarks")
def test_samples_of_a_file_are_those_written(tmp_path: Path) -> None:
    from whisper_opt.cli.bench.recordings import write_wav

    samples = np.round(np.random.default_rng(0).uniform(-1, 1, 1000) * 32767) / 32768
    write_wav(tmp_path / "x.wav", samples.astype(np.float32))
    found = module("peers.peer").read_wav(str(tmp_path / "x.wav"))
    np.testing.assert_array_equal(found, samples.astype(np.float32))
