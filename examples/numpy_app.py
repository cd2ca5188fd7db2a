"""uvicorn numpy_app:app --app-dir examples

A handler whose memory NumPy takes from malloc itself, where the allocation guard cannot refuse it: it says first how
much it is about to need, with ``reserve()``, and is answered 503 when that is not there. Needs NumPy and Starlette.

    curl 'http://127.0.0.1:8000/singular-values?rows=1000&columns=200'
"""

from __future__ import annotations

import asyncio

import numpy
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from resource_monitor import reserve
from resource_monitor.middleware import MemoryBackpressureMiddleware

MOST_ROWS, MOST_COLUMNS = 100_000, 500
ITEM = 8  # bytes of a float64
COPIES = 4  # the matrix itself, and what LAPACK's gesdd copies and works in


def singular_values(rows: int, columns: int) -> list[float]:
    matrix = numpy.random.default_rng(0).normal(size=(rows, columns))
    values: list[float] = numpy.linalg.svd(matrix, compute_uv=False)[:10].tolist()
    return values


async def handle(request: Request) -> Response:
    rows = bounded(request, "rows", MOST_ROWS)
    columns = bounded(request, "columns", MOST_COLUMNS)
    async with reserve(rows * columns * ITEM * COPIES):
        values = await asyncio.to_thread(singular_values, rows, columns)
    return JSONResponse(values)


def bounded(request: Request, name: str, most: int) -> int:
    given = request.query_params.get(name, "")
    # bounded in length too: int() takes long over long texts
    if not (given.isascii() and given.isdigit() and len(given) <= len(str(most)) and 1 <= int(given) <= most):
        raise HTTPException(400, f"{name} must be a whole number from 1 to {most}.")
    return int(given)


app = MemoryBackpressureMiddleware(Starlette(routes=[Route("/singular-values", handle)]))
