"""The sample app (Starlette) without memory backpressure; ``app.py`` is the same app with it.

    uvicorn unprotected:app --app-dir examples

What /work does with memory is in ``work.py``, what /stats says in ``stats.py``.
"""

from __future__ import annotations

import asyncio

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from stats import stats
from work import BadQuery, Job

PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>memory-backpressure: sample app</title>
<style>
  :root { color-scheme: light dark; font: 1rem/1.5 system-ui, sans-serif }
  body { max-width: 42rem; margin: 3rem auto; padding: 0 1rem }
</style>
<h1>memory-backpressure: sample app</h1>
<p>Its requests take memory. Of more than fit it answers some with <code>503</code>, in place of being killed.</p>
<ul>
  <li><a href="/work?mb=8&amp;hold=0.2">/work?mb=8&amp;hold=0.2</a> takes 8 MB and holds them for 0.2 s;
    <code>delay=</code> seconds before that, <code>mode=</code> burst, grow or objects</li>
  <li><code>POST /upload</code> reads the body into memory</li>
  <li><a href="/stats">/stats</a> what is left, and what the middleware did</li>
  <li><a href="/ping">/ping</a> needs next to nothing; <a href="/healthz">/healthz</a> is never refused</li>
</ul>
</html>
"""


async def home(request: Request) -> Response:
    return HTMLResponse(PAGE)


async def ping(request: Request) -> Response:
    return PlainTextResponse("pong\n")


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


async def upload(request: Request) -> Response:
    body = await request.body()
    return PlainTextResponse(f"{len(body)} bytes\n")


async def statistics(request: Request) -> Response:
    counts = getattr(request.app.state, "statistics", None)
    return JSONResponse(stats(counts() if counts else None))


app = Starlette(
    routes=[
        Route("/", home),
        Route("/ping", ping),
        Route("/healthz", healthz),
        Route("/work", work),
        Route("/upload", upload, methods=["POST"]),
        Route("/stats", statistics),
    ]
)
