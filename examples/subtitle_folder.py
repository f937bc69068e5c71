"""Subtitles for every recording of a folder that has none yet.

python subtitle_folder.py FOLDER [MODEL]
"""

from __future__ import annotations

import sys
from pathlib import Path

import whisper_opt

SUFFIXES = {".flac", ".m4a", ".mkv", ".mp3", ".mp4", ".ogg", ".opus", ".wav", ".webm"}


def main(folder: str, model: str = "base") -> None:
    layout = whisper_opt.SubtitleOptions(max_line_width=42, max_line_count=2)
    paths = sorted(path for path in Path(folder).rglob("*") if path.suffix.lower() in SUFFIXES)
    paths = [path for path in paths if not path.with_suffix(".srt").exists()]
    with whisper_opt.Whisper.load(model) as whisper:
        # windows of all recordings share one batch; results come as recordings finish
        results = whisper.transcribe_many(paths, word_timestamps=True, return_exceptions=True)
        for i, result in results:
            if isinstance(result, whisper_opt.WhisperOptError):
                print(f"{paths[i]}: {result}", file=sys.stderr)
            else:
                whisper_opt.write(result, paths[i].with_suffix(".srt"), "srt", layout)
                print(paths[i].with_suffix(".srt"))


if __name__ == "__main__":
    main(*sys.argv[1:])
