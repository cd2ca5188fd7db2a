"""The small API of the Rust original: a resource, its limit, what of it is used and what is available."""

from __future__ import annotations

from enum import Enum

from resource_monitor.allocator import allocator
from resource_monitor.errors import NotApplicable
from resource_monitor.monitor import Reading, default_monitor


class Resource(Enum):
    """Something that this process can run out of. Every figure is in bytes and never negative.

    All three methods raise :class:`NotApplicable` where the figure has no meaning and :class:`ProbeError`, which names
    the path, where a file cannot be read.
    """

    MEMORY = "memory"
    """What this process may still use: the operating system's view, plus what the allocator would give back."""
    OS_MEMORY = "os_memory"
    """The operating system's view alone: the limit that bites first, and what is charged to it."""
    ALLOCATOR_MEMORY = "allocator_memory"
    """The allocator's view alone: what the program has in use, and what the allocator holds unused."""

    def limit(self) -> int:
        """The most that can be used: the limit that bites first; an allocator has none."""
        if self is Resource.ALLOCATOR_MEMORY:
            raise NotApplicable("An allocator has no limit of its own; ask Resource.OS_MEMORY for the process's.")
        return _limited()[1]

    def used(self) -> int:
        """What is in use now; for ``MEMORY`` whatever of the limit is not available."""
        if self is Resource.ALLOCATOR_MEMORY:
            return allocator().statistics().allocated
        reading, limit, used = _limited()
        return limit - reading.available if self is Resource.MEMORY else used

    def available(self) -> int:
        """What may still be used; page cache that the kernel can reclaim counts as available."""
        if self is Resource.ALLOCATOR_MEMORY:
            return allocator().statistics().dirty
        reading = default_monitor().read()
        return reading.available if self is Resource.MEMORY else reading.headroom


def _limited() -> tuple[Reading, int, int]:
    reading = default_monitor().read()
    if reading.limit is None or reading.used is None:
        raise NotApplicable("Nothing limits the memory of this process; declare a limit with RESOURCE_MONITOR_LIMIT.")
    return reading, reading.limit, reading.used
