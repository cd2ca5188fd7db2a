"""The server under test: a Starlette app whose handlers use as much memory as the query says, within bounds.

``uvicorn benchmarks.overload.server:app`` with the strategy's name in ``ARENA_STRATEGY``, the directory of the tally in
``ARENA_TALLY``, that of the files in ``ARENA_FILES`` and the scenario's name in ``ARENA_SCENARIO``. ``node/server.js``
answers the same paths, but for those whose memory the allocation guard cannot see.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from benchmarks.overload import strategies
from benchmarks.overload.tally import Tally, TallyMiddleware
from resource_monitor.allocator import allocator

if os.environ["ARENA_SCENARIO"] == "numpy":
    # at the start, as in any app that uses it; its own memory is spared the other scenarios
    import numpy

# No query makes a handler take more memory or time than this.
_BOUNDS = {"mb": 64.0, "delay": 5.0, "hold": 60.0}
# What a dictionary of a number and a text takes in CPython 3.11, bytes (measured: the growth of RSS over 160,000).
_DICT_BYTES = 300
# What files are written from: no memory that the guard could see.
_PIECE = memoryview(bytes(1 << 16))

_leaked: list[bytes] = []


def _ask(request: Request, name: str) -> float:
    return max(0.0, min(_BOUNDS[name], float(request.query_params.get(name, 0))))


def _fill(mb: float) -> bytes:
    return b"x" * int(mb * 1_000_000)


async def work(request: Request) -> Response:
    await asyncio.sleep(_ask(request, "delay"))
    held = _fill(_ask(request, "mb"))
    await asyncio.sleep(_ask(request, "hold"))
    return PlainTextResponse(str(len(held)))


async def grow(request: Request) -> Response:
    held = []
    for _ in range(20):
        held.append(_fill(_ask(request, "mb") / 20))
        await asyncio.sleep(_ask(request, "hold") / 20)
    return PlainTextResponse(str(len(held)))


async def objects(request: Request) -> Response:
    held = [{"number": number, "text": str(number)} for number in range(int(_ask(request, "mb") * 1e6 / _DICT_BYTES))]
    await asyncio.sleep(_ask(request, "hold"))
    return PlainTextResponse(str(len(held)))


async def upload(request: Request) -> Response:
    body = await request.body()
    await asyncio.sleep(_ask(request, "hold"))
    return PlainTextResponse(str(len(body)))


def thread(request: Request) -> Response:
    held = _fill(_ask(request, "mb"))
    time.sleep(_ask(request, "hold"))
    return PlainTextResponse(str(len(held)))


async def leak(request: Request) -> Response:
    _leaked.append(_fill(_ask(request, "mb")))
    return PlainTextResponse(str(len(_leaked)))


def file(request: Request) -> Response:
    number = int(request.query_params["number"])
    return PlainTextResponse(str(len(Path(os.environ["ARENA_FILES"], str(number)).read_bytes())))


async def array(request: Request) -> Response:
    await asyncio.sleep(_ask(request, "delay"))
    held = numpy.full(int(_ask(request, "mb") * 1_000_000), ord("x"), numpy.uint8)
    await asyncio.sleep(_ask(request, "hold"))
    return PlainTextResponse(str(len(held)))


async def tmpfs(request: Request) -> Response:
    # a file without a name: it goes when its descriptor does, also when this process is killed
    descriptor = os.memfd_create("arena")
    try:
        left = int(_ask(request, "mb") * 1_000_000)
        while left:
            left -= os.write(descriptor, _PIECE[:left])
        await asyncio.sleep(_ask(request, "hold"))
    finally:
        os.close(descriptor)
    return PlainTextResponse("written")


async def child(request: Request) -> Response:
    # dd fills its block and then waits for someone to read it
    block = f"bs={int(_ask(request, 'mb') * 1_000_000)}"
    process = await asyncio.create_subprocess_exec(
        "dd", "if=/dev/zero", block, "count=1", "status=none", stdout=subprocess.PIPE
    )
    try:
        await asyncio.sleep(_ask(request, "hold"))
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
    code = await process.wait()
    if code != -signal.SIGTERM:
        raise RuntimeError(f"The child ended with status {code} before it was told to; see the kernel's log.")
    return PlainTextResponse(block)


async def stream(request: Request) -> Response:
    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(int(_ask(request, "hold"))):
            yield b"."
            await asyncio.sleep(1)

    return StreamingResponse(pieces())


async def rest(_: Request) -> Response:
    """Gives back what nobody needs, so that what is left is what is held; answers bytes of pymalloc's unused pools.

    A pool is room for objects of one size and holds none of them, but one small object anywhere in its arena of 1 MiB
    keeps CPython from giving it back: after a load, dozens of arenas are kept by one or two strings each.
    """
    gc.collect()
    allocator().relieve()
    return PlainTextResponse(str(_unused_pools()))


def _unused_pools() -> int:
    with tempfile.TemporaryFile() as report:
        kept = os.dup(2)
        os.dup2(report.fileno(), 2)
        sys._debugmallocstats()  # CPython has no other way to tell
        os.dup2(kept, 2)
        os.close(kept)
        report.seek(0)
        found = re.search(rb"^\d+ unused pools \* \d+ bytes += +([\d,]+)$", report.read(), re.MULTILINE)
    return int(found[1].replace(b",", b"")) if found else 0


async def ping(_: Request) -> Response:
    return PlainTextResponse("pong")


app = Starlette(
    routes=[
        Route("/work", work),
        Route("/grow", grow),
        Route("/objects", objects),
        Route("/upload", upload, methods=["POST"]),
        Route("/thread", thread),
        Route("/leak", leak),
        Route("/file", file),
        Route("/array", array),
        Route("/tmpfs", tmpfs),
        Route("/child", child),
        Route("/stream", stream),
        Route("/ping", ping),
        Route("/rest", rest),
        Route("/livez", ping),
    ],
    middleware=[
        Middleware(strategies.find(os.environ["ARENA_STRATEGY"]).wrap),
        Middleware(TallyMiddleware, tally=Tally(Path(os.environ["ARENA_TALLY"]))),
    ],
)
