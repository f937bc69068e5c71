from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.flax_write import flax_array, pack, write_flax
from whisper_opt.core.errors import CheckpointError
from whisper_opt.export.checkpoints import Checkpoint, load_checkpoint
from whisper_opt.export.checkpoints.checkpoint import OUTPUT_HEAD
from whisper_opt.export.checkpoints.flax_msgpack import pytorch_name, read_flax

VALUES = np.arange(6, dtype=np.float32).reshape(2, 3)


def written(tmp_path: Path, raw: bytes) -> Path:
    path = tmp_path / "flax_model.msgpack"
    path.write_bytes(raw)
    return path


def test_names_and_layouts(tmp_path: Path) -> None:
    conv = np.arange(24, dtype=np.float32).reshape(3, 4, 2)
    tree = {
        "model": {
            "fc1": {"kernel": VALUES, "bias": VALUES[0]},
            "conv1": {"kernel": conv},
            "embed_tokens": {"embedding": VALUES},
            "layer_norm": {"scale": VALUES[0]},
        }
    }
    found = read_flax(written(tmp_path, pack(tree)))
    wanted = {
        "model.fc1.weight": VALUES.T,
        "model.fc1.bias": VALUES[0],
        "model.conv1.weight": conv.transpose(2, 1, 0),
        "model.embed_tokens.weight": VALUES,
        "model.layer_norm.weight": VALUES[0],
    }
    assert set(found) == set(wanted)
    for name, values in wanted.items():
        np.testing.assert_array_equal(found[name].read(), values, err_msg=name)
    assert pytorch_name("lm_head/kernel") == "proj_out.weight"


@pytest.mark.parametrize("n", [1, 15, 16, 40, 300])
def test_sizes_of_maps_and_names(n: int, tmp_path: Path) -> None:
    name = "n" * min(n, 200)
    tree = {f"{name}{i}": VALUES for i in range(n)}
    assert len(read_flax(written(tmp_path, pack(tree)))) == n


def test_another_output_head(small: Checkpoint, tmp_path: Path) -> None:
    folder = write_flax(small, tmp_path / "m")
    weights = folder / "flax_model.msgpack"
    head = small.tensors["decoder.token_embedding.weight"].read().T
    for own in (head, np.ascontiguousarray(head[:, ::-1])):
        raw = write_flax(small, folder).joinpath("flax_model.msgpack").read_bytes()
        assert raw[0] == 0x81  # one entry, model
        weights.write_bytes(b"\x82" + raw[1:] + pack("lm_head") + pack({"kernel": own}))
        tensors = load_checkpoint(folder).tensors
        assert (OUTPUT_HEAD in tensors) == (own is not head)
    np.testing.assert_allclose(tensors[OUTPUT_HEAD].read(), own.T, atol=1e-3)


def test_truncated(tmp_path: Path) -> None:
    raw = pack({"model": {"fc1": {"kernel": VALUES, "bias": VALUES[0]}}})
    for keep in range(len(raw)):
        with pytest.raises(CheckpointError, match="incomplete or damaged"):
            read_flax(written(tmp_path, raw[:keep]))


def deep(depth: int) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for _ in range(depth):
        value = {"a": value}
    return value


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"\x81" + pack("a") + flax_array(VALUES, "float16", 2), "an extension of type 2"),
        (b"\x81" + pack("a") + flax_array(VALUES, "float16", 3), "an extension of type 3"),
        (pack({"a": {"__msgpack_chunked_array__": True}}), "in chunks"),
        (pack({"a": 1}), "MessagePack type 0x01, expected an array as 'a'"),
        (pack({"a": "text"}), "expected an array"),
        (b"\x81\x01\x01", "expected a name"),
        (b"\xc0", "expected a map"),
        (b"\xdf\xff\xff\xff\xff", "ends inside its index"),
        (b"\x81\xdb\xff\xff\xff\xff", "a name of 4294967295 bytes"),
        (b"\x81\xa1\xff" + flax_array(VALUES, "float16"), "not text"),
        (pack({"a": VALUES}) + b"\0", "goes on after its last entry"),
        (b"\x82" + (pack("a") + flax_array(VALUES, "float16")) * 2, "has 'a' twice"),
        (pack(deep(100)), "nests maps deeper than 16"),
        (pack({"a": VALUES}).replace(b"float16", b"float64"), "stores 'a' as 'float64'"),
        (pack({"a": VALUES}).replace(b"\x92\x02\x03", b"\x92\x02\x04"), "12 bytes for float16"),
        (pack({"a": VALUES}).replace(b"\x92\x02\x03", b"\x92\x02\x00"), "without values"),
        (pack({"a": VALUES}).replace(b"\x92\x02\x03", b"\x9f\x02\x03"), "of 15 axes"),
        (pack({"a": VALUES}).replace(b"\x93\x92", b"\x92\x92"), "something else than shape"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_damaged(raw: bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=message):
        read_flax(written(tmp_path, raw))
