"""Counts of handlers started and completed that outlive the process that counted: one shared mapping a process.

A file named by the pid holds two little-endian 64-bit numbers, started and completed; the kernel keeps them when it
kills the writer. ``node/server.js`` writes the same format.
"""

from __future__ import annotations

import asyncio
import mmap
import os
import struct
import time
from pathlib import Path

from benchmarks.overload.asgi import App, Receive, Scope, Send

_LAYOUT = struct.Struct("<QQ")


class Tally:
    """The counts of this process, in a file of its own in ``directory``."""

    def __init__(self, directory: Path) -> None:
        descriptor = os.open(directory / str(os.getpid()), os.O_RDWR | os.O_CREAT, 0o600)
        os.ftruncate(descriptor, _LAYOUT.size)
        self._counts = memoryview(mmap.mmap(descriptor, _LAYOUT.size)).cast("Q")
        os.close(descriptor)

    def started(self) -> None:
        self._counts[0] += 1

    def completed(self) -> None:
        self._counts[1] += 1


class TallyMiddleware:
    """Counts the requests that came past every guard, on the event loop's thread alone, so that no count is lost."""

    def __init__(self, app: App, tally: Tally) -> None:
        self.app = app
        self._tally = tally

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] == "/livez":
            await self.app(scope, receive, send)
            return
        self._tally.started()
        await self.app(scope, receive, send)
        self._tally.completed()


async def started_between(directory: Path, start: float, end: float) -> int:
    """Handlers started from ``start`` to ``end``, ``perf_counter`` seconds that are still to come."""
    await asyncio.sleep(start - time.perf_counter())
    before, _ = read(directory)
    await asyncio.sleep(end - time.perf_counter())
    after, _ = read(directory)
    return after - before


def read(directory: Path) -> tuple[int, int]:
    """Handlers started and completed, by all processes together."""
    counts = [_LAYOUT.unpack(path.read_bytes()) for path in directory.iterdir() if path.stat().st_size == _LAYOUT.size]
    return sum(started for started, _ in counts), sum(completed for _, completed in counts)
