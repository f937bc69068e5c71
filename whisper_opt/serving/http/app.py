"""The ASGI application: routes and middleware around the endpoints."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute
from starlette.types import ASGIApp

from whisper_opt.serving.http.auth import Authentication, Keys
from whisper_opt.serving.http.deepgram.routes import listen_routes
from whisper_opt.serving.http.errors import handlers
from whisper_opt.serving.http.jobs.routes import Jobs
from whisper_opt.serving.http.observe import Observe, named_route
from whisper_opt.serving.http.openapi import document
from whisper_opt.serving.http.page import page_routes
from whisper_opt.serving.http.realtime.routes import realtime_routes
from whisper_opt.serving.http.routes import Service, json_response

__all__ = ["create_app"]


def create_app(
    service: Service,
    keys: Keys,
    jobs: Jobs | None = None,
    on_start: Callable[[], Any] | None = None,
    on_stop: Callable[[], Any] | None = None,
) -> ASGIApp:
    """The application.

    Args:
        service: the endpoints.
        keys: the API keys.
        jobs: the endpoints of jobs, if there are any.
        on_start: called and awaited before the first request.
        on_stop: called and awaited after the last request.
    """

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        if on_start is not None:
            await on_start()
        yield
        if on_stop is not None:
            await on_stop()

    app = Starlette(
        routes=[*_routes(service), *(jobs.routes() if jobs is not None else ())],
        middleware=_middleware(service, keys),
        exception_handlers=dict(handlers),
        lifespan=lifespan,
    )
    return Observe(app, service.metrics)


def _middleware(service: Service, keys: Keys) -> list[Middleware]:
    found = []
    origins = service.options.cors_origins
    if origins is not None:
        allowed = [origin.strip() for origin in origins.split(",")]
        found.append(
            Middleware(
                CORSMiddleware,
                allow_origins=allowed,
                allow_methods=["GET", "POST"],
                allow_headers=["*"],
                expose_headers=["x-request-id", "retry-after"],
            )
        )
    found.append(Middleware(Authentication, keys=keys, secrets=service.secrets))
    return found


def _routes(service: Service) -> list[BaseRoute]:
    async def openapi(request: Request) -> Response:
        return json_response(document(service.models.names, service.options))

    azure = "/openai/deployments/{deployment}/audio"
    return [
        *page_routes(),
        *realtime_routes(service),
        *listen_routes(service),
        named_route("/healthz", service.healthz),
        named_route("/readyz", service.readyz),
        named_route("/metrics", service.metrics_text),
        named_route("/openapi.json", openapi),
        named_route("/v1/models", service.list_models),
        named_route("/v1/models/{name:path}", service.one_model),
        named_route("/v1/audio/transcriptions", service.transcriptions, methods=["POST"]),
        named_route("/v1/audio/translations", service.translations, methods=["POST"]),
        named_route(f"{azure}/transcriptions", service.transcriptions, methods=["POST"]),
        named_route(f"{azure}/translations", service.translations, methods=["POST"]),
    ]
