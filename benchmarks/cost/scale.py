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
from collections.abc import Callable, Iterator
from functools import partial
from itertools import cycle
from typing import Any

from benchmarks.cost import peers, report
from benchmarks.cost.rounds import TURN, Subject, Values, added, asgi_chunk, in_rounds, receive, send
from benchmarks.cost.table import Row, Table
from benchmarks.cost.workers import run_worker
from examples.child_cgroup import ChildCgroup

NAME = "scale"

LIMIT = 8 << 30
"""Of the cgroup that the processes run in, bytes: the machine's memory is taken by others too, which looks like memory
that the few in flight take unseen."""

IN_FLIGHT = (10, 1_000, 100_000)
PATHS = (1, 10, 100, 1_000, 10_000)
_KNOWN = 20
"""How often each path is asked for before anything is measured."""

_BARE = "bare"


def measure(*, quick: bool) -> Table:
    """The table; each row is compared with the first of its kind."""
    processes, rounds = (1, 10) if quick else (5, 40)
    runs: list[Values] = []
    for _ in range(processes):
        with ChildCgroup(LIMIT, label="cost") as cgroup:
            runs.append(run_worker(__name__, str(rounds), cgroup=cgroup))
    rows = []
    for kind in (in_flight_rows(), path_rows("one class"), path_rows("each its own")):
        first = kind[0]
        for name in kind:
            more = [added(run, name, _BARE) for run in runs]
            ratios = [added(run, name, _BARE) / added(run, first, _BARE) for run in runs]
            ratio = statistics.median(ratios)
            figures = {"seconds": statistics.median(more), "of least": ratio}
            cells = (f"{figures['seconds'] * 1e6:.2f} µs", f"{ratio:.2f} ×", report.spread(ratios, ".2f"))
            rows.append(Row(name, cells, figures))
    return Table(
        NAME,
        "What a decision costs with many in flight, and over many paths",
        ("", "added to bare", "of the first row", "least and most of the processes"),
        tuple(rows),
        (f"Medians of {len(runs)} processes with {rounds} rounds each, in a cgroup of 8 GiB.",),
    )


def in_flight_rows() -> list[str]:
    """Names, the one that others are compared with first."""
    return [f"{count:,} in flight" for count in IN_FLIGHT]


def path_rows(kind: str) -> list[str]:
    """The same for paths that are ``"one class"`` or ``"each its own"``."""
    return [f"{count:,} {'path' if count == 1 else 'paths'}, {kind}" for count in PATHS]


# --- in a process of its own ---


async def _hold(app: Any, count: int) -> None:
    """Have ``count`` requests in flight that began their answers and wait."""

    async def wait(send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await asyncio.Event().wait()

    for number in range(count):
        scope = peers.scope(query=b"does")
        scope["state"]["does"] = wait
        _held.add(asyncio.create_task(app(scope, receive, send)))
        if number % TURN == 0:
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


def _subject(name: str, app: Any, paths: Iterator[str]) -> Subject:
    return Subject(name, partial(asgi_chunk, app, lambda: peers.scope(next(paths))))


async def _work(rounds: int) -> Values:
    apps: dict[str, Any] = {}
    subjects = [_subject(_BARE, peers.app, _paths(1, "one class"))]
    gc.disable()  # to look through that many requests takes so long that the loop is held to be overloaded
    for name, count in zip(in_flight_rows(), IN_FLIGHT, strict=True):
        apps[name] = app = peers.ours()
        # once something is known of the class more than a few may start at once
        await asgi_chunk(app, peers.scope, TURN)
        await _hold(app, count)
        subjects.append(_subject(name, app, _paths(1, "one class")))
    gc.freeze()
    gc.enable()
    for kind in ("one class", "each its own"):
        for name, count in zip(path_rows(kind), PATHS, strict=True):
            apps[name] = app = peers.ours()
            paths = _paths(count, kind)
            # as often as it takes for all classes to be known, as those of a service are that has run for a while
            await asgi_chunk(app, lambda paths=paths: peers.scope(next(paths)), max(_KNOWN * count // TURN, 1) * TURN)
            subjects.append(_subject(name, app, paths))
    values = await in_rounds(subjects, rounds)
    for name, app in apps.items():
        if shed := app.statistics().shed:
            raise RuntimeError(f"{shed} requests of {name!r} were refused while their cost was measured; run it again.")
    return values


if __name__ == "__main__":
    print(json.dumps(asyncio.run(_work(int(sys.argv[1])))))
