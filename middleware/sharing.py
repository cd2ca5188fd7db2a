"""What the workers of one container tell each other, through ``resource_monitor.workers``: one table a process, however
many apps it has."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterable

from resource_monitor.admission import Learned, Route
from resource_monitor.guard import passed
from resource_monitor.workers import Others, WorkerTable

# Learned figures move slowly; seconds between two tellings.
_LEARNED_EVERY = 0.5


class Sharing:
    """One app's part: what it has taken on is added to that of the process's other apps, and told as one."""

    def __init__(self, table: WorkerTable) -> None:
        self._table = table
        self._learned_due = 0.0
        self._mine = (0, 0)
        with _lock:
            _parts.add(self)

    def tell(self, to_come: int, in_flight: int) -> None:
        """``to_come`` bytes will be taken by requests in flight that no reading shows yet."""
        with _lock:
            self._mine = to_come, in_flight
            parts = [part._mine for part in _parts]
            self._table.publish(sum(part[0] for part in parts), sum(part[1] for part in parts), passed())

    def others(self, now: float) -> Others:
        """What the other workers told."""
        with _lock:
            return self._table.others(now)

    def teach(self, routes: Iterable[tuple[str, Route]], now: float) -> None:
        """Leave what was learned of ``routes`` for a worker that starts, if that was not done a moment ago."""
        if now < self._learned_due:
            return
        self._learned_due = now + _LEARNED_EVERY
        learned = {name: route.learned for name, route in routes}
        records = {name: (it.floor, it.unseen, it.rate, it.window) for name, it in learned.items() if it is not None}
        with _lock:
            self._table.publish_routes(records, now)

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
        self._mine = (0, 0)


def share() -> Sharing | None:
    """A part in the process's table, or ``None`` where no table can be used."""
    global _table, _opened
    with _lock:
        if not _opened:
            _table, _opened = WorkerTable.open(), True
        table = _table
    return None if table is None else Sharing(table)


def reset_after_fork() -> None:
    """A child process needs a lock of its own."""
    global _lock
    _lock = threading.Lock()
    for part in _parts:
        part.after_fork()


_lock = threading.Lock()
_table: WorkerTable | None = None
_opened = False
_parts: weakref.WeakSet[Sharing] = weakref.WeakSet()
