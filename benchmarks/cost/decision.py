"""What a middleware adds to one request: an empty app called in process, bare and behind each of them.

pyperf's runner gives each benchmark processes of its own, one after the other, so that a machine that changes its pace
in between would be taken for a difference. Here each process measures all of them by turns (``rounds``), and what one
adds is the difference to the bare app in the same round. pyperf keeps the values of several such processes.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import sys
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any

import pyperf

from benchmarks.cost import peers, report
from benchmarks.cost.rounds import TURN, Subject, Values, added, asgi_chunk, in_rounds, receive, send, wsgi_chunk
from benchmarks.cost.table import Row, Table
from benchmarks.cost.workers import run_worker
from benchmarks.overload.asgi import App
from benchmarks.overload.strategies import JEMALLOC
from examples.child_cgroup import ChildCgroup

NAME = "decision"

LIMIT = 1 << 30
"""Of the cgroup that the processes run in, bytes: roomy, so that nothing is refused and yet everything decided."""

# How many run at once while a class is made to be paced: more than would make admission hold it to a window.
_TOGETHER = 8


def measure(*, quick: bool) -> Table:
    """The table; ASGI and WSGI by turns."""
    processes, rounds = (2, 10) if quick else (7, 40)
    runs: list[Values] = []
    for _ in range(processes):
        with ChildCgroup(LIMIT, label="cost") as cgroup:
            runs.append(run_worker(__name__, str(rounds), cgroup=cgroup, environment={"LD_PRELOAD": JEMALLOC}))
    rows = [row for kind in ("ASGI", "WSGI") for row in _rows(kind, runs)]
    return Table(
        NAME,
        "What a decision adds to a request",
        ("", "a call", "added to bare", "of what no-op adds", "least and most of the processes"),
        tuple(rows),
        (
            f"Medians of {processes} processes with {rounds} rounds each, in a cgroup of 1 GiB, on jemalloc; a call is "
            "given with the median deviation from it.",
            "Paced: its class lost requests a moment before, and one of it is in flight. Everything on: "
            + ", ".join(f"`{name}`" for name in peers.EVERYTHING)
            + ".",
            "The guard is installed in the whole process; an empty app allocates nothing that it looks at. "
            "`make guard-cost` shows what it costs where something is.",
        ),
    )


def _rows(kind: str, runs: Sequence[Values]) -> list[Row]:
    names = [name for name in runs[0] if name.startswith(kind)]
    bare, no_op, ours = (f"{kind}, {name}" for name in ("bare", "no-op", "ours"))
    rows = []
    for name in names:
        values = [run[name] for run in runs]
        benchmark = pyperf.Benchmark(
            [pyperf.Run(each, metadata={"name": name}, collect_metadata=False) for each in values]
        )
        call = f"{benchmark.median() * 1e6:.2f} ± {benchmark.median_abs_dev() * 1e6:.2f} µs"
        figures = {"call seconds": benchmark.median()}
        if name == bare:
            rows.append(Row(name, (call, "", "", ""), figures))
            continue
        more = statistics.median(added(run, name, bare) for run in runs)
        ratios = [added(run, name, bare) / added(run, no_op, bare) for run in runs]
        figures |= {"seconds": more, "of no-op": statistics.median(ratios)}
        if name != no_op:
            figures["of ours"] = statistics.median(added(run, name, bare) / added(run, ours, bare) for run in runs)
        cells = (call, f"{more * 1e6:.2f} µs", f"{figures['of no-op']:.1f} ×", report.spread(ratios, ".1f"))
        rows.append(Row(name, cells, figures))
    return rows


# --- in a process of its own ---


# Of a path of their own: what one app of a process learns of a class, its others begin with.
_PACED = "/paced"
_paced_scope = partial(peers.scope, _PACED)


class _Paced:
    """Chunks of a class of requests that is kept paced, with one of it in flight: of a class that has none one may
    always start."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def chunk(self, calls: int) -> float:
        over = asyncio.Event()
        held = asyncio.create_task(self._call(lambda send: over.wait()))
        await asyncio.sleep(0)
        # a fiftieth of what may start in a second may start at once, and is there again after so long; a class that is
        # held back and loses nothing may start more and more
        while (bucket := int((rate := self._rate()) / 60)) < TURN:
            many = (self._call(partial(self._work, lost=not rate and not number % 4)) for number in range(_TOGETHER))
            await asyncio.gather(*many)
        calls = min(calls, bucket // TURN * TURN)
        await asyncio.sleep(0.02)
        refused = self._app.statistics().shed
        seconds = await asgi_chunk(self._app, _paced_scope, calls)
        if self._app.statistics().shed != refused:
            raise RuntimeError("A request was refused for its pace while its cost was measured; run it again.")
        over.set()
        await held
        return seconds

    def _rate(self) -> float:
        """Starts a second; 0 while the class is not paced."""
        route = self._app.statistics().routes.get(f"GET {_PACED}")
        return (route and route.rate) or 0.0

    async def _call(self, does: Callable[[Any], Awaitable[object]]) -> None:
        scope = _paced_scope(query=b"does")
        scope["state"]["does"] = does
        await self._app(scope, receive, send)

    @staticmethod
    async def _work(send: Any, *, lost: bool) -> None:
        await asyncio.sleep(0)
        if lost:
            raise MemoryError


async def _statuses(app: App) -> list[int]:
    sent: list[Any] = []

    async def keep(message: Any) -> None:
        sent.append(message)

    await app(peers.scope(), receive, keep)
    return [message["status"] for message in sent if "status" in message]


async def _work(rounds: int) -> Values:
    subjects = []
    for name, app in peers.asgi():
        if await _statuses(app) != [200]:
            raise RuntimeError(f"{name} does not let the request through; the limits here are too narrow for it.")
        chunk = _Paced(app).chunk if name == "ours, paced" else partial(asgi_chunk, app, peers.scope)
        subjects.append(Subject(f"ASGI, {name}", chunk))
    subjects += [Subject(f"WSGI, {name}", partial(wsgi_chunk, app, peers.environ)) for name, app in peers.wsgi()]
    return await in_rounds(subjects, rounds)


if __name__ == "__main__":
    print(json.dumps(asyncio.run(_work(int(sys.argv[1])))))
