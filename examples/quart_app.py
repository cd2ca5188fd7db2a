"""uvicorn quart_app:app --app-dir examples

The sample app under Quart: the ASGI middleware around ``asgi_app``, so that the app stays Quart's own object.
"""

from __future__ import annotations

import asyncio
from typing import Any

from quart import Quart, Response, request
from stats import stats
from work import BadQuery, Job

from resource_monitor.middleware import ADMITTED, DEFAULT_EXEMPT, MemoryBackpressureMiddleware

app = Quart(__name__)
backpressure = MemoryBackpressureMiddleware(app.asgi_app, exempt=[*DEFAULT_EXEMPT, "/stats"])
app.asgi_app = backpressure  # type: ignore[method-assign,assignment]


@app.errorhandler(MemoryError)
async def out_of_memory(error: MemoryError) -> tuple[str, int]:
    request.scope[ADMITTED].lose()  # type: ignore[typeddict-item]  # the middleware answers 503 in place of this
    return "", 500


@app.get("/healthz")
async def healthz() -> Response:
    return _text("ok")


@app.get("/work")
async def work() -> Response:
    try:
        job = Job.from_query(request.args)
    except BadQuery as error:
        return _text(str(error), status=400)
    for pause in job.run():
        await asyncio.sleep(pause)
    return _text("done")


@app.get("/stats")
async def statistics() -> dict[str, Any]:
    return stats(backpressure.statistics())


def _text(line: str, *, status: int = 200) -> Response:
    return Response(f"{line}\n", status=status, mimetype="text/plain")
