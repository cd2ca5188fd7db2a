"""The apps that the servers are measured with: the same small app bare, wrapped, wrapped so that it refuses, and
wrapped by what does nothing.

Each is a factory, so that a server's process imports nothing but what it serves. They say hello for GET, and for POST
once they have read what was sent.
"""

from __future__ import annotations

from typing import Any

MIN_AVAILABLE = "128MiB"
"""What the refusing apps want to be left; see ``servers`` for what there is."""


def asgi() -> Any:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import PlainTextResponse
    from starlette.routing import Route

    async def hello(request: Request) -> PlainTextResponse:
        if request.method == "POST":
            await request.body()
        return PlainTextResponse("hello, world")

    return Starlette(routes=[Route("/", hello, methods=["GET", "POST"])])


def asgi_wrapped() -> Any:
    from resource_monitor.middleware import MemoryBackpressureMiddleware

    return MemoryBackpressureMiddleware(asgi())


def asgi_refusing() -> Any:
    from resource_monitor.middleware import MemoryBackpressureMiddleware

    return MemoryBackpressureMiddleware(asgi(), min_available=MIN_AVAILABLE)


def asgi_no_op() -> Any:
    from benchmarks.cost.no_op import NoOp

    return NoOp(asgi())


def asgi_sending_no_op() -> Any:
    from benchmarks.cost.no_op import SendingNoOp

    return SendingNoOp(asgi())


def wsgi() -> Any:
    from flask import Flask, request

    app = Flask(__name__)

    @app.route("/", methods=["GET", "POST"])
    def hello() -> str:
        if request.method == "POST":
            request.get_data()
        return "hello, world"

    return app


def wsgi_wrapped() -> Any:
    from resource_monitor.middleware import WSGIMemoryBackpressureMiddleware

    return WSGIMemoryBackpressureMiddleware(wsgi())


def wsgi_refusing() -> Any:
    from resource_monitor.middleware import WSGIMemoryBackpressureMiddleware

    return WSGIMemoryBackpressureMiddleware(wsgi(), min_available=MIN_AVAILABLE)
