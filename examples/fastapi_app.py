"""uvicorn fastapi_app:app --app-dir examples

The sample app under FastAPI: the ASGI middleware around the whole app. ``/work`` runs in FastAPI's thread pool.
"""

from __future__ import annotations

import time
from typing import Any

from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import PlainTextResponse
from stats import stats
from work import BadQuery, Job

from resource_monitor.middleware import DEFAULT_EXEMPT, MemoryBackpressureMiddleware

api = FastAPI(title="memory-backpressure: sample app")


@api.get("/healthz", response_class=PlainTextResponse)
async def healthz() -> str:
    return "ok\n"


@api.get("/work", response_class=PlainTextResponse)
def work(request: Request) -> str:
    try:
        job = Job.from_query(request.query_params)
    except BadQuery as error:
        raise HTTPException(400, str(error)) from None
    for pause in job.run():
        time.sleep(pause)
    return "done\n"


@api.get("/stats")
async def statistics() -> dict[str, Any]:
    return stats(app.statistics())


app = MemoryBackpressureMiddleware(api, exempt=[*DEFAULT_EXEMPT, "/stats"])
