"""How much of what other workers promised is taken by now, although they had no time to say so: one that holds a
reservation for long may be asked nothing meanwhile, and would be counted twice, as promised and as used.

Owns by how much they grew since they told it; what they tell is ``workers``' business.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

from resource_monitor.sampling import LONGEST

# statm(5) counts in these.
_PAGE = os.sysconf("SC_PAGE_SIZE")
SETTLED = LONGEST
"""Seconds after which what a process took is in everybody's reading of memory, for none is older."""
# Seconds for which a process is remembered that nobody asks for.
_KEPT = 600.0


def resident(pid: int) -> int | None:
    """Resident bytes of a process, ``None`` where they cannot be read."""
    try:
        with open(f"/proc/{pid}/statm", "rb", buffering=0) as file:
            return int(file.read(256).split()[1]) * _PAGE
    except (OSError, ValueError, IndexError):
        return None


@dataclass(slots=True)
class _Growth:
    told: object
    at: float
    latest: int = 0
    settled: int = 0


class Showing:
    """What each of several processes grew by. ``read`` gives the resident bytes of one by its pid."""

    def __init__(self, read: Callable[[int], int | None] = resident) -> None:
        self._read = read
        self._growths: dict[int, _Growth] = {}

    def beyond(self, base: int, pid: int, told: object, now: float) -> int:
        """By how many bytes more than ``base``, which it had when it ``told`` something, ``pid`` has been resident for
        :data:`SETTLED` seconds at ``now`` seconds. Who tells something new all the time is not looked at."""
        growth = self._growths.get(pid)
        if growth is None or growth.told != told:
            growth = self._growths[pid] = _Growth(told, now)
        elif not 0 <= now - growth.at < SETTLED:
            size = self._read(pid)
            grown = 0 if size is None else max(0, size - base)
            growth.settled, growth.latest, growth.at = min(growth.latest, grown), grown, now
        return growth.settled

    def forget(self, now: float) -> None:
        """Those that nobody asked for lately."""
        self._growths = {pid: growth for pid, growth in self._growths.items() if now - growth.at < _KEPT}
