"""A Flask app that holds requests, keeps bodies and sends files, made with the options that are to be seen at work."""

import threading
import time
from pathlib import Path
from typing import Any

from flask import Flask, request, send_file
from gunicorn.http import wsgi

from resource_monitor.middleware import MemoryBackpressure

_released = threading.Event()
_sent_by_the_kernel: list[bool] = []
_sendfile = wsgi.Response.sendfile


def _watched_sendfile(response: Any, file: Any) -> bool:
    sent: bool = _sendfile(response, file)
    _sent_by_the_kernel.append(sent)
    return sent


wsgi.Response.sendfile = _watched_sendfile


def hold() -> str:
    _released.wait(60)
    return "held"


def release() -> str:
    _released.set()
    return "released"


def keep() -> str:
    body = request.get_data()
    time.sleep(0.3)
    return str(len(body))


def make(**options: Any) -> Flask:
    app = Flask(__name__)
    app.add_url_rule("/", "hello", lambda: "hello")
    app.add_url_rule("/hold", "hold", hold)
    app.add_url_rule("/live", "release", release)
    app.add_url_rule("/keep", "keep", keep, methods=["POST"])
    app.add_url_rule("/file", "file", lambda: send_file(Path(__file__)))
    app.add_url_rule("/health", "health", lambda: health(app))
    MemoryBackpressure(app, **options)
    return app


def health(app: Flask) -> dict[str, Any]:
    statistics = MemoryBackpressure.statistics(app)
    return {
        "waiting": statistics.waiting,
        "in_flight": statistics.in_flight,
        "sent_by_the_kernel": _sent_by_the_kernel,
    }
