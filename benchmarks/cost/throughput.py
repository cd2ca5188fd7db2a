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
    starts, with_bodies = (2, 2) if quick else (_STARTS, _STARTS // 2)
    uvicorn = KINDS[0]
    compared = [
        *((kind.name, kind, "_wrapped") for kind in KINDS),
        (f"{uvicorn.name}, no-op middleware", uvicorn, "_no_op"),
        (f"{uvicorn.name}, no-op with a send of its own", uvicorn, "_sending_no_op"),
        (f"{uvicorn.name}, bare twice", uvicorn, ""),
    ]
    found = {name: _measure(kind, suffix, starts, 0) for name, kind, suffix in compared}
    for kind in KINDS:
        for size, body in _BODIES.items():
            found[f"{kind.name}, bodies of {size}"] = _measure(kind, "_wrapped", with_bodies, body)
    rows = [pairs.row(name, bare="bare", digits=3) for name, pairs in found.items()]
    return Table(
        NAME,
        "Requests a second of processor time of real servers",
        ("", "bare", "wrapped", "wrapped / bare", "quartiles"),
        tuple(rows),
        (
            f"Medians of {starts * _PAIRS} pairs of {_SECONDS} seconds, {_PAIRS} for each of {starts} starts, and of "
            f"{with_bodies * _PAIRS} where there are bodies: both servers run in cgroups of 1 GiB on one core, and wrk "
            f"loads both at the same time, each over {CONNECTIONS} connections, from another core. What each answered "
            "is divided by the processor time that it had meanwhile. The app says hello, and first reads the body "
            "where one is sent, by Starlette under uvicorn (httptools, uvloop) and granian (uvloop), by Flask under "
            "gunicorn. The no-op middlewares are one that hands every request on and does nothing else, and one that "
            "hands on every message of the answer too, as any does that looks at it; then there are two bare servers: "
            "what that differs from 1 by, the others cannot tell.",
        ),
    )


def _measure(kind: Kind, suffix: str, starts: int, body: int) -> Pairs:
    found = Pairs([], [])
    for _ in range(starts):
        with running(kind, "", suffix) as (bare, ours):
            found += in_pairs(bare, ours, _PAIRS, seconds=_SECONDS, body=body)
    return found
