"""Load by ``wrk`` on a core of its own, of two servers at the same time, so that what the machine does meets both.

The servers share a core, some milliseconds by turns, so that their rates are to each other as what an answer costs
them, however fast the core is at that moment. What each answered is divided by the time that it had of that core: half
of it where it has one thread, but a fifth more or less by chance where it has many.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks.cost.servers import Running, cores
from benchmarks.cost.table import Row

CONNECTIONS = 32
_SCRIPT = Path(__file__).with_name("load.lua")


@dataclass(frozen=True, slots=True)
class Load:
    """What came of one server: ``answers`` in all, ``refusals`` among them (any status from 400 on), ``broken``
    connections, and ``rate`` in answers a second of processor time."""

    answers: int
    refusals: int
    broken: int
    rate: float


@dataclass(frozen=True, slots=True)
class Pairs:
    """Rates of two servers, bare and ours, at the same times."""

    bare: list[float]
    ours: list[float]

    def __add__(self, more: Pairs) -> Pairs:
        return Pairs(self.bare + more.bare, self.ours + more.ours)

    @property
    def ratios(self) -> list[float]:
        """Ours through bare, by pair."""
        return [ours / bare for bare, ours in zip(self.bare, self.ours, strict=True)]

    @property
    def quartiles(self) -> tuple[float, float, float]:
        """Of the ratios; the median is the second."""
        first, second, third = statistics.quantiles(self.ratios, n=4, method="inclusive")
        return first, second, third

    def row(self, name: str, *, bare: str, digits: int) -> Row:
        """A row of medians and quartiles, the ratios to so many ``digits``; what the bare server says is ``bare``."""
        first, median, third = self.quartiles
        theirs, ours = statistics.median(self.bare), statistics.median(self.ours)
        return Row(
            name,
            (f"{theirs:,.0f}", f"{ours:,.0f}", f"{median:.{digits}f}", f"{first:.{digits}f} – {third:.{digits}f}"),
            {
                "of bare": median,
                "first quartile": first,
                "third quartile": third,
                f"{bare} a second": theirs,
                "a second": ours,
            },
        )


def load(seconds: int, body: int, *servers: Running) -> list[Load]:
    """Load ``servers`` at the same time for so long with GETs, or POSTs of ``body`` bytes."""
    program = shutil.which("wrk")
    if program is None:
        raise SystemExit(
            "wrk is not installed, and the servers are loaded by it; install it (Debian's package is wrk)."
        )
    argv = [program, "-t1", f"-c{CONNECTIONS}", f"-d{seconds}s", "-s", str(_SCRIPT)]
    with ExitStack() as stack:
        running = [
            stack.enter_context(
                subprocess.Popen(
                    [*argv, f"http://127.0.0.1:{server.port}/", "--", str(body)],
                    stdout=subprocess.PIPE,
                    text=True,
                    preexec_fn=partial(os.sched_setaffinity, 0, {cores()[1]}),  # noqa: PLW1509 - there are no threads here
                )
            )
            for server in servers
        ]
        for process in running:
            stack.callback(process.kill)
        before = [server.cpu() for server in servers]
        printed = [process.communicate(timeout=seconds + 60)[0] for process in running]
        had = [server.cpu() - then for server, then in zip(servers, before, strict=True)]
    return [_load_of(line, cpu) for line, cpu in zip(printed, had, strict=True)]


def _load_of(printed: str, cpu: float) -> Load:
    if not printed.strip():
        raise RuntimeError("wrk ended without its figures.")
    found = json.loads(printed.strip().splitlines()[-1])
    return Load(found["answers"], found["refusals"], found["broken"], found["answers"] / cpu)


def in_pairs(
    bare: Running, ours: Running, pairs: int, *, seconds: int = 1, body: int = 0, refused: bool = False
) -> Pairs:
    """Load both at the same time, ``pairs`` times.

    Raises ``RuntimeError`` unless bare answers all and ours all or, ``refused``, nothing.
    """
    found = Pairs([], [])
    for pair in range(-1, pairs):  # the first is for warming up
        came = load(seconds, body, *((bare, ours) if pair % 2 else (ours, bare)))
        of_bare, of_ours = came if pair % 2 else reversed(came)
        for server, its, wanted in ((bare, of_bare, 0), (ours, of_ours, of_ours.answers if refused else 0)):
            if its.refusals != wanted or its.broken or not its.answers:
                raise RuntimeError(f"{server.kind.name} was to refuse {wanted} requests and to break none: {its}")
        if pair >= 0:
            found.bare.append(of_bare.rate)
            found.ours.append(of_ours.rate)
    return found
