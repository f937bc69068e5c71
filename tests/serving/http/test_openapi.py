"""Generated requests: no fault of the server, and no response that its OpenAPI document lacks."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from tests.support.http_server import served, wav
from whisper_opt.serving.http.openapi import document
from whisper_opt.serving.http.server import Server

# a development requirement, for Python 3.10 and newer
schemathesis: Any = pytest.importorskip("schemathesis", reason="not tested: no schemathesis")
checks: Any = importlib.import_module("schemathesis.specs.openapi.checks")
not_a_server_error: Any = importlib.import_module("schemathesis.checks").not_a_server_error

N = int(os.environ.get("WHISPER_OPT_SCHEMA_REQUESTS", "8"))
"""Requests of each kind to each operation."""
CLIP = wav(0.3)
CHECKS = [
    not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
]
OPERATIONS = (
    ("/v1/audio/transcriptions", "post"),
    ("/v1/audio/translations", "post"),
    ("/v1/models", "get"),
    ("/v1/models/{model}", "get"),
    ("/healthz", "get"),
    ("/readyz", "get"),
    ("/v1/jobs", "post"),
    ("/v1/jobs", "get"),
    ("/v1/jobs/{job}", "get"),
    ("/v1/jobs/{job}", "delete"),
    ("/v1/jobs/{job}/cancel", "post"),
    ("/v1/jobs/{job}/result", "get"),
    ("/v1/realtime/client_secrets", "post"),
    ("/v1/realtime/transcription_sessions", "post"),
)
REFUSED = (
    ("/v1/audio/transcriptions", "post"),
    ("/v1/audio/translations", "post"),
    ("/v1/jobs", "post"),
    ("/v1/jobs", "get"),
    ("/v1/jobs/{job}/result", "get"),
)
"""Operations of which a request can be wrong by its schema."""


@pytest.fixture(scope="module")
def jobs(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with served(str(tiny), jobs_dir=str(tmp_path_factory.mktemp("jobs")), max_hypotheses=3) as one:
        yield one


def test_all_operations_are_tried(jobs: Server) -> None:
    paths = document((), jobs.options)["paths"]
    assert {(path, method) for path in paths for method in paths[path]} == set(OPERATIONS)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("path", "method", "kind"),
    [
        *((*operation, "positive") for operation in OPERATIONS),
        *((*operation, "negative") for operation in REFUSED),
    ],
)
def test_generated_requests(jobs: Server, path: str, method: str, kind: str) -> None:
    schema: Any = schemathesis.openapi.from_dict(document(("whisper-1",), jobs.options))
    operation: Any = schema[path][method]
    mode = schemathesis.GenerationMode(kind)
    sent = 0

    @hypothesis.settings(
        max_examples=N,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(operation.as_strategy(generation_mode=mode))
    def send(case: Any) -> None:
        nonlocal sent
        sent += 1
        if sent % 2 and isinstance(case.body, dict) and "file" in case.body:
            case.body = {**case.body, "file": CLIP, "model": "whisper-1"}
        case.call_and_validate(base_url=jobs.url, checks=CHECKS, timeout=120)

    send()
    assert sent > 0
