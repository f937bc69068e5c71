"""All formats of a tokenizer give the same text."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers

from tests.support.models import random_dims, special_ids, tokenizer_json
from whisper_opt.core.errors import CheckpointError
from whisper_opt.export.checkpoints.tokenizer import find_tokenizer

DIMS = random_dims()
TEXTS = [
    " the quick brown fox, it's 1984!",
    "the  theatre\n\ttree\r\n ",
    "Ünïcödé — 日本語 Ελληνικά עברית 🎙️ \u00a0\u3000",
    "",
]


def load(text: str) -> Any:
    return tokenizers.Tokenizer.from_str(text)


def ids(tokenizer: Any, text: str) -> list[int]:
    found: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
    return found


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "tokenizer.json").write_text(tokenizer_json(DIMS), encoding="utf-8")
    return tmp_path / "tokenizer.json"


def test_tokenizer_json_is_kept_as_it_is(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    assert find_tokenizer(file, DIMS) == text
    assert find_tokenizer(file.parent, DIMS) == text


def split_into_parts(file: Path) -> None:
    """Replace a tokenizer.json by the three older files."""
    value = json.loads(file.read_text(encoding="utf-8"))
    added = {token["content"]: token["id"] for token in value["added_tokens"]}
    vocab = {**value["model"]["vocab"], "<|endoftext|>": added.pop("<|endoftext|>")}
    parts = {"vocab.json": vocab, "added_tokens.json": added}
    for name, part in parts.items():
        (file.parent / name).write_text(json.dumps(part), encoding="utf-8")
    merges = "\n".join(["#version: 0.2", *value["model"]["merges"], ""])
    (file.parent / "merges.txt").write_text(merges, encoding="utf-8")
    file.unlink()


def test_older_parts(file: Path) -> None:
    wanted = load(file.read_text(encoding="utf-8"))
    split_into_parts(file)
    found = load(find_tokenizer(file.parent, DIMS))
    for text in TEXTS:
        assert ids(found, text) == ids(wanted, text)
        assert found.decode(ids(found, text)) == text
    for name, index in special_ids(DIMS).items():
        assert found.token_to_id(name) == index
        assert found.decode([index], skip_special_tokens=True) == ""


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("merges.txt", "a b c\n", "line 1"),
        ("merges.txt", "#version: 0.2\nab\n", "line 2"),
        ("vocab.json", '{"a": "b"}', r"vocab\.json maps"),
        ("added_tokens.json", "{}", "no <.notimestamps"),
    ],
)
def test_damaged_parts(name: str, text: str, message: str, file: Path) -> None:
    split_into_parts(file)
    (file.parent / name).write_text(text, encoding="utf-8")
    with pytest.raises(CheckpointError, match=message):
        find_tokenizer(file.parent, DIMS)


@pytest.mark.parametrize("lost", [0, 100, 701])
def test_lost_merge_is_restored(lost: int, tiktoken: Path, file: Path) -> None:
    """Published multilingual files lack their first merge."""
    whole = find_tokenizer(tiktoken, DIMS)
    value = json.loads(whole)
    gone = value["model"]["merges"].pop(lost)
    file.write_text(json.dumps(value), encoding="utf-8")
    restored = json.loads(find_tokenizer(file, DIMS))
    assert restored["model"]["merges"].index(gone) == lost
    assert restored == json.loads(whole)


@pytest.mark.parametrize(
    "model",
    [
        {"vocab": {"a": 0}, "merges": ["a a"]},
        {"vocab": {"a": 0}, "merges": ["a"]},
        {"vocab": {"a": 0}, "merges": None},
    ],
)
def test_merges_that_do_not_fit(model: dict[str, Any], file: Path) -> None:
    value = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps({**value, "model": model}), encoding="utf-8")
    with pytest.raises(CheckpointError, match="merges that do not fit"):
        find_tokenizer(file, DIMS)


@pytest.mark.parametrize("text", ["{}", '{"added_tokens": [], "model": {"vocab": 1}}', "nope", ""])
def test_not_a_tokenizer(text: str, file: Path) -> None:
    file.write_text(text, encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        find_tokenizer(file, DIMS)


class TestTiktoken:
    def test_spells_by_rank(self, tiktoken: Path) -> None:
        found = load(find_tokenizer(tiktoken, DIMS))
        # "the": of "th" and "he" the lower rank is merged first; "the" is no token.
        ranks = {
            base64.b64decode(token): int(rank)
            for token, rank in (line.split() for line in tiktoken.read_text("utf-8").splitlines())
            if token != "="
        }
        first = min((b"th", b"he"), key=ranks.__getitem__)
        pieces = (b"th", b"e") if first == b"th" else (b"t", b"he")
        assert ids(found, "the") == [ranks[piece] for piece in pieces]
        assert ids(found, "hex") == [ranks[b"hex"]]
        for text in TEXTS:
            assert found.decode(ids(found, text)) == text

    @pytest.mark.parametrize("n_vocab", [51865, 51866])
    def test_special_tokens(self, n_vocab: int, tiktoken: Path) -> None:
        dims = random_dims(n_vocab=n_vocab)
        found = load(find_tokenizer(tiktoken, dims))
        assert {name: found.token_to_id(name) for name in special_ids(dims)} == special_ids(dims)
        assert (found.token_to_id("<|yue|>") is not None) == (n_vocab == 51866)

    @pytest.mark.parametrize(
        ("line", "message"),
        [
            ("not base64! 5", "line 50258"),
            ("YQ==", "line 50258"),
            ("YWI= five", "line 50258"),
            ("cXV4cXV4 90000", "rank its tokens"),
            ("cXV4cXV4 50257", "not a merge"),
        ],
    )
    def test_damaged(self, line: str, message: str, tiktoken: Path, tmp_path: Path) -> None:
        file = tmp_path / "bad.tiktoken"
        file.write_text(tiktoken.read_text("utf-8") + line + "\n", encoding="utf-8")
        with pytest.raises(CheckpointError, match=message):
            find_tokenizer(file, DIMS)

    def test_unknown_layout(self, tiktoken: Path) -> None:
        with pytest.raises(CheckpointError, match="OpenAI's layout"):
            find_tokenizer(tiktoken, random_dims(n_vocab=52000))

    def test_ranks_of_another_model(self, tiktoken: Path) -> None:
        with pytest.raises(CheckpointError, match="belongs to another model"):
            find_tokenizer(tiktoken, random_dims(n_vocab=51864))


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot read"):
        find_tokenizer(tmp_path / "gpt2.tiktoken", DIMS)
    (tmp_path / "gpt2.tiktoken").write_bytes(b"\xff\xfe")
    with pytest.raises(CheckpointError, match="UTF-8"):
        find_tokenizer(tmp_path / "gpt2.tiktoken", DIMS)
