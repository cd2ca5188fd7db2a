"""uvicorn litestar_app:app --app-dir examples

The sample app under Litestar: the ASGI middleware around the whole app.
"""

from __future__ import annotations

import asyncio
from typing import Any

from litestar import Litestar, MediaType, Request, get
from litestar.exceptions import ValidationException
from stats import stats
from work import BadQuery, Job

from resource_monitor.middleware import DEFAULT_EXEMPT, MemoryBackpressureMiddleware


@get("/healthz", media_type=MediaType.TEXT)
async def healthz() -> str:
    return "ok\n"


@get("/work", media_type=MediaType.TEXT)
async def work(request: Request[Any, Any, Any]) -> str:
    try:
        job = Job.from_query(request.query_params)
    except BadQuery as error:
        raise ValidationException(str(error)) from None
    for pause in job.run():
        await asyncio.sleep(pause)
    return "done\n"


@get("/stats")
async def statistics() -> dict[str, Any]:
    return stats(app.statistics())


app = MemoryBackpressureMiddleware(
    Litestar([healthz, work, statistics], openapi_config=None),
    exempt=[*DEFAULT_EXEMPT, "/stats"],
)
