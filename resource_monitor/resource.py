"""The small API of the Rust original: a resource, its limit, what of it is used and what is available."""

from __future__ import annotations

from enum import Enum

from resource_monitor import counts
from resource_monitor.allocator import allocator
from resource_monitor.errors import NotApplicable
from resource_monitor.limits import UNBOUNDED, Limit
from resource_monitor.monitor import Reading, default_monitor
from resource_monitor.sampling import Sampler


class Resource(Enum):
    """Something that this process can run out of. Figures are bytes, or numbers where it says so; never negative.

    All three methods raise :class:`NotApplicable` where the figure has no meaning and :class:`ProbeError`, which names
    the path, where a file cannot be read.
    """

    MEMORY = "memory"
    """What this process may still use: the operating system's view, plus what the allocator would give back."""
    OS_MEMORY = "os_memory"
    """The operating system's view alone: the limit that bites first, and what is charged to it."""
    ALLOCATOR_MEMORY = "allocator_memory"
    """The allocator's view alone: what the program has in use, and what the allocator holds unused."""
    OPEN_FILES = "open_files"
    """File descriptors, a number: RLIMIT_NOFILE, and the whole system's file-max."""
    TASKS = "tasks"
    """Processes and threads, a number: pids.max at every level, RLIMIT_NPROC, and the whole system's threads-max."""

    def limit(self) -> int:
        """The most that can be used: the limit that bites first; an allocator has none."""
        if self is Resource.ALLOCATOR_MEMORY:
            raise NotApplicable("An allocator has no limit of its own; ask Resource.OS_MEMORY for the process's.")
        if (sampler := self.count()) is not None:
            return self._first(sampler).value or 0
        return _limited()[1]

    def used(self) -> int:
        """What is in use now; for ``MEMORY`` whatever of the limit is not available."""
        if self is Resource.ALLOCATOR_MEMORY:
            return allocator().statistics().allocated
        if (sampler := self.count()) is not None:
            return self._first(sampler).used or 0
        reading, limit, used = _limited()
        return limit - reading.available if self is Resource.MEMORY else used

    def available(self) -> int:
        """What may still be used; page cache that the kernel can reclaim counts as available."""
        if self is Resource.ALLOCATOR_MEMORY:
            return allocator().statistics().dirty
        if (sampler := self.count()) is not None:
            first = sampler.first()
            return UNBOUNDED if first is None else first.headroom or 0
        reading = default_monitor().read()
        return reading.available if self is Resource.MEMORY else reading.headroom

    def count(self) -> Sampler | None:
        """The sampler of a counted resource, ``None`` for those in bytes. Raises :class:`ProbeError`."""
        if self is Resource.OPEN_FILES:
            return counts.open_files()
        return counts.tasks() if self is Resource.TASKS else None

    def _first(self, sampler: Sampler) -> Limit:
        first = sampler.first()
        if first is None:
            raise NotApplicable(f"Nothing limits {self.name} for this process.")
        return first


def _limited() -> tuple[Reading, int, int]:
    reading = default_monitor().read()
    if reading.limit is None or reading.used is None:
        raise NotApplicable("Nothing limits the memory of this process; declare a limit with RESOURCE_MONITOR_LIMIT.")
    return reading, reading.limit, reading.used
