"""Speech recognition in a web application: one model, one batch for all requests.

    pip install fastapi python-multipart uvicorn
    uvicorn fastapi_app:app
    curl http://127.0.0.1:8000/transcribe -F file=@talk.mp3

`whisper-opt serve` is the whole server, with limits, keys and OpenAI's interface.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, HTTPException, Request, UploadFile

from whisper_opt import AudioError, Whisper
from whisper_opt.serving import Engine


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    with Engine(Whisper.load(os.environ.get("MODEL", "base"))) as engine:
        app.state.engine = engine
        yield


app = FastAPI(lifespan=lifespan)


@app.post("/transcribe")
async def transcribe(request: Request, file: UploadFile) -> dict[str, Any]:
    try:
        engine: Engine = request.app.state.engine
        return (await engine.submit(await file.read())).to_dict()
    except AudioError as error:
        raise HTTPException(400, str(error)) from error
