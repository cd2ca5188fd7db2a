"""The one place that decides when to read: a cached, always fresh enough answer to "how much is left?".

There is no thread: whoever asks refreshes when the last reading is too old, so nothing can starve the sampling and a
fork takes nothing with it. ``limits`` knows what is read, ``allocator`` what is held.
"""

from __future__ import annotations

import logging
import os
import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

from resource_monitor import limits
from resource_monitor.allocator import Allocator, allocator
from resource_monitor.errors import ConfigurationError, ProbeError
from resource_monitor.limits import Limit, LimitReader
from resource_monitor.units import format_size, parse_size

logger = logging.getLogger("resource_monitor")

UNBOUNDED = 2**64 - 1
"""The headroom where nothing limits."""

# A core writes fresh memory at no more than this many bytes a second (measured: 2.4 GB/s), and a reading may age until
# the machine could have taken a quarter of the headroom.
_BYTES_PER_SECOND = 2.4e9
_SHORTEST, _LONGEST = 0.0002, 0.05
# Limits, reclaimable parts, cgroup membership and the allocator are read again after this many seconds.
_FULL_INTERVAL = 0.1
# Smaller movements of usage than this never make the kept reclaimable part worth another full reading.
_STEP = 1 << 20
# Relief that gave back less than this did not help, and the next one waits twice as long; seconds.
_HELPFUL = 1 << 20
_RELIEF_INTERVAL, _RELIEF_INTERVAL_MAX = 0.005, 5.0
# A failed reading is not tried again for this many seconds, so that a broken /proc does not cost every request.
_RETRY_INTERVAL = 0.05


@dataclass(frozen=True, slots=True)
class Reading:
    """What is left at one moment; bytes.

    ``available`` = ``headroom`` + ``recoverable``: the least headroom over every limit, and what the allocator gives
    back if asked. ``limit``, ``used`` and ``where`` belong to the limit that bites first and are ``None`` when nothing
    limits. ``at`` is the monitor's clock in seconds.
    """

    available: int
    headroom: int
    recoverable: int
    limit: int | None
    used: int | None
    where: str | None
    at: float


class MemoryMonitor:
    """Reads this process's memory limits as often as needed and no more often; thread-safe, and safe across fork.

    ``limit`` declares a limit on this process's resident memory, as bytes or a text such as ``"256MiB"``, for machines
    where no cgroup sets one; without it the environment's ``RESOURCE_MONITOR_LIMIT`` does. ``root`` is a directory that
    stands in for ``/``. Raises :class:`ConfigurationError` for a limit that is no size, :class:`ProbeError` when the
    limits cannot be found out.
    """

    def __init__(
        self, *, limit: int | str | None = None, root: str = "/", clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.allocator: Allocator = allocator()
        self._declared = _declared(limit)
        self._root = root
        self._clock = clock
        self._bytes_per_second = 4 * _BYTES_PER_SECOND * len(os.sched_getaffinity(0))
        self._attention = 0
        self._fresh_until = 0.0
        self._full_due = 0.0
        self._full_free = 0
        self._headroom = 0
        self._recoverable = 0
        self._error: ProbeError | None = None
        self._unreadable: str | None = None
        self._relief_due = 0.0
        self._relief_interval = _RELIEF_INTERVAL
        self._lock = threading.Lock()
        self._reader = self._open()
        _monitors.add(self)
        self._refresh()

    def headroom(self) -> int:
        """Bytes left before the first limit bites, :data:`UNBOUNDED` without one. Raises :class:`ProbeError`."""
        if self._clock() >= self._fresh_until:
            self._refresh()
        return self._headroom

    def read(self) -> Reading:
        """The present :class:`Reading`, limits and allocator read anew. Raises :class:`ProbeError`."""
        with self._lock:
            now = self._clock()
            self._update(now, full=True)
            self._recoverable = self.allocator.dirty() or 0
            first = self._reader.first()
            if first is None:
                return Reading(UNBOUNDED, UNBOUNDED, self._recoverable, None, None, None, now)
            available = min(self._headroom + self._recoverable, first.value or 0)
            return Reading(available, self._headroom, self._recoverable, first.value, first.used, first.where, now)

    def limits(self) -> tuple[Limit, ...]:
        """Every limit that was looked at, those that limit nothing included, read anew. Raises :class:`ProbeError`."""
        with self._lock:
            self._update(self._clock(), full=True)
            return self._reader.limits()

    def tightest(self) -> int:
        """The smallest limit in bytes as of the last full reading, :data:`UNBOUNDED` without one."""
        return self._reader.tightest

    def watch(self, floor: int) -> None:
        """Read everything at every refresh as soon as less than twice ``floor`` bytes are free without reclaiming."""
        self._attention = max(self._attention, 2 * floor)

    def relieve(self) -> int:
        """Ask the allocator for what it does not need, unless that was useless a moment ago; the headroom then.

        To be called before anything is refused. Raises :class:`ProbeError`.
        """
        with self._lock:
            now = self._clock()
            if now < self._relief_due:
                if now >= self._fresh_until:
                    self._update(now, full=True)
                return self._headroom
            self._update(now, full=True)
            before = self._headroom
            dirty = self.allocator.dirty()
            if (dirty is None or dirty >= _HELPFUL) and self.allocator.relieve():
                self._update(self._clock(), full=True)
            helped = self._headroom >= before + _HELPFUL
            # what the allocator itself calls dirty is cheap to ask for; blind trimming has to earn its next turn
            patient = dirty is None and not helped
            self._relief_interval = (
                min(2 * self._relief_interval, _RELIEF_INTERVAL_MAX) if patient else _RELIEF_INTERVAL
            )
            self._relief_due = self._clock() + self._relief_interval
            return self._headroom

    def _open(self) -> LimitReader:
        return LimitReader(declared=self._declared, root=self._root)

    def _refresh(self) -> None:
        with self._lock:
            now = self._clock()
            if now >= self._fresh_until:  # else another thread was faster
                self._update(now, full=now >= self._full_due)

    def _update(self, now: float, *, full: bool) -> None:
        """Read once; the lock is held."""
        if self._error is not None and now < self._full_due:
            raise self._error
        try:
            self._read(now, full=full)
        except ProbeError as error:
            self._error = error
            self._full_due = now + _RETRY_INTERVAL
            self._fresh_until = 0.0
            raise
        self._error = None
        self._headroom = headroom = self._reader.headroom
        age = headroom / self._bytes_per_second
        self._fresh_until = now + min(max(age, _SHORTEST), _LONGEST)

    def _read(self, now: float, *, full: bool) -> None:
        if not full:
            if not self._reader.read(limits.USAGE):
                self._reader = self._open()
            else:
                free = self._reader.free
                # Where free memory is short the kernel may be reclaiming, and usage stands still while what is
                # reclaimable melts away: only a full reading tells.
                steady = abs(free - self._full_free) <= max((self._reader.headroom - free) // 4, _STEP)
                if steady and free >= self._attention:
                    return
        elif now >= self._full_due and self._reader.moved():
            self._reader = self._open()
        if not self._reader.read(limits.FULL) or self._reader.vanished():
            self._reader = self._open()
            self._reader.read(limits.FULL)
        self._full_free = self._reader.free
        if now >= self._full_due:
            self._recoverable = self.allocator.dirty() or 0
            self._full_due = now + _FULL_INTERVAL
            self._report_unreadable()

    def _report_unreadable(self) -> None:
        failure = self._reader.failure()
        path = failure.path if failure else None
        if path != self._unreadable:
            self._unreadable = path
            if failure:
                logger.warning("%s: this limit is left out until it can be read again", failure)

    def _after_fork(self) -> None:
        self._lock = threading.Lock()
        self._fresh_until = 0.0


def _declared(limit: int | str | None) -> int | None:
    source = "limit"
    if limit is None:
        source, limit = "RESOURCE_MONITOR_LIMIT", os.environ.get("RESOURCE_MONITOR_LIMIT") or None
    if limit is None:
        return None
    try:
        size = parse_size(limit)
    except ConfigurationError as error:
        raise ConfigurationError(f"{source}: {error}") from None
    if size == 0:
        raise ConfigurationError(f"{source} is {limit!r}: a process cannot live in no memory; give its real limit.")
    return size


@cache
def default_monitor() -> MemoryMonitor:
    """The monitor that everything in this process shares unless given its own."""
    return MemoryMonitor()


def describe(reading: Reading) -> str:
    """One line for logs: ``"12.3 MiB of 256.0 MiB available (…/memory.max)"``."""
    if reading.limit is None:
        return "no limit"
    return f"{format_size(reading.available)} of {format_size(reading.limit)} available ({reading.where})"


_monitors: weakref.WeakSet[MemoryMonitor] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for monitor in _monitors:
        monitor._after_fork()


os.register_at_fork(after_in_child=_after_fork_in_child)
