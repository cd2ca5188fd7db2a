"""python examples/aiohttp_app.py

The sample app under aiohttp: the middleware, first of the app's; ``--port`` for another one than 8000.
"""

from __future__ import annotations

import argparse
import asyncio

from aiohttp import web
from stats import stats
from work import BadQuery, Job

from resource_monitor.middleware import DEFAULT_EXEMPT
from resource_monitor.middleware.aiohttp import memory_backpressure

backpressure = memory_backpressure(exempt=[*DEFAULT_EXEMPT, "/stats"])


async def healthz(request: web.Request) -> web.Response:
    return web.Response(text="ok\n")


async def work(request: web.Request) -> web.Response:
    try:
        job = Job.from_query(request.query)
    except BadQuery as error:
        raise web.HTTPBadRequest(text=f"{error}\n") from None
    for pause in job.run():
        await asyncio.sleep(pause)
    return web.Response(text="done\n")


async def statistics(request: web.Request) -> web.Response:
    return web.json_response(stats(backpressure.statistics()))


app = web.Application(middlewares=[backpressure])
app.add_routes([web.get("/healthz", healthz), web.get("/work", work), web.get("/stats", statistics)])

if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=8000)
    web.run_app(app, host="127.0.0.1", port=parser.parse_args().port)
