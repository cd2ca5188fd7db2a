"""How much memory this process may really still use, and keeping a service alive when that runs out."""

from resource_monitor._version import __version__
from resource_monitor.allocator import Allocator, AllocatorStatistics
from resource_monitor.errors import ConfigurationError, NotApplicable, ProbeError, ResourceMonitorError
from resource_monitor.limits import Consequence, Flag, Limit
from resource_monitor.monitor import UNBOUNDED, MemoryMonitor, Reading, default_monitor
from resource_monitor.resource import Resource

__all__ = [
    "UNBOUNDED",
    "Allocator",
    "AllocatorStatistics",
    "ConfigurationError",
    "Consequence",
    "Flag",
    "Limit",
    "MemoryMonitor",
    "NotApplicable",
    "ProbeError",
    "Reading",
    "Resource",
    "ResourceMonitorError",
    "__version__",
    "default_monitor",
]
