"""How much memory this process may really still use, and keeping a service alive when that runs out."""

from resource_monitor._version import __version__
from resource_monitor.allocator import (
    Allocator,
    AllocatorStatistics,
    allocator_stats_enabled,
    print_allocator_stats,
)
from resource_monitor.errors import (
    ConfigurationError,
    GuardError,
    MemoryPressure,
    NotApplicable,
    ProbeError,
    ResourceMonitorError,
)
from resource_monitor.explanation import Explanation, explain
from resource_monitor.guard import AllocationGuard, GuardStatistics
from resource_monitor.limits import UNBOUNDED, Limit
from resource_monitor.monitor import MemoryMonitor, Reading, default_monitor
from resource_monitor.reservation import Reservation, reserve
from resource_monitor.resource import Resource
from resource_monitor.sources import Consequence, Flag

__all__ = [
    "UNBOUNDED",
    "AllocationGuard",
    "Allocator",
    "AllocatorStatistics",
    "ConfigurationError",
    "Consequence",
    "Explanation",
    "Flag",
    "GuardError",
    "GuardStatistics",
    "Limit",
    "MemoryMonitor",
    "MemoryPressure",
    "NotApplicable",
    "ProbeError",
    "Reading",
    "Reservation",
    "Resource",
    "ResourceMonitorError",
    "__version__",
    "allocator_stats_enabled",
    "default_monitor",
    "explain",
    "print_allocator_stats",
    "reserve",
]
