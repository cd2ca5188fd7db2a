"""The memory that a gate goes by: which monitor is asked and what guards it, how much has to be left, and what is done
while it cannot be read. Who may start with what is left is the gate's business."""

from __future__ import annotations

import logging
from collections.abc import Callable
from enum import StrEnum

from resource_monitor.errors import ConfigurationError, ProbeError
from resource_monitor.guard import ensure_installed, guarded_floor, unsupported
from resource_monitor.limits import UNBOUNDED
from resource_monitor.middleware import checks
from resource_monitor.monitor import MemoryMonitor, default_monitor
from resource_monitor.units import format_size

logger = logging.getLogger("resource_monitor")

DEFAULT_MIN_AVAILABLE = "clamp(16MiB, 5%, 512MiB)"
"""5 % of the limit, but never less than a few ordinary requests need nor more than any burst could use: 16 MiB of
256 MiB, 512 MiB of 64 GiB."""

# Classes that lose nothing may go down to this part of the guard's floor. That is less than the half of it below which
# small steps are refused, for what is left is not all that there is: pymalloc has room in the arenas that it holds.
_LOWEST_SHARE = 2 / 5


class OnProbeError(StrEnum):
    """What to do with requests while memory cannot be read."""

    ADMIT = "admit"
    REFUSE = "refuse"


class Readings:
    """Reads a monitor, by default the process's, which is made when it is first asked; with it comes the guard.

    ``connected`` is called with the monitor when there is one, and ``fitted`` with the headroom to be left and the
    lowest that may be, bytes, once they are known and whenever the limit was changed. Options are the gate's. Raises
    :class:`ConfigurationError` for a value that cannot be meant.
    """

    def __init__(
        self,
        names: checks.Names,
        *,
        min_available: int | str | None,
        limit: int | str | None,
        monitor: MemoryMonitor | None,
        allocation_guard: bool | None,
        on_probe_error: OnProbeError | str,
        connected: Callable[[MemoryMonitor], None],
        fitted: Callable[[int, int], None],
    ) -> None:
        self._names = names
        self._given = DEFAULT_MIN_AVAILABLE if min_available is None else min_available
        self._amount = checks.amount(names["min_available"], self._given)
        if limit is not None and monitor is not None:
            raise ConfigurationError(
                f"{names['limit']}={limit!r} and monitor are given; declare the limit on the monitor alone."
            )
        if on_probe_error not in list(OnProbeError):
            raise ConfigurationError(
                f"{names['on_probe_error']}={on_probe_error!r} is neither 'admit' nor 'refuse'; give one of them."
            )
        self.admits_blindly = on_probe_error == OnProbeError.ADMIT
        self.monitor: MemoryMonitor | None = None
        self._adaptive = min_available is None
        self._wanted, self._limit = monitor, limit
        self._guard = allocation_guard
        self._connected, self._fitted = connected, fitted
        self._tightest = UNBOUNDED
        self._blind = False

    def start(self) -> bool:
        """Find the limit, say what protects nobody, and check the options against it. Whether workers share the limit.

        Raises :class:`ConfigurationError` where it leaves nothing, :class:`GuardError` when the guard was asked for and
        cannot be had, and :class:`ProbeError`.
        """
        monitor = self._connect()
        limits = monitor.limits()
        tightest = monitor.tightest()
        if tightest == UNBOUNDED:
            logger.warning(
                "No memory limit was found, so every request will be admitted; run in a container with a memory limit "
                "or declare one with RESOURCE_MONITOR_LIMIT."
            )
            return False
        if all(limit.value is None or limit.kind == "host memory" for limit in limits):
            logger.warning(
                "No cgroup limits the memory of this process, so only the machine's %s protect it; run in a container "
                "with a memory limit or declare one with RESOURCE_MONITOR_LIMIT.",
                format_size(tightest),
            )
        if self._fit(monitor) >= tightest:
            raise ConfigurationError(
                f"{self._names['min_available']}={self._given!r} is not below the memory limit of "
                f"{format_size(tightest)}, so every request would be refused; give less, or a share such as '5%'."
            )
        # a limit declared for each process is no limit on all of them
        return self._wanted is None and any(
            limit.value is not None and limit.kind.startswith("cgroup") for limit in limits
        )

    def read(self) -> int:
        """The headroom. Raises :class:`ProbeError`."""
        monitor = self.monitor or self._connect()
        headroom = monitor.headroom()
        if self._blind:
            self._blind = False
            logger.warning("Memory can be read again; requests are decided by it.")
        if monitor.tightest() != self._tightest:
            self._fit(monitor)
        return headroom

    def fails(self, error: ProbeError) -> None:
        """Say so, once until it can be read again."""
        if not self._blind:
            self._blind = True
            logger.error(
                "Memory cannot be read (%s); requests are %s until it can.",
                error,
                "admitted unchecked" if self.admits_blindly else "refused",
            )

    def _connect(self) -> MemoryMonitor:
        monitor = self._wanted
        if monitor is None:
            monitor = default_monitor() if self._limit is None else MemoryMonitor(limit=self._limit)
        if self._guard is None:
            # a directory tree that stands in for another machine says nothing about this process
            self._guard = monitor.root == "/" and unsupported() is None
        if self._guard:
            ensure_installed(monitor)
        self._connected(monitor)
        self.monitor = monitor
        return monitor

    def _fit(self, monitor: MemoryMonitor) -> int:
        """Follow the limit, which may be changed while we run. The headroom to be left."""
        self._tightest = tightest = monitor.tightest()
        floor = 0 if tightest == UNBOUNDED else self._amount.of(tightest)
        lowest = floor
        if self._adaptive and self._guard:
            lowest = min(floor, int(_LOWEST_SHARE * guarded_floor()))
        self._fitted(floor, lowest)
        monitor.watch(floor)
        return floor
