from __future__ import annotations

import base64
import hashlib
import json
import logging
import struct
from pathlib import Path

import numpy as np
import pytest

from tests.support.ggml_write import (
    GGML_TYPES,
    QUANTIZED,
    ggml_header,
    ggml_tensor,
    stored_values,
    write_ggml,
)
from tests.support.models import byte_alphabet, random_checkpoint, random_dims
from whisper_opt.core.errors import CheckpointError
from whisper_opt.export.checkpoints import Checkpoint, ggml, load_checkpoint

MODELS = Path(__file__).parents[3] / "models"


@pytest.fixture
def file(small: Checkpoint, tmp_path: Path) -> Path:
    return write_ggml(small, tmp_path / "ggml-small.bin")


@pytest.mark.parametrize("kind", GGML_TYPES)
def test_every_type_gives_the_values_written(kind: str, small: Checkpoint, tmp_path: Path) -> None:
    found = load_checkpoint(write_ggml(small, tmp_path / "ggml-small.bin", kind))
    assert found.dims == small.dims
    assert set(found.tensors) == set(small.tensors)
    for name, tensor in small.tensors.items():
        wanted, values = stored_values(name, tensor.read(), kind), found.tensors[name].read()
        assert found.tensors[name].shape == values.shape == wanted.shape
        np.testing.assert_allclose(values, wanted, rtol=1e-6, atol=1e-7, err_msg=name)
    types = {kind, "float32"} if kind == "float32" else {kind, "float16", "float32"}
    assert found.source.dtype == "+".join(sorted(types))
    assert (found.source.format, found.source.name) == ("ggml", "ggml-small.bin")
    assert found.tokenizer_json == small.tokenizer_json


def test_says_only_what_the_file_says(file: Path) -> None:
    found = load_checkpoint(file)
    assert found.alignment_heads is None
    assert found.suppress_tokens is None
    assert found.begin_suppress_tokens is None
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    assert found.source.sha256 == {"ggml-small.bin": digest}


@pytest.mark.parametrize("kind", ["float16", "q5_0"])
def test_rounding_is_reported(
    kind: str, small: Checkpoint, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        load_checkpoint(write_ggml(small, tmp_path / "ggml-small.bin", kind))
    said = [record.getMessage() for record in caplog.records]
    assert ["rounded to q5_0" in text for text in said] == ([True] if kind in QUANTIZED else [])


@pytest.mark.parametrize("keep", [3, 4, 40, 50, 60, 64_000, 64_400, 64_410, -1])
def test_truncated(keep: int, file: Path) -> None:
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=r"incomplete|not a checkpoint of a known format"):
        load_checkpoint(file)


def test_missing_tensor(file: Path, small: Checkpoint) -> None:
    last = 4 * (3 + 1) + len("decoder.ln.bias") + 4 * small.dims.n_text_state
    file.write_bytes(file.read_bytes()[:-last])
    with pytest.raises(CheckpointError, match=r"lacks 1 of .*'decoder\.ln\.bias'"):
        load_checkpoint(file)


def test_changed_after_loading(file: Path) -> None:
    found = load_checkpoint(file)
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="incomplete"):
        found.tensors["decoder.ln.bias"].read()


def entry(name: str, shape: tuple[int, ...], code: int = 0, n_bytes: int = 64) -> bytes:
    return ggml_tensor(name, shape, code, bytes(n_bytes))


@pytest.mark.parametrize(
    ("added", "message"),
    [
        (entry("encoder.ln_post.bias", (64,), 12), "as q4_k, whose blocks .* q5_0 or q8_0"),
        (entry("encoder.ln_post.bias", (64,), 16), "as type 16"),
        (entry("encoder.ln_post.bias", (64,), -1), "as type -1"),
        (entry("encoder.ln_post.bias", (63,)), r"of shape \[63\]; the model's .* \[64\]"),
        (entry("encoder.ln_post.bias", (64,), 0, 255), "bytes, .* needs"),
        (entry("encoder.ln_post.bias", (1,) * 5), "a tensor of 5 axes"),
        (entry("encoder.conv1.weight", (64, 80, 3), 8), "whose blocks have 32 values"),
        (entry("encoder.blocks.7.mlp.0.bias", (64,)), "none of that name"),
        (entry("x" * 129, (64,)), "a name of 129 bytes"),
        (entry("encoder.ln_post.bias", (64,), 0, 256) * 2, "twice"),
        (struct.pack("<3i", 1, -1, 0) + bytes(4), "a name of -1 bytes"),
    ],
)
def test_damaged_tensors(added: bytes, message: str, small: Checkpoint, tmp_path: Path) -> None:
    file = tmp_path / "ggml-x.bin"
    file.write_bytes(ggml_header(small.dims, "float16") + added)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(file)


def test_old_blocks(small: Checkpoint, tmp_path: Path) -> None:
    path = write_ggml(small, tmp_path / "ggml-x.bin", "q4_0", version=1)
    with pytest.raises(CheckpointError, match="version 1 of ggml's quantized types"):
        load_checkpoint(path)
    load_checkpoint(write_ggml(small, tmp_path / "ggml-x.bin", "float16", version=0))


@pytest.mark.parametrize(
    ("at", "value", "message"),
    [
        (12, 5, "is a ggml file, but not of a Whisper model: n_audio_state is 5"),
        (8, 3000, "for windows of 60 s"),
        (48, 128, r"filters \[128, 201\] for a model of 80"),
        (52, 257, r"filters \[80, 257\]"),
        (56, 0x3F800000, "other mel filters"),
        (60, 0x7FC00000, "other mel filters"),
        (56 + 80 * 201 * 4, -1, "-1 tokens"),
        (56 + 80 * 201 * 4, 2001, "2001 tokens for a vocabulary of 2000"),
    ],
)
def test_damaged_header(at: int, value: int, message: str, file: Path) -> None:
    raw = bytearray(file.read_bytes())
    raw[at : at + 4] = struct.pack("<i", value)
    file.write_bytes(raw)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(file)


def test_another_model_of_the_format(tmp_path: Path) -> None:
    """ggml's first format has no name of the model: GPT-2's header begins in the same way."""
    file = tmp_path / "ggml-model.bin"
    file.write_bytes(struct.pack("<7i", 0x67676D6C, 50257, 1024, 768, 12, 12, 1) + bytes(1000))
    with pytest.raises(CheckpointError, match="is a ggml file, but not of a Whisper model"):
        load_checkpoint(file)


# --- the vocabulary -------------------------------------------------------------------------------


def _tokens(tiktoken: Path) -> list[bytes]:
    lines = tiktoken.read_text(encoding="utf-8").splitlines()
    return [base64.b64decode(line.split()[0]) if line[0] != "=" else b"" for line in lines]


def _publish(tokens: list[bytes], kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make tokens those that OpenAI published."""
    raw = b"".join(struct.pack("<I", len(token)) + token for token in tokens)
    monkeypatch.setattr(ggml, "_VOCABULARIES", {hashlib.sha256(raw).hexdigest(): kind})


def test_the_tokenizer_is_made_of_published_tokens(
    wide: Checkpoint, tiktoken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = _tokens(tiktoken)
    _publish(tokens, "multilingual", monkeypatch)
    file = write_ggml(wide, tmp_path / "ggml-wide.bin", tokens=tokens)
    found = load_checkpoint(file)
    assert found.tokenizer_json == load_checkpoint(file, tokenizer=tiktoken).tokenizer_json
    assert '"<|yue|>"' not in found.tokenizer_json
    assert found.multilingual
    write_ggml(wide, file, tokens=[*tokens, b"<|endoftext|>"])
    assert load_checkpoint(file).tokenizer_json == found.tokenizer_json


def test_other_tokens(
    wide: Checkpoint, tiktoken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = _tokens(tiktoken)
    file = write_ggml(wide, tmp_path / "ggml-wide.bin", tokens=tokens)
    with pytest.raises(CheckpointError, match=r"not those of OpenAI's models; pass .* tokenizer="):
        load_checkpoint(file)
    load_checkpoint(file, tokenizer=tiktoken)
    _publish(tokens, "English-only", monkeypatch)
    with pytest.raises(CheckpointError, match="English-only tokens, but 51865 token rows"):
        load_checkpoint(file)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "n_vocab"), [("tiny.en", 51864), ("base", 51865)])
def test_published_tokens(name: str, n_vocab: int, tmp_path: Path) -> None:
    """The tokens of the real models are known by their hash, and give their tokenizer."""
    path = MODELS / name / "tokenizer.json"
    if not path.is_file():
        pytest.skip(f"no models/{name}")
    real = json.loads(path.read_text(encoding="utf-8"))
    bytes_of = {char: byte for byte, char in byte_alphabet().items()}
    special = {token["content"] for token in real["added_tokens"]}
    vocab = {token: i for token, i in real["model"]["vocab"].items() if token not in special}
    ordered = sorted(vocab, key=vocab.__getitem__)
    tokens = [bytes(bytes_of[char] for char in token) for token in ordered]
    if n_vocab == 51865 and len(tokens) == 50256:
        tokens.append(b"")
    dims = random_dims(
        n_vocab=n_vocab, n_audio_state=64, n_text_state=64, n_audio_layer=1, n_text_layer=1
    )
    file = write_ggml(random_checkpoint(dims), tmp_path / "ggml-x.bin", tokens=tokens)
    found = load_checkpoint(file)
    assert found.multilingual == (n_vocab == 51865)
    made = json.loads(found.tokenizer_json)
    assert {token: i for token, i in made["model"]["vocab"].items() if token} == {
        token: i for token, i in vocab.items() if token
    }
    wanted = load_checkpoint(file, tokenizer=path).tokenizer_json
    assert made["model"]["merges"] == [
        merge if isinstance(merge, str) else " ".join(merge)
        for merge in json.loads(wanted)["model"]["merges"]
    ]
