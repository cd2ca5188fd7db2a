"""The same app as ``matrix_asgi``'s for Django's runserver: settings, urls and ``application`` in one module."""

from control import Control
from django.core.wsgi import get_wsgi_application
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse, UnreadablePostError
from django.urls import path
from matrix import cost, pieces, released

from resource_monitor.middleware import WSGIMemoryBackpressureMiddleware

SECRET_KEY = "none"
ALLOWED_HOSTS = ["127.0.0.1"]
ROOT_URLCONF = __name__
WSGI_APPLICATION = f"{__name__}.application"


def hello(request: HttpRequest) -> HttpResponse:
    return HttpResponse("hello")


def hold(request: HttpRequest) -> HttpResponse:
    released(control)
    return HttpResponse("held")


def upload(request: HttpRequest) -> HttpResponse:
    try:
        return HttpResponse(str(len(request.body)))
    except UnreadablePostError:
        return HttpResponse("nobody reads this", status=400)


urlpatterns = [
    path("", hello),
    path("full", hello),
    path("hold", hold),
    path("upload", upload),
    path("stream", lambda request: StreamingHttpResponse(pieces(control))),
]
application = WSGIMemoryBackpressureMiddleware(get_wsgi_application(), request_cost=cost)
control = Control(application.statistics)
