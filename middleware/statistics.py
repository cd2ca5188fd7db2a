"""What a middleware tells of itself: frozen figures of one moment."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from resource_monitor.admission import Pressure, Reason
from resource_monitor.guard import refusals

if TYPE_CHECKING:
    from resource_monitor.middleware.gate import Gate


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


def statistics_of(gate: Gate) -> Statistics:
    """The counts of this moment; whoever asks holds the lock of ``gate``, and has settled what grants were used for."""
    monitor, ledger, admission, now = gate.readings.monitor, gate._ledger, gate._admission, time.monotonic()
    return Statistics(
        in_flight=gate._in_flight,
        admitted=gate._admitted,
        shed=gate._shed.total(),
        wasted=gate._wasted,
        exempt=gate._exempt,
        waiting=gate.waiting,
        probe_errors=gate._probe_errors,
        promised=ledger.promised if ledger else 0,
        pressure=admission.pressure,
        min_available=admission.floor,
        reading_age=monitor.age() if monitor else None,
        refusal_age=None if gate._refused_at is None else now - gate._refused_at,
        reliefs=monitor.reliefs if monitor else 0,
        relieved=monitor.relieved if monitor else 0,
        guard_refusals=refusals(),
        workers=gate._sharing.others(now).workers if gate._sharing else 0,
        dry_run=gate.dry_run,
        shed_by_reason=dict(gate._shed),
        routes={
            name: RouteStatistics(
                in_flight=route.in_flight,
                wasted=route.lost,
                rate=route.rate,
                window=route.window,
                floor=int(admission.floor_of(route, patient=gate.patient)),
                unseen=int(route.unseen),
            )
            for name, route in gate._routes.items()
            if route.in_flight or route.lost or route.unseen
        },
    )
