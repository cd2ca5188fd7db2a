"""Finds, for a scenario, the best fixed limit on concurrency: the most good answers among those that nobody dies of.

The strongest form of the alternative: in practice nobody knows this number in advance, and it differs by scenario.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from datetime import date

from benchmarks.overload.results import Row
from benchmarks.overload.strategies import BEST_LIMITS

_LADDER = [2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096]
# A limit that already serves this share of what is asked cannot be beaten by another one.
_ENOUGH = 0.97
# How often the best limit's neighbourhood is halved, in search of a better one.
_REFINEMENTS = 3

Measure = Callable[[int, int], Awaitable[Row]]


async def best(measure: Measure, seed: int) -> tuple[Row | None, list[Row]]:
    """The best row that ``measure(limit, seed)`` gave and survived with another seed too, and all that were tried."""
    tried: dict[int, Row] = {}
    deadly = _LADDER[-1] * 2
    for limit in _LADDER:
        row = tried[limit] = await measure(limit, seed)
        if not row.survived:
            deadly = limit
            break
        if row.good_per_s >= _ENOUGH * row.offered / row.seconds:
            break
    for _ in range(_REFINEMENTS):
        if not (alive := _alive(tried)):
            break
        centre = alive[0].limit_concurrency or 0
        known = sorted([0, *tried, deadly])
        place = known.index(centre)
        around = [(known[place - 1] + centre) // 2, (centre + known[place + 1]) // 2]
        for limit in around:
            if limit not in tried and 0 < limit < deadly:
                tried[limit] = await measure(limit, seed)
                if not tried[limit].survived:
                    deadly = min(deadly, limit)
    rows = list(tried.values())
    for row in _alive(tried):
        again = await measure(row.limit_concurrency or 0, seed + 1)
        rows.append(again)
        if again.survived:
            return row, rows
    return None, rows


def _alive(tried: dict[int, Row]) -> list[Row]:
    """Rows that survived, the best first; of equals the lower limit."""
    rows = [row for row in tried.values() if row.survived]
    return sorted(rows, key=lambda row: (-row.good_per_s, row.limit_concurrency))


def remember(scenario: str, best_row: Row, rows: list[Row]) -> None:
    """Write the limit into ``best_limits.json`` with the figures that chose it."""
    limits = json.loads(BEST_LIMITS.read_text()) if BEST_LIMITS.exists() else {}
    limits[scenario] = {
        "limit": best_row.limit_concurrency,
        "good_per_s": best_row.good_per_s,
        "p50_s": best_row.p50_s,
        "rate": best_row.rate,
        "seconds": best_row.seconds,
        "found": date.today().isoformat(),
        "tried": [
            {
                "limit": row.limit_concurrency,
                "seed": row.seed,
                "good_per_s": row.good_per_s,
                "kills": row.kills,
                "frozen": row.frozen,
            }
            for row in sorted(rows, key=lambda row: (row.limit_concurrency or 0, row.seed))
        ],
    }
    BEST_LIMITS.write_text(json.dumps(dict(sorted(limits.items())), indent=1) + "\n")
