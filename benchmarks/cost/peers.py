"""The middlewares that ours stands beside, each around the same empty app, and the requests that all of them get.

What is measured of them is the business of ``decision``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import psutil
from asgi_correlation_id import CorrelationIdMiddleware
from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware
from opentelemetry.sdk.trace import TracerProvider
from slowapi import Limiter
from slowapi.middleware import SlowAPIASGIMiddleware
from slowapi.util import get_remote_address
from starlette.applications import Starlette
from starlette.routing import Route

from benchmarks.cost.no_op import NoOp, WSGIApp, WSGINoOp
from benchmarks.overload.asgi import App, Receive, Scope, Send
from benchmarks.overload.strategies import RESERVE, find
from resource_monitor import Resource
from resource_monitor.middleware import (
    MemoryBackpressureMiddleware,
    Priority,
    Shed,
    WSGIMemoryBackpressureMiddleware,
)

Environ = dict[str, Any]

PATH = "/items"
_BODY = b"hello"
# What a browser sends, about.
_HEADERS = [
    (b"host", b"127.0.0.1:8000"),
    (b"user-agent", b"Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"),
    (b"accept", b"text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"),
    (b"accept-language", b"en-US,en;q=0.5"),
    (b"accept-encoding", b"gzip, deflate, br, zstd"),
    (b"connection", b"keep-alive"),
]


def scope(path: str = PATH, query: bytes = b"") -> Scope:
    """A request as uvicorn describes it, new in everything that it makes anew."""
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "server": ("127.0.0.1", 8000),
        "client": ("127.0.0.1", 50000),
        "scheme": "http",
        "method": "GET",
        "root_path": "",
        "path": path,
        "raw_path": path.encode(),
        "query_string": query,
        "headers": list(_HEADERS),
        "state": {},
        "app": _FRAMEWORK,
    }


def environ() -> Environ:
    """A request as gunicorn describes it, without the server's own keys."""
    return {
        "REQUEST_METHOD": "GET",
        "SCRIPT_NAME": "",
        "PATH_INFO": PATH,
        "QUERY_STRING": "",
        "SERVER_NAME": "127.0.0.1",
        "SERVER_PORT": "8000",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "REMOTE_ADDR": "127.0.0.1",
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": "http",
        "wsgi.input": None,
        "wsgi.multithread": True,
        "wsgi.multiprocess": False,
        "wsgi.run_once": False,
        **{f"HTTP_{name.decode().upper().replace('-', '_')}": value.decode() for name, value in _HEADERS},
    }


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers at once; a request with a query does what ``scope["state"]["does"]`` does first."""
    if scope["query_string"]:
        await scope["state"]["does"](send)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"5")]})
    await send({"type": "http.response.body", "body": _BODY})


def wsgi_app(environ: Environ, start_response: Any) -> list[bytes]:
    """Answers at once."""
    start_response("200 OK", [("content-length", "5")])
    return [_BODY]


class WSGICheck:
    """Asks ``admits`` before every request and answers 503 when it says no."""

    def __init__(self, app: WSGIApp, admits: Callable[[], bool]) -> None:
        self.app = app
        self._admits = admits

    def __call__(self, environ: Environ, start_response: Any) -> Iterable[bytes]:
        if self._admits():
            return self.app(environ, start_response)
        start_response("503 Service Unavailable", [("content-length", "0"), ("retry-after", "1")])
        return [b""]


def _priority(request: Scope) -> Priority:
    return Priority.DEFAULT


def _on_shed(shed: Shed) -> None:
    raise AssertionError(f"{shed} was refused where there is room for all")


EVERYTHING: dict[str, Any] = {
    "max_in_flight": 1000,
    "max_wait": 1.0,
    "max_body": "10MiB",
    "priority": _priority,
    "request_cost": "64KiB",
    "also": {Resource.OPEN_FILES: 32},
    "on_shed": _on_shed,
    "response": {"error": "overloaded"},
}
"""Every option that adds work to a request."""


def ours(**options: Any) -> MemoryBackpressureMiddleware:
    """Around :func:`app`."""
    return MemoryBackpressureMiddleware(app, **options)


def asgi() -> Iterator[tuple[str, App]]:
    """Names and apps, the bare one first. The cgroup's rules need a limit on it, and the Rust crate's jemalloc."""
    yield "bare", app
    yield "no-op", NoOp(app)
    yield "ours", ours()
    yield "ours, paced", ours()
    yield "ours, everything on", ours(**EVERYTHING)
    yield "psutil check", find("psutil").wrap(app)
    yield "cgroup check", find("cgroup").wrap(app)
    yield "the Rust crate's rule", find("rust-original").wrap(app)
    yield "slowapi", SlowAPIASGIMiddleware(app)
    yield "asgi-correlation-id", CorrelationIdMiddleware(app)
    yield "OpenTelemetry", OpenTelemetryMiddleware(app, tracer_provider=TracerProvider())


def wsgi() -> Iterator[tuple[str, WSGIApp]]:
    """The same of WSGI."""
    yield "bare", wsgi_app
    yield "no-op", WSGINoOp(wsgi_app)
    yield "ours", WSGIMemoryBackpressureMiddleware(wsgi_app)
    yield "ours, everything on", WSGIMemoryBackpressureMiddleware(wsgi_app, **EVERYTHING)
    yield "psutil check", WSGICheck(wsgi_app, lambda: psutil.virtual_memory().available >= RESERVE)


async def _endpoint() -> None:
    """What slowapi finds the limits of; nobody calls it."""


def _framework() -> Starlette:
    """What Starlette puts into each scope, with the limits of slowapi, which are never reached."""
    framework = Starlette(routes=[Route(PATH, _endpoint)])
    framework.state.limiter = Limiter(key_func=get_remote_address, default_limits=["1000000000/minute"])
    return framework


_FRAMEWORK = _framework()
