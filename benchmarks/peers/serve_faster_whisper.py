"""faster-whisper behind a minimal FastAPI app, as its users write it.

    python serve_faster_whisper.py MODEL PORT THREADS COMPUTE_TYPE

The endpoint is a plain function, so FastAPI runs it in its thread pool; faster-whisper decodes one
recording at a time with the CPU threads given.
"""

from __future__ import annotations

import sys

import uvicorn
from fastapi import FastAPI, Form, UploadFile
from faster_whisper import WhisperModel


def app_of(path: str, threads: int, compute_type: str) -> FastAPI:
    """The application."""
    model = WhisperModel(path, device="cpu", compute_type=compute_type, cpu_threads=threads)
    app = FastAPI()

    def health() -> dict[str, str]:
        return {"status": "ok"}

    def transcribe(file: UploadFile, language: str = Form("en")) -> dict[str, str]:
        segments, _ = model.transcribe(file.file, language=language, beam_size=1)
        return {"text": "".join(segment.text for segment in segments).strip()}

    app.get("/health")(health)
    app.post("/v1/audio/transcriptions")(transcribe)
    return app


if __name__ == "__main__":
    _, model, port, threads, compute_type = sys.argv
    uvicorn.run(app_of(model, int(threads), compute_type), port=int(port), log_level="warning")
