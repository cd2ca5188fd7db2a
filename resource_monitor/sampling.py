"""When to read: a cached, always fresh enough answer to "how much is left?", for every kind of limit.

There is no thread: whoever asks refreshes when the last reading is too old, so nothing can starve the sampling and a
fork takes nothing with it. ``limits`` knows what is read; what the figures mean is the subclasses' business.
"""

from __future__ import annotations

import logging
import os
import threading
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable

from resource_monitor.errors import ProbeError
from resource_monitor.limits import DECISIVE, FULL, RECLAIMABLE, USAGE, Limit, LimitReader

logger = logging.getLogger("resource_monitor")

# Bounds of a reading's time to live, and the interval after which everything is read again; seconds.
_SHORTEST, LONGEST = 0.0002, 0.05
FULL_INTERVAL = 0.1
# A failed reading is not tried again for this many seconds, so that a broken /proc does not cost every request.
_RETRY_INTERVAL = 0.05


class Sampler(ABC):
    """Reads some limits as often as needed and no more often; thread-safe, and safe across fork.

    ``speed`` is how much of the resource the process can use up in a second at the very most: a reading may age until a
    quarter of the headroom could be gone. ``margin`` is what the machine can use up between two full readings.
    """

    def __init__(self, *, clock: Callable[[], float], speed: float, margin: int) -> None:
        self.speed = speed
        self.margin = margin
        self._clock = clock
        self._fresh_until = 0.0
        self._full_due = 0.0
        self._headroom = 0
        self._read_at = 0.0
        self._error: ProbeError | None = None
        self._unreadable: str | None = None
        # a signal handler or a finaliser may ask in the middle of a reading, on the thread that is at it
        self._lock = threading.RLock()
        self._reader = self.open_limits()
        _samplers.add(self)
        self._refresh(self._clock())

    def headroom(self) -> int:
        """What is left before the first limit bites, :data:`UNBOUNDED` without one. Raises :class:`ProbeError`."""
        now = self._clock()
        if now >= self._fresh_until:
            self._refresh(now)
        return self._headroom

    @property
    def clock(self) -> Callable[[], float]:
        """Tells the time in seconds."""
        return self._clock

    @property
    def fresh_until(self) -> float:
        """When the last reading will be too old; seconds of :attr:`clock`."""
        return self._fresh_until

    def limits(self) -> tuple[Limit, ...]:
        """Every limit that was looked at, those that limit nothing included, read anew. Raises :class:`ProbeError`."""
        with self._lock:
            self._update(self._clock(), DECISIVE)
            self._reader.read(FULL)
            return self._reader.limits()

    def first(self) -> Limit | None:
        """The limit that bites first, read anew, ``None`` without one. Raises :class:`ProbeError`."""
        with self._lock:
            self._update(self._clock(), DECISIVE)
            return self._reader.first()

    def age(self) -> float:
        """Seconds since the last reading."""
        return self._clock() - self._read_at

    def tightest(self) -> int:
        """The smallest limit as of the last full reading, :data:`UNBOUNDED` without one."""
        return self._reader.tightest

    @abstractmethod
    def open_limits(self) -> LimitReader:
        """A new reader of the limits that this samples. Raises :class:`ProbeError`."""

    def _steady(self) -> bool:
        """Whether a reading of usage alone may stand; asked after each."""
        return True

    def _note_reclaimable(self) -> None:  # noqa: B027 - a hook, which not every resource needs
        """Called after each reading of more than usage."""

    def _refresh(self, now: float) -> None:
        with self._lock:
            if now >= self._fresh_until:  # else another thread was faster
                self._update(now, USAGE)

    def _update(self, now: float, tier: int) -> None:
        """Read once, what ``tier`` says or more; the lock is held."""
        if self._error is not None and now < self._full_due:
            raise self._error
        try:
            if tier == DECISIVE or now >= self._full_due or not self._read_kept(tier):
                self._read_fully(now)
        except ProbeError as error:
            self._error = error
            self._full_due = now + _RETRY_INTERVAL
            self._fresh_until = 0.0
            raise
        self._error = None
        self._headroom = headroom = self._reader.headroom
        self._read_at = now
        age = headroom / (4 * self.speed)
        self._fresh_until = now + (LONGEST if age > LONGEST else max(age, _SHORTEST))

    def _read_kept(self, tier: int) -> bool:
        """Read what ``tier`` says of the limits that are known, or more if that is in doubt; whether that sufficed."""
        reader = self._reader
        if tier == USAGE and reader.read(USAGE, self.margin) and self._steady():
            return True
        if not reader.read(RECLAIMABLE, self.margin) or reader.vanished():
            return False
        self._note_reclaimable()
        return True

    def _read_fully(self, now: float) -> None:
        if now >= self._full_due and self._reader.moved():
            self._reader = self.open_limits()
        if not self._reader.read(DECISIVE) or self._reader.vanished():
            self._reader = self.open_limits()
            self._reader.read(DECISIVE)
        self._note_reclaimable()
        if now >= self._full_due:
            self._full_due = now + FULL_INTERVAL
            self._report_unreadable()

    def _report_unreadable(self) -> None:
        failure = self._reader.failure()
        path = failure.path if failure else None
        if path != self._unreadable:
            self._unreadable = path
            if failure:
                logger.warning("%s: this limit is left out until it can be read again", failure)

    def _after_fork(self) -> None:
        self._lock = threading.RLock()
        self._fresh_until = 0.0


_samplers: weakref.WeakSet[Sampler] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for sampler in _samplers:
        sampler._after_fork()


os.register_at_fork(after_in_child=_after_fork_in_child)
