"""What a decision costs with many requests in flight, and over many paths.

One process: the same requests by turns through middlewares that have 10, 1,000 and 100,000 others in flight, held by an
app that waits, and through middlewares that see 1 to 10,000 distinct paths, which are one class (only an identifier
differs) or each its own. What is given is the difference to the bare app in the same round, as in ``decision``.
"""

from __future__ import annotations

import asyncio
import gc
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from itertools import cycle
from typing import Any

from benchmarks.cost import peers, report
from benchmarks.cost.table import Row, Table
from benchmarks.cost.workers import run_worker

NAME = "scale"

IN_FLIGHT = (10, 1_000, 100_000)
PATHS = (1, 10, 100, 1_000, 10_000)
_CALLS = 500
_TURN = 50

Values = dict[str, list[float]]
"""Seconds a call, less those of the bare app, one for each round, by row."""


def measure(*, quick: bool) -> Table:
    """The table; each row is compared with the first of its kind."""
    processes, rounds = (1, 40) if quick else (5, 200)
    runs: list[Values] = [run_worker(__name__, str(rounds)) for _ in range(processes)]
    rows = []
    for kind in (in_flight_rows(), path_rows("one class"), path_rows("each its own")):
        first = kind[0]
        for name in kind:
            added = [statistics.median(run[name]) for run in runs]
            ratios = [statistics.median(run[name]) / statistics.median(run[first]) for run in runs]
            ratio = statistics.median(ratios)
            figures = {"seconds": statistics.median(added), "of least": ratio}
            cells = (f"{figures['seconds'] * 1e6:.2f} µs", f"{ratio:.2f} ×", report.spread(ratios, ".2f"))
            rows.append(Row(name, cells, figures))
    return Table(
        NAME,
        "What a decision costs with many in flight, and over many paths",
        ("", "added to bare", "of the first row", "least and most of the processes"),
        tuple(rows),
        (f"Medians of {len(runs)} processes with {rounds} rounds each; the machine's memory is the limit.",),
    )


def in_flight_rows() -> list[str]:
    """Names, the one that others are compared with first."""
    return [f"{count:,} in flight" for count in IN_FLIGHT]


def path_rows(kind: str) -> list[str]:
    """The same for paths that are ``"one class"`` or ``"each its own"``."""
    return [f"{count:,} {'path' if count == 1 else 'paths'}, {kind}" for count in PATHS]


# --- in a process of its own ---


async def _receive() -> Any:
    raise AssertionError("an empty app receives nothing")


async def _send(message: Any) -> None:
    pass


async def _hold(app: Any, count: int) -> None:
    """Have ``count`` requests in flight that began their answers and wait."""

    async def wait(send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await asyncio.Event().wait()

    for number in range(count):
        scope = peers.scope(query=b"does")
        scope["state"]["does"] = wait
        _held.add(asyncio.create_task(app(scope, _receive, _send)))
        if number % _TURN == 0:
            await asyncio.sleep(0)
    await asyncio.sleep(0)
    if app.statistics().in_flight != count:
        raise RuntimeError(f"{app.statistics().in_flight} of {count} requests are in flight; the others were refused.")


_held: set[asyncio.Task[None]] = set()


def _paths(count: int, kind: str) -> Iterator[str]:
    """``count`` paths over and over, each a text of its own as a server would make it."""
    write: Callable[[int], str] = "/items/{:d}/parts".format if kind == "one class" else _named
    return (write(number) for number in cycle(range(count)))


def _named(number: int) -> str:
    """A path in which nothing looks like an identifier."""
    letters = "".join(chr(ord("a") + int(digit)) for digit in f"{number:05d}")
    return f"/pages/{letters}/parts"


async def _timed(app: Any, paths: Iterator[str]) -> float:
    batches = [[peers.scope(next(paths)) for _ in range(_TURN)] for _ in range(0, _CALLS, _TURN)]
    start = time.perf_counter()
    for batch in batches:
        for scope in batch:
            await app(scope, _receive, _send)
        await asyncio.sleep(0)
    return (time.perf_counter() - start) / _CALLS


async def _work(rounds: int) -> Values:
    subjects: list[tuple[str, Any, Iterator[str]]] = []
    for name, count in zip(in_flight_rows(), IN_FLIGHT, strict=True):
        app = peers.ours()
        await _timed(app, _paths(1, "one class"))
        await _hold(app, count)
        subjects.append((name, app, _paths(1, "one class")))
    for kind in ("one class", "each its own"):
        for name, count in zip(path_rows(kind), PATHS, strict=True):
            app, paths = peers.ours(), _paths(count, kind)
            for _ in range(2 * count // _CALLS):
                await _timed(app, paths)
            subjects.append((name, app, paths))
    gc.collect()
    gc.freeze()
    values: Values = {name: [] for name, _, _ in subjects}
    bare_paths = _paths(1, "one class")
    for number in range(rounds):
        bare = await _timed(peers.app, bare_paths)
        first = number % len(subjects)
        for name, app, paths in subjects[first:] + subjects[:first]:
            values[name].append(await _timed(app, paths) - bare)
    for name, app, _ in subjects:
        if shed := app.statistics().shed:
            raise RuntimeError(f"{shed} requests of {name!r} were refused while their cost was measured; run it again.")
    return values


if __name__ == "__main__":
    print(json.dumps(asyncio.run(_work(int(sys.argv[1])))))
