"""A live connection, whatever protocol it speaks: its sessions never outlive it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from starlette.websockets import WebSocket, WebSocketDisconnect

from tests.support.fake_live import FakeLive
from whisper_opt.serving.http.deepgram import routes as deepgram
from whisper_opt.serving.http.realtime import routes as realtime
from whisper_opt.serving.http.realtime.conversation import Conversation
from whisper_opt.serving.http.server import Server

QUERIES = {
    deepgram: b"encoding=linear16&sample_rate=16000",
    realtime: b"intent=transcription",
}


class _Gone(WebSocket):
    """The client is gone before the connection is accepted."""

    async def accept(self, *_: Any, **__: Any) -> None:
        raise WebSocketDisconnect(1006)


def serve(server: Server, protocol: Any) -> None:
    scope = {
        "type": "websocket",
        "path": "/",
        "query_string": QUERIES[protocol],
        "headers": [],
        "subprotocols": [],
        "whisper_opt.client": "anonymous",
    }

    async def unused(*_: Any) -> Any:
        raise AssertionError("nothing is received or sent")

    connection = protocol._Connection(server.service, _Gone(scope, unused, unused))
    asyncio.run(connection.serve())


@pytest.mark.parametrize("protocol", QUERIES)
def test_a_client_that_is_gone_early(
    server: Server, sessions: list[FakeLive], protocol: Any
) -> None:
    with pytest.raises(WebSocketDisconnect):
        serve(server, protocol)
    assert sessions[-1].cancelled


def test_a_protocol_that_fails_at_its_beginning(
    server: Server, sessions: list[FakeLive], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> None:
        raise RuntimeError("the first message cannot be made")

    monkeypatch.setattr(Conversation, "_show_session", fails)
    with pytest.raises(Exception, match="the server failed"):
        serve(server, realtime)
    assert sessions[-1].cancelled
