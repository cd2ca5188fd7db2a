"""What the middleware takes of a server's throughput: the same app bare and wrapped, loaded by turns.

The wrapped app's limit is that of a real cgroup, and its allocation guard is on.
"""

from __future__ import annotations

from benchmarks.cost.servers import KINDS, Kind, running
from benchmarks.cost.table import Table
from benchmarks.cost.wrk import CONNECTIONS, Pairs, in_pairs

NAME = "throughput"


def measure(*, quick: bool) -> Table:
    """The table."""
    pairs = 2 if quick else 12
    return Table(
        NAME,
        "Requests a second of real servers",
        ("", "bare", "wrapped", "wrapped / bare", "quartiles"),
        tuple(_measure(kind, pairs).row(kind.name, bare="bare", digits=3) for kind in KINDS),
        (
            f"Medians of {pairs} pairs of seconds: both servers run at the same time in cgroups of 1 GiB on one core, "
            f"and wrk loads one after the other over {CONNECTIONS} connections from another core. The app says hello, "
            "by Starlette under uvicorn (httptools, uvloop) and granian (uvloop), by Flask under gunicorn.",
        ),
    )


def _measure(kind: Kind, pairs: int) -> Pairs:
    with running(kind, "", "_wrapped") as (bare, ours):
        return in_pairs(bare, ours, pairs)
