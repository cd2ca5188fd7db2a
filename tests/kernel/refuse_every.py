"""Run by test_guard_injection.py: a Starlette app serves requests in which every n-th allocation is refused.

    python refuse_every.py FROM TO STEP

Refusals are injected while a request is in the app, not in the server. Prints JSON: how many requests
were answered with which status, how many allocations were refused, by how many bytes the process grew over the last of
three rounds.
"""

import asyncio
import json
import logging
import os
import sys
import zlib
from collections import Counter
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from resource_monitor._native import lib
from resource_monitor.guard import AllocationGuard
from resource_monitor.middleware import MemoryBackpressureMiddleware

ROUNDS = 3


async def work(request: Request) -> Response:
    body = await request.body()
    rows = [{"number": number, "text": str(number) * 50} for number in range(100)]
    packed = zlib.compress(json.dumps(rows).encode() + body)
    grown = bytearray()
    for piece in range(50):
        grown += packed[piece : piece + 400]
    results = await asyncio.gather(*(step(bytes(grown)) for _ in range(3)))
    return JSONResponse({"rows": rows, "sizes": [len(packed), *results]})


async def step(data: bytes) -> int:
    await asyncio.sleep(0)
    return len(data * 20)


starlette = Starlette(routes=[Route("/", work, methods=["POST"])])
refuse_every = 0


async def refused(scope: Any, receive: Any, send: Any) -> None:
    lib.rm_guard_refuse_every(refuse_every)
    try:
        await starlette(scope, receive, send)
    finally:
        lib.rm_guard_refuse_every(0)


# exempt from admission, which would slow down a route that loses this many requests, but guarded all the same
app = MemoryBackpressureMiddleware(refused, exempt=["/"])
SCOPE = {"type": "http", "method": "POST", "path": "/", "query_string": b"", "headers": [(b"host", b"test")]}


async def ask(every: int) -> int | str:
    """The status of one answer, or which error reached the server."""
    statuses: list[int] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"x" * 2000}

    async def send(message: dict[str, Any]) -> None:
        if "status" in message:
            statuses.append(message["status"])

    global refuse_every  # noqa: PLW0603
    refuse_every = every
    try:
        await app(dict(SCOPE), receive, send)  # type: ignore[arg-type]
    except Exception as error:
        return type(error).__name__
    return statuses[0]


def resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")


async def main(first: int, last: int, step: int) -> None:
    logging.disable()
    guard = AllocationGuard()  # that of the middleware is at work; the counts are those of the process
    assert await ask(0) == 200
    outcomes: Counter[int | str] = Counter()
    for _ in range(ROUNDS):
        before = resident()
        for every in range(first, last + 1, step):
            outcomes[await ask(every)] += 1
            assert await ask(0) == 200, every
    statistics = app.statistics()
    assert statistics.in_flight == 0
    refusals = guard.statistics().refusals
    print(json.dumps([outcomes, refusals, statistics.wasted, resident() - before]))


asyncio.run(main(*map(int, sys.argv[1:])))
