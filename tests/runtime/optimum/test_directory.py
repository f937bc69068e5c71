"""Reading a directory of Optimum: where graphs are, precisions, configurations, refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from tests.support.models import tokenizer_json
from tests.support.optimum_dirs import DIMS, optimum_config
from whisper_opt.core.errors import EngineError, OptionError
from whisper_opt.runtime.engine import MANIFEST, is_engine_directory, read_engine
from whisper_opt.runtime.optimum.directory import DIALECT, OptimumEngine, read_optimum
from whisper_opt.runtime.optimum.external_data import external_files

DECODERS = ("decoder_model", "decoder_with_past_model")
GENERATION = {
    "alignment_heads": [[0, 1], [1, 0]],
    "suppress_tokens": [1, 2],
    "begin_suppress_tokens": [220],
    "is_multilingual": False,
}


def model_of(*tensors: TensorProto) -> onnx.ModelProto:
    """A model of one node, with some initializers."""
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])
    node = helper.make_node("Identity", ["x"], ["y"])
    return helper.make_model(helper.make_graph([node], "g", [value], [out], list(tensors)))


def stored_in(location: str, name: str = "w") -> TensorProto:
    """A tensor whose values are in another file."""
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[1])
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", "0"), ("length", "4")):
        tensor.external_data.add(key=key, value=value)
    return tensor


def write(folder: Path, *names: str, subfolder: str = "") -> Path:
    """A directory with these graphs, which compute nothing of use."""
    (folder / subfolder).mkdir(parents=True, exist_ok=True)
    for name in names:
        onnx.save(model_of(), folder / subfolder / f"{name}.onnx")
    config = optimum_config(DIMS)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").write_text(json.dumps(GENERATION))
    (folder / "tokenizer.json").write_text(tokenizer_json(DIMS), encoding="utf-8")
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write(tmp_path / "model", "encoder_model", "decoder_model_merged")


def edit(folder: Path, name: str, **values: Any) -> None:
    path = folder / name
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def message(folder: Path) -> str:
    with pytest.raises(EngineError) as caught:
        read_engine(folder)
    return str(caught.value)


def test_opens_like_an_engine(folder: Path) -> None:
    assert is_engine_directory(folder)
    engine = read_engine(folder)
    assert isinstance(engine, OptimumEngine)
    manifest = engine.manifest
    assert manifest.dims == DIMS
    assert (manifest.precision, manifest.dialect) == ("fp32", DIALECT)
    assert manifest.alignment_heads == ((0, 1), (1, 0))
    assert manifest.suppress_tokens == (1, 2)
    assert manifest.begin_suppress_tokens == (220,)
    assert not manifest.is_multilingual
    assert engine.tokenizer_json() == tokenizer_json(DIMS)
    sizes = {name: entry.size for name, entry in manifest.files.items()}
    assert sizes["encoder_model.onnx"] == (folder / "encoder_model.onnx").stat().st_size
    assert set(sizes) == {"encoder_model.onnx", "decoder_model_merged.onnx", "tokenizer.json"}


@pytest.mark.parametrize("names", [(), ("model",), ("decoder_model_merged",)])
def test_other_directories_are_no_engines(tmp_path: Path, names: tuple[str, ...]) -> None:
    folder = write(tmp_path / "other", *names)
    assert not is_engine_directory(folder)
    assert f"{folder} holds no {MANIFEST}" in message(folder)


def test_missing_paths_and_files_are_no_engines(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"")
    assert not is_engine_directory(file)
    assert not is_engine_directory(tmp_path / "missing")


@pytest.mark.parametrize("subfolder", ["", "onnx"])
def test_graphs_are_at_the_top_or_below(tmp_path: Path, subfolder: str) -> None:
    folder = write(tmp_path / "m", "encoder_model", *DECODERS, subfolder=subfolder)
    files = read_optimum(folder).select("auto")
    assert files.encoder == folder / subfolder / "encoder_model.onnx"
    assert files.decoder == folder / subfolder / "decoder_model.onnx"
    assert files.decoder_with_past == folder / subfolder / "decoder_with_past_model.onnx"


def test_one_merged_graph_is_preferred_to_two(tmp_path: Path) -> None:
    folder = write(tmp_path / "m", "encoder_model", "decoder_model_merged", *DECODERS)
    files = read_optimum(folder).select("auto")
    assert files.decoder.name == "decoder_model_merged.onnx"
    assert files.decoder_with_past is None


@pytest.mark.parametrize(
    ("suffix", "precision"),
    [
        ("", "fp32"),
        ("_fp16", "fp16"),
        ("_quantized", "int8"),
        ("_int8", "int8"),
        ("_uint8", "int8"),
        ("_q4", "int4"),
        ("_bnb4", "int4"),
        ("_q4f16", "int4"),
    ],
)
def test_suffixes(tmp_path: Path, suffix: str, precision: str) -> None:
    names = (f"encoder_model{suffix}", f"decoder_model_merged{suffix}")
    engine = read_optimum(write(tmp_path / "m", *names))
    assert engine.manifest.precision == precision
    assert list(engine.graphs) == [precision]
    for requested in ("auto", precision):
        assert engine.select(requested).encoder.name == f"encoder_model{suffix}.onnx"


def test_auto_takes_fp32_and_others_are_found_by_name(tmp_path: Path) -> None:
    names = [f"{n}{s}" for n in ("encoder_model", "decoder_model_merged") for s in ("", "_q4")]
    engine = read_optimum(write(tmp_path / "m", *names))
    assert engine.select("auto").precision == "fp32"
    assert engine.select("int4").decoder.name == "decoder_model_merged_q4.onnx"
    with pytest.raises(OptionError, match=r"'int8', but .* has graphs in fp32, int4 only"):
        engine.select("int8")


def test_an_encoder_alone_is_no_precision(tmp_path: Path) -> None:
    folder = write(tmp_path / "m", "encoder_model", "encoder_model_q4", "decoder_model_merged_q4")
    assert list(read_optimum(folder).graphs) == ["int4"]


@pytest.mark.parametrize("names", [(), ("decoder_model",), ("decoder_with_past_model",)])
def test_without_decoder(tmp_path: Path, names: tuple[str, ...]) -> None:
    folder = write(tmp_path / "m", "encoder_model", *names)
    said = message(folder)
    assert "expected decoder_model_merged.onnx, or decoder_model.onnx and decoder_with" in said
    assert "download the directory again" in said


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_missing_files(folder: Path, name: str) -> None:
    (folder / name).unlink()
    assert f"{folder} has no {name}; copy or download" in message(folder)


def test_without_generation_config(folder: Path) -> None:
    """Older directories have its entries in ``config.json``, or not at all."""
    (folder / "generation_config.json").unlink()
    assert read_engine(folder).manifest.suppress_tokens is None
    edit(folder, "config.json", suppress_tokens=[7])
    assert read_engine(folder).manifest.suppress_tokens == (7,)


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff", b"[" * 100_000, b'{"a": NaN}'])
@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
def test_damaged_configurations(folder: Path, name: str, content: bytes) -> None:
    (folder / name).write_bytes(content)
    said = message(folder)
    assert str(folder / name) in said
    assert "download the directory again" in said


@pytest.mark.parametrize(
    "values",
    [
        {"model_type": "bart"},
        {"d_model": None},
        {"d_model": "128"},
        {"d_model": 100},
        {"decoder_layers": 0},
        {"decoder_layers": 1 << 40},
        {"vocab_size": -1},
        {"vocab_size": True},
        {"max_source_positions": 750},
        {"encoder_attention_heads": 3},
    ],
    ids=str,
)
def test_configurations_of_other_models(folder: Path, values: dict[str, Any]) -> None:
    edit(folder, "config.json", **values)
    said = message(folder)
    assert "does not describe a Whisper model" in said
    assert "export it again with Optimum, or export its checkpoint with whisper-opt" in said


@pytest.mark.parametrize(
    "values",
    [
        {"alignment_heads": 3},
        {"alignment_heads": [[1]]},
        {"alignment_heads": [[-1, 0]]},
        {"suppress_tokens": "all"},
        {"suppress_tokens": [-1]},
        {"suppress_tokens": [DIMS.n_vocab]},
        {"begin_suppress_tokens": [1.5]},
        {"is_multilingual": "yes"},
    ],
    ids=str,
)
def test_malformed_generation_configs(folder: Path, values: dict[str, Any]) -> None:
    edit(folder, "generation_config.json", **values)
    assert next(iter(values)) in message(folder)


def test_alignment_heads_of_a_larger_model_are_left_out(folder: Path) -> None:
    edit(folder, "generation_config.json", alignment_heads=[[0, 0], [31, 19]])
    assert read_engine(folder).manifest.alignment_heads is None


def test_there_is_nothing_to_verify(folder: Path) -> None:
    with pytest.raises(EngineError, match="lists no hashes, so its files cannot be verified"):
        read_engine(folder, verify=True)


# --- external data ------------------------------------------------------------------------------


def nested(tensor: TensorProto) -> onnx.ModelProto:
    """A tensor in a subgraph of a subgraph."""
    inner = helper.make_graph([], "inner", [], [], [tensor])
    branch = helper.make_node("If", ["c"], ["z"], then_branch=inner, else_branch=inner)
    outer = helper.make_graph([branch], "outer", [], [])
    model = model_of()
    model.graph.node.append(helper.make_node("Loop", ["x"], ["z"], body=outer))
    return model


def in_constant(tensor: TensorProto) -> onnx.ModelProto:
    model = model_of()
    model.graph.node.append(helper.make_node("Constant", [], ["z"], value=tensor))
    return model


def in_function(tensor: TensorProto) -> onnx.ModelProto:
    node = helper.make_node("Constant", [], ["z"], value=tensor)
    model = model_of()
    imports = [helper.make_opsetid("", 17)]
    model.functions.append(helper.make_function("d", "f", [], ["z"], [node], imports))
    return model


def in_sparse(tensor: TensorProto) -> onnx.ModelProto:
    model = model_of()
    model.graph.sparse_initializer.add().indices.CopyFrom(tensor)
    return model


@pytest.mark.parametrize("place", [model_of, nested, in_constant, in_function, in_sparse])
def test_data_files_are_found_anywhere(tmp_path: Path, place: Any) -> None:
    path = tmp_path / "x.onnx"
    path.write_bytes(place(stored_in("x.onnx_data")).SerializeToString())
    assert external_files(path) == {"x.onnx_data"}


def test_embedded_weights_need_no_file(tmp_path: Path) -> None:
    values = helper.make_tensor("w", TensorProto.FLOAT, [2], np.ones(2, np.float32).tobytes(), True)
    path = tmp_path / "x.onnx"
    path.write_bytes(model_of(values).SerializeToString())
    assert external_files(path) == set()


@pytest.mark.parametrize("name", ["../secret", "/etc/hostname", "a/b", "..", "", "a\\b", "\0"])
def test_data_files_elsewhere_are_refused(folder: Path, name: str) -> None:
    path = folder / "decoder_model_merged.onnx"
    path.write_bytes(nested(stored_in(name)).SerializeToString())
    (folder.parent / "secret").write_bytes(bytes(4))
    engine = read_optimum(folder)
    with pytest.raises(EngineError, match="which is not in its directory") as caught:
        engine.select("auto")
    assert str(path) in str(caught.value)


def test_missing_data_files(folder: Path) -> None:
    path = folder / "encoder_model.onnx"
    path.write_bytes(model_of(stored_in("encoder_model.onnx_data")).SerializeToString())
    with pytest.raises(EngineError, match=r"weights in encoder_model.onnx_data, which is missing"):
        read_optimum(folder).select("auto")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not an ONNX file",
        b"\x3a\x7f\x00",  # a graph that is cut off
        b"\x3a\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
        b"\x3b",  # a group, which ONNX does not have
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
    ],
)
def test_files_that_are_no_graphs(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.onnx"
    path.write_bytes(content)
    with pytest.raises(EngineError, match=r"x\.onnx is not an ONNX model .*download it again"):
        external_files(path)


def test_endless_nesting(tmp_path: Path) -> None:
    graph = b""
    for _ in range(60):  # node of graph, attribute of node, graph of attribute
        for tag in (b"\x32", b"\x2a", b"\x0a"):
            size, length = len(graph), b""
            while size > 0x7F:
                length += bytes([size & 0x7F | 0x80])
                size >>= 7
            graph = tag + length + bytes([size]) + graph
    path = tmp_path / "x.onnx"
    size, length = len(graph), b""
    while size > 0x7F:
        length += bytes([size & 0x7F | 0x80])
        size >>= 7
    path.write_bytes(b"\x3a" + length + bytes([size]) + graph)
    with pytest.raises(EngineError, match="nested deeper than 64"):
        external_files(path)
