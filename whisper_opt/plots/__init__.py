"""Pictures of recordings and transcripts for notebooks; the plots need the extra ``plots``.

>>> from whisper_opt import Whisper
>>> from whisper_opt.plots import player, plot_timeline
>>> model = Whisper.load("base")  # doctest: +SKIP
>>> transcript = model.transcribe("talk.mp3", word_timestamps=True)  # doctest: +SKIP
>>> player(transcript, "talk.mp3")  # doctest: +SKIP
>>> plot_timeline(transcript, "talk.mp3")  # doctest: +SKIP
"""

from __future__ import annotations

from whisper_opt.plots.figures import plot_alignment, plot_log_mel, plot_timeline
from whisper_opt.plots.player import Player, player

__all__ = ["Player", "player", "plot_alignment", "plot_log_mel", "plot_timeline"]
