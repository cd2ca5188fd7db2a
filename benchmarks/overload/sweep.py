"""Finds, for a scenario, the best fixed limit on concurrency: the most good answers among those that nobody dies of.

Where every limit kills (a leak does not care for concurrency), it is the one with the fewest deaths.

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


async def best(measure: Measure, seed: int) -> tuple[Row, list[Row]]:
    """The best row that ``measure(limit, seed)`` gave and that another seed confirmed, and all that were tried."""
    tried: dict[int, Row] = {}
    for limit in _LADDER:
        row = tried[limit] = await measure(limit, seed)
        if not row.survived or row.good >= _ENOUGH * row.offered:
            break
    # the last rung was either enough, or it killed, and the best may lie on either side of the best rung
    for _ in range(0 if row.survived else _REFINEMENTS):
        for limit in _around(tried):
            tried[limit] = await measure(limit, seed)
    ranked = sorted(tried.values(), key=lambda row: (row.deaths, -row.good_per_s, row.limit_concurrency))
    rows = list(tried.values())
    for row in ranked:
        rows.append(again := await measure(row.limit_concurrency or 0, seed + 1))
        if again.deaths <= row.deaths:
            return row, rows
    return ranked[0], rows


def _around(tried: dict[int, Row]) -> list[int]:
    """The limits half way from the best one that survived to its neighbours on both sides."""
    alive = [limit for limit, row in tried.items() if row.survived]
    if not alive:
        return []
    centre = max(alive, key=lambda limit: tried[limit].good_per_s)
    below = max([limit for limit in tried if limit < centre], default=0)
    above = min([limit for limit in tried if limit > centre], default=centre)
    return sorted({(below + centre) // 2, (centre + above) // 2} - {0, *tried})


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
