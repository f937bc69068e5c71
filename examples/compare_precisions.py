"""What a precision costs in words: engines of one model side by side on your own recordings.

python compare_precisions.py MODEL AUDIO...
"""

from __future__ import annotations

import difflib
import sys
import time

import whisper_opt


def main(name: str, *paths: str, precisions: tuple[str, ...] = ("fp32", "int8", "int4")) -> None:
    reference: list[str] = []
    for precision in precisions:
        with whisper_opt.Whisper.load(name, precision=precision) as model:
            model.transcribe(paths[0])  # warm
            start = time.perf_counter()
            found = [model.transcribe(path) for path in paths]
            seconds = time.perf_counter() - start
            audio = sum(transcript.duration for transcript in found)
            words = " ".join(transcript.text for transcript in found).split()
            reference = reference or words
            same = difflib.SequenceMatcher(None, reference, words, autojunk=False).ratio()
            size = sum(entry.size for entry in model.engine.manifest.files.values())
        print(
            f"{precision:5} {size / 1e6:6.0f} MB  {audio / seconds:6.1f} times faster than real"
            f" time  {100 * same:5.1f} % of the words of {precisions[0]}"
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
