"""How much memory is left: one cached, always fresh enough reading, and relief before anyone is refused.

``sampling`` decides when to read, ``limits`` knows what is read, ``allocator`` what is held.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass

from resource_monitor.allocator import Allocator, allocator
from resource_monitor.errors import ConfigurationError
from resource_monitor.limits import DECISIVE, RECLAIMABLE, UNBOUNDED, LimitReader, memory_limits
from resource_monitor.sampling import FULL_INTERVAL, Sampler
from resource_monitor.units import parse_size

# A core writes fresh memory at no more than this many bytes a second (measured: 2.4 GB/s).
_BYTES_PER_SECOND = 2.4e9
# Smaller movements of usage than this never make the kept reclaimable part worth another reading.
_STEP = 1 << 20
# Relief that gave back less than this did not help, and the next one waits twice as long; seconds.
_HELPFUL = 1 << 20
_RELIEF_INTERVAL, _RELIEF_INTERVAL_MAX = 0.005, 0.25


@dataclass(frozen=True, slots=True)
class Reading:
    """What is left at one moment; bytes.

    ``available`` is the least headroom over every limit, and with it what the allocator gives back if asked
    (``recoverable``), as far as that helps: given back or not, it stays part of the address space. ``limit``, ``used``
    and ``where`` belong to the limit that bites first and are ``None`` when nothing limits. ``at`` is the monitor's
    clock in seconds.
    """

    available: int
    headroom: int
    recoverable: int
    limit: int | None
    used: int | None
    where: str | None
    at: float


class MemoryMonitor(Sampler):
    """Reads this process's memory limits as often as needed and no more often; thread-safe, and safe across fork.

    ``limit`` declares a limit on this process's resident memory, as bytes or a text such as ``"256MiB"``, for machines
    where no cgroup sets one; without it the environment's ``RESOURCE_MONITOR_LIMIT`` does. ``root`` is a directory that
    stands in for ``/``. The allocator was asked ``reliefs`` times for what it did not need, which brought ``relieved``
    bytes. Raises :class:`ConfigurationError` for a limit that is no size, :class:`ProbeError` when the
    limits cannot be found out.
    """

    def __init__(
        self, *, limit: int | str | None = None, root: str = "/", clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.allocator: Allocator = allocator()
        self._declared = _declared(limit)
        self.root = root
        self._attention = 0
        self._known_free = 0
        self._relief_due = 0.0
        self._relief_interval = _RELIEF_INTERVAL
        self.reliefs = self.relieved = 0
        super().__init__(
            clock=clock,
            speed=_BYTES_PER_SECOND * len(os.sched_getaffinity(0)),
            margin=int(_BYTES_PER_SECOND * (os.cpu_count() or 1) * FULL_INTERVAL),
        )

    def read(self) -> Reading:
        """The present :class:`Reading`, limits and allocator read anew. Raises :class:`ProbeError`."""
        with self._lock:
            now = self._clock()
            self._update(now, DECISIVE)
            recoverable = self.allocator.dirty() or 0
            first = self._reader.first()
            if first is None:
                return Reading(UNBOUNDED, UNBOUNDED, recoverable, None, None, None, now)
            available = min(self._headroom + recoverable, self._reader.fixed, first.value or 0)
            return Reading(available, self._headroom, recoverable, first.value, first.used, first.where, now)

    def watch(self, floor: int) -> None:
        """Read what is reclaimable too at every refresh as soon as less than twice ``floor`` bytes are free without."""
        self._attention = max(self._attention, 2 * floor)

    def relieve(self) -> int:
        """Ask the allocator for what it does not need, unless that was useless a moment ago; the headroom then.

        To be called before anything is refused. Raises :class:`ProbeError`.
        """
        with self._lock:
            now = self._clock()
            if now < self._relief_due:
                if now >= self._fresh_until:
                    self._update(now, RECLAIMABLE)
                return self._headroom
            self._update(now, RECLAIMABLE)
            before = self._headroom
            dirty = self.allocator.dirty()
            if (dirty is None or dirty >= _HELPFUL) and self.allocator.relieve():
                self._update(self._clock(), RECLAIMABLE)
                self.reliefs += 1
                self.relieved += max(0, self._headroom - before)
            helped = self._headroom >= before + _HELPFUL
            # what the allocator itself calls dirty is cheap to ask for; blind trimming has to earn its next turn
            patient = dirty is None and not helped
            self._relief_interval = (
                min(2 * self._relief_interval, _RELIEF_INTERVAL_MAX) if patient else _RELIEF_INTERVAL
            )
            self._relief_due = self._clock() + self._relief_interval
            return self._headroom

    @property
    def relief_due(self) -> float:
        """When the allocator will be asked again; seconds of :attr:`clock`."""
        return self._relief_due

    def open_limits(self) -> LimitReader:
        """A new reader of every memory limit. Raises :class:`ProbeError`."""
        return memory_limits(declared=self._declared, root=self.root)

    def _steady(self) -> bool:
        # Where free memory is short the kernel may be reclaiming, and usage stands still while what is reclaimable
        # melts away: only a reading of that tells.
        reader = self._reader
        free = reader.free
        moved = abs(free - self._known_free)
        return free >= self._attention and (moved <= _STEP or moved <= (reader.headroom - free) // 4)

    def _note_reclaimable(self) -> None:
        self._known_free = self._reader.free


def _declared(limit: int | str | None) -> int | None:
    source = "limit"
    if limit is None:
        source, limit = "RESOURCE_MONITOR_LIMIT", os.environ.get("RESOURCE_MONITOR_LIMIT", "")
        if limit.strip().lower() in ("", "none"):
            return None
    try:
        size = parse_size(limit)
    except ConfigurationError as error:
        raise ConfigurationError(f"{source}: {error}") from None
    if size == 0:
        raise ConfigurationError(f"{source} is {limit!r}: a process cannot live in no memory; give its real limit.")
    return size


_default: dict[str, MemoryMonitor] = {}


def default_monitor() -> MemoryMonitor:
    """The monitor that everything in this process shares unless given its own."""
    monitor = _default.get("monitor")
    # of two that are made at once, by threads or by a finaliser in the middle of this, one is everybody's
    return _default.setdefault("monitor", MemoryMonitor()) if monitor is None else monitor
