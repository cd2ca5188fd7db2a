"""What all adapters share: the options, one question a request, and the counts and log lines that follow from it."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from resource_monitor.admission import Admission, Pressure, Route
from resource_monitor.errors import ConfigurationError, ProbeError
from resource_monitor.guard import ensure_installed, unsupported
from resource_monitor.middleware.paths import DEFAULT_EXEMPT, Exempt, ExemptPaths
from resource_monitor.middleware.responses import Refusal
from resource_monitor.middleware.routes import Routes
from resource_monitor.monitor import MemoryMonitor, default_monitor
from resource_monitor.resource import Resource
from resource_monitor.sampling import UNBOUNDED, Sampler
from resource_monitor.units import format_size, parse_amount

logger = logging.getLogger("resource_monitor")

DEFAULT_MIN_AVAILABLE = "clamp(16MiB, 5%, 512MiB)"
"""5 % of the limit, but never less than a few ordinary requests need nor more than any burst could use: 16 MiB of
256 MiB, 512 MiB of 64 GiB."""


class OnProbeError(StrEnum):
    """What to do with requests while memory cannot be read."""

    ADMIT = "admit"
    REFUSE = "refuse"


@dataclass(frozen=True, slots=True)
class Statistics:
    """What a middleware did since it was made: numbers of requests, and the present state.

    ``shed`` were refused before they began, ``lost`` were admitted and then ran out of memory.
    """

    in_flight: int
    admitted: int
    shed: int
    lost: int
    exempt: int
    probe_errors: int
    pressure: Pressure
    min_available: int


class Admitted:
    """A request that was let in; :meth:`leave` is owed once it is over."""

    __slots__ = ("_gate", "_lost", "_route")

    def __init__(self, gate: Gate, route: Route | None) -> None:
        self._gate: Gate | None = gate
        self._route = route
        self._lost = False

    def lose(self) -> None:
        """The request ran out of memory."""
        self._lost = True

    def leave(self) -> None:
        """The request is over; however often this is said."""
        gate, self._gate = self._gate, None
        if gate is not None:
            gate.leave(self._route, lost=self._lost)


class Gate:
    """Asked once a request; every admitted request must be let go of again with :meth:`Admitted.leave`.

    Options are those of the adapters. ``min_available`` is the headroom below which nothing more is admitted: bytes, a
    size (``"64MiB"``), a share of the smallest limit (``"5%"``), or a share between bounds
    (``"clamp(16MiB, 5%, 512MiB)"``). ``also`` says how many descriptors or tasks must be left too. ``limit``
    declares a limit where no cgroup sets one, and ``monitor`` replaces the process's shared one. ``allocation_guard``
    True installs the guard, False does not, ``None`` does where that is possible. Raises :class:`ConfigurationError`
    for a value that cannot be meant, :class:`GuardError` when the guard was asked for and cannot be had.
    """

    def __init__(
        self,
        *,
        min_available: int | str = DEFAULT_MIN_AVAILABLE,
        also: Mapping[Resource, int] | None = None,
        limit: int | str | None = None,
        exempt: Exempt = DEFAULT_EXEMPT,
        retry_after: int = 1,
        on_probe_error: OnProbeError | str = OnProbeError.ADMIT,
        allocation_guard: bool | None = None,
        monitor: MemoryMonitor | None = None,
    ) -> None:
        try:
            self._amount = parse_amount(min_available)
        except ConfigurationError as error:
            raise ConfigurationError(f"min_available: {error}") from None
        if limit is not None and monitor is not None:
            raise ConfigurationError(f"limit={limit!r} and monitor are given; declare the limit on the monitor alone.")
        if on_probe_error not in list(OnProbeError):
            raise ConfigurationError(
                f"on_probe_error={on_probe_error!r} is neither 'admit' nor 'refuse'; give one of them."
            )
        self._admit_blindly = on_probe_error == OnProbeError.ADMIT
        self.exempt = ExemptPaths(exempt)
        self.refusal = Refusal(retry_after)
        self._admission = Admission(0)
        self._also = [_Count(resource, floor) for resource, floor in (also or {}).items()]
        self._routes = Routes()
        self._lock = threading.Lock()
        self._in_flight = self._admitted = self._shed = self._lost = self._exempt = self._probe_errors = 0
        self._blind = False
        self._tightest = UNBOUNDED
        self._monitor = monitor
        self._connected: MemoryMonitor | None = None
        self._limit = limit
        self._guard = allocation_guard
        self._start(min_available)

    def enter(self, method: str, path: str, mount: str = "") -> Admitted | None:
        """What to :meth:`Admitted.leave` when the request is over, or ``None`` when it may not start."""
        if self.exempt.match(path, mount):
            admitted = Admitted(self, None)  # before it is counted: there may be no memory for it
            with self._lock:
                self._exempt += 1
                self._in_flight += 1
            return admitted
        try:
            room = self._decide()
        except ProbeError as error:
            room = self._undecided(error)
        with self._lock:
            route = self._routes.find(method, path)
            admitted = Admitted(self, route)
            if room and self._admission.starts(route, time.monotonic()):
                self._admitted += 1
                self._in_flight += 1
                return admitted
            self._shed += 1
        return None

    def leave(self, route: Route | None, *, lost: bool) -> None:
        """A request is over; use :meth:`Admitted.leave`, which does this once."""
        with self._lock:
            self._in_flight -= 1
            self._lost += lost
            if route is not None:
                self._admission.ends(route, time.monotonic(), lost=lost)

    def statistics(self) -> Statistics:
        """The counts of this moment."""
        with self._lock:
            return Statistics(
                in_flight=self._in_flight,
                admitted=self._admitted,
                shed=self._shed,
                lost=self._lost,
                exempt=self._exempt,
                probe_errors=self._probe_errors,
                pressure=self._admission.pressure,
                min_available=self._admission.floor,
            )

    def _start(self, min_available: int | str) -> None:
        """Find the limit and check the options against it; a probe that fails is the requests' business, not ours."""
        try:
            monitor = self._connect()
            limits = monitor.limits()
        except ProbeError as error:
            self._undecided(error)
            return
        tightest = monitor.tightest()
        if tightest == UNBOUNDED:
            logger.warning(
                "No memory limit was found, so every request will be admitted; run in a container with a memory limit "
                "or declare one with RESOURCE_MONITOR_LIMIT."
            )
            return
        if all(limit.value is None or limit.kind == "host memory" for limit in limits):
            logger.warning(
                "No cgroup limits the memory of this process, so only the machine's %s protect it; run in a container "
                "with a memory limit or declare one with RESOURCE_MONITOR_LIMIT.",
                format_size(tightest),
            )
        self._fit(monitor)
        if self._admission.floor >= tightest:
            raise ConfigurationError(
                f"min_available={min_available!r} is not below the memory limit of {format_size(tightest)}, so every "
                "request would be refused; give less, or a share such as '5%'."
            )

    def _connect(self) -> MemoryMonitor:
        """The monitor, made when first asked for, and with it the guard. Raises :class:`ProbeError`."""
        monitor = self._monitor
        if monitor is None:
            monitor = default_monitor() if self._limit is None else MemoryMonitor(limit=self._limit)
        if self._guard is None:
            # a directory tree that stands in for another machine says nothing about this process
            self._guard = monitor.root == "/" and unsupported() is None
        if self._guard:
            ensure_installed(monitor)
        self._connected = monitor
        return monitor

    def _fit(self, monitor: MemoryMonitor) -> None:
        """Follow the limit, which may be changed while we run."""
        self._tightest = tightest = monitor.tightest()
        self._admission.floor = 0 if tightest == UNBOUNDED else self._amount.of(tightest)
        monitor.watch(self._admission.floor)

    def _decide(self) -> bool:
        monitor = self._connected or self._connect()
        headroom = monitor.headroom()
        if self._blind:
            self._blind = False
            logger.warning("Memory can be read again; requests are decided by it.")
        if monitor.tightest() != self._tightest:
            self._fit(monitor)
        admission = self._admission
        if not (admission.admits(headroom) or admission.admits(headroom := monitor.relieve())):
            self._refused(f"{format_size(headroom)} of memory available, {format_size(admission.floor)}")
            return False
        for count in self._also:
            if (left := count.headroom()) < count.floor:
                self._refused(f"{left} {count.label} left, {count.floor}")
                return False
        if admission.pressure is not Pressure.OK and admission.admitted(time.monotonic()):
            logger.info("Shedding ended: %s available.", format_size(headroom))
        return True

    def _refused(self, shortage: str) -> None:
        if self._admission.refused(time.monotonic()):
            logger.warning("Shedding: %s wanted; requests are answered 503 until there is room again.", shortage)

    def _undecided(self, error: ProbeError) -> bool:
        with self._lock:
            self._probe_errors += 1
        if not self._blind:
            self._blind = True
            logger.error(
                "Memory cannot be read (%s); requests are %s until it can.",
                error,
                "admitted unchecked" if self._admit_blindly else "refused",
            )
        return self._admit_blindly


class _Count:
    """A counted resource of which ``floor`` must be left."""

    def __init__(self, resource: Resource, floor: int) -> None:
        counted = (Resource.OPEN_FILES, Resource.TASKS)
        if resource not in counted:
            raise ConfigurationError(
                f"also has {resource!r}, which is not counted; give Resource.OPEN_FILES or Resource.TASKS "
                "(min_available is for memory)."
            )
        if isinstance(floor, bool) or not isinstance(floor, int) or floor < 0:
            raise ConfigurationError(f"also has {floor!r} for {resource}; give how many must be left, such as 32.")
        self.floor = floor
        self.label = resource.name.replace("_", " ").lower()
        self._resource = resource
        self._sampler: Sampler | None = None

    def headroom(self) -> int:
        """How many are left. Raises :class:`ProbeError`."""
        if self._sampler is None:
            self._sampler = self._resource.count()
        assert self._sampler is not None  # counted, as __init__ has seen
        return self._sampler.headroom()
