"""Several models in one process: an engine for each, loaded when it is wanted."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any, Callable

from whisper_opt.audio.decode import AudioSource
from whisper_opt.core.closing import Closing
from whisper_opt.core.errors import EngineClosed, OptionError
from whisper_opt.core.options import TranscribeOptions
from whisper_opt.serving.engine import Engine
from whisper_opt.serving.handle import Handle
from whisper_opt.serving.stats import EngineStats
from whisper_opt.serving.turns import Turns
from whisper_opt.transcription.model import Whisper

__all__ = ["Engines"]


class _Slot:
    """A model that can be loaded."""

    def __init__(self, load: Callable[[], Whisper]) -> None:
        self.load = load
        self.loading = threading.Lock()
        self.engine: Engine | None = None


class Engines(Closing):
    """Engines by the names of their models; a context manager.

    A model is loaded when a recording is submitted to it. On the CPU the engines take turns: each
    step has the threads of its model for itself, so models may be loaded with the default number
    of threads.

    Examples:
        >>> models = {name: lambda name=name: Whisper.load(name) for name in ("tiny", "base")}
        >>> with Engines(models, idle_unload_s=300) as engines:  # doctest: +SKIP
        ...     print(engines.submit("base", "talk.mp3").result().text)
    """

    def __init__(
        self,
        models: Mapping[str, Callable[[], Whisper]],
        *,
        idle_unload_s: float | None = None,
        **arguments: Any,
    ) -> None:
        """Load nothing yet.

        Args:
            models: name of every model, and what loads it. Models must not be shared, because they
                are closed with their engines.
            idle_unload_s: close a model that had nothing to do for so many seconds; it is loaded
                again when it is wanted. Default: never.
            **arguments: other arguments of :class:`Engine`, the same for all.
        """
        self._slots = {name: _Slot(load) for name, load in models.items()}
        self._arguments = {"idle_unload_s": idle_unload_s, **arguments}
        self._turns = Turns()
        self._closed = False

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all models."""
        return tuple(self._slots)

    @property
    def loaded(self) -> dict[str, Engine]:
        """The engines that accept recordings, by name."""
        engines = {name: slot.engine for name, slot in self._slots.items()}
        return {name: each for name, each in engines.items() if each and not each.closed}

    def engine(self, name: str) -> Engine:
        """The engine of a model, which is loaded if it is not; waits for that.

        An engine that is not used is closed after a while; :meth:`submit` takes care of that.

        Raises:
            OptionError: there is no model of that name.
            EngineClosed: :meth:`close` was called.
            WhisperOptError: the model cannot be loaded.
        """
        slot = self._slots.get(name)
        if slot is None:
            raise OptionError(
                f"there is no model {name!r}; expected one of {', '.join(self._slots)}"
            )
        with slot.loading:
            if self._closed:
                raise EngineClosed("the engines were closed; make others")
            if slot.engine is None or slot.engine.closed:
                if slot.engine is not None:
                    slot.engine.close()
                model = slot.load()
                turns = self._turns if model.device == "cpu" else None
                slot.engine = Engine(model, turns=turns, **self._arguments)
            return slot.engine

    def submit(
        self,
        name: str,
        audio: AudioSource,
        options: TranscribeOptions | None = None,
        **arguments: Any,
    ) -> Handle:
        """Submit a recording to a model; arguments and errors as :meth:`Engine.submit`.

        Waits while the model is loaded.
        """
        while True:
            engine = self.engine(name)
            try:
                return engine.submit(audio, options, **arguments)
            except EngineClosed:
                if not engine.unloaded:  # if it was, it is loaded again
                    raise

    def stats(self) -> dict[str, EngineStats]:
        """What each loaded engine is doing."""
        return {name: engine.stats() for name, engine in self.loaded.items()}

    def close(self) -> None:
        """Close all engines and their models; no other is loaded."""
        self._closed = True
        for slot in self._slots.values():
            with slot.loading:
                if slot.engine is not None:
                    slot.engine.close()
                    slot.engine.model.close()
