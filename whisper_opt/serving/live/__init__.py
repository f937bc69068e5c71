"""Live sessions: audio that comes as it is spoken.

>>> from whisper_opt import Live, Whisper
>>> with Live(Whisper.load("tiny.en"), sample_rate=48_000) as session:  # doctest: +SKIP
...     session.push(samples)
...     for event in session.events():
...         print(event)
"""

from __future__ import annotations

from whisper_opt.serving.live.session import LiveSession

__all__ = ["LiveSession"]
