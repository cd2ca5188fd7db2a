"""The same app as ``matrix_asgi``'s for Django's runserver: settings, urls and ``application`` in one module."""

import time
from collections.abc import Iterator
from typing import Any

from control import Control
from django.core.wsgi import get_wsgi_application
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse, UnreadablePostError
from django.urls import path

from resource_monitor.middleware import WSGIMemoryBackpressureMiddleware

MORE_THAN_THERE_IS = 1 << 50
PIECE, PIECES = b"x" * 65536, 8

SECRET_KEY = "none"
ALLOWED_HOSTS = ["127.0.0.1"]
ROOT_URLCONF = __name__
WSGI_APPLICATION = f"{__name__}.application"


def released() -> None:
    with control.held() as held:
        while held():
            time.sleep(0.005)


def hello(request: HttpRequest) -> HttpResponse:
    return HttpResponse("hello")


def hold(request: HttpRequest) -> HttpResponse:
    released()
    return HttpResponse("held")


def upload(request: HttpRequest) -> HttpResponse:
    try:
        return HttpResponse(str(len(request.body)))
    except UnreadablePostError:
        return HttpResponse("nobody reads this", status=400)


def pieces() -> Iterator[bytes]:
    yield PIECE
    released()
    for _ in range(PIECES - 1):
        yield PIECE


def cost(environ: dict[str, Any]) -> int:
    return MORE_THAN_THERE_IS if environ["PATH_INFO"] == "/full" else 0


urlpatterns = [
    path("", hello),
    path("full", hello),
    path("hold", hold),
    path("upload", upload),
    path("stream", lambda request: StreamingHttpResponse(pieces())),
]
application = WSGIMemoryBackpressureMiddleware(get_wsgi_application(), request_cost=cost)
control = Control(application.statistics)
