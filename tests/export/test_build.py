"""The whole export: what it leaves, what it refuses, and that it never leaves half of anything."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import signal
import subprocess
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable

import numpy as np
import onnx
import pytest

from tests.engines import DIALECTS, require, sharp_checkpoint
from tests.models import random_checkpoint, random_dims
from tests.models_write import write_huggingface, write_openai_pt
from whisper_opt import Whisper
from whisper_opt.arrays import F32, NDArray
from whisper_opt.checkpoints import Checkpoint
from whisper_opt.dims import HEAD_DIM
from whisper_opt.engine import ENGINE_FILES, MANIFEST, Engine, Manifest, read_engine
from whisper_opt.errors import EngineError, OptionError, VerificationError
from whisper_opt.export import build, export, pieces, writer
from whisper_opt.export.builder import OnnxGraph, Weight
from whisper_opt.export.dialects import make_dialect
from whisper_opt.export.graph import build_decoder, build_encoder
from whisper_opt.export.pieces import PiecewiseGraph
from whisper_opt.export.reference import Reference
from whisper_opt.export.verify import CROSS_TOLERANCE, LOGITS_TOLERANCE
from whisper_opt.export.writer import write_graph

ROOT = Path(__file__).parent.parent.parent
SMALL = random_dims(
    n_vocab=2000, n_audio_state=64, n_text_state=64, n_audio_layer=1, n_text_layer=1
)
FULL = random_dims()
BUILDERS = {"encoder": build_encoder, "decoder": build_decoder}


@pytest.fixture(scope="module")
def small() -> Checkpoint:
    return sharp_checkpoint(SMALL)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """An empty directory that holds nothing but the engine and what an export leaves beside it."""
    path = tmp_path / "engines"
    path.mkdir()
    return path


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.*")}


# --- what an export leaves ----------------------------------------------------------------------


@pytest.fixture(scope="module", params=DIALECTS)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Engine:
    """The multilingual vocabulary, two layers of width 128."""
    require(request.param)
    target = tmp_path_factory.mktemp("deep") / "not" / "there" / "yet" / "engine"
    return export(sharp_checkpoint(FULL), target, dialect=request.param)


def test_files(exported: Engine) -> None:
    assert sorted(path.name for path in exported.path.iterdir()) == sorted(
        [*ENGINE_FILES, MANIFEST]
    )
    assert [path.name for path in exported.path.parent.iterdir()] == ["engine"]
    assert read_engine(exported.path, verify=True) == exported
    assert set(exported.manifest.files) == set(ENGINE_FILES)
    assert exported.tokenizer_json() == sharp_checkpoint(FULL).tokenizer_json


def test_manifest(exported: Engine) -> None:
    manifest, checkpoint = exported.manifest, sharp_checkpoint(FULL)
    assert manifest.dims == FULL
    assert manifest.precision == "fp32"
    assert manifest.dialect in DIALECTS
    assert manifest.alignment_heads == checkpoint.alignment_heads == ((1, 0), (1, 1))
    assert manifest.suppress_tokens == checkpoint.suppress_tokens
    assert manifest.begin_suppress_tokens == checkpoint.begin_suppress_tokens
    assert manifest.source == dataclasses.asdict(checkpoint.source)
    assert set(manifest.tools) == {"whisper_opt", "python", "numpy", "onnx", "onnxruntime"}
    assert manifest.tools["onnx"] == onnx.__version__
    text = exported.file(MANIFEST).read_text(encoding="utf-8")
    assert Manifest.from_json(text, "here") == manifest
    assert Manifest.from_json(manifest.to_json(), "here") == manifest


def test_parity_is_measured(exported: Engine) -> None:
    parity = exported.manifest.parity
    for what, tolerance in (("cross", CROSS_TOLERANCE), ("logits", LOGITS_TOLERANCE)):
        assert parity[f"{what}_tolerance"] == tolerance
        assert parity[f"{what}_scale"] > 0.5
        assert 0 < parity[f"{what}_error"] <= tolerance * parity[f"{what}_scale"]
    assert parity["reference"] == "numpy fp32"
    assert "noise" in parity["input"]


def test_graphs_are_valid_onnx_with_external_weights(exported: Engine) -> None:
    for stem, data in (("encoder", "encoder.data"), ("decoder", "decoder.data")):
        path = exported.file(f"{stem}.onnx")
        if exported.manifest.dialect == "standard":
            onnx.checker.check_model(str(path))  # contrib operators have no schema there
        model = onnx.load(str(path), load_external_data=False)
        size = exported.file(data).stat().st_size
        ends = [0]
        for tensor in model.graph.initializer:
            if tensor.data_location != onnx.TensorProto.EXTERNAL:
                assert len(tensor.raw_data) < 1024, tensor.name
                continue
            where = {entry.key: entry.value for entry in tensor.external_data}
            assert where["location"] == data
            offset, length = int(where["offset"]), int(where["length"])
            assert offset % 4096 == 0
            assert offset >= ends[-1]  # in file order, nothing overlaps
            assert length == 4 * np.prod(tensor.dims)
            ends.append(offset + length)
        assert ends[-1] == size


def test_the_engine_transcribes(exported: Engine) -> None:
    with Whisper.load(exported.path, threads=1) as model:
        noise = np.random.default_rng(0).standard_normal(16_000).astype(np.float32)
        found = model.transcribe(noise, language="de", max_new_tokens=5, no_speech_threshold=None)
    assert found.language == "de"
    assert len(found.segments) >= 1


def test_exporting_twice_gives_the_same_bytes(place: Path, small: Checkpoint) -> None:
    first = export(small, place / "a")
    second = export(small, place / "b")
    assert first.manifest == second.manifest
    assert snapshot(first.path) == snapshot(second.path)


def test_what_the_checkpoint_does_not_say_stays_unsaid(place: Path, small: Checkpoint) -> None:
    bare = dataclasses.replace(
        small, alignment_heads=None, suppress_tokens=None, begin_suppress_tokens=None
    )
    manifest = export(bare, place / "engine").manifest
    assert manifest.alignment_heads is None
    assert manifest.suppress_tokens is None
    assert manifest.begin_suppress_tokens is None


def test_a_path_is_loaded(place: Path, small: Checkpoint) -> None:
    source = write_huggingface(small, place / "source", dtype="float32")
    by_path = export(str(source), str(place / "engine"))
    by_hand = export(small, place / "other")
    assert by_path.manifest.source["format"] == "huggingface"
    assert by_path.manifest.source["name"] == "source"
    assert set(by_path.manifest.source["sha256"]) == {"model.safetensors"}
    for name in ENGINE_FILES:
        if name != "tokenizer.json":
            assert by_path.manifest.files[name] == by_hand.manifest.files[name], name


def test_a_tokenizer_can_be_given(place: Path, small: Checkpoint) -> None:
    source = write_openai_pt(small, place / "tiny.pt", dtype="float32")
    words = place / "words"
    words.mkdir()
    (words / "tokenizer.json").write_text(small.tokenizer_json, encoding="utf-8")
    engine = export(source, place / "engine", tokenizer=words)
    assert json.loads(engine.tokenizer_json()) == json.loads(small.tokenizer_json)
    assert engine.manifest.source["format"] == "openai"


def test_progress_goes_from_start_to_end(place: Path, small: Checkpoint) -> None:
    seen: list[tuple[str, float, float]] = []
    export(small, place / "engine", on_progress=lambda *event: seen.append(event))
    stages = [stage for stage, _, _ in seen]
    assert list(dict.fromkeys(stages)) == ["write", "verify"]
    for stage in ("write", "verify"):
        done = [(d, total) for name, d, total in seen if name == stage]
        assert [d for d, _ in done] == sorted(d for d, _ in done)
        assert {total for _, total in done} == {done[-1][0]}
    floats = sum(int(np.prod(tensor.shape)) for tensor in small.tensors.values())
    key_biases = (SMALL.n_audio_layer + SMALL.n_text_layer) * SMALL.n_text_state
    assert seen[stages.index("verify") - 1][1] == 4 * (floats + key_biases)


# --- what is refused ----------------------------------------------------------------------------


def test_an_existing_target_is_refused(place: Path, small: Checkpoint) -> None:
    export(small, place / "engine")
    before = snapshot(place)
    with pytest.raises(EngineError, match=r"engine already exists; pass --overwrite"):
        export(sharp_checkpoint(SMALL, seed=1), place / "engine")
    assert snapshot(place) == before


def test_an_engine_is_overwritten_when_asked(place: Path, small: Checkpoint) -> None:
    before = export(small, place / "engine")
    (place / "engine" / "leftover.txt").write_text("of the old engine")
    after = export(sharp_checkpoint(SMALL, seed=1), place / "engine", overwrite=True)
    assert after.manifest.source["name"] == "random-1"
    assert after.manifest.files["decoder.data"] != before.manifest.files["decoder.data"]
    assert sorted(path.name for path in after.path.iterdir()) == sorted([*ENGINE_FILES, MANIFEST])
    assert os.listdir(place) == ["engine"]


def test_an_empty_directory_is_overwritten_when_asked(place: Path, small: Checkpoint) -> None:
    (place / "engine").mkdir()
    with pytest.raises(EngineError, match="already exists"):
        export(small, place / "engine")
    assert read_engine(export(small, place / "engine", overwrite=True).path, verify=True)


def test_anything_but_an_engine_is_never_overwritten(place: Path, small: Checkpoint) -> None:
    (place / "thesis").mkdir()
    (place / "thesis" / "chapter1.tex").write_text("years of work")
    with pytest.raises(EngineError, match="is not an engine; it will not be overwritten"):
        export(small, place / "thesis", overwrite=True)
    assert snapshot(place) == {"thesis/chapter1.tex": b"years of work"}


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_file_is_never_overwritten(place: Path, small: Checkpoint, overwrite: bool) -> None:
    (place / "tiny.pt").write_bytes(b"weights")
    with pytest.raises(EngineError, match=r"tiny\.pt is a file; an engine is a directory"):
        export(small, place / "tiny.pt", overwrite=overwrite)
    assert snapshot(place) == {"tiny.pt": b"weights"}


def test_a_link_to_an_engine_stays_a_link(place: Path, small: Checkpoint) -> None:
    export(small, place / "real")
    (place / "link").symlink_to("real")
    export(sharp_checkpoint(SMALL, seed=1), place / "link", overwrite=True)
    assert (place / "link").is_symlink()
    assert read_engine(place / "real", verify=True).manifest.source["name"] == "random-1"
    assert sorted(os.listdir(place)) == ["link", "real"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"precision": "fp7"}, "precision is 'fp7'; expected one of fp32"),
        ({"dialect": "klingon"}, "unknown dialect 'klingon'; expected one of contrib, standard"),
    ],
)
def test_unknown_options_are_refused(
    place: Path, small: Checkpoint, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(OptionError, match=said):
        export(small, place / "engine", **options)
    assert os.listdir(place) == []


def test_a_tokenizer_of_another_model_is_refused(place: Path, small: Checkpoint) -> None:
    other = dataclasses.replace(small, tokenizer_json=sharp_checkpoint(FULL).tokenizer_json)
    with pytest.raises(EngineError, match="it belongs to another model"):
        export(other, place / "engine")
    assert os.listdir(place) == []


# --- an engine that would compute something else ------------------------------------------------


def change_weight(monkeypatch: pytest.MonkeyPatch, name: str, change: Callable[[F32], F32]) -> None:
    """Let the graph of an export hold something else than the checkpoint."""

    def spoil(weight: Weight) -> Weight:
        if weight.name != name:
            return weight
        return dataclasses.replace(weight, read=lambda: change(weight.read()))

    def spoiled(make: Callable[..., Any]) -> Callable[..., Any]:
        def build_spoiled(*arguments: Any) -> tuple[OnnxGraph, Any]:
            graph, cuts = make(*arguments)
            return OnnxGraph(graph.model, tuple(map(spoil, graph.weights))), cuts

        return build_spoiled

    for stem, make in BUILDERS.items():
        monkeypatch.setattr(build, f"build_{stem}", spoiled(make))


def nan_first(values: F32) -> F32:
    values = values.copy()
    values.flat[0] = np.nan
    return values


def half(values: F32) -> F32:
    halved: F32 = values * np.float32(0.5)
    return halved


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("encoder.conv2.weight", half, "cross-attention keys and values"),
        ("encoder.blocks.0.attn.qkv.weight", half, "cross-attention keys and values"),
        ("encoder.ln_post.bias", half, "cross-attention keys and values"),
        ("decoder.blocks.0.cross_attn.value.bias", half, "cross-attention keys and values"),
        ("decoder.positional_embedding", np.negative, "decoder scores"),
        ("decoder.blocks.0.attn.qkv.bias", np.negative, "decoder scores"),
        ("decoder.blocks.0.cross_attn.query.weight", half, "decoder scores"),
        ("decoder.blocks.0.mlp.2.weight", np.negative, "decoder scores"),
        ("decoder.ln.weight", half, "decoder scores"),
        ("decoder.token_embedding.weight", nan_first, "decoder scores"),
    ],
)
def test_another_weight_fails_verification(
    place: Path,
    small: Checkpoint,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    change: Callable[[F32], F32],
    said: str,
) -> None:
    change_weight(monkeypatch, name, change)
    with pytest.raises(VerificationError, match=said) as caught:
        export(small, place / "engine")
    assert "No engine was written" in str(caught.value)
    assert os.listdir(place) == []


def test_a_failed_verification_keeps_the_engine_that_was_there(
    place: Path, small: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    export(small, place / "engine")
    before = snapshot(place)
    change_weight(monkeypatch, "encoder.ln_post.bias", half)
    with pytest.raises(VerificationError):
        export(small, place / "engine", overwrite=True)
    assert snapshot(place) == before
    assert os.listdir(place) == ["engine"]


def test_a_checkpoint_that_is_not_finite_fails_verification(place: Path, small: Checkpoint) -> None:
    name = "encoder.blocks.0.mlp.0.bias"
    broken = np.full(small.tensors[name].shape, np.nan, np.float32)
    tensor = dataclasses.replace(small.tensors[name], read=lambda: broken)
    bad = dataclasses.replace(small, tensors={**small.tensors, name: tensor})
    with pytest.raises(VerificationError, match="cross-attention keys and values"):
        export(bad, place / "engine")
    assert os.listdir(place) == []


def test_a_reference_that_is_not_finite_fails_verification(
    place: Path, small: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    logits = Reference.logits

    def broken(self: Reference, audio: F32, sequences: list[Any]) -> list[F32]:
        return [nan_first(scores) for scores in logits(self, audio, sequences)]

    monkeypatch.setattr(Reference, "logits", broken)
    with pytest.raises(VerificationError, match="decoder scores"):
        export(small, place / "engine")
    assert os.listdir(place) == []


def test_a_weight_of_another_shape_is_an_error(
    place: Path, small: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    change_weight(monkeypatch, "decoder.ln.bias", lambda values: values[:-1])
    with pytest.raises(EngineError, match=r"decoder\.ln\.bias has shape \[63\].*\[64\]"):
        export(small, place / "engine")
    assert os.listdir(place) == []


# --- interruptions ------------------------------------------------------------------------------


def interrupt_at(wanted: str) -> Callable[[str, float, float], None]:
    def on_progress(stage: str, done: float, total: float) -> None:
        if stage == wanted and done * 2 >= total:
            raise KeyboardInterrupt

    return on_progress


@pytest.mark.parametrize("stage", ["write", "verify"])
def test_ctrl_c_leaves_nothing(place: Path, small: Checkpoint, stage: str) -> None:
    with pytest.raises(KeyboardInterrupt):
        export(small, place / "engine", on_progress=interrupt_at(stage))
    assert os.listdir(place) == []


@pytest.mark.parametrize("stage", ["write", "verify"])
def test_ctrl_c_keeps_the_engine_that_was_there(place: Path, small: Checkpoint, stage: str) -> None:
    export(small, place / "engine")
    before = snapshot(place)
    with pytest.raises(KeyboardInterrupt):
        export(small, place / "engine", overwrite=True, on_progress=interrupt_at(stage))
    assert snapshot(place) == before
    assert os.listdir(place) == ["engine"]


def test_the_old_engine_comes_back_when_the_new_one_cannot_take_its_place(
    place: Path, small: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    export(small, place / "engine")
    before = snapshot(place)
    rename = Path.rename

    def refuse(self: Path, target: Path) -> Path:
        if ".partial-" in self.name and not self.name.endswith(".old"):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(EngineError, match="cannot write the engine"):
        export(small, place / "engine", overwrite=True)
    assert snapshot(place) == before
    assert os.listdir(place) == ["engine"]


@pytest.mark.parametrize("limit", [0, 100_000, 1_200_000])
def test_a_full_disk_leaves_nothing(
    place: Path, small: Checkpoint, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    write = writer._HashingFile.write
    room = limit

    def full(self: Any, data: bytes) -> None:
        nonlocal room
        room -= len(data)
        if room < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(self, data)

    monkeypatch.setattr(writer._HashingFile, "write", full)
    with pytest.raises(EngineError) as caught:
        export(small, place / "engine")
    said = str(caught.value)
    assert f"cannot write the engine {place / 'engine'}: No space left on device" in said
    assert "enough free space" in said
    assert os.listdir(place) == []


@pytest.fixture
def file_limit() -> Iterator[Callable[[int], None]]:
    """Lets the system refuse to write more than some bytes to a file."""
    resource = pytest.importorskip("resource", reason="not tested: no file limits on this system")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("size", [100, 200_000, 800_000])
def test_what_the_system_refuses_leaves_nothing(
    place: Path, small: Checkpoint, file_limit: Callable[[int], None], size: int
) -> None:
    file_limit(size)
    try:
        with pytest.raises(EngineError, match=r"cannot write the engine .*File too large"):
            export(small, place / "engine")
    finally:
        file_limit(-1)
    assert os.listdir(place) == []


def test_a_file_is_closed_when_its_last_bytes_are_refused(
    place: Path, file_limit: Callable[[int], None]
) -> None:
    file_limit(100)
    stream = writer._HashingFile(place / "manifest.json")
    stream.write(bytes(500))  # still in the buffer
    with pytest.raises(OSError, match="File too large"):
        stream.close()
    assert stream._stream.closed


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS])
def test_an_unwritable_place(
    place: Path, small: Checkpoint, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def refuse(self: Path, *_: Any, **__: Any) -> None:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "mkdir", refuse)
        with pytest.raises(EngineError) as caught:
            export(small, place / "engine")
    assert os.strerror(code) in str(caught.value)
    assert "Choose a writable directory" in str(caught.value)
    assert os.listdir(place) == []


def test_a_place_inside_a_file(place: Path, small: Checkpoint) -> None:
    (place / "file").write_bytes(b"content")
    with pytest.raises(EngineError, match=r"cannot write the engine .*(Not a directory|exists)"):
        export(small, place / "file" / "engine")
    assert snapshot(place) == {"file": b"content"} or os.listdir(place) == ["file"]


# --- what a killed export left ------------------------------------------------------------------


def dead_pid() -> int:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
        return process.pid


def leave(place: Path, name: str) -> Path:
    path = place / name
    path.mkdir()
    (path / "encoder.data").write_bytes(b"half of it")
    return path


def test_leftovers_of_the_dead_are_removed(place: Path, small: Checkpoint) -> None:
    dead = dead_pid()
    leave(place, f".engine.partial-{dead}")
    leave(place, f".engine.partial-{dead}.old")
    leave(place, f".engine.partial-{os.getpid()}")  # of a process that had our number
    others = {
        f".engine.partial-{os.getppid()}",  # alive
        f".engine2.partial-{dead}",  # of another target
        ".engine.partial-kept",
        "engine.partial",
    }
    for name in others:
        leave(place, name)
    export(small, place / "engine")
    assert set(os.listdir(place)) == {"engine", *others}


def test_leftovers_are_found_under_any_name(place: Path, small: Checkpoint) -> None:
    leave(place, f".tiny[1]*.partial-{dead_pid()}")
    export(small, place / "tiny[1]*")
    assert os.listdir(place) == ["tiny[1]*"]


def test_two_exports_at_once_to_one_target(place: Path, small: Checkpoint) -> None:
    """The second gives way, and the first does not notice."""
    refused: list[str] = []

    def on_progress(stage: str, done: float, total: float) -> None:
        if stage == "verify" and done == 0:
            with pytest.raises(EngineError, match="cannot write the engine") as caught:
                export(small, place / "engine")
            refused.append(str(caught.value))

    engine = export(small, place / "engine", on_progress=on_progress)
    assert len(refused) == 1
    assert read_engine(engine.path, verify=True)
    assert os.listdir(place) == ["engine"]


KILLED = """
import sys, time
from tests.engines import sharp_checkpoint
from tests.export.test_build import SMALL
from whisper_opt.export import export

def on_progress(stage, done, total):
    if stage == sys.argv[2] and done * 2 >= total:
        print("now", flush=True)
        time.sleep(600)

export(sharp_checkpoint(SMALL), sys.argv[1], overwrite=True, on_progress=on_progress)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="not tested: no SIGKILL here")
@pytest.mark.parametrize("stage", ["write", "verify"])
@pytest.mark.parametrize("replace", [False, True])
def test_a_killed_export_leaves_no_engine(
    place: Path, small: Checkpoint, stage: str, replace: bool
) -> None:
    target = place / "engine"
    if replace:
        export(sharp_checkpoint(SMALL, seed=1), target)
    before = snapshot(target) if replace else {}
    command = [sys.executable, "-c", KILLED, str(target), stage]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "now\n"
        finally:
            process.kill()
    assert process.returncode == -signal.SIGKILL
    assert (place / f".engine.partial-{process.pid}" / "encoder.data").is_file()
    if replace:
        assert snapshot(target) == before
    else:
        assert not target.exists()
    engine = export(small, target, overwrite=replace)
    assert read_engine(target, verify=True) == engine
    assert engine.manifest.source["name"] == "random-0"
    assert os.listdir(place) == ["engine"]


# --- weights are streamed -----------------------------------------------------------------------


def counted(name: str, read: Callable[[], F32], events: list[str]) -> Callable[[], F32]:
    def read_counted() -> F32:
        events.append(name)
        return read()

    return read_counted


@pytest.mark.parametrize("dialect", DIALECTS)
def test_every_tensor_is_read_once_and_written_before_the_next(
    place: Path, small: Checkpoint, dialect: str
) -> None:
    events: list[str] = []
    tensors = {
        name: dataclasses.replace(tensor, read=counted(name, tensor.read, events))
        for name, tensor in small.tensors.items()
    }
    n_weights = 0
    for stem, make in BUILDERS.items():
        graph, _ = make(SMALL, tensors, make_dialect(dialect))
        n_weights += len(graph.weights)
        write_graph(graph, place, stem, lambda n: events.append(f"{n} bytes written"))
    reads = [event for event in events if not event.endswith("written")]
    assert sorted(reads) == sorted(small.tensors)
    assert len(events) - len(reads) == n_weights
    in_a_row = 0
    for event in events:
        in_a_row = 0 if event.endswith("written") else in_a_row + 1
        assert in_a_row <= 3, event  # query, key and value are one weight of the file


def test_weights_are_dropped_when_written(place: Path, small: Checkpoint) -> None:
    alive: list[weakref.ref[F32]] = []

    def held(weight: Weight) -> Weight:
        def read() -> F32:
            assert sum(ref() is not None for ref in alive) <= 1, weight.name
            values = weight.read()
            alive.append(weakref.ref(values))
            return values

        return dataclasses.replace(weight, read=read)

    graph, _ = build_decoder(SMALL, small.tensors, make_dialect("contrib"))
    spied = OnnxGraph(graph.model, tuple(held(weight) for weight in graph.weights))
    write_graph(spied, place, "decoder", lambda _: None)
    assert len(alive) == len(graph.weights)
    assert all(ref() is None for ref in alive)


def test_building_a_graph_reads_nothing(small: Checkpoint) -> None:
    def refuse() -> F32:
        raise AssertionError("a weight was read")

    tensors = {
        name: dataclasses.replace(tensor, read=refuse) for name, tensor in small.tensors.items()
    }
    for make in BUILDERS.values():
        for dialect in DIALECTS:
            graph, _ = make(SMALL, tensors, make_dialect(dialect))
            assert graph.weights


# --- a graph in pieces --------------------------------------------------------------------------

DEEP = random_dims(n_vocab=2000, n_audio_state=64, n_text_state=64, n_audio_layer=8, n_text_layer=8)
_BLOCK = 4 * 12 * 64 * 64  # bytes of the matrices of one encoder layer


def feeds_of(stem: str) -> dict[str, NDArray]:
    rng = np.random.default_rng(5)

    def normal(*shape: int) -> F32:
        return rng.standard_normal(shape, np.float32)

    if stem == "encoder":
        return {"mel": normal(2, DEEP.n_mels, 120)}
    feeds: dict[str, NDArray] = {
        "tokens": rng.integers(0, DEEP.n_vocab, (4, 1)).astype(np.int64),
        "start": np.array([5, 0, 17, 63], np.int64),
        "at": np.zeros((4, 1), np.int64),
    }
    for i in range(DEEP.n_text_layer):
        for kind in "kv":
            feeds[f"self_{kind}_{i}"] = normal(4, DEEP.n_text_head, 64, HEAD_DIM)
            feeds[f"cross_{kind}_{i}"] = normal(2, DEEP.n_text_head, 60, HEAD_DIM)
    return feeds


@pytest.mark.parametrize(
    ("piece_bytes", "n_encoder", "n_decoder"), [(1 << 10, 9, 9), (int(2.6 * _BLOCK), 5, 5)]
)
@pytest.mark.parametrize("dialect", DIALECTS)
def test_pieces_compute_what_the_whole_computes(
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    dialect: str,
    piece_bytes: int,
    n_encoder: int,
    n_decoder: int,
) -> None:
    require(dialect)
    checkpoint = random_checkpoint(DEEP)
    for stem, n_pieces in (("encoder", n_encoder), ("decoder", n_decoder)):
        graph, cuts = BUILDERS[stem](DEEP, checkpoint.tensors, make_dialect(dialect))
        write_graph(graph, place, stem, lambda _: None)
        whole = PiecewiseGraph(graph, cuts, place, stem)
        assert len(whole) == 1
        with monkeypatch.context() as patch:
            patch.setattr(pieces, "PIECE_BYTES", piece_bytes)
            cut = PiecewiseGraph(graph, cuts, place, stem)
        assert len(cut) == n_pieces
        feeds = feeds_of(stem)
        expected, found = whole.run(feeds), cut.run(feeds)
        assert list(found) == list(expected) == [value.name for value in graph.model.graph.output]
        for name, values in expected.items():
            np.testing.assert_allclose(found[name], values, rtol=0, atol=1e-4, err_msg=name)
        again = cut.run(feeds)
        for name, values in found.items():
            np.testing.assert_array_equal(again[name], values)
        _every_node_runs(graph, cut)
        heaviest = max(_weight_bytes(graph, piece) for piece in cut._pieces)
        assert heaviest <= max(piece_bytes, 2 * _BLOCK) + 4 * DEEP.n_vocab * DEEP.n_text_state
    assert not list(place.glob("*.piece.onnx"))


def _weight_bytes(graph: OnnxGraph, piece: onnx.ModelProto) -> int:
    used = {tensor.name for tensor in piece.graph.initializer}
    return sum(4 * int(np.prod(w.shape)) for w in graph.weights if w.name in used)


def _every_node_runs(graph: OnnxGraph, cut: PiecewiseGraph) -> None:
    inside = [{node.name for node in piece.graph.node} for piece in cut._pieces]
    assert set.union(*inside) == {node.name for node in graph.model.graph.node}
    weights = {weight.name for weight in graph.weights}
    places: dict[str, int] = {}
    for piece in cut._pieces:
        for tensor in piece.graph.initializer:
            if tensor.name in weights:
                places[tensor.name] = places.get(tensor.name, 0) + 1
    assert set(places) == weights
    twice = {name for name, count in places.items() if count > 1}
    assert twice <= {"decoder.token_embedding.weight"}  # the first and the last piece


@pytest.mark.parametrize("dialect", DIALECTS)
def test_an_export_is_verified_in_pieces(
    place: Path, monkeypatch: pytest.MonkeyPatch, dialect: str
) -> None:
    require(dialect)
    checkpoint = random_checkpoint(DEEP)
    whole = export(checkpoint, place / "whole", dialect=dialect)
    counts: list[int] = []
    plan = PiecewiseGraph._plan

    def counted(self: PiecewiseGraph, *arguments: Any) -> Any:
        planned = plan(self, *arguments)
        counts.append(len(planned))
        return planned

    monkeypatch.setattr(PiecewiseGraph, "_plan", counted)
    monkeypatch.setattr(pieces, "PIECE_BYTES", 1 << 10)
    cut = export(checkpoint, place / "cut", dialect=dialect)
    assert counts == [9, 9]  # a layer each, and what stands before the first
    assert cut.manifest.files == whole.manifest.files
    assert sorted(path.name for path in cut.path.iterdir()) == sorted([*ENGINE_FILES, MANIFEST])
    scale = whole.manifest.parity["logits_scale"]
    assert cut.manifest.parity["logits_scale"] == pytest.approx(scale)
    change_weight(monkeypatch, "decoder.blocks.5.mlp.2.weight", np.negative)
    with pytest.raises(VerificationError):
        export(checkpoint, place / "spoiled", dialect=dialect)
    assert sorted(os.listdir(place)) == ["cut", "whole"]


def test_a_piece_that_cannot_run_is_a_failed_verification(place: Path, small: Checkpoint) -> None:
    graph, cuts = build_encoder(SMALL, small.tensors, make_dialect("contrib"))
    write_graph(graph, place, "encoder", lambda _: None)
    (place / "encoder.data").write_bytes(b"")
    with pytest.raises(VerificationError, match="cannot run the exported encoder"):
        PiecewiseGraph(graph, cuts, place, "encoder").run(
            {"mel": np.zeros((1, 80, 100), np.float32)}
        )


def test_a_wrong_reference_would_be_noticed(
    place: Path, small: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both sides of the comparison matter: it is not the graph compared with itself."""
    encode = Reference.encode
    monkeypatch.setattr(Reference, "encode", lambda self, mel: encode(self, mel) * np.float32(1.01))
    with pytest.raises(VerificationError):
        export(small, place / "engine")
    assert os.listdir(place) == []
