"""How fast requests are refused for want of memory, beside how fast the bare app says hello on the same server.

The refusing server's cgroup is made as small as leaves it too little, so that each request is refused for what the
kernel counts, after the allocator was asked for what it holds.
"""

from __future__ import annotations

from benchmarks.cost.servers import KINDS, Kind, running
from benchmarks.cost.table import Table
from benchmarks.cost.wrk import CONNECTIONS, Pairs, in_pairs

NAME = "refusal"

_BODIES = {"tiny": 0, "64 KB bodies": 1 << 16}


def measure(*, quick: bool) -> Table:
    """The table."""
    pairs = 2 if quick else 10
    rows = []
    for kind in KINDS:
        rows += [
            found.row(f"{kind.name}, {size}", bare="hello", digits=2) for size, found in _measure(kind, pairs).items()
        ]
    return Table(
        NAME,
        "Refusals a second of processor time of real servers",
        ("", "hello", "refused", "refused / hello", "quartiles"),
        tuple(rows),
        (
            f"Medians of {pairs} pairs of seconds: both servers run on one core, and wrk loads both at the same time, "
            f"each over {CONNECTIONS} connections, from another core: with GETs, and with POSTs of 64 KB, which the "
            "bare app reads before it says hello. What each answered is divided by the processor time that it had "
            "meanwhile. All answers of the one are 503, none of the other. "
            "The apps are those of throughput.",
        ),
    )


def _measure(kind: Kind, pairs: int) -> dict[str, Pairs]:
    with running(kind, "", "_refusing") as (bare, ours):
        ours.shrink()
        return {size: in_pairs(bare, ours, pairs, body=body, refused=True) for size, body in _BODIES.items()}
