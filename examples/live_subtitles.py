"""Live subtitles for OBS or any browser: a page that shows what is being said.

    pip install 'whisper-opt[cpu,server,mic]'
    python live_subtitles.py engines/base            # the microphone
    python live_subtitles.py engines/base talk.mp3   # a recording, at its own pace

Add http://127.0.0.1:8765/ as a browser source in OBS: the page is transparent. Programs can read
the text from ws://127.0.0.1:8765/text, as JSON: {"certain": "...", "partial": "..."}.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from whisper_opt import Committed, Live, Partial, SpeechStarted, Whisper, load_audio

PAGE = """<!doctype html>
<meta charset="utf-8">
<style>
  body { margin: 0; font: bold 6vh sans-serif; color: white; text-shadow: 0 0 .3em black; }
  p { position: fixed; bottom: 4vh; left: 5vw; right: 5vw; margin: 0; text-align: center; }
  i { font-style: normal; opacity: .6; }
</style>
<p><b id="certain"></b><i id="partial"></i></p>
<script>
  const show = ({ data }) =>
    Object.entries(JSON.parse(data)).forEach(([id, text]) => {
      document.getElementById(id).textContent = text;
    });
  (function connect() {
    const socket = new WebSocket(`ws://${location.host}/text`);
    socket.onmessage = show;
    socket.onclose = () => setTimeout(connect, 1000);
  })();
</script>
"""


class Subtitles:
    """The text of the latest utterance, and those who watch it."""

    def __init__(self) -> None:
        self.text = {"certain": "", "partial": ""}

    async def follow(self, live: Live) -> None:
        self.changed = asyncio.Event()
        utterance = -1
        async for event in live:
            if isinstance(event, SpeechStarted):
                utterance = max(utterance, event.utterance)
                self.text = {"certain": "", "partial": ""}
            elif getattr(event, "utterance", None) != utterance:
                continue
            elif isinstance(event, Committed):
                self.text = {**self.text, "certain": self.text["certain"] + event.text}
            elif isinstance(event, Partial):
                self.text = {**self.text, "partial": event.text}
            changed, self.changed = self.changed, asyncio.Event()
            changed.set()

    async def page(self, request: Request) -> HTMLResponse:
        return HTMLResponse(PAGE)

    async def watch(self, websocket: WebSocket) -> None:
        await websocket.accept()
        with contextlib.suppress(WebSocketDisconnect):
            while True:
                changed = self.changed
                await websocket.send_json(self.text)
                await changed.wait()


def hear_microphone(live: Live) -> None:
    import sounddevice

    def heard(samples: Any, *_: Any) -> None:
        live.push(samples.copy())

    with sounddevice.InputStream(samplerate=16_000, channels=1, dtype="int16", callback=heard):
        threading.Event().wait()


def hear_file(live: Live, path: str) -> None:
    samples = load_audio(path)
    for i in range(0, len(samples), 1600):
        live.push(samples[i : i + 1600])
        time.sleep(0.1)
    live.finish()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("audio", nargs="?")
    parser.add_argument("--port", type=int, default=8765)
    args = parser.parse_args()
    with Whisper.load(args.model) as model, Live(model, sample_rate=16_000) as live:
        subtitles = Subtitles()

        @contextlib.asynccontextmanager
        async def lifespan(app: Starlette) -> AsyncIterator[None]:
            following = asyncio.create_task(subtitles.follow(live))
            heard = (hear_file, (live, args.audio)) if args.audio else (hear_microphone, (live,))
            threading.Thread(target=heard[0], args=heard[1], daemon=True).start()
            yield
            following.cancel()

        routes = [Route("/", subtitles.page), WebSocketRoute("/text", subtitles.watch)]
        app = Starlette(routes=routes, lifespan=lifespan)
        how: Any = {"log_level": "warning", "timeout_graceful_shutdown": 1}  # viewers may stay
        uvicorn.run(app, port=args.port, ws="websockets-sansio", **how)


if __name__ == "__main__":
    main()
