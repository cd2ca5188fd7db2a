"""The same app as ``matrix_asgi``'s for WSGI servers: ``app`` made of Flask, around which is the extension."""

import time
from collections.abc import Iterator
from typing import Any

from control import Control
from flask import Flask, Response, request

from resource_monitor.middleware import MemoryBackpressure

MORE_THAN_THERE_IS = 1 << 50
PIECE, PIECES = b"x" * 65536, 8


def released() -> None:
    with control.held() as held:
        while held():
            time.sleep(0.005)


def hold() -> str:
    released()
    return "held"


def upload() -> str:
    return str(len(request.get_data()))


def pieces() -> Iterator[bytes]:
    yield PIECE
    released()
    for _ in range(PIECES - 1):
        yield PIECE


def cost(environ: dict[str, Any]) -> int:
    return MORE_THAN_THERE_IS if environ["PATH_INFO"] == "/full" else 0


app = Flask(__name__)
app.add_url_rule("/", "hello", lambda: "hello")
app.add_url_rule("/full", "full", lambda: "hello", methods=["GET", "POST"])
app.add_url_rule("/hold", "hold", hold)
app.add_url_rule("/upload", "upload", upload, methods=["POST"])
app.add_url_rule("/stream", "stream", lambda: Response(pieces()))
MemoryBackpressure(app, request_cost=cost)
control = Control(lambda: MemoryBackpressure.statistics(app))
