"""What all adapters share: the options, one question a request, and the counts and log lines that follow from it."""

from __future__ import annotations

import logging
import math
import os
import time
import weakref
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress

from resource_monitor._native._turn import DeferringLock, Lane, Response, Turn, Turns
from resource_monitor.admission import Admission, Learned, Pressure, Priority, Reason, Route
from resource_monitor.errors import ProbeError
from resource_monitor.guard import passed
from resource_monitor.limits import UNBOUNDED
from resource_monitor.middleware import checks
from resource_monitor.middleware.admitted import Admitted
from resource_monitor.middleware.asking import Ask, Asking, PriorityOf, RequestCost
from resource_monitor.middleware.counted import Counted
from resource_monitor.middleware.paths import DEFAULT_EXEMPT, Exempt, ExemptPaths
from resource_monitor.middleware.readings import OnProbeError, Readings
from resource_monitor.middleware.refusing import Body, OnShed, Refusals, Respond, Shed, ShedResponse
from resource_monitor.middleware.routes import Routes, route_class
from resource_monitor.middleware.sharing import LITTLE, OtherWorkers, Sharing, reset_after_fork, share
from resource_monitor.middleware.standing import Standing
from resource_monitor.middleware.statistics import Statistics, statistics_of
from resource_monitor.middleware.stuck import OnStuck, stuck
from resource_monitor.monitor import MemoryMonitor
from resource_monitor.reservation import Ledger, Promise, ledger_of
from resource_monitor.resource import Resource
from resource_monitor.units import format_size
from resource_monitor.workers import Others

logger = logging.getLogger("resource_monitor")

_Used = tuple[Route, int, int, int, int, int, float, float, float]
"""What :meth:`Admission.settle` takes."""

_CLOCK = time.monotonic  # which C reads by itself

_ALONE = Others(promised=0, in_flight=0, workers=0)

# Others on the same limit may promise, and take, what a grant takes for being left, so that beside them it promises no
# more than LITTLE before they are told, and stands no longer than so many seconds, but for classes that nothing binds;
# and what is left may be more than C counts.
_BESIDE_OTHERS, _COUNTED_MOST = 0.005, 1 << 62

# Where a reading finds what the last one found, a grant lasts on for so many seconds in all: as long as what was done
# under it can wait to be told, and a worker without others need not tell these anything.
_LASTS_ON = 0.25

# Where refusals come in close succession they stand for so many seconds also when the reading is too old to let anybody
# in: to read for every few of them would take what could refuse more. What ends meanwhile opens the door all the same.
_IN_SUCCESSION = 0.02


class Gate:
    """Asked once a request; every admitted request must be let go of again with :meth:`Admitted.leave`.

    Options are those of the adapters (:class:`~resource_monitor.middleware.options.Options`), ``names`` what their
    giver calls them. Raises :class:`ConfigurationError` for a value that cannot be meant, :class:`GuardError` when the
    guard was asked for and cannot be had.
    """

    def __init__(
        self,
        names: checks.Names | None = None,
        *,
        min_available: int | str | None = None,
        request_cost: RequestCost = 0,
        max_in_flight: int | None = None,
        priority: PriorityOf | None = None,
        also: Mapping[Resource, int] | None = None,
        limit: int | str | None = None,
        exempt: Exempt = DEFAULT_EXEMPT,
        retry_after: int = 1,
        on_probe_error: OnProbeError | str = OnProbeError.ADMIT,
        allocation_guard: bool | None = None,
        dry_run: bool = False,
        monitor: MemoryMonitor | None = None,
        max_wait: float = 0.0,
        max_body: int | str | None = None,
        body_timeout: float = 5.0,
        on_stuck: OnStuck | None = None,
        stuck_after: float = 60.0,
        response: Respond | ShedResponse | Body | None = None,
        on_shed: OnShed | None = None,
        status: int = 503,
    ) -> None:
        names = checks.Names() if names is None else names
        self._names = names
        self.max_wait = checks.seconds(names["max_wait"], max_wait)
        self.body_timeout = checks.seconds(names["body_timeout"], body_timeout)
        self.max_body = checks.body(names["max_body"], max_body)
        self._asking = Asking(request_cost, priority, names["request_cost"])
        self.ask = self._asking.ask
        self._exempt_paths = ExemptPaths(exempt, names["exempt"])
        self.refusals = Refusals(
            response=response,
            on_shed=on_shed,
            status=status,
            retry_after=retry_after,
            names=names,
        )
        self.dry_run = checks.flag(names["dry_run"], dry_run)
        # whether refusals that stand are all alike: nobody waits, is told of them, or says what they need
        self._alike = (
            self.refusals.all_alike
            and not (self.dry_run or self.max_wait)
            and self._asking.priority_of is None
            and self._asking.cost_of is None
        )
        self._stuck = stuck(on_stuck, stuck_after, name=names["on_stuck"], after_name=names["stuck_after"])
        self._admission = Admission(max_in_flight=checks.requests(names["max_in_flight"], max_in_flight))
        self._also = [Counted(resource, floor) for resource, floor in (also or {}).items()]
        self._routes = Routes(
            self._learned,
            admission=self._admission,
            settle=self._settle,
            idle=self._idle,
            exempt=self._exempt_paths.match,
            exact=self._exempt_paths.exact if self._exempt_paths.listed else None,
            prefixes=self._exempt_paths.prefixes,
            priority_of=self._asking.priority_of,
            priorities=Priority,
            cost=self._asking.cost,
            cost_of=self._asking.cost_of,
        )
        self.turns: Turns = self._routes.turns
        self._lock = DeferringLock()
        self._in_flight = self._admitted = self._wasted = self._exempt = self._probe_errors = 0
        self._seen = -1
        self._granted_at = -math.inf
        self._standing = Standing()
        self._refused_at: float | None = None
        self._left = 0
        self._behind = False
        self._taken: _Used | None = None
        self.epoch = 0
        self._shed: Counter[Reason] = Counter()
        self._ledger: Ledger | None = None
        self._sharing: Sharing | None = None
        guard = checks.flag_or_none(names["allocation_guard"], allocation_guard)
        self.readings = Readings(
            names,
            min_available=min_available,
            limit=limit,
            monitor=monitor,
            # a dry run changes nothing, unless it is told to
            allocation_guard=False if guard is None and dry_run else guard,
            on_probe_error=on_probe_error,
            connected=self._connect,
            fitted=self._fit,
        )
        self._start()
        _gates.add(self)

    def enter(self, method: str, path: str, mount: str = "") -> Admitted | None:
        """What to :meth:`Admitted.leave` when a request like any other is over, or ``None`` when it may not start."""
        ask = Ask(method, path, mount)
        answer = self.attempt(ask)
        final = answer if isinstance(answer, Admitted) else self.refuse(ask, answer)
        return final if isinstance(final, Admitted) else None

    def is_exempt(self, ask: Ask) -> bool:
        """Whether it is let in without being asked about: paths that are, and what a browser asks before a request, of
        which a refusal would look to its user like one for being from another origin."""
        return ask.preflight or self._exempt_paths.match(ask.path, ask.mount)

    def attempt(self, ask: Ask) -> Admitted | Reason:
        """What to :meth:`Admitted.leave` when the request is over, or why it may not start now. Whoever then refuses it
        says so to :meth:`refuse`; to ask again is no refusal."""
        if self.is_exempt(ask):
            admitted = Admitted(self, None, ask, 0.0)  # before it is counted: there may be no memory for it
            with self._lock:
                self._exempt += 1
                self._in_flight += 1
            return admitted
        try:
            look = self._look()
            if look is None:
                return Reason.COUNT
            headroom, fresh_until = look
            monitor = self.readings.monitor
            assert monitor is not None  # it was read a moment ago
            if self._stands(ask, headroom, monitor):
                return Reason.MEMORY
            answer = self._begin(ask, headroom, fresh_until)
            if answer is Reason.MEMORY and (relieved := monitor.relieve()) != headroom:
                answer = self._begin(ask, relieved)
        except ProbeError as error:
            if not self._undecided(error):
                return Reason.PROBE_ERROR
            answer = self._begin(ask, UNBOUNDED)
        except MemoryError:
            return Reason.MEMORY  # not even for that
        return answer

    def _look(self) -> tuple[int, float] | None:
        """The headroom, and until when it and what is counted besides may be taken for granted; ``None`` when something
        counted is short. Raises :class:`ProbeError`."""
        headroom = self.readings.read()
        assert self.readings.monitor is not None  # it was read a moment ago
        fresh_until = self.readings.monitor.fresh_until
        for counted in self._also:
            if counted.shortage():
                return None
            fresh_until = min(fresh_until, counted.fresh_until)
        return headroom, fresh_until

    def _stands(self, ask: Ask, headroom: int, monitor: MemoryMonitor) -> bool:
        """Whether one like ``ask`` was refused for want of memory and nothing changed since. Ends that admission or the
        ledger does not know of yet may be a change, and so may relief that is due."""
        ledger = self._ledger
        if self.turns.unsettled or monitor.clock() >= monitor.relief_due:
            return False
        if ledger is None or ledger.tab.untold:
            return False
        with self._lock:
            now = time.monotonic()
            state = headroom, self._admission.openings, ledger.returns
            lane = self.turns.lane(ask.method, ask.path)
            least = self._standing.least(state, lane.route, ask.priority, ask.need, now)
            if least is not None and self._alike and self._admission.pressure is Pressure.SHEDDING:
                need, until = least
                clock = monitor.clock()
                latest = min(clock + _IN_SUCCESSION, monitor.relief_due, clock + until - now)
                until = min(monitor.fresh_until, latest)
                self.turns.stand(lane, min(need, _COUNTED_MOST), until, latest, ledger.returns)
        return least is not None

    def refuse(self, ask: Ask, reason: Reason) -> Admitted | Shed:
        """Count a refusal, and log the first of a time. In a dry run the request is admitted all the same."""
        shed = self.count_refusal(ask, reason)
        if not self.dry_run:
            return shed
        with self._lock, self.turns:
            route = self._routes.find(ask.method, ask.path)
            admitted = Admitted(self, route, ask, time.monotonic())
            self._admission.starts(route)
            self._in_flight += 1
        return admitted

    def count_refusal(self, ask: Ask, reason: Reason, *, started: bool = False) -> Shed:
        """Count a refusal, of a request or of the rest of its body, and log the first of a time of shedding."""
        with self._lock, self.turns:
            self._shed[reason] += 1
            began = is_stuck = False
            if reason is not Reason.TOO_LARGE:
                self._refused_at = now = time.monotonic()
                began = self._admission.refused(now)
                if self._stuck is not None and not self.dry_run:
                    is_stuck = self._stuck.refused(
                        reason, now, in_flight=self._admission.in_flight, admitted=self._let_in
                    )
        if is_stuck:
            assert self._stuck is not None
            self._stuck.act()
        if began:  # the log may take its time
            logger.warning(
                "%s %s; requests are answered %d until there is room again.",
                "Dry run, nothing is refused: Shedding:" if self.dry_run else "Shedding:",
                self._shortage(ask, reason),
                self.refusals.status,
            )
        return self.refusals.shed(ask, reason, started=started)

    def lost(self, admitted: Admitted | Turn | Response) -> Shed | None:
        """The request ran out of memory; told once, however often this is said. ``None`` where that is the app's own
        business all the same: in a dry run."""
        admitted.lose()
        if admitted.shed is None or admitted.shed.reason is Reason.TOO_LARGE:
            admitted.shed = self.refusals.shed(admitted.ask, Reason.MEMORY, started=True)
        return None if self.dry_run else admitted.shed

    def too_large(self, admitted: Admitted | Turn | Response) -> Shed:
        """The request's body turned out too large; told once, however often this is said."""
        if admitted.shed is None:
            admitted.shed = self.refusals.shed(admitted.ask, Reason.TOO_LARGE, started=True)
        return admitted.shed

    def room(self, admitted: Admitted, size: int, *, promised: bool) -> int:
        """How many bytes more than ``size`` may come for a request in flight, which may use what new ones may not;
        negative where ``size`` may not. Of what is ``promised`` to it already, promises to others take nothing away."""
        wanted = size + int(self._admission.least)
        ledger = None if promised else self._ledger
        own = 0 if admitted.promise is None else admitted.promise.size

        def beyond(headroom: int) -> int:
            # what is its own is not there any more where others took it
            return (headroom if ledger is None else min(headroom, ledger.left(headroom) + own)) - wanted

        try:
            room = beyond(self.readings.read())
            if room < 0:
                assert self.readings.monitor is not None  # it was read a moment ago
                room = beyond(self.readings.monitor.relieve())
        except ProbeError as error:
            return 0 if self._undecided(error) else -1
        return room

    def promise(self, admitted: Admitted, size: int, *, taken: int = 0) -> None:
        """Promise ``size`` bytes to ``admitted`` from now on, unless it is over; of what was, ``taken`` were taken."""
        if admitted._gate is None:
            return
        if admitted.promise is not None:
            admitted.promise.take(taken)
            admitted.promise.resize(size)
        elif self._ledger is not None and size:
            admitted.promise = self._ledger.make(size)

    def answered(self, route: Route | None) -> None:
        """A request began its answer; use :meth:`Admitted.answered`, which says this once."""
        if route is not None:
            self._lock.soon(self._admission.answers, route)

    def leave(self, route: Route | None, began: float, lost: bool) -> None:
        """A request that began at ``began`` seconds is over; use :meth:`Admitted.leave`, which does this once."""
        self._lock.soon(self._leave, route, began, lost)

    def _leave(self, route: Route | None, began: float, lost: bool) -> None:
        """The same, with the lock held."""
        with self.turns:
            self._in_flight -= 1
            self._wasted += lost
            if route is not None:
                now = time.monotonic()
                self._admission.ends(route, now, lost=lost, took=now - began)
                self._tell(now)

    def lagged(self, seconds: float, *, queued: int = 0) -> None:
        """The event loop came so many seconds late; ``queued`` connections wait to be accepted."""
        with self._lock, self.turns:
            decided = self._let_in + self._exempt + self._shed.total()
            self._admission.lagged(seconds, time.monotonic(), queued=queued, decided=decided)

    @property
    def in_flight(self) -> int:
        """How many requests were let in and are not over."""
        return self._in_flight + self.turns.in_flight

    @property
    def patient(self) -> bool:
        """Whether requests can wait for room."""
        return self.max_wait > 0

    @property
    def _let_in(self) -> int:
        return self._admitted + self.turns.untold

    @property
    def waiting(self) -> int:
        """How many requests wait for room."""
        return self.turns.waiting

    @waiting.setter
    def waiting(self, count: int) -> None:
        self.turns.waiting = count

    def waits(self, change: int) -> None:
        """So many more requests wait."""
        self._lock.soon(self._waits, change)

    def _waits(self, change: int) -> None:
        self.waiting += change

    def statistics(self) -> Statistics:
        """The counts of this moment."""
        self._update_pressure()
        with self._lock, self.turns:
            self._settle_of(*self.turns.lanes())
            return statistics_of(self)

    def _update_pressure(self) -> None:
        """Bring the pressure up to date, which ends a time of shedding also where no request comes any more."""
        if self._admission.pressure is Pressure.OK:
            return
        try:
            headroom = self.readings.read()
        except ProbeError:
            if not self.readings.admits_blindly:
                return
            headroom = UNBOUNDED
        with self._lock, self.turns:
            ended = self._admission.admitted(headroom, time.monotonic())
        if ended:
            _log_end(headroom)

    def _begin(self, ask: Ask, headroom: int, fresh_until: float = 0.0) -> Admitted | Reason:
        """Ask admission, and begin the request if it may. Memory that is kept for others is not left for this one.
        Those like it need not ask before ``fresh_until``, if admission grants that."""
        with self._lock, self.turns:
            now = time.monotonic()
            admission, ledger, lane = self._admission, self._ledger, self.turns.lane(ask.method, ask.path)
            returns = 0 if ledger is None else ledger.returns
            left, others = self._left_for(lane, headroom, now, promises=ask.need > 0)
            route = lane.route
            promise: Promise | None = None
            try:
                if LITTLE < ask.need <= left and others.workers:
                    # each tells what it wants before it looks at what the others want: not all may get it
                    promise = self._make(ask)
                    self._tell(now)
                    left += others.promised
                    others = self._others(now, at_once=True)
                    left -= others.promised
                reason = admission.decide(
                    route,
                    left,
                    now,
                    need=ask.need,
                    priority=ask.priority,
                    elsewhere=others.in_flight,
                    patient=self.patient,
                )
            except MemoryError:
                if promise is not None:
                    promise.end()
                raise
            if reason is not None:
                if promise is not None and ledger is not None:
                    promise.end()
                    self._tell(now)
                    returns = ledger.returns
                self._left = left
                if reason is Reason.MEMORY:
                    until = admission.stands(route, now)
                    if others.workers:
                        until = min(until, now + _BESIDE_OTHERS)
                    state = headroom, admission.openings, returns
                    self._standing.note(state, route, ask.priority, ask.need, until)
                return reason
            self._admitted += 1
            self._in_flight += 1
            try:
                promise = promise or self._make(ask)
                admitted = Admitted(self, route, ask, now, promise)
                self._tell(now)
                ended = admission.admitted(left, now)
                if fresh_until:
                    self._grant(lane, left - ask.need, fresh_until, now, others)
            except MemoryError:
                self._admitted -= 1
                self._in_flight -= 1
                if promise is not None:
                    promise.end()
                admission.answers(route)
                admission.ends(route, now, lost=True, took=0.0)
                raise
        if ended:
            _log_end(headroom)
        return admitted

    def _make(self, ask: Ask) -> Promise | None:
        """What is promised to a request."""
        return self._ledger.make(ask.need) if self._ledger is not None and ask.need else None

    def renew(self, lane: Lane) -> None:
        """Read anew, and grant ``lane`` again what its requests may do; where they may not, each is asked for."""
        grants = self.turns.grants
        try:
            look = self._look()
        except ProbeError:
            look = None
        if look is not None and self._is_as_before(look[0]) and self.turns.prolong(look[1], grants):
            return
        with self._lock:
            if self.turns.grants != grants:
                return  # another thread was faster
            with self.turns:
                if look is None:
                    self.turns.revoke(lane)
                    return
                headroom, fresh_until = look
                now = time.monotonic()
                left, others = self._left_for(lane, headroom, now)
                self._grant(lane, left, fresh_until, now, others)
                self._tell(now)

    def _is_as_before(self, headroom: int) -> bool:
        """Whether what was granted a moment ago would be granted again, and nobody waits to be told of its use."""
        now = time.monotonic()
        return (
            headroom == self._seen
            and 0 <= now - self._granted_at < _LASTS_ON
            and (self._sharing is None or self._sharing.is_alone(now))
        )

    def _left_for(self, lane: Lane, headroom: int, now: float, *, promises: bool = False) -> tuple[int, Others]:
        """What is left of ``headroom`` for requests of ``lane``, which may make ``promises``, and what other processes
        do; admission knows both afterwards. The lock is held. Raises ``MemoryError``."""
        if self._behind:
            self._settle()
            if self._behind:
                raise MemoryError
        admission, ledger = self._admission, self._ledger
        others = self._others(now)
        known = headroom != UNBOUNDED  # what could not be read is no measure for what is read later
        if known and headroom != self._seen:
            self._seen = headroom
            admission.read(
                headroom,
                passed() + others.passed,
                now,
                others=others.workers,
                generation=others.generation,
                elsewhere=others.in_flight,
            )
        left = headroom
        if known and ledger is not None and (promises or ledger.promised):
            left = ledger.left(headroom)
        self._settle_of(lane)
        return left - others.promised, others

    def _others(self, now: float, *, at_once: bool = False) -> Others:
        return self._sharing.others(now, at_once=at_once) if self._sharing else _ALONE

    def _grant(self, lane: Lane, left: int, fresh_until: float, now: float, others: Others) -> None:
        """Grant ``lane`` what its requests may do before ``fresh_until`` without being asked for; the lock is held."""
        admission = self._admission
        grant = admission.grant(lane.route, left, others=others.workers)
        if grant is None:
            self._granted_at = -math.inf
            self.turns.revoke(lane)
            return
        until, spare = fresh_until, min(grant.spare, _COUNTED_MOST)
        if others.workers:
            spare = min(spare, LITTLE)
            if not grant.unbound or (self._ledger is not None and self._ledger.promised):
                until = min(until, now + _BESIDE_OTHERS)
        self._granted_at = now
        self.turns.grant(lane, admission.era, until, spare, grant.unanswered, grant.starts, grant.unbound)

    def _settle(self) -> None:
        """Bring admission up to date with what was done under grants; the lock is held, and nobody starts under one."""
        turns = self.turns
        self._behind = True  # where there is no memory to tell it, the next one does
        with suppress(MemoryError):
            if (refused := turns.take_refused()) is not None:
                count, at = refused
                self._shed[Reason.MEMORY] += count
                self._refused_at = max(self._refused_at or 0.0, min(at, time.monotonic()))
                self._admission.refused(self._refused_at)
            while (used := self._taken or turns.take()) is not None:
                self._note(used)
            self._behind = False

    def _settle_of(self, *lanes: Lane) -> None:
        """The same of what can wait in these classes. Raises ``MemoryError`` where there is no memory to tell it."""
        if self._taken is not None:
            self._note(self._taken)
        for lane in lanes:
            if (used := self.turns.take_of(lane)) is not None:
                self._note(used)

    def _note(self, used: _Used) -> None:
        self._taken = used  # until admission knows of it, which the next one tells where there is no memory for that
        self._admission.settle(*used)
        self._taken = None
        started, lost = used[1], used[4]
        self._admitted += started
        self._in_flight += started - used[3] - lost
        self._wasted += lost

    def _idle(self) -> None:
        """The other workers know of requests in flight, and there are none."""
        self._lock.soon(self._tell_alone)

    def _tell_alone(self) -> None:
        """Tell the other workers, where nobody has closed the turns; the lock is held."""
        with self.turns:
            self._tell(time.monotonic())

    def _tell(self, now: float) -> None:
        """Tell the other workers; the lock is held."""
        sharing, admission = self._sharing, self._admission
        if sharing is None:
            return
        try:
            exactly = admission.max_in_flight is not None
            self.turns.told = sharing.tell(int(admission.unshown()), admission.in_flight, now, exactly=exactly)
            sharing.teach(self._routes.items, now)
        except MemoryError:
            return  # the next request tells it

    def _learned(self, name: str) -> Learned | None:
        return self._sharing.learned(name, time.monotonic()) if self._sharing else None

    def _shortage(self, ask: Ask, reason: Reason) -> str:
        if reason is Reason.COUNT:
            return next(filter(None, (counted.shortage() for counted in self._also)), "descriptors or tasks were short")
        if reason is Reason.MEMORY:
            with self._lock:
                route = self._routes.find(ask.method, ask.path)
                wanted = self._admission.wants(route, ask.need, ask.priority, patient=self.patient)
            return f"{format_size(max(0, self._left))} of memory available, {format_size(wanted)} wanted"
        return _SHORTAGES[reason].format(name=route_class(ask.method, ask.path))

    def _start(self) -> None:
        """A probe that fails is the requests' business, not that of whoever starts the service."""
        try:
            if self.readings.start() and self._ledger is not None:
                self._sharing = share(self._ledger)
                if self._sharing is not None:
                    self._ledger.neighbours = OtherWorkers()
        except ProbeError as error:
            self._undecided(error)

    def _connect(self, monitor: MemoryMonitor) -> None:
        self._ledger = ledger = ledger_of(monitor)
        self.turns.set_tab(ledger.tab)
        self.turns.set_clock(None if monitor.clock is _CLOCK else monitor.clock)

    def _fit(self, floor: int, lowest: int) -> None:
        with self._lock, self.turns:
            self._admission.floor, self._admission.lowest = floor, lowest
            self._admission.rebase()

    def _undecided(self, error: ProbeError) -> bool:
        """Whether what cannot be decided is let in."""
        with self._lock:
            self._probe_errors += 1
        self.readings.fails(error)
        return self.readings.admits_blindly

    def _after_fork(self) -> None:
        self._lock = DeferringLock()
        self.epoch += 1
        self._in_flight = 0
        self._taken, self._behind = None, False
        self.turns.forget()
        self._refused_at = None
        self._admission.forget()
        if self._stuck is not None:
            self._stuck.forget()


def _log_end(headroom: int) -> None:
    logger.info("Shedding ended: %s available.", format_size(headroom))


_SHORTAGES = {
    Reason.PACE: "{name} starts no faster than it completes",
    Reason.COLD_START: "what {name} needs is not known yet",
    Reason.LATENCY: "the event loop lags",
    Reason.IN_FLIGHT: "max_in_flight requests are in flight",
    Reason.PROBE_ERROR: "memory cannot be read",
    Reason.BODY: "no room for the body of {name}",
    Reason.TOO_LARGE: "the body of {name} is larger than max_body",
}

_gates: weakref.WeakSet[Gate] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    reset_after_fork()
    for gate in _gates:
        gate._after_fork()


os.register_at_fork(after_in_child=_after_fork_in_child)
