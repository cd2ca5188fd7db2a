"""Load by ``wrk`` on a core of its own, and pairs of it: two servers by turns, so that what drifts meets both."""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks.cost.servers import Running, cores
from benchmarks.cost.table import Row

CONNECTIONS = 32
_SCRIPT = Path(__file__).with_name("load.lua")


@dataclass(frozen=True, slots=True)
class Load:
    """What came of one turn: ``answers`` in all, ``refusals`` among them (any status from 400 on), ``broken``
    connections, and ``rate`` in answers a second."""

    answers: int
    refusals: int
    broken: int
    rate: float


@dataclass(frozen=True, slots=True)
class Pairs:
    """Rates of two servers, bare and ours, in turns next to each other."""

    bare: list[float]
    ours: list[float]

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


def load(server: Running, seconds: float, body: int) -> Load:
    """Load ``server`` for so long with GETs, or POSTs of ``body`` bytes."""
    program = shutil.which("wrk")
    if program is None:
        raise SystemExit(
            "wrk is not installed, and the servers are loaded by it; install it (Debian's package is wrk)."
        )
    # whole seconds are all that it takes
    argv = [program, "-t1", f"-c{CONNECTIONS}", f"-d{max(1, round(seconds))}s", "-s", str(_SCRIPT)]
    done = subprocess.run(
        [*argv, f"http://127.0.0.1:{server.port}/", "--", str(body)],
        capture_output=True,
        text=True,
        timeout=seconds + 60,
        check=True,
        preexec_fn=partial(os.sched_setaffinity, 0, {cores()[1]}),
    )
    found = json.loads(done.stdout.strip().splitlines()[-1])
    return Load(found["answers"], found["refusals"], found["broken"], found["answers"] / found["microseconds"] * 1e6)


def in_pairs(bare: Running, ours: Running, pairs: int, *, body: int = 0, refused: bool = False) -> Pairs:
    """Load both by turns. Raises ``RuntimeError`` unless bare answers all and ours all or, ``refused``, nothing."""
    found: dict[Running, list[float]] = {bare: [], ours: []}
    for pair in range(-1, pairs):  # the first is for warming up
        for server in (bare, ours) if pair % 2 else (ours, bare):
            came = load(server, 1, body)
            wanted = came.answers if refused and server is ours else 0
            if came.refusals != wanted or came.broken or not came.answers:
                raise RuntimeError(f"{server.kind.name} was to refuse {wanted} requests and to break none: {came}")
            if pair >= 0:
                found[server].append(came.rate)
    return Pairs(found[bare], found[ours])
