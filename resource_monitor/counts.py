"""How many descriptors may still be opened, and how many tasks started: samplers of what is counted, not in bytes."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from functools import cache

from resource_monitor.limits import LimitReader, open_file_limits, task_limits
from resource_monitor.sampling import FULL_INTERVAL, Sampler

# What one core opens or starts in a second at the very most: an open of /dev/null and a close take 1 µs together, an
# accepted connection and a cloned thread longer.
_PER_SECOND = 1e6


class CountMonitor(Sampler):
    """Headroom of a counted resource; ``open_reader`` finds its limits. Raises :class:`ProbeError`."""

    def __init__(self, open_reader: Callable[[], LimitReader], *, clock: Callable[[], float] = time.monotonic) -> None:
        self._open_reader = open_reader
        cores = os.cpu_count() or 1
        super().__init__(clock=clock, speed=_PER_SECOND * cores, margin=int(_PER_SECOND * cores * FULL_INTERVAL))

    def open_limits(self) -> LimitReader:
        """A new reader. Raises :class:`ProbeError`."""
        return self._open_reader()


@cache
def open_files() -> CountMonitor:
    """The descriptors that this process may still open: RLIMIT_NOFILE, and the whole system's file-max."""
    return CountMonitor(open_file_limits)


@cache
def tasks() -> CountMonitor:
    """The tasks (processes and threads) that may still be started: pids.max, RLIMIT_NPROC and threads-max."""
    return CountMonitor(task_limits)
