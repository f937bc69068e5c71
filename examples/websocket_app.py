"""An app with a WebSocket that transcribes: samples come in, text goes out as it is spoken.

    pip install 'whisper-opt[cpu,server]'
    MODEL=engines/tiny.en uvicorn --ws websockets-sansio websocket_app:app

Send 16-bit PCM at 16 kHz as binary messages, and an empty one at the end. Starlette is what FastAPI
is made of: in a FastAPI app, decorate ``listen`` with ``@app.websocket("/listen")``.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator

from starlette.applications import Starlette
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from whisper_opt import Committed, Partial, Utterance, Whisper
from whisper_opt.serving import Engine, LiveSession

KINDS = {Partial: "partial", Committed: "committed", Utterance: "utterance"}


@contextlib.asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    with Whisper.load(os.environ["MODEL"]) as model, Engine(model) as app.state.engine:
        yield


async def send(websocket: WebSocket, session: LiveSession) -> None:
    async for event in session:
        if isinstance(event, (Partial, Committed, Utterance)):
            await websocket.send_json({"type": KINDS[type(event)], "text": event.text})


async def listen(websocket: WebSocket) -> None:
    session = websocket.app.state.engine.live(sample_rate=16_000)
    try:
        await websocket.accept()
        sender = asyncio.create_task(send(websocket, session))
        while samples := await websocket.receive_bytes():
            session.push(samples)
        session.finish()  # the last utterance comes, then the events end
        await sender
        await websocket.close()
    except WebSocketDisconnect:
        pass
    finally:
        session.cancel()  # which ends the sender too


app = Starlette(routes=[WebSocketRoute("/listen", listen)], lifespan=lifespan)
