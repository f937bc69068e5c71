"""API keys."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.http_server import TRANSCRIPTIONS, form, get, post, served, wav
from whisper_opt import OptionError
from whisper_opt.serving.http.auth import VARIABLE, Keys
from whisper_opt.serving.http.server import Server

QUICK = (("temperature", "[0]"), ("vad", "off"))
REFUSED = (401, "invalid_request_error", "invalid_api_key", None)


@pytest.fixture(scope="module")
def closed(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with the keys secret-1 (of Ada) and secret-2."""
    keys = tmp_path_factory.mktemp("keys") / "keys.txt"
    keys.write_text("# comment\n\nsecret-1 Ada L.\nsecret-2\n")
    with served(str(tiny), api_key_file=str(keys), host="127.0.0.1") as server:
        yield server


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": "Bearer secret-1"},
        {"authorization": "bearer secret-2"},
        {"api-key": "secret-1"},
        {"x-api-key": "secret-1"},
    ],
)
def test_a_key_opens(closed: Server, headers: dict[str, str]) -> None:
    assert post(closed, wav(0.2), *QUICK, headers=headers).status == 200


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": "Bearer secret-3"},
        {"authorization": "Bearer "},
        {"authorization": "Basic secret-1"},
        {"authorization": "secret-1"},
        {"api-key": "secret-1x"},
        {"authorization": "Bearer s\xe9cret"},
    ],
)
def test_anything_else_does_not(closed: Server, headers: dict[str, str]) -> None:
    reply = post(closed, wav(0.2), *QUICK, headers=headers)
    assert reply.error == REFUSED
    assert reply.headers["www-authenticate"] == "Bearer"
    assert get(closed, "/v1/models", **headers).error == REFUSED


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics", "/openapi.json"])
def test_what_shows_nothing_is_open(closed: Server, path: str) -> None:
    assert get(closed, path).status == 200


def test_a_wrong_key_is_refused_before_the_body_is_read(closed: Server) -> None:
    """The response is whole although nothing of the body was sent."""
    with socket.create_connection(closed.address, timeout=60) as link:
        link.sendall(
            f"POST {TRANSCRIPTIONS} HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data\r\n"
            "Content-Length: 1000000\r\n\r\n".encode()
        )
        found = b""
        while b"}}" not in found:
            found += link.recv(1000)
    assert found.startswith(b"HTTP/1.1 401 ")


def test_a_refused_upload_is_read_to_its_end(closed: Server) -> None:
    """A client that sends all before it reads sees the response, not a broken connection."""
    body = form([("model", "whisper-1")], b"\0" * (8 << 20))
    with socket.create_connection(closed.address, timeout=60) as link:
        head = (
            f"POST {TRANSCRIPTIONS} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        link.sendall(head.encode() + body)
        found = b""
        while chunk := link.recv(1 << 16):
            found += chunk
    assert found.startswith(b"HTTP/1.1 401 ")
    assert found.endswith(b"}}")


# reading keys


@pytest.fixture(autouse=True)
def no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)


def test_names_of_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "keys"
    file.write_text("first-key  Ada Lovelace \nsecond-key\n")
    monkeypatch.setenv(VARIABLE, "third-key, first-key,")
    keys = Keys.read(str(file))
    found = [keys.name_of(f"{number}-key") for number in ("first", "second", "third", "fourth")]
    assert found == ["Ada Lovelace", "key-2", "env-1", None]


def test_no_keys() -> None:
    assert not Keys.read(None)


@pytest.mark.parametrize(
    ("text", "message"),
    [("", "holds no key"), ("# only\n", "holds no key"), ("short\n", "at least 8")],
)
def test_bad_files(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "keys"
    file.write_text(text)
    with pytest.raises(OptionError, match=message):
        Keys.read(str(file))


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="cannot be read"):
        Keys.read(str(tmp_path / "none"))


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.1", "::", "example.com"])
def test_an_open_address_needs_keys(host: str) -> None:
    with pytest.raises(OptionError, match="there are no API keys"), served("x", host=host):
        pass
