"""What the middleware takes of a server's throughput: the same app bare and wrapped, loaded at the same time.

The wrapped app's limit is that of a real cgroup, and its allocation guard is on.
"""

from __future__ import annotations

from benchmarks.cost.servers import KINDS, Kind, running
from benchmarks.cost.table import Table
from benchmarks.cost.wrk import CONNECTIONS, Pairs, in_pairs

NAME = "throughput"

_BODIES = {"1 KiB": 1 << 10, "1 MiB": 1 << 20}

# two processes of the same differ by some percent for as long as they run, so that starts are worth more than pairs
_STARTS, _PAIRS, _SECONDS = 12, 1, 2


def measure(*, quick: bool) -> Table:
    """The table."""
    starts = 2 if quick else _STARTS
    uvicorn = KINDS[0]
    compared = [
        *((kind.name, kind, "_wrapped", 0) for kind in KINDS),
        *(
            (f"{kind.name}, bodies of {size}", kind, "_wrapped", body)
            for kind in KINDS
            for size, body in _BODIES.items()
        ),
        (f"{uvicorn.name}, no-op middleware", uvicorn, "_no_op", 0),
        (f"{uvicorn.name}, no-op with a send of its own", uvicorn, "_sending_no_op", 0),
        (f"{uvicorn.name}, bare twice", uvicorn, "", 0),
    ]
    rows = [
        _measure(kind, suffix, starts, body).row(name, bare="bare", digits=3) for name, kind, suffix, body in compared
    ]
    return Table(
        NAME,
        "Requests a second of real servers",
        ("", "bare", "wrapped", "wrapped / bare", "quartiles"),
        tuple(rows),
        (
            f"Medians of {starts * _PAIRS} pairs of {_SECONDS} seconds, {_PAIRS} for each of {starts} starts: both "
            "servers run in cgroups of 1 GiB on one core, and wrk loads both at the same time, each over "
            f"{CONNECTIONS} connections, from another core. The app says hello, and first reads the body where one is "
            "sent, by Starlette under uvicorn (httptools, uvloop) and granian (uvloop), by Flask under gunicorn. The "
            "last rows are a middleware that hands every request on and does nothing else; one that hands on every "
            "message of the answer too, as any does that looks at it; and two bare servers: what that differs from 1 "
            "by, the others cannot tell.",
        ),
    )


def _measure(kind: Kind, suffix: str, starts: int, body: int) -> Pairs:
    found = Pairs([], [])
    for _ in range(starts):
        with running(kind, "", suffix) as (bare, ours):
            found += in_pairs(bare, ours, _PAIRS, seconds=_SECONDS, body=body)
    return found
