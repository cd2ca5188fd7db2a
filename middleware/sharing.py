"""What the workers of one container tell each other, through ``resource_monitor.workers``: one table a process, however
many apps it has."""

from __future__ import annotations

import math
import time
import weakref
from collections.abc import Callable, Iterable

from resource_monitor._native._turn import DeferringLock
from resource_monitor.admission import Learned, Route
from resource_monitor.guard import passed, publish_passed
from resource_monitor.reservation import Ledger
from resource_monitor.worker_slots import Record
from resource_monitor.workers import FRESH, Others, WorkerTable

# Learned figures move slowly; seconds between two tellings.
_LEARNED_EVERY = 0.5
LITTLE = 1 << 20
"""Bytes to come that need not be told at once: by a worker without others, or under a grant."""
# Seconds for which a worker without others need not tell how many are in flight: one that starts finds that a little
# wrong.
_SELDOM = 0.25


class Sharing:
    """One app's part: what it has taken on is added to that of the process's other apps, and told as one, with what is
    promised in their ledgers."""

    def __init__(self, table: WorkerTable, ledger: Ledger) -> None:
        self._table = table
        self._ledger = ledger
        self._learned_due = 0.0
        self._records: dict[str, Record] = {}
        self._mine = (0, 0)
        self._told, self._told_at = (0, 0), -math.inf
        self._alone = False
        with _lock:
            _parts.append(weakref.ref(self, _parts.remove))

    def tell(self, to_take: int, in_flight: int, now: float, *, exactly: bool) -> int:
        """``to_take`` bytes will be taken unseen by requests in flight, besides what is promised. How many in flight
        the others know of now: that number alone is told as often as they look, or seldom where there are none, and at
        once where it is 0 or they are to know it ``exactly``."""
        self._mine = (to_take, in_flight)
        to_come = to_take + self._ledger.unshown
        before, counted = self._told
        little, interval = (LITTLE, _SELDOM) if self._alone else (0, FRESH)
        if (
            abs(to_come - before) <= little
            and (in_flight == counted or (in_flight and not exactly))
            and 0 <= now - self._told_at < interval
        ):
            return counted
        _lock.soon(_publish_all, self._table)
        self._told, self._told_at = (to_come, in_flight), now
        return in_flight

    def others(self, now: float, *, at_once: bool = False) -> Others:
        """What the other workers told up to a millisecond ago, or by now."""
        with _lock:
            others = self._table.others(now, at_once=at_once)
        self._alone = not others.workers
        return others

    def is_alone(self, now: float) -> bool:
        """Whether there were no other workers when that was last looked after, a moment ago, and none came since."""
        with _lock:
            return self._table.is_alone(now)

    def teach(self, routes: Callable[[], Iterable[tuple[str, Route]]], now: float) -> None:
        """Leave what was learned of ``routes`` for a worker that starts, if that was not done a moment ago."""
        if now < self._learned_due:
            return
        self._learned_due = now + _LEARNED_EVERY
        learned = {name: route.learned for name, route in routes()}
        self._records = {
            name: (it.floor, it.unseen, it.rate, it.window) for name, it in learned.items() if it is not None
        }
        _lock.soon(_teach_all, self._table, now)

    def learned(self, name: str, now: float) -> Learned | None:
        """What a worker before this one, or beside it, has learned of the class ``name``."""
        with _lock:
            record = self._table.learned(name, now)
        if record is None:
            return None
        floor, unseen, rate, window = record
        return Learned(floor, unseen or 0.0, rate, window)

    def after_fork(self) -> None:
        """Nothing is in flight in a child."""
        self._mine = self._told = (0, 0)
        self._told_at = -math.inf


class OtherWorkers:
    """The other workers, for ``reserve()``."""

    def promised(self) -> int:
        """Bytes that they promised by now, and that show in no reading yet."""
        with _lock:
            return 0 if _table is None else _table.others(time.monotonic(), at_once=True).promised

    def tell(self) -> None:
        """Have them know what is promised here."""
        if _table is not None:
            _lock.soon(_publish_all, _table)


def _publish_all(table: WorkerTable) -> None:
    """Tell what all apps will take that shows in no reading yet, and how many requests they have in flight; the lock is
    held."""
    parts = _living_parts()
    ledgers = {id(part._ledger): part._ledger for part in parts}
    to_take = sum(part._mine[0] for part in parts) + sum(ledger.unshown for ledger in ledgers.values())
    table.publish(to_take, sum(part._mine[1] for part in parts), passed())


def _teach_all(table: WorkerTable, now: float) -> None:
    """Leave what all apps learned; the lock is held."""
    records: dict[str, Record] = {}
    for part in _living_parts():
        records |= part._records
    table.publish_routes(records, now)


def _living_parts() -> list[Sharing]:
    return [part for known in tuple(_parts) if (part := known()) is not None]


def share(ledger: Ledger) -> Sharing | None:
    """A part in the process's table, or ``None`` where no table can be used. ``ledger`` may be others' too."""
    global _table, _opened
    with _lock:
        if not _opened:
            _table, _opened = WorkerTable.open(watch=publish_passed), True
        table = _table
    return None if table is None else Sharing(table, ledger)


def reset_after_fork() -> None:
    """A child process needs a lock of its own."""
    global _lock
    _lock = DeferringLock()
    for known in tuple(_parts):
        if (part := known()) is not None:
            part.after_fork()


_lock = DeferringLock()
_table: WorkerTable | None = None
_opened = False
_parts: list[weakref.ref[Sharing]] = []
