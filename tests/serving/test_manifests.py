"""Lists of recordings: rows, options, ids, shards, names of files."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.support.watched_backend import quiet_model
from whisper_opt import OptionError, TranscribeOptions
from whisper_opt.serving.manifests import (
    Manifest,
    Recording,
    Shard,
    check_options,
    file_name,
    read_manifest,
)

OPTIONS = TranscribeOptions(beam_size=2, batch_size=3)


def read(tmp_path: Path, *lines: str) -> Manifest:
    path = tmp_path / "list"
    path.write_text("\n".join(lines), encoding="utf-8")
    return read_manifest(path, OPTIONS)


def test_paths_and_objects(tmp_path: Path) -> None:
    found = read(
        tmp_path,
        "a b.wav",
        "",
        '{"audio": "/x/c.wav", "id": "é", "text": "words"}\r',
        '{"path": "d.wav", "id": 7, "text": null}',
    )
    assert [(each.id, each.audio, each.line) for each in found.recordings] == [
        ("a b.wav", tmp_path / "a b.wav", 1),
        ("é", Path("/x/c.wav"), 3),
        ("7", tmp_path / "d.wav", 4),
    ]
    assert found.ignored == ("text",)


def test_rows_have_options(tmp_path: Path) -> None:
    row = {"audio": "b", "language": "Portuguese", "beam_size": None, "clip_timestamps": [0, 3]}
    plain, own = read(tmp_path, "a", json.dumps(row)).recordings
    assert plain.options is OPTIONS
    assert (own.options.language, own.options.beam_size) == ("Portuguese", 2)
    assert tuple(own.options.clip_timestamps) == (0, 3)


def test_clips_of_known_speakers_are_relative_to_the_list(tmp_path: Path) -> None:
    row = {"audio": "b", "diarize": True, "known_speakers": {"Ann": "a.wav", "Bob": "/x/b.wav"}}
    (found,) = read(tmp_path, json.dumps(row)).recordings
    assert found.options.speaker_options.clips == (
        ("Ann", str(tmp_path / "a.wav")),
        ("Bob", "/x/b.wav"),
    )


def test_a_byte_order_mark_is_no_part_of_a_path(tmp_path: Path) -> None:
    (recording,) = read(tmp_path, "\ufeffa.wav").recordings
    assert recording.id == "a.wav"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"audio": "a"', "not a JSON object"),
        ('{"id": "a"}', '"audio" is None'),
        ('{"audio": ""}', "\"audio\" is ''"),
        ('{"audio": "a", "path": "a"}', "expected one of them"),
        ('{"audio": "a", "id": true}', '"id" is True'),
        ('{"audio": "a", "id": "\\ud800"}', '"id" is'),
        ('{"audio": "a", "beam_size": "2"}', "beam_size is '2'"),
        ('{"audio": "a", "batch_size": 2}', "--batch-size"),
        ('{"audio": "a", "diarize": true, "known_speakers": {"A": 3}}', '"known_speakers" is 3'),
    ],
)
def test_wrong_rows(tmp_path: Path, line: str, message: str) -> None:
    with pytest.raises(OptionError, match=f"^line 2 of .*{re.escape(message)}"):
        read(tmp_path, "a", line)


def test_no_manifest(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="lists no recording"):
        read(tmp_path, "", " ")
    with pytest.raises(OptionError, match="cannot read the manifest"):
        read_manifest(tmp_path / "missing", OPTIONS)
    (tmp_path / "latin").write_bytes(b"\xe9.wav")
    with pytest.raises(OptionError, match="cannot read the manifest"):
        read_manifest(tmp_path / "latin", OPTIONS)


@pytest.mark.parametrize(
    ("first", "second"), [("a", "a"), ("a/b", "a_b"), ("A", "a"), ("e\u0301", "\u00e9")]
)
def test_ids_that_collide(tmp_path: Path, first: str, second: str) -> None:
    rows = [json.dumps({"audio": "x", "id": each}) for each in (first, "other", second)]
    with pytest.raises(OptionError, match=r"^lines 1 and 3 of .* would both be written to"):
        read(tmp_path, *rows)


@pytest.mark.parametrize(
    ("identity", "name"),
    [
        ("talk-1.v2", "talk-1.v2"),
        ("/data/x y.wav", "_data_x_y.wav"),
        ("../x", "_._x"),
        (".whisper-opt", "_whisper-opt"),
        ("-rf", "_rf"),
        ("a\nb\0c:d*e", "a_b_c_d_e"),
        ("Con.txt", "_Con.txt"),
        ("console", "console"),
        ("x.", "x_"),
        ("日本", "日本"),
    ],
)
def test_names_of_files(identity: str, name: str) -> None:
    assert file_name(identity) == name


def test_long_names_stay_different() -> None:
    names = {file_name("日" * 200 + end) for end in "ab"}
    assert len(names) == 2
    assert all(len(name.encode()) <= 160 for name in names)


@pytest.mark.parametrize(
    ("given", "message"),
    [({"language": "klingon"}, "klingon"), ({"language_detection_segments": 3}, "English-only")],
)
def test_options_that_a_model_cannot_honour(given: dict[str, Any], message: str) -> None:
    model = quiet_model()
    plain = Recording("a", Path("a"), OPTIONS, 1)
    check_options(model, [plain])
    with pytest.raises(OptionError, match=message):
        check_options(model, [plain, plain._replace(options=TranscribeOptions(**given))])


# shards


def test_shards_are_a_partition() -> None:
    ids = [f"recording {i}" for i in range(1000)]
    parts = [[each for each in ids if Shard(i, 4).has(each)] for i in range(4)]
    assert sorted(each for part in parts for each in part) == sorted(ids)
    assert all(200 < len(part) < 300 for part in parts)


def test_the_shard_of_an_id_never_changes() -> None:
    """The first eight bytes of the sha256, modulo the number of shards."""
    found = {each: [i for i in range(7) if Shard(i, 7).has(each)] for each in ("a", "b", "é")}
    assert found == {"a": [4], "b": [0], "é": [3]}


@pytest.mark.parametrize("text", ["4/4", "1/0", "-1/4", "1", "a/b", "0/4/8", "1.0/4", ""])
def test_wrong_shards(text: str) -> None:
    with pytest.raises(OptionError, match="expected i/n"):
        Shard.parse(text)


def test_names_of_a_shard() -> None:
    assert Shard.parse("2/4") == Shard(2, 4)
    assert Shard(2, 4).suffix == "-2-of-4"
    assert Shard.parse("0/1").suffix == ""
