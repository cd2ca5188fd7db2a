"""What it costs to know how much memory is left: a cached reading, one of usage alone, and a full one.

Each is measured in a process of its own, in real cgroups 1 to 8 deep, the limits of which are so near to each other
that all are looked at. The monitor's clock is one that jumps, so that each call takes a reading, of usage alone or a
full one; all are called by turns, psutil and proclimits too, some times in a row. With jemalloc, whose threads have
arenas of their own, also what :meth:`MemoryMonitor.read` costs, which asks the allocator too.
"""

from __future__ import annotations

import gc
import json
import statistics
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from ctypes.util import find_library

from benchmarks.cost.table import Row, Table
from benchmarks.cost.workers import run_worker
from examples.child_cgroup import CannotCreate, ChildCgroup

NAME = "reading"

DEPTHS = (1, 2, 4, 8)
THREADS = (1, 4, 16)
# Little enough above what the process takes that a reading gets old within _AGE on a single core too: a quarter of that
# is less than 2.4 GB/s fill.
_LIMIT, _STEP = 72 << 20, 1 << 20
_AGE, _FULL_AGE = 0.0049, 0.1
_ROW, _CACHED_ROW = 20, 1000

Figures = dict[str, list[float]]
"""Seconds of a call, the mean of some in a row, by what was called."""


def measure(*, quick: bool) -> Table:
    """The table. Raises ``SystemExit`` where no cgroup may be made."""
    rounds = 10 if quick else 100
    rows = []
    for depth in DEPTHS:
        found = _in_cgroups(depth, rounds)
        if depth == DEPTHS[0]:
            rows.append(_row("cached", found["cached"]))
        rows += [_row(f"{name}, {depth} deep", found[name]) for name in ("usage only", "full")]
        if depth in (DEPTHS[0], DEPTHS[-1]):
            rows += [_row(f"{name}, {depth} deep", found[name]) for name in (_PSUTIL, _PROCLIMITS)]
    jemalloc = find_library("jemalloc")
    for threads in THREADS if jemalloc else ():
        found = _in_cgroups(1, rounds, threads, {"LD_PRELOAD": str(jemalloc)})
        ending = f"1 deep, jemalloc, {threads} threads" if threads > 1 else "1 deep, jemalloc, 1 thread"
        rows += [_row(f"{name}, {ending}", found[name]) for name in ("full", "read()")]
    return Table(
        NAME,
        "A reading of what is left",
        ("", "µs", "quartiles"),
        tuple(rows),
        (
            f"Medians of {rounds} rounds, in each of which all are called from Python {_ROW} times in a row, cached "
            f"ones {_CACHED_ROW:,} times. Depth is that of cgroups with a limit, made for this. Cached, usage only and "
            "full are `MemoryMonitor.headroom()`: usage is read again when a quarter of what is left could be gone at "
            "2.4 GB/s and core, everything after 0.1 s and near the floor. "
            + (
                "`read()` asks the allocator besides; each thread has allocated."
                if jemalloc
                else "jemalloc is not installed here, so nothing is told of its arenas."
            ),
        ),
    )


def _in_cgroups(
    depth: int, rounds: int, threads: int = 1, environment: dict[str, str] | None = None
) -> dict[str, list[float]]:
    with ExitStack() as stack:
        cgroup: ChildCgroup | None = None
        try:
            for level in range(depth):
                limit = _LIMIT + (depth - level) * _STEP
                cgroup = stack.enter_context(ChildCgroup(limit, label="cost", parent=cgroup))
        except CannotCreate as error:
            raise SystemExit(f"No cgroup can be made here ({error}); run this as a user who may.") from None
        found: Figures = run_worker(__name__, str(rounds), str(threads), cgroup=cgroup, environment=environment)
        return found


def _row(name: str, seconds: list[float]) -> Row:
    first, median, third = (value * 1e6 for value in statistics.quantiles(seconds, n=4, method="inclusive"))
    return Row(name, (f"{median:.3g}", f"{first:.3g}–{third:.3g}"), {"seconds": median / 1e6})


# --- in a process of its own, in the innermost cgroup ---

_PSUTIL, _PROCLIMITS = "psutil.virtual_memory()", "proclimits.get_memory_budget()"


class _Clock:
    """Seconds that pass when told to."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def _work(rounds: int, threads: int) -> Figures:
    import proclimits
    import psutil

    from resource_monitor.monitor import MemoryMonitor

    clock = _Clock()
    stepped, usual = MemoryMonitor(clock=clock), MemoryMonitor()

    def read_after(seconds: float) -> float:
        clock.now += _FULL_AGE
        stepped.headroom()
        start = time.perf_counter_ns()
        for _ in range(_ROW):
            clock.now += seconds
            stepped.headroom()
        taken = time.perf_counter_ns() - start
        if stepped.age():
            raise RuntimeError(f"After {seconds} s nothing was read, with {stepped.headroom():,} bytes left.")
        return taken / 1e9 / _ROW

    turns: dict[str, Callable[[], float]] = {
        "cached": lambda: _in_a_row(usual.headroom, _CACHED_ROW),
        "usage only": lambda: read_after(_AGE),
        "full": lambda: read_after(_FULL_AGE),
        "read()": lambda: _in_a_row(usual.read, _ROW),
        _PSUTIL: lambda: _in_a_row(psutil.virtual_memory, _ROW),
        _PROCLIMITS: lambda: _in_a_row(proclimits.get_memory_budget, _ROW),
    }
    with ExitStack() as stack:
        _allocate_in(threads - 1, stack)
        for turn in turns.values():
            turn()
        gc.freeze()
        found: Figures = {name: [] for name in turns}
        for _ in range(rounds):
            for name, turn in turns.items():
                found[name].append(turn())
    return found


def _in_a_row(call: Callable[[], object], calls: int) -> float:
    start = time.perf_counter_ns()
    for _ in range(calls):
        call()
    return (time.perf_counter_ns() - start) / 1e9 / calls


def _allocate_in(threads: int, stack: ExitStack) -> None:
    """Have so many threads allocate, and live until ``stack`` is left."""
    over, ready = threading.Event(), threading.Barrier(threads + 1)
    held: list[bytearray] = []

    def hold() -> None:
        held.extend(bytearray(size) for size in (1000, 20_000, 1 << 20))
        ready.wait()
        over.wait()

    started = [threading.Thread(target=hold) for _ in range(threads)]
    for thread in started:
        thread.start()
        stack.callback(thread.join)
    stack.callback(over.set)
    ready.wait()


if __name__ == "__main__":
    print(json.dumps(_work(int(sys.argv[1]), int(sys.argv[2]))))
