"""Karaoke subtitles: each word is filled as it is sung.

python karaoke.py SONG.mp3 [MODEL]
ffmpeg -i SONG.mp4 -vf ass=SONG.ass SINGALONG.mp4
"""

from __future__ import annotations

import sys
from pathlib import Path

import whisper_opt


def main(song: str, model: str = "base") -> None:
    target = Path(song).with_suffix(".ass")
    with whisper_opt.Whisper.load(model) as whisper:
        # singing is seldom taken for speech, so nothing is left out as silence
        transcript = whisper.transcribe(song, word_timestamps=True, no_speech_threshold=None)
    layout = whisper_opt.SubtitleOptions(highlight_words=True, max_words_per_line=6)
    whisper_opt.write(transcript, target, "ass", layout)
    print(target)


if __name__ == "__main__":
    main(*sys.argv[1:])
