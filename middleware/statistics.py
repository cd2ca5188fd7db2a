"""What a middleware tells of itself: frozen figures of one moment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from resource_monitor.admission import Pressure, Reason


@dataclass(frozen=True, slots=True)
class RouteStatistics:
    """One class of requests: numbers of requests, and bytes.

    ``wasted`` were let in and then ran out of memory. ``rate`` (starts a second) and ``window`` (requests in flight)
    are ``None`` while they do not bind; ``floor`` is the headroom that this class leaves; ``unseen`` is what a request
    takes that the allocation guard does not see.
    """

    in_flight: int
    wasted: int
    rate: float | None
    window: float | None
    floor: int
    unseen: int


@dataclass(frozen=True, slots=True)
class Statistics:
    """What a middleware did since it was made: numbers of requests, and the present state.

    ``shed`` were refused before they began, ``shed_by_reason`` says why. ``wasted`` were admitted and then ran out of
    memory. ``waiting`` wait for room, ``promised`` bytes are kept for requests in flight and :func:`reserve`.
    ``min_available`` is the headroom to be left, bytes; ``reading_age`` are the seconds since memory was last read,
    ``None`` before that, and ``refusal_age`` those since a request was last refused for want of room. Memory was asked
    back from the allocator ``reliefs`` times, which brought ``relieved`` bytes; the allocation guard refused
    ``guard_refusals`` allocations in this process. ``workers`` other processes on the same limit share what they
    promised, have in flight and learned. In a ``dry_run`` what counts as shed was let in all the same. ``routes`` are
    the classes that are in flight, lost something or take memory unseen, by name.
    """

    in_flight: int
    admitted: int
    shed: int
    wasted: int
    exempt: int
    waiting: int
    probe_errors: int
    promised: int
    pressure: Pressure
    min_available: int
    reading_age: float | None
    refusal_age: float | None
    reliefs: int
    relieved: int
    guard_refusals: int
    workers: int
    dry_run: bool
    shed_by_reason: Mapping[Reason, int] = field(default_factory=dict)
    routes: Mapping[str, RouteStatistics] = field(default_factory=dict)
