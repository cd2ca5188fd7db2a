"""Calls of apps in process, timed by turns, so that what the machine does meanwhile happens to all of them.

In every round each subject is called for about ten milliseconds, in an order that turns from round to round. The
requests are made anew for each call, fifty at a time while the clock stands, so that they are in the caches as those
that a server has just read, and each is let go of once it is answered, as servers do. The event loop turns once in
fifty calls, within the time of all alike, so that timers are run and cancelled ones swept.
"""

from __future__ import annotations

import asyncio
import gc
import statistics
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

TURN = 50
_CHUNK, _CHUNKS = 0.002, 5
# What learns from its first requests has learned by then, in seconds.
_WARM_UP = 0.3

Values = dict[str, list[float]]
"""Seconds a call by name, one for each round."""


class Subject:
    """What is measured as ``name``: ``chunk`` makes so many calls or fewer, and gives the seconds of one."""

    def __init__(self, name: str, chunk: Callable[[int], Awaitable[float]]) -> None:
        self.name = name
        self._chunk = chunk
        self._calls = TURN
        self.values: list[float] = []

    async def calibrate(self) -> None:
        """Find how many calls take about the time of a chunk, once the first of them are over."""
        warm = time.perf_counter() + _WARM_UP
        while time.perf_counter() < warm:
            await self.round()
        self._calls = max(1, round(_CHUNK / statistics.median(self.values[-5:]) / TURN)) * TURN
        self.values.clear()

    async def round(self) -> None:
        """One round's value, the mean of several chunks: the requests of a longer one would not stay in the caches."""
        seconds = []
        for _ in range(_CHUNKS):
            seconds.append(await self._chunk(self._calls))
            await asyncio.sleep(0)  # a loop that does not turn for long lags
        self.values.append(statistics.mean(seconds))


async def in_rounds(subjects: Sequence[Subject], rounds: int) -> Values:
    """The values of all, measured by turns."""
    for subject in subjects:
        await subject.calibrate()
    gc.collect()
    gc.freeze()
    for number in range(rounds):
        first = number % len(subjects)
        for subject in (*subjects[first:], *subjects[:first]):
            await subject.round()
    return {subject.name: subject.values for subject in subjects}


def added(run: Values, name: str, bare: str) -> float:
    """Seconds that ``name`` takes beyond ``bare``, the median over the rounds."""
    return statistics.median(with_it - without for with_it, without in zip(run[name], run[bare], strict=True))


async def receive() -> Any:
    """Of a request without a body nothing is received."""
    raise AssertionError("an empty app receives nothing")


async def send(message: Any) -> None:
    """A server that drops what it is sent."""


def start_response(status: str, headers: Any, exc_info: Any = None) -> None:
    """The same of WSGI."""


async def asgi_chunk(app: Callable[..., Any], scope: Callable[[], Any], calls: int) -> float:
    """Seconds that a call of ``app`` takes, of ``calls``, a multiple of :data:`TURN`, each with a new ``scope``."""
    seconds = 0.0
    for _ in range(0, calls, TURN):
        batch = deque(scope() for _ in range(TURN))
        start = time.perf_counter()
        while batch:
            await app(batch.popleft(), receive, send)
        await asyncio.sleep(0)
        seconds += time.perf_counter() - start
    return seconds / calls


async def wsgi_chunk(app: Callable[..., Any], environ: Callable[[], Any], calls: int) -> float:
    """The same of WSGI, with all that servers do with an app's answer."""
    seconds = 0.0
    for _ in range(0, calls, TURN):
        batch = deque(environ() for _ in range(TURN))
        start = time.perf_counter()
        while batch:
            each = batch.popleft()
            pieces = app(each, start_response)
            for _ in pieces:
                pass
            close = getattr(pieces, "close", None)
            if close is not None:
                close()
        seconds += time.perf_counter() - start
    return seconds / calls
