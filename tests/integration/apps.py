"""Apps that are refused or let in by the cgroup's limit alone, so that no load is needed to see either.

Nine tenths of the limit must be available: of a small one a Python server itself uses more than the tenth, of a large
one it does not.
"""

from typing import Any

from flask import Flask, request
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket

from resource_monitor.middleware import MemoryBackpressure, MemoryBackpressureMiddleware

MIN_AVAILABLE = "90%"


async def hello(request: Request) -> Response:
    return PlainTextResponse("hello")


async def count(request: Request) -> Response:
    return PlainTextResponse(str(len(await request.body())))


async def echo(websocket: WebSocket) -> None:
    await websocket.accept()
    await websocket.send_text(await websocket.receive_text())
    await websocket.close()


starlette_app: Any = Starlette(
    routes=[
        Route("/", hello),
        Route("/livez", hello),
        Route("/count", count, methods=["POST"]),
        WebSocketRoute("/echo", echo),
    ]
)
asgi = MemoryBackpressureMiddleware(starlette_app, min_available=MIN_AVAILABLE)

wsgi = Flask(__name__)
wsgi.add_url_rule("/", "hello", lambda: "hello")
wsgi.add_url_rule("/livez", "livez", lambda: "hello")
wsgi.add_url_rule("/count", "count", lambda: str(len(request.get_data())), methods=["POST"])
MemoryBackpressure(wsgi, min_available=MIN_AVAILABLE)
