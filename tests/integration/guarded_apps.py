"""Apps whose requests are exempt from admission and want their memory at the same time: the guard alone saves them."""

import asyncio
import time
from typing import Any

from flask import Flask
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from resource_monitor.middleware import MemoryBackpressure, MemoryBackpressureMiddleware

SIZE = 8_000_000
DELAY, HOLD = 0.3, 0.2


async def race(request: Request) -> Response:
    await asyncio.sleep(DELAY)
    block = bytearray(b"x") * SIZE
    await asyncio.sleep(HOLD)
    return PlainTextResponse(str(len(block)))


starlette_app: Any = Starlette(routes=[Route("/race", race), Route("/", lambda request: PlainTextResponse("hello"))])
asgi = MemoryBackpressureMiddleware(starlette_app, exempt=["/race"])

wsgi = Flask(__name__)


@wsgi.route("/race")
def race_in_thread() -> str:
    time.sleep(DELAY)
    block = bytearray(b"x") * SIZE
    time.sleep(HOLD)
    return str(len(block))


wsgi.add_url_rule("/", "hello", lambda: "hello")
MemoryBackpressure(wsgi, exempt=["/race"])
