"""What the middleware takes of a server's throughput: the same app bare and wrapped, loaded at the same time.

The wrapped app's limit is that of a real cgroup, and its allocation guard is on.
"""

from __future__ import annotations

from benchmarks.cost.servers import KINDS, Kind, running
from benchmarks.cost.table import Table
from benchmarks.cost.wrk import CONNECTIONS, Pairs, in_pairs

NAME = "throughput"


_STARTS, _PAIRS, _SECONDS = 4, 3, 2


def measure(*, quick: bool) -> Table:
    """The table."""
    starts = 1 if quick else _STARTS
    uvicorn = KINDS[0]
    rows = [
        *(_measure(kind, "_wrapped", starts).row(kind.name, bare="bare", digits=3) for kind in KINDS),
        _measure(uvicorn, "", starts).row(f"{uvicorn.name}, bare twice", bare="bare", digits=3),
    ]
    return Table(
        NAME,
        "Requests a second of real servers",
        ("", "bare", "wrapped", "wrapped / bare", "quartiles"),
        tuple(rows),
        (
            f"Medians of {starts * _PAIRS} pairs of {_SECONDS} seconds, {_PAIRS} for each of {starts} starts: both "
            "servers run in cgroups of 1 GiB on one core, and wrk loads both at the same time, each over "
            f"{CONNECTIONS} connections, from another core. The app says hello, by Starlette under uvicorn (httptools, "
            "uvloop) and granian (uvloop), by Flask under gunicorn. The last row is two bare servers: what it differs "
            "from 1 by, the others cannot tell.",
        ),
    )


def _measure(kind: Kind, suffix: str, starts: int) -> Pairs:
    found = Pairs([], [])
    for _ in range(starts):
        with running(kind, "", suffix) as (bare, ours):
            found += in_pairs(bare, ours, _PAIRS, seconds=_SECONDS)
    return found
