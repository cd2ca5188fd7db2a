"""uvicorn starlette_app:app --app-dir examples

The sample app under Starlette: the ASGI middleware around the whole app. ``app.py`` has uploads and health too.
"""

from __future__ import annotations

import asyncio

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from stats import stats
from work import BadQuery, Job

from resource_monitor.middleware import DEFAULT_EXEMPT, MemoryBackpressureMiddleware


async def healthz(request: Request) -> Response:
    return PlainTextResponse("ok\n")


async def work(request: Request) -> Response:
    try:
        job = Job.from_query(request.query_params)
    except BadQuery as error:
        return PlainTextResponse(f"{error}\n", status_code=400)
    for pause in job.run():
        await asyncio.sleep(pause)
    return PlainTextResponse("done\n")


async def statistics(request: Request) -> Response:
    return JSONResponse(stats(app.statistics()))


app = MemoryBackpressureMiddleware(
    Starlette(routes=[Route("/healthz", healthz), Route("/work", work), Route("/stats", statistics)]),
    exempt=[*DEFAULT_EXEMPT, "/stats"],
)
