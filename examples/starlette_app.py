"""uvicorn starlette_app:app --app-dir examples

The sample app under Starlette: the ASGI middleware around the whole app. ``app.py`` has uploads and health too.
"""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from stats import stats
from unprotected import healthz, work

from resource_monitor.middleware import DEFAULT_EXEMPT, MemoryBackpressureMiddleware


async def statistics(request: Request) -> Response:
    return JSONResponse(stats(app.statistics()))


app = MemoryBackpressureMiddleware(
    Starlette(routes=[Route("/healthz", healthz), Route("/work", work), Route("/stats", statistics)]),
    exempt=[*DEFAULT_EXEMPT, "/stats"],
)
