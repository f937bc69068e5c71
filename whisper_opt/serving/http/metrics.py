"""Metrics in Prometheus' format: requests, latencies, and the counters of the engine loops."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from whisper_opt.serving.http.models import Models

__all__ = ["CONTENT_TYPE", "Metrics"]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600)
_LAGS = (0.1, 0.25, 0.5, 0.75, 1, 1.5, 2, 3, 5, 10, 30)
_PREFIX = "whisper_opt"

_GAUGES = {
    "queued": "Requests that wait for the model.",
    "running": "Recordings that are being transcribed.",
    "rows": "Rows of the batch in use.",
    "real_time_factor": "Seconds of computing per second of audio.",
    "estimated_wait": "Estimated seconds until a new request begins.",
}
_COUNTERS = {
    "windows": "Windows of 30 s that were encoded.",
    "steps": "Steps of the decoder.",
    "audio_seconds": "Seconds of audio that were transcribed.",
    "rejected": "Requests that were refused because the queue was full.",
    "cancelled": "Recordings that were cancelled.",
    "failed": "Recordings that failed.",
}


class _Engines(Collector):
    """Reads the counters of every engine loop when they are asked for."""

    def __init__(self, models: Models) -> None:
        self._models = models

    def collect(self) -> Iterator[Metric]:
        stats = {model.name: model.engine.stats() for model in self._models}
        for names, family in ((_GAUGES, GaugeMetricFamily), (_COUNTERS, CounterMetricFamily)):
            for name, text in names.items():
                metric: Any = family(f"{_PREFIX}_engine_{name}", text, labels=["model"])
                for model, found in stats.items():
                    metric.add_metric([model], float(getattr(found, name)))
                yield metric


class Metrics:
    """The metrics of one server."""

    def __init__(self, models: Models) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_Engines(models))
        in_registry: dict[str, Any] = {"registry": self._registry}
        self.requests = Counter(
            f"{_PREFIX}_http_requests",
            "Requests that were answered.",
            ["path", "status"],
            **in_registry,
        )
        self.in_progress = Gauge(
            f"{_PREFIX}_http_requests_in_progress", "Requests in progress.", **in_registry
        )
        self.refused = Counter(
            f"{_PREFIX}_http_refused",
            "Requests that were refused, by the code of the error.",
            ["code"],
            **in_registry,
        )
        self.disconnected = Counter(
            f"{_PREFIX}_http_disconnected",
            "Requests whose client disconnected before the response.",
            **in_registry,
        )
        self.upload_bytes = Counter(
            f"{_PREFIX}_upload_bytes", "Bytes of files that were received.", **in_registry
        )
        self.first_segment = Histogram(
            f"{_PREFIX}_first_segment_seconds",
            "Time from the end of the upload to the first segment.",
            ["model"],
            buckets=_SECONDS,
            **in_registry,
        )
        self.total = Histogram(
            f"{_PREFIX}_transcription_seconds",
            "Time from the end of the upload to the end of the transcript.",
            ["model"],
            buckets=_SECONDS,
            **in_registry,
        )
        self.audio = Histogram(
            f"{_PREFIX}_audio_seconds",
            "Duration of the recordings that were transcribed.",
            ["model"],
            buckets=_SECONDS,
            **in_registry,
        )

        self.live = Gauge(
            f"{_PREFIX}_live_connections", "Live connections.", ["protocol"], **in_registry
        )
        self.live_lag = Histogram(
            f"{_PREFIX}_live_lag_seconds",
            "Age of the oldest sample that was not heard yet, at each update of a live session.",
            ["model"],
            buckets=_LAGS,
            **in_registry,
        )
        self.live_utterances = Counter(
            f"{_PREFIX}_live_utterances",
            "Utterances of live sessions that ended.",
            ["model", "outcome"],
            **in_registry,
        )
        self.live_speech = Counter(
            f"{_PREFIX}_live_speech_seconds",
            "Seconds of the utterances of live sessions.",
            ["model"],
            **in_registry,
        )

    def text(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self._registry)
