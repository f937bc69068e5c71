"""A demo in the browser: record or drop a file, read the words.

pip install gradio && python gradio_demo.py [MODEL]
"""

from __future__ import annotations

import sys
from typing import Any

import gradio

import whisper_opt
from whisper_opt.serving import Engine


def demo(engine: Engine) -> Any:
    def transcribe(path: str, translate: bool) -> tuple[str, str]:
        options = whisper_opt.TranscribeOptions(
            word_timestamps=True, task="translate" if translate else "transcribe"
        )
        transcript = engine.submit(path, options).result()
        return transcript.to_html(), whisper_opt.render(transcript, "srt")

    return gradio.Interface(
        transcribe,
        inputs=[gradio.Audio(type="filepath"), gradio.Checkbox(label="Translate to English")],
        outputs=[gradio.HTML(label="Transcript"), gradio.Textbox(label="Subtitles")],
        title="whisper_opt",
    )


if __name__ == "__main__":
    with Engine(whisper_opt.Whisper.load(*sys.argv[1:] or ["base"])) as engine:
        demo(engine).queue(default_concurrency_limit=8).launch()
