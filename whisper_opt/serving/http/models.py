"""The models of a server: names, aliases, loading, warm-up."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any, Callable

import numpy as np

from whisper_opt.core.dims import SAMPLE_RATE
from whisper_opt.core.errors import OptionError
from whisper_opt.core.options import TranscribeOptions
from whisper_opt.serving import Engine
from whisper_opt.serving.http.errors import loading, model_not_found
from whisper_opt.transcription.model import Whisper

__all__ = ["Models", "ServedModel"]


@dataclasses.dataclass(frozen=True)
class ServedModel:
    """A loaded model and the engine loop that runs it."""

    name: str
    whisper: Whisper
    engine: Engine
    created: int

    def close(self, timeout: float) -> None:
        """Complete what was accepted, for at most ``timeout`` seconds; then release the model."""
        self.engine.drain(timeout)
        self.engine.close()
        self.whisper.close()


class Models:
    """The models of a server by name. They are loaded by :meth:`load`, in any thread."""

    def __init__(
        self,
        sources: Sequence[tuple[str, str]],
        aliases: Sequence[str],
        load: Callable[[str], Whisper],
        serve: Callable[[Whisper], Engine],
    ) -> None:
        """Define the models; none is loaded yet.

        Args:
            sources: name and source of every model; the first has the aliases.
            aliases: other names of the first model.
            load: opens a source.
            serve: starts the engine loop of a model.

        Raises:
            OptionError: two models have one name.
        """
        names = [name for name, _ in sources]
        for name in names:
            if names.count(name) > 1:
                raise OptionError(
                    f"two models are named {name!r}; give one another name, as NAME=SOURCE"
                )
        self.names = (*names, *(alias for alias in aliases if alias not in names))
        self._sources = dict(sources)
        self._first = names[0]
        self._load = load
        self._serve = serve
        self._loaded: dict[str, ServedModel] = {}
        self._lock = threading.Lock()
        self._closed = False
        self._ready = False

    @property
    def ready(self) -> bool:
        """Whether all models are loaded and warm."""
        return self._ready

    def load(self) -> None:
        """Load all models and transcribe a second of noise with each.

        Raises:
            WhisperOptError: a model cannot be loaded.
        """
        for name, source in self._sources.items():
            whisper = self._load(source)
            model = ServedModel(name, whisper, self._serve(whisper), int(time.time()))
            with self._lock:
                if self._closed:
                    model.close(0)
                    return
                self._loaded[name] = model
            _warm_up(model)
        self._ready = True

    def __iter__(self) -> Iterator[ServedModel]:
        return iter(tuple(self._loaded.values()))

    def find(self, name: str) -> ServedModel:
        """The model of that name or alias.

        Raises:
            ApiError: 404, there is none; 503, it is not loaded yet.
        """
        if name not in self.names:
            raise model_not_found(name, self.names)
        model = self._loaded.get(name if name in self._sources else self._first)
        if model is None or not self._ready:
            raise loading()
        return model

    def described(self, name: str) -> dict[str, Any]:
        """A model as the API lists it.

        Raises:
            ApiError: 404, there is none; 503, it is not loaded yet.
        """
        model = self.find(name)
        return {
            "id": name,
            "object": "model",
            "created": model.created,
            "owned_by": "whisper-opt",
        }

    def close(self, timeout: float) -> None:
        """Complete what was accepted, for at most ``timeout`` seconds; then release all models."""
        with self._lock:
            self._closed, self._ready = True, False
            loaded = tuple(self._loaded.values())
        end = time.monotonic() + timeout
        for model in loaded:
            model.close(max(0.0, end - time.monotonic()))


def _warm_up(model: ServedModel) -> None:
    """Have all graphs run once, so that the first request takes no longer than the next."""
    noise = np.random.default_rng(0).normal(0, 0.01, SAMPLE_RATE).astype(np.float32)
    options = TranscribeOptions(vad="off", temperature=0.0, max_new_tokens=4)
    model.engine.submit(noise, options).result()
