"""Who waits for room, in which order, and how long. Sans-IO: the adapters own clocks, timers, tasks and threads.

Requests of a class and priority wait in one line, first come, first served. Lines do not wait for each other: a light
request passes while heavy ones find no room. All lines together are bounded, and when there is no place the newest is
out: it is refused at once, for those before it would be served first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from resource_monitor.admission import Priority, Reason
from resource_monitor.middleware.admitted import Admitted
from resource_monitor.middleware.asking import Ask
from resource_monitor.middleware.routes import route_class

POLL = 0.005
"""Seconds between two questions for those who wait: memory may come from other processes, which tell nobody."""

# Places in all, and for one line, so that one class cannot take them all: who waits holds a task or a thread.
PLACES, _PLACES_OF_ONE = 512, 256
# What a new class needs is known as soon as its first requests answer, which is worth this many seconds to everyone.
_COLD_START_WAIT = 0.25
_WAITABLE = frozenset({Reason.MEMORY, Reason.PACE, Reason.LATENCY, Reason.IN_FLIGHT, Reason.COUNT})
_ORDER = {priority: rank for rank, priority in enumerate(Priority)}


def patience(reason: Reason, max_wait: float) -> float:
    """How many seconds a request waits that may not start for ``reason``; 0 to be refused at once."""
    if reason is Reason.COLD_START:
        return max(max_wait, _COLD_START_WAIT)
    return max_wait if reason in _WAITABLE else 0.0


class Waiter:
    """A request that waits since ``since``, seconds, for ``reason``. Adapters add how they wake it."""

    __slots__ = ("ask", "key", "number", "reason", "since")

    def __init__(self, ask: Ask, reason: Reason, since: float) -> None:
        self.ask = ask
        self.reason = reason
        self.since = since
        self.key = _key(ask)
        self.number = 0


_W = TypeVar("_W", bound=Waiter)


class Queue(Generic[_W]):
    """Those who wait. Not thread-safe: whoever asks holds a lock, or lives on one event loop."""

    def __init__(self) -> None:
        self._lines: dict[tuple[Priority, str], dict[_W, None]] = {}
        self._waiting = self._number = 0

    def __len__(self) -> int:
        return self._waiting

    def behind(self, ask: Ask) -> Reason | None:
        """Why others like ``ask`` wait, behind whom it has to, or ``None``: then it may ask the gate itself."""
        line = self._lines.get(_key(ask)) if self._waiting else None
        return next(iter(line)).reason if line else None

    def join(self, waiter: _W) -> bool:
        """Wait; False when there is no place."""
        line = self._lines.setdefault(waiter.key, {})
        if self._waiting >= PLACES or len(line) >= _PLACES_OF_ONE:
            if not line:
                del self._lines[waiter.key]
            return False
        waiter.number = self._number
        line[waiter] = None
        self._number += 1
        self._waiting += 1
        return True

    def leave(self, waiter: _W) -> None:
        """Wait no more; however often this is said."""
        line = self._lines.get(waiter.key, {})
        if waiter in line:
            del line[waiter]
            self._waiting -= 1
            if not line:
                del self._lines[waiter.key]

    def served(
        self, attempt: Callable[[_W], Admitted | Reason | None], now: float, max_wait: float
    ) -> Iterator[tuple[_W, Admitted | Reason]]:
        """Ask for the first of each line, the most urgent and longest waiting before others, and go on with the next of
        its line until one has to wait. Those that wait no more come out: let in, or with the reason for which they are
        to be refused after all. ``attempt`` gives ``None`` for one who is gone."""
        for line in sorted(self._lines.values(), key=_rank):
            for waiter in list(line):
                answer = attempt(waiter)
                if isinstance(answer, Reason):
                    waiter.reason = answer
                    if now < waiter.since + patience(answer, max_wait):
                        break
                self.leave(waiter)
                if answer is not None:
                    yield waiter, answer


def _key(ask: Ask) -> tuple[Priority, str]:
    return ask.priority, route_class(ask.method, ask.path)


def _rank(line: dict[_W, None]) -> tuple[int, int]:
    first = next(iter(line))
    return _ORDER[first.ask.priority], first.number
