"""The tokenizer of a checkpoint, as the text of a Hugging Face ``tokenizer.json``.

Whisper's tokenizer is GPT-2's byte-level BPE (Radford et al. 2019) with special tokens appended. It
is read from ``tokenizer.json``, or converted: from ``vocab.json``, ``merges.txt`` and
``added_tokens.json`` (or the same list in ``tokenizer_config.json``, or OpenAI's if there is
neither), or from the ``.tiktoken`` ranks of openai-whisper.
"""

from __future__ import annotations

import base64
import binascii
import bisect
import contextlib
import json
import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from whisper_opt.core.dims import ModelDims
from whisper_opt.core.errors import CheckpointError
from whisper_opt.core.text_ids import is_special
from whisper_opt.export.checkpoints.sidecar import parse_json, read_json, read_text
from whisper_opt.export.checkpoints.vocabulary import check_token_ids
from whisper_opt.text.languages import LANGUAGES
from whisper_opt.text.vocabulary import BYTE_CHARACTERS

__all__ = [
    "build_tokenizer_json",
    "find_tokenizer",
    "has_tokenizer",
    "tokenizer_of_bytes",
    "tokenizer_path",
]

_END_OF_TEXT, _NO_TIMESTAMPS = "<|endoftext|>", "<|notimestamps|>"
_TIMESTAMP = re.compile(r"<\|\d+\.\d\d\|>")
_MAX_TOKEN_LENGTH = 256
"""Characters of the longest token; GPT-2's have up to 128. Finding a merge takes quadratic time."""
_MAX_RESTORED = 1000
"""Largest number of merges that are restored; published tokenizers lack one."""
_PARTS = ("vocab.json", "merges.txt", "added_tokens.json")
_CONFIG = "tokenizer_config.json"


def has_tokenizer(directory: Path) -> bool:
    """Whether a directory holds a tokenizer that :func:`find_tokenizer` can read."""
    if (directory / "tokenizer.json").is_file():
        return True
    return all((directory / name).is_file() for name in _PARTS[:2])


@contextlib.contextmanager
def tokenizer_path(tokenizer: Any) -> Iterator[Path | None]:
    """The path of a tokenizer that was given as a path or as an object.

    Args:
        tokenizer: a path, or an object that writes itself to files: a tokenizer or processor of
            transformers, or a ``tokenizers.Tokenizer``. None gives None.

    Raises:
        CheckpointError: the path does not exist, or the object is something else.
    """
    if tokenizer is None:
        yield None
        return
    if isinstance(tokenizer, (str, os.PathLike)):
        path = Path(tokenizer)
        if not path.exists():
            raise CheckpointError(
                f"tokenizer= names {str(tokenizer)!r}, which does not exist; expected a"
                " tokenizer.json, a directory that holds one, or a .tiktoken file"
            )
        yield path
        return
    with tempfile.TemporaryDirectory() as name:
        if hasattr(tokenizer, "save_pretrained"):
            tokenizer.save_pretrained(name)
        elif hasattr(tokenizer, "to_str"):
            (Path(name) / "tokenizer.json").write_text(tokenizer.to_str(), encoding="utf-8")
        else:
            raise CheckpointError(
                f"tokenizer= is a {type(tokenizer).__name__}; expected a path, a tokenizer or"
                " processor of transformers, or a tokenizers.Tokenizer"
            )
        yield Path(name)


def find_tokenizer(path: Path, dims: ModelDims) -> str:
    """Read or convert a tokenizer.

    Args:
        path: a ``tokenizer.json``, a ``.tiktoken`` file, or a directory with ``tokenizer.json`` or
            the three older files.
        dims: dimensions of the model.

    Returns:
        Text of a ``tokenizer.json``.

    Raises:
        CheckpointError: there is none, it is damaged, or it belongs to another model.
    """
    if path.is_dir():
        text = _from_directory(path, dims)
    elif path.suffix == ".tiktoken":
        text = tokenizer_of_bytes(_read_tokens(path), dims, path.name)
    else:
        text = read_text(path)
    value = parse_json(text, "tokenizer.json" if path.is_dir() else path.name)
    check_token_ids(value, path.name, dims)
    try:
        if _restore_merges(value):
            text = json.dumps(value, ensure_ascii=False)
        text.encode("utf-8")  # JSON escapes may contain half of a surrogate pair
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"the tokenizer in {path.name!r} has merges that do not fit its vocabulary; fetch it"
            " again"
        ) from error
    return text


def build_tokenizer_json(
    vocab: Mapping[str, int],
    merges: Sequence[tuple[str, str]],
    added: Mapping[str, int],
    special: Sequence[str] = (),
) -> str:
    """Compose a byte-level BPE ``tokenizer.json``.

    Args:
        vocab: tokens in GPT-2's byte alphabet -> id.
        merges: pairs of tokens in order of application.
        added: added tokens -> id; timestamps are marked as not special, as in the tokenizers of
            the released models.
        special: added tokens that are special although their name is not in ``<|...|>``.
    """
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": index,
                "content": content,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": _TIMESTAMP.fullmatch(content) is None
                and is_special({"content": content, "special": content in special}),
            }
            for content, index in sorted(added.items(), key=lambda item: item[1])
        ],
        "normalizer": None,
        "pre_tokenizer": {**byte_level, "use_regex": True},
        "post_processor": None,
        "decoder": {**byte_level, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": False,
            "vocab": dict(vocab),
            "merges": [f"{left} {right}" for left, right in merges],
        },
    }
    return json.dumps(tokenizer, ensure_ascii=False)


def _from_directory(directory: Path, dims: ModelDims) -> str:
    if (directory / "tokenizer.json").is_file():
        return read_text(directory / "tokenizer.json")
    if not has_tokenizer(directory):
        raise CheckpointError(
            f"no tokenizer in {directory.name!r}: expected tokenizer.json (or {', '.join(_PARTS)},"
            f" the last of which may be added_tokens_decoder in {_CONFIG}); copy it from the"
            " original model, or pass tokenizer="
        )
    vocab = read_json(directory / "vocab.json")
    listed = _listed_in_config(directory) or []
    added = {token["content"]: token["id"] for token in listed}
    if (directory / "added_tokens.json").is_file():
        added.update(read_json(directory / "added_tokens.json"))
    elif not added and _NO_TIMESTAMPS not in vocab:  # special tokens are in no file
        first = len(vocab.keys() - {_END_OF_TEXT})
        added = {name: first + i for i, name in enumerate(_special_tokens(dims))}
    for name, ids in (("vocab.json", vocab), ("added_tokens.json", added)):
        if not all(isinstance(index, int) for index in ids.values()):
            raise CheckpointError(f"{name} maps tokens to values that are no ids; fetch it again")
    if _END_OF_TEXT in vocab:
        added[_END_OF_TEXT] = vocab[_END_OF_TEXT]
    special = [token["content"] for token in listed if is_special(token)]
    return build_tokenizer_json(vocab, _read_merges(directory / "merges.txt"), added, special)


def _listed_in_config(directory: Path) -> list[dict[str, Any]] | None:
    """The added tokens of ``tokenizer_config.json`` with their ids; None if it lists none.

    Raises:
        CheckpointError: it is damaged.
    """
    if not (directory / _CONFIG).is_file():
        return None
    listed = read_json(directory / _CONFIG).get("added_tokens_decoder")
    if not listed:
        return None
    try:
        return [
            {
                "id": int(index),
                "content": str(token["content"]),
                "special": bool(token.get("special", False)),
            }
            for index, token in listed.items()
        ]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{_CONFIG} has an added_tokens_decoder that does not map ids to tokens; fetch it again"
        ) from error


def _read_merges(path: Path) -> list[tuple[str, str]]:
    merges = []
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line or (number == 1 and line.startswith("#version")):
            continue
        left, _, right = line.rstrip("\r").partition(" ")
        if not left or not right or " " in right:
            raise CheckpointError(
                f"{path.name}, line {number}: {line!r:.60} is not a pair of tokens"
            )
        merges.append((left, right))
    return merges


def _special_tokens(dims: ModelDims) -> list[str]:
    """Special tokens in openai-whisper's order (whisper/tokenizer.py), without the timestamps."""
    n_languages = dims.n_vocab - 51765 - int(dims.is_multilingual)
    if not 0 < n_languages <= len(LANGUAGES):
        raise CheckpointError(
            f"a vocabulary of {dims.n_vocab} tokens does not have OpenAI's layout, which"
            " .tiktoken files follow; pass a tokenizer.json as tokenizer="
        )
    return [
        _END_OF_TEXT,
        "<|startoftranscript|>",
        *(f"<|{code}|>" for code in list(LANGUAGES)[:n_languages]),
        "<|translate|>",
        "<|transcribe|>",
        "<|startoflm|>",
        "<|startofprev|>",
        "<|nospeech|>",
        _NO_TIMESTAMPS,
    ]


def _read_tokens(path: Path) -> list[bytes]:
    """Tokens of a ``.tiktoken`` file in the order of their ranks."""
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        if not line:
            continue
        try:
            token, rank = line.split()
            # openai-whisper's multilingual file writes its only empty token as "="
            ranks[base64.b64decode(token) if token.strip("=") else b""] = int(rank)
        except (ValueError, binascii.Error) as error:
            raise CheckpointError(
                f"{path.name}, line {number}: {line!r:.60} is not a base64 token and its rank"
            ) from error
    if sorted(ranks.values()) != list(range(len(ranks))):
        raise CheckpointError(f"{path.name} does not rank its tokens from 0 up; fetch it again")
    return sorted(ranks, key=ranks.__getitem__)


def _split_merge(token: str, ranks: Mapping[str, int]) -> tuple[str, str] | None:
    """The two tokens that merge into ``token``; None if no tokens of lower rank do.

    Merges apply in order of rank. So if the bytes of a token are merged with all lower ranks, the
    two tokens of its own merge are left.
    """
    if len(token) > _MAX_TOKEN_LENGTH:
        return None
    parts = list(token)
    limit = ranks[token]
    while len(parts) > 2:
        pairs = [ranks.get(a + b, limit) for a, b in zip(parts, parts[1:])]
        best = min(pairs)
        if best >= limit:
            return None
        i = pairs.index(best)
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    left, right = parts
    return left, right


def tokenizer_of_bytes(tokens: Sequence[bytes], dims: ModelDims, file: str) -> str:
    """The tokenizer of OpenAI's layout: the tokens, in the order of their ids, then special ones.

    Args:
        tokens: bytes of each token of a byte-pair encoding.
        dims: dimensions of the model.
        file: file name for messages.

    Raises:
        CheckpointError: a token is not a merge of two earlier ones, or the vocabulary of the model
            is not of OpenAI's layout.
    """
    ranks = {"".join(map(BYTE_CHARACTERS.__getitem__, raw)): i for i, raw in enumerate(tokens)}
    merges = []
    for token in ranks:
        if len(token) > 1:
            pair = _split_merge(token, ranks)
            if pair is None:
                raise CheckpointError(
                    f"{file}: token {token!r:.80} is not a merge of two earlier tokens; expected"
                    " the ranks of a byte-pair encoding"
                )
            merges.append(pair)
    special = {name: len(ranks) + i for i, name in enumerate(_special_tokens(dims))}
    return build_tokenizer_json(ranks, merges, special)


def _restore_merges(value: dict[str, Any]) -> bool:
    """Restore missing merges in place; returns whether there were any.

    Some published ``tokenizer.json`` of multilingual models lack the first merge (space + "t").
    They encode " the" otherwise than OpenAI's tokenizer, with which the model was trained. The
    merge is derived from the token's rank in the vocabulary.
    """
    vocab = value["model"]["vocab"]
    pairs = [m.split(" ") if isinstance(m, str) else m for m in value["model"]["merges"]]
    ranks = [vocab[left + right] for left, right in pairs]
    known = {*ranks, *(token["id"] for token in value["added_tokens"])}
    lost = [token for token, rank in vocab.items() if len(token) > 1 and rank not in known]
    if not 0 < len(lost) <= _MAX_RESTORED or ranks != sorted(ranks):
        return False
    for token in lost:
        pair = _split_merge(token, vocab)
        if pair is None:  # not GPT-2's vocabulary
            return False
        at = bisect.bisect(ranks, vocab[token])
        ranks.insert(at, vocab[token])
        pairs.insert(at, list(pair))
    value["model"]["merges"] = [f"{left} {right}" for left, right in pairs]
    return True
