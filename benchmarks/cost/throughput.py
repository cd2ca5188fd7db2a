"""What the middleware takes of a server's throughput: the same app bare and wrapped, loaded by turns.

The wrapped app's limit is that of a real cgroup, and its allocation guard is on.
"""

from __future__ import annotations

import statistics

from benchmarks.cost.servers import KINDS, Kind, running
from benchmarks.cost.table import Row, Table
from benchmarks.cost.wrk import CONNECTIONS, Pairs, in_pairs

NAME = "throughput"


def measure(*, quick: bool) -> Table:
    """The table."""
    pairs = 2 if quick else 12
    return Table(
        NAME,
        "Requests a second of real servers",
        ("", "bare", "wrapped", "wrapped / bare", "quartiles"),
        tuple(_row(kind.name, _measure(kind, pairs)) for kind in KINDS),
        (
            f"Medians of {pairs} pairs of seconds: both servers run at the same time in cgroups of 1 GiB on one core, "
            f"and wrk loads one after the other over {CONNECTIONS} connections from another core. The app says hello, "
            "by Starlette under uvicorn (httptools, uvloop) and granian (uvloop), by Flask under gunicorn.",
        ),
    )


def _measure(kind: Kind, pairs: int) -> Pairs:
    with running(kind, "", "_wrapped") as (bare, ours):
        return in_pairs(bare, ours, pairs)


def _row(name: str, pairs: Pairs) -> Row:
    first, median, third = pairs.quartiles
    bare, ours = statistics.median(pairs.bare), statistics.median(pairs.ours)
    return Row(
        name,
        (f"{bare:,.0f}", f"{ours:,.0f}", f"{median:.3f}", f"{first:.3f} – {third:.3f}"),
        {"of bare": median, "first quartile": first, "third quartile": third, "bare a second": bare, "a second": ours},
    )
