"""Apps with a health endpoint, refused or let in by the cgroup's limit alone, and one that leaks until nothing is let
in; made with the options that are to be seen at work."""

import os
from typing import Any

from flask import Flask
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from werkzeug.middleware.dispatcher import DispatcherMiddleware

from resource_monitor.middleware import HealthEndpoint, MemoryBackpressure, MemoryBackpressureMiddleware

MIN_AVAILABLE = "90%"
_leaked: list[bytes] = []


async def hello(request: Request) -> Response:
    return PlainTextResponse("hello")


def make_asgi() -> Any:
    app = Starlette(routes=[Route("/", hello)])
    app.add_middleware(MemoryBackpressureMiddleware, min_available=MIN_AVAILABLE)
    app.mount("/health", HealthEndpoint(app, dwell=1))
    return app


def make_wsgi() -> Flask:
    app = Flask(__name__)
    app.add_url_rule("/", "hello", lambda: "hello")
    app.wsgi_app = DispatcherMiddleware(app.wsgi_app, {"/health": HealthEndpoint(app, dwell=1)})  # type: ignore[method-assign]
    MemoryBackpressure(app, min_available=MIN_AVAILABLE)
    return app


def leak() -> str:
    _leaked.append(os.urandom(1 << 20))
    return str(os.getpid())


def make_leaking_asgi(**options: Any) -> Any:
    """As :func:`make_leaking`."""

    async def answer(request: Request) -> Response:
        return PlainTextResponse(leak() if request.url.path == "/leak" else str(os.getpid()))

    app = Starlette(routes=[Route("/", answer), Route("/leak", answer)])
    return MemoryBackpressureMiddleware(app, min_available="25%", allocation_guard=False, **options)


def make_leaking(**options: Any) -> Flask:
    """``/leak`` keeps a megabyte; all answer with the worker's pid."""
    app = Flask(__name__)
    app.add_url_rule("/", "pid", lambda: str(os.getpid()))
    app.add_url_rule("/leak", "leak", leak)
    MemoryBackpressure(app, min_available="25%", allocation_guard=False, **options)
    return app


asgi = make_asgi()
wsgi = make_wsgi()
alone = HealthEndpoint(enter=MIN_AVAILABLE, exit=MIN_AVAILABLE, dwell=1)
