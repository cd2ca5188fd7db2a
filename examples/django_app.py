"""uvicorn django_app:application --app-dir examples

The sample app under Django, in one file: the middleware and its setting. Under WSGI they are the same.
"""

from __future__ import annotations

import asyncio

import django
from django.conf import settings
from django.core.asgi import get_asgi_application
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.urls import path
from stats import stats
from work import BadQuery, Job

from resource_monitor.middleware import DEFAULT_EXEMPT
from resource_monitor.middleware.django import statistics

settings.configure(
    ALLOWED_HOSTS=["localhost", "127.0.0.1"],
    MIDDLEWARE=[
        "resource_monitor.middleware.django.MemoryBackpressureMiddleware",
        "django.middleware.common.CommonMiddleware",
    ],
    MEMORY_BACKPRESSURE={"exempt": [*DEFAULT_EXEMPT, "/stats"]},
    ROOT_URLCONF=__name__,
)
django.setup()


async def healthz(request: HttpRequest) -> HttpResponse:
    return _text("ok")


async def work(request: HttpRequest) -> HttpResponse:
    try:
        job = Job.from_query(request.GET.dict())
    except BadQuery as error:
        return _text(str(error), status=400)
    for pause in job.run():
        await asyncio.sleep(pause)
    return _text("done")


async def show_statistics(request: HttpRequest) -> HttpResponse:
    return JsonResponse(stats(statistics()))


def _text(line: str, *, status: int = 200) -> HttpResponse:
    return HttpResponse(f"{line}\n", status=status, content_type="text/plain")


urlpatterns = [path("healthz", healthz), path("work", work), path("stats", show_statistics)]
application = get_asgi_application()
