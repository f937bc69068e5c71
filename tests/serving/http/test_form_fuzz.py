"""Damaged forms: each is read, or refused with a status of the client's."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest
from starlette.requests import Request

from tests.support.fuzzing import mutations, n_inputs
from tests.support.http_server import BOUNDARY, form
from whisper_opt.core.options import ServeOptions
from whisper_opt.serving.http.call import LIBRARY_FIELDS, read_call
from whisper_opt.serving.http.errors import ApiError
from whisper_opt.serving.http.upload import read_form

LIMITS = ServeOptions(max_upload_bytes=2000)
FIELDS = (
    *(("model", "m"), ("response_format", "verbose_json"), ("timestamp_granularities[]", "word")),
    *(("temperature", "0,0.5"), ("languages[]", "de"), ("keywords", '["Ada"]')),
    ("chunking_strategy", '{"type": "server_vad", "threshold": 0.5}'),
)
CORPUS = (
    form(FIELDS, bytes(range(256)) * 4),
    form([("chunking_strategy[type]", "server_vad"), *FIELDS[:3]], b"RIFF", first=True),
    form([("model", "m"), ("prompt", "é"), ("stream", "true"), ("beam_size", "2")], b""),
    form([(name, "1") for name in LIBRARY_FIELDS], b"x" * 1900),
)


def request(body: bytes, chance: random.Random) -> Request:
    """A request whose body arrives in pieces of random sizes."""
    cuts = sorted(chance.randrange(len(body) + 1) for _ in range(chance.randrange(4)))
    pieces = [body[a:b] for a, b in zip([0, *cuts], [*cuts, len(body)])]

    async def receive() -> Any:
        piece = pieces.pop(0)
        return {"type": "http.request", "body": piece, "more_body": bool(pieces)}

    kind = f"multipart/form-data; boundary={BOUNDARY}".encode()
    return Request({"type": "http", "headers": [(b"content-type", kind)]}, receive)


async def status_of(body: bytes, chance: random.Random) -> int:
    try:
        found = await read_form(request(body, chance), LIMITS)
        try:
            assert found.n_bytes is None or len(found.source) == found.n_bytes
            read_call(found.fields, LIMITS, translate=chance.random() < 0.5)
        finally:
            found.close()
    except ApiError as error:
        return error.status
    return 200


@pytest.mark.fuzz
def test_damaged_forms() -> None:
    chance = random.Random(0)

    async def statuses() -> list[int]:
        damaged = mutations(3, CORPUS, n_inputs(10_000))
        return [await status_of(body, chance) for body in damaged]

    found = asyncio.run(statuses())
    assert set(found) == {200, 400, 413}
