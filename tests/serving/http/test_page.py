"""The page at /: its files, and the stream of segments that it reads."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.http_server import get, post, served, wav
from whisper_opt.serving.http import page
from whisper_opt.serving.http.page import PATHS
from whisper_opt.serving.http.server import Server

FOLDER = Path(page.__file__).parent
GRANULARITIES = tuple(("timestamp_granularities[]", name) for name in ("segment", "word"))
STREAM = (("stream", "true"), ("response_format", "verbose_json"), ("temperature", "[0]"))


@pytest.fixture(scope="module")
def closed(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that needs a key."""
    keys = tmp_path_factory.mktemp("keys") / "keys"
    keys.write_text("0123456789abcdef alice\n")
    with served(str(tiny), api_key_file=str(keys)) as running:
        yield running


@pytest.mark.parametrize("path", PATHS)
def test_files_need_no_key_and_nothing_from_elsewhere(closed: Server, path: str) -> None:
    reply = get(closed, path)
    assert reply.status == 200
    policy = reply.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert reply.headers["content-type"].startswith("text/")
    assert "charset=utf-8" in reply.headers["content-type"]
    assert not re.search(r"(src|href|from|url)[=( ]*[\"']?(https?:)?//", reply.text)


def test_every_file_is_sent_and_found() -> None:
    sent = {"index.html" if path == "/" else path.rpartition("/")[2] for path in PATHS}
    assert sent == {path.name for path in FOLDER.iterdir() if path.suffix not in (".py", "")}
    text = "".join((FOLDER / name).read_text("utf-8") for name in sent)
    named = {*re.findall(r'"\./([a-z]+\.js)"', text), *re.findall(r'"page/([a-z]+\.[a-z]+)"', text)}
    assert named == sent - {"index.html"}


def test_other_files_are_not_sent(server: Server) -> None:
    for path in ("/page/__init__.py", "/page/../auth.py", "/page/"):
        assert get(server, path).status == 404


def test_a_stream_of_segments(server: Server) -> None:
    clip = wav(65.0)
    whole = post(server, clip, *STREAM[1:], *GRANULARITIES).json
    *events, done = post(server, clip, *STREAM, *GRANULARITIES).events
    segments = [event for event in events if event["type"] == "transcript.text.segment"]
    deltas = [event for event in events if event["type"] == "transcript.text.delta"]
    assert len(segments) + len(deltas) == len(events)
    assert "".join(event["delta"] for event in deltas) == whole["text"] == done["text"]
    words = [word for segment in segments for word in segment.pop("words")]
    assert [{**word, "word": word["word"].strip()} for word in words] == whole["words"]
    for segment in segments:
        del segment["type"]
    assert segments == whole["segments"]


def test_segments_without_words(server: Server) -> None:
    *events, _ = post(server, wav(10.0), *STREAM).events
    segments = [event for event in events if event["type"] == "transcript.text.segment"]
    assert segments
    assert all("words" not in segment for segment in segments)
