"""The options that every adapter takes, under the same names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypedDict

from resource_monitor.middleware.asking import PriorityOf, RequestCost
from resource_monitor.middleware.paths import Exempt
from resource_monitor.middleware.readings import OnProbeError
from resource_monitor.middleware.refusing import Body, OnShed, Respond, ShedResponse
from resource_monitor.middleware.stuck import OnStuck
from resource_monitor.monitor import MemoryMonitor
from resource_monitor.resource import Resource


class Options(TypedDict, total=False):
    """Keyword options of the middlewares; all may be left out. The environment may have those that are, as
    ``RESOURCE_MONITOR_MAX_WAIT`` and so on."""

    min_available: int | str | None
    """Headroom below which nothing more is admitted: bytes, ``"64MiB"``, ``"5%"`` of the smallest limit, or a share
    between bounds. ``None`` (the default) is ``"clamp(16MiB, 5%, 512MiB)"``, and less for classes of requests that lose
    nothing while the allocation guard is at work."""
    request_cost: RequestCost
    """What a request is known to take, for users who know: bytes, a size, or a callable that gives bytes for a scope or
    environ. It is promised to the request until its memory shows or it ends."""
    max_in_flight: int | None
    """At most so many requests at once; ``None`` (the default) sets no such cap."""
    max_wait: float
    """Seconds that a request waits for room before it is refused; 0 (the default) refuses at once. The first requests
    of a new class are let in few at a time, and wait up to a quarter of a second for each other all the same."""
    max_body: int | str | None
    """The largest body that is taken, bytes or ``"10MiB"``; larger ones are answered 413, to exempt paths too. ``None``
    (the default) sets no such limit."""
    body_timeout: float
    """Seconds for which the rest of a body may find no room before its request ends with 503. While there is none,
    nothing is read, so that the client waits."""
    priority: PriorityOf | None
    """A callable that gives a :class:`Priority` for a scope or environ. Without one, all requests are ``DEFAULT``;
    nothing that a client sends is looked at."""
    also: Mapping[Resource, int] | None
    """What else must be left: ``{Resource.OPEN_FILES: 32}``. Counts of ``OPEN_FILES`` and ``TASKS``."""
    limit: int | str | None
    """A limit on this process's resident memory, for machines where no cgroup sets one; bytes or ``"256MiB"``."""
    exempt: Exempt
    """Paths that are never refused: exact, a prefix with a final ``*``, or a callable of the path."""
    status: int
    """What the surplus is answered: 503 (the default) or 429."""
    response: Respond | ShedResponse | Body | None
    """A refusal of one's own: a :class:`ShedResponse`, bytes, a text or a dict for those refused for want of memory, or
    a callable that gives one for each :class:`Shed`, and ``None`` where the usual one will do."""
    on_shed: OnShed | None
    """What is called with the :class:`Shed` of every request that is refused or lost, in a dry run of every one that
    would be. It is waited for, on the event loop under ASGI."""
    retry_after: int
    """Seconds; ``Retry-After`` takes a random whole number from this to twice this, but to 60 more at the most."""
    on_probe_error: OnProbeError | str
    """``"admit"`` (the default) or ``"refuse"`` requests while memory cannot be read."""
    allocation_guard: bool | None
    """True: refuse allocations that would cross the limit's floor, process-wide; False: do not; ``None`` (the default):
    where the interpreter can be guarded."""
    dry_run: bool
    """True: decide, count and log, but refuse nothing, and leave a request that ran out of memory to the app."""
    on_stuck: OnStuck | None
    """What to do once everything was refused for ``stuck_after`` seconds while nothing was in flight: ``"log"``, a
    callable without arguments, or ``"stop"``, which sends this process SIGTERM, for its supervisor to replace it. It is
    looked at when a request is refused, so that a worker that is asked nothing is not stuck."""
    stuck_after: float
    """Seconds, from 1; ``"stop"`` waits up to half as long again, so that not all workers stop at once."""
    monitor: MemoryMonitor | None
    """A monitor of one's own in place of the process's shared one."""
