"""What the middleware adds to a process's memory: by being imported, by being made, and by requests that are over.

Fresh processes read it from /proc/self/smaps_rollup (the kernel's Documentation/filesystems/proc.rst): first with
Starlette imported, then with the middleware imported, then with one made around an empty app, and then after so many
requests, one after the other; beside it the same requests to the bare app.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import json
import statistics
import sys
from collections.abc import Callable
from typing import Any

from benchmarks.cost import report
from benchmarks.cost.table import Row, Table
from benchmarks.cost.workers import run_worker

NAME = "memory"

REQUESTS = (1_000, 100_000, 1_000_000)
_QUICK = (1_000, 10_000, 20_000)
_TURN = 50

Steps = dict[str, dict[str, int]]
"""Bytes that each step added, as ``rss`` and ``pss``."""


def measure(*, quick: bool) -> Table:
    """The table."""
    from benchmarks.bytecode import compile_package  # which the measured processes need not

    compile_package()
    processes, requests = (3, _QUICK) if quick else (11, REQUESTS)
    starts = [_run("ours", (requests[0],)) for _ in range(processes)]
    long = {name: [_run(name, requests) for _ in range(1 if quick else 3)] for name in ("bare", "ours")}
    first, *later = (_requests(requests[:1]), *_steps(requests))
    rows = [_row(name, starts, name) for name in ("import", "making it", first)]
    for name in later:
        rows += [_row(name, long["ours"], name), _row(f"{name}, bare", long["bare"], name)]
    return Table(
        NAME,
        "What it adds to a process's memory",
        ("", "RSS added", "least and most", "Pss added"),
        tuple(rows),
        (
            f"Medians of {processes} fresh processes, and of {len(long['ours'])} where there are many requests. "
            "Import: of `resource_monitor.middleware`, where Starlette is imported already. "
            "Of what is shared with other processes, Pss counts a share.",
        ),
    )


def _requests(bounds: tuple[int, ...]) -> str:
    return f"requests 1 to {bounds[0]:,}" if len(bounds) == 1 else f"requests {bounds[0]:,} to {bounds[1]:,}"


def _steps(requests: tuple[int, ...]) -> list[str]:
    return [_requests(pair) for pair in itertools.pairwise(requests)]


def _row(name: str, runs: list[Steps], step: str) -> Row:
    rss = [run[step]["rss"] for run in runs]
    pss = statistics.median(run[step]["pss"] for run in runs)
    kilobytes = [value / 1e3 for value in rss]
    cells = (f"{statistics.median(kilobytes):.0f} KB", report.spread(kilobytes, ".0f"), f"{pss / 1e3:.0f} KB")
    return Row(name, cells, {"bytes": statistics.median(rss), "pss bytes": pss})


def _run(name: str, requests: tuple[int, ...]) -> Steps:
    steps: Steps = run_worker(__name__, name, *map(str, requests))
    return steps


# --- in a process of its own, which imports nothing more than it measures ---


def _now() -> dict[str, int]:
    """Bytes."""
    gc.collect()
    found = {}
    with open("/proc/self/smaps_rollup") as file:
        for line in file:
            name, *rest = line.split()
            if name in ("Rss:", "Pss:"):
                found[name[:-1].lower()] = int(rest[0]) * 1024
    return found


async def _app(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"hello"})


async def _send(message: Any) -> None:
    pass


async def _call(app: Any, number: int) -> None:
    for turn in range(number):
        scope = {
            "type": "http",
            "http_version": "1.1",
            "method": "GET",
            "path": f"/items/{turn}",
            "root_path": "",
            "headers": [],
            "query_string": b"",
        }
        await app(scope, _send, _send)
        if turn % _TURN == 0:
            await asyncio.sleep(0)


async def _work(name: str, requests: tuple[int, ...]) -> Steps:
    import starlette.applications  # noqa: F401

    steps: Steps = {}
    before = _now()
    before = _now()  # reading allocates something itself the first time

    def step(name: str) -> None:
        nonlocal before
        now = _now()
        steps[name] = {kind: now[kind] - before[kind] for kind in now}
        before = now

    app: Callable[..., Any] = _app
    if name == "ours":
        from resource_monitor.middleware import MemoryBackpressureMiddleware

        step("import")
        app = MemoryBackpressureMiddleware(_app)
        step("making it")
    await _call(app, requests[0])
    step(_requests(requests[:1]))
    done = requests[0]
    for label, bound in zip(_steps(requests), requests[1:], strict=True):
        await _call(app, bound - done)
        step(label)
        done = bound
    return steps


if __name__ == "__main__":
    print(json.dumps(asyncio.run(_work(sys.argv[1], tuple(map(int, sys.argv[2:]))))))
