"""Decides whether a request may start. Sans-IO: headroom, time and outcomes are passed in, decisions come out; there is
no clock here, no file and no lock.

Everything that changes the state of admission lives in this file, but for what ``latency`` owns. A request starts when
all of these agree:

* The *cap*: fewer than ``max_in_flight`` are in flight.
* *Latency*: while the event loop lags, or connections wait to be accepted, for longer than a moment, work in flight is
  bounded, for an answer that comes too late is no good answer.
* The *gate*: what is left, less what is promised and what requests in flight are known to take yet, is at least the
  floor. Where the allocation guard protects the service, a class that loses nothing may go lower, as far as ``lowest``,
  and so may one of which fewer are in flight than lately were without a loss, for an allocator keeps what they left.
  One that is paced and most of what is in flight may go there at once: its pace keeps memory full, and answers for what
  is lost; a floor would make gusts of an even flow. So may one that lost some before the first were measured: the guard
  sees what it takes, and few start at once. Those that can wait rather do that than be lost, and leave more.
* *Cold start*: the first requests of a class say what it needs, so that few of them start in the same moment.
* The *pace*: may one more request of this route class start now? A class begins at the rate that fits by what its first
  requests held, and for how long; where that does not bind, it is not paced until the allocation guard has cost it
  requests. A refused allocation is to memory what a lost packet is to a network: a cheap and exact sign of
  congestion. From then on the class starts at most ``GAIN`` times the requests a second that it completes, evenly
  spread: requests that are let in together allocate together and leave together, and memory stands empty half of the
  time. With this gain about ``1 − 1/GAIN`` of them are lost, which is what probing for more room costs. Where only a
  few are in flight, rates are too coarse, and a small window takes the pace's place: up by steps, down by more, for the
  same share of losses.

Between two readings the answer to a class that nothing binds is always the same, so it can be *granted*: until the
reading is too old, its pace has no more starts, or there is no more room for what it takes unseen, its requests start
without being asked for, and what started and ended so is told in bulk. What is granted to a class that is neither paced
nor takes memory unseen holds for all such classes that were asked about before. Whatever may change the answer before
that changes the ``era``, and with it revokes every grant. Likewise a refusal for want of memory *stands* until memory
is read or asked for anew, or a request or a promise ends: those like it are refused without being asked for.

Memory that the guard cannot see gives no such sign before the kernel kills. It is told by what readings show: usage
that grew by more than the guard let pass grew unseen, and is put down to the classes in flight, but for a first part of
it, which is what the first requests load. A class with unseen memory is held to what its requests were seen to take,
and goes not as low.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from resource_monitor.latency import Latency

GAIN = 1.12
_TOLERATED = 1 - 1 / GAIN
# What is delivered is counted until as many ended as were in flight when the count began, and over this many good
# results, but not less nor more than so many seconds, nor less than a request lasts: those that began together end
# together, and would say that many more can be done. From idling on, the first good result begins the count: what
# comes before says how long a request takes, not how many can be done.
_RESULTS, _SHORTEST, _LONGEST, _PATIENCE = 8, 0.25, 1.0, 5.0
# How much a new count of what is delivered moves the average; one more than this share lost is a time of losses.
_WEIGHT, _LOSSY = 0.3, 0.02
# A paced class that lost nothing for so many counts is let go when the pace did not bind, or may speed up quickly; and
# as far as there was room for at the least, up to the first number, until it first loses something, for what was
# delivered in the turmoil before says little. Later it may go half of that way. One that lost nothing for as many
# counts as the second number goes on slowly all the same: an allocator keeps what was held, and memory looks full.
_CALM, _CALM_ENOUGH = 8, 2
_PROBING, _FASTER, _SLIGHTLY_FASTER, _SLOWER = 1.5, 1.1, 1.04, 0.8
# Where memory refuses, a pace beyond so many times what is delivered only has it swing between full and empty.
_BEYOND = 1.4
# A class is windowed while it has no more than this many in flight, and paced from there on; never less than 1/s.
_FEW = 4
_SLOWEST = 1.0

# The floor of a class goes down by one of these parts of the way at each count, the smaller one after the first loss,
# and up by one for each loss: at a few losses in a hundred it stays where it is.
_DOWN_UNHURT, _DOWN, _UP = 1 / 8, 1 / 16, 1 / 16
# That of a class with memory that the guard does not see goes down to this part, and back at a near miss.
_UNSEEN_LEAST = 5 / 8

# Until it is known what a new class takes, a request is taken to need so many bytes, which says how many may be
# unanswered at first, though never less than the second number. Four times as many may be when as many were answered
# without memory growing unseen; twice as many when so many seconds passed without, or while what grew was seen for a
# shorter time, as long as half of the memory is left; no more when one was lost to the guard, until what the class
# delivers was counted. Beyond the last number the class is not new any more, nor is it when its first requests were
# measured, or as many were answered while memory grew unseen.
_COLD_COST, _COLD_LEAST, _COLD_STEP, _HALF, _WARM = 12 << 20, 4, 0.5, 1 / 2, 4096
_ANY = 1 << 62

# What a class holds is measured while no more classes than this are in flight. One prevails that has at least this
# share of what is in flight: what memory shows is told of that one alone.
_TOGETHER, _MOST = 4, 3 / 4
# It is measured by so many good results of all processes, of which each has its part, but the second number of its own.
_MEASURED, _MEASURED_HERE = 8, 2
# One that takes no more than this share of it unseen is paced by it all the same, and so is one of which those in
# flight, more than a few, took no more: what the first requests load stays.
_HARDLY = 1 / 4
# A pace begins with so many in flight of those that fit: what came while it was not known yet has waited.
_AT_ONCE = 3 / 4

# Less than this grown unseen, in bytes, is noise: usage is charged in batches; and less than that a request is nothing.
# What the guard let pass may show later, half of it within so many seconds, and other processes tell within so many
# what theirs let pass.
_NOISE, _LEAST, _SHOWS_WITHIN, _TOLD_WITHIN = 1 << 20, 1 << 17, 0.25, 0.1
# What first grows unseen while requests are in flight, this part of the floor, is what they load and what stays; the
# floor has room for it.
_LOADED = 1 / 2
# What headroom fell by counts for less by this factor at each fall.
_FALLS_LAST = 0.99
# What a request takes at its start is taken within so many seconds: a few turns of an event loop.
_TAKES_WITHIN = 0.01
# What a class was seen to take unseen at the most fades by this much a count, so that it is learned anew, and by the
# second number where what is in flight took less than so much of it all the time: what the first of a class load stays,
# and seemed to be theirs. A near miss, when a reading finds less than half of the floor, says that it is more.
_FADES, _FADES_UNSHOWN, _SHOWN_LEAST, _NEAR_MISS = 0.995, 1 / 2, 1 / 8, 1.3

# A service is shedding until nothing was refused for this many seconds, so that the state does not flap with every
# megabyte that comes and goes. Memory is scarce below this many floors, and no longer so above the second number.
_DWELL = 1.0
_SCARCE, _AMPLE = 2.0, 2.5


class Pressure(StrEnum):
    """How the service is doing: requests are refused, or soon may be."""

    OK = "ok"
    ELEVATED = "elevated"
    SHEDDING = "shedding"


class Priority(StrEnum):
    """How much a request matters: a critical one may use the last of the memory and is neither paced nor held back for
    latency, a sheddable one leaves twice what others leave."""

    CRITICAL = "critical"
    DEFAULT = "default"
    SHEDDABLE = "sheddable"


class Reason(StrEnum):
    """Why a request was refused."""

    MEMORY = "memory"
    """Too little is left."""
    COUNT = "count"
    """Too few descriptors or tasks are left."""
    PACE = "pace"
    """Its class starts no faster than it completes."""
    COLD_START = "cold_start"
    """It is not known yet what its class needs."""
    LATENCY = "latency"
    """The event loop lags."""
    IN_FLIGHT = "in_flight"
    """``max_in_flight`` are in flight."""
    PROBE_ERROR = "probe_error"
    """Memory cannot be read."""
    BODY = "body"
    """No room came for the rest of its body."""
    TOO_LARGE = "too_large"
    """Its body is larger than ``max_body``."""


@dataclass(frozen=True, slots=True)
class Learned:
    """What is worth telling other processes of a class: its floor and what a request takes unseen, in bytes, starts a
    second, and requests in flight; ``None`` where it is not bound."""

    floor: float | None
    unseen: float
    rate: float | None
    window: float | None


class Grant(NamedTuple):
    """What may be done without being asked for: so many ``starts``, as long as no more than ``spare`` bytes are
    promised and no more than ``unanswered`` more requests are without an answer.

    Where ``unbound`` is not 0, the same is granted to every class that had a grant with this number; of those each goes
    on with its own ``unanswered``."""

    spare: int
    unanswered: int
    starts: int
    unbound: int = 0


class Route:
    """What admission knows of one class of requests; only :class:`Admission` changes it.

    ``rate`` (starts a second), ``window`` (requests in flight) and ``floor`` (bytes) are ``None`` while they do not
    bind. ``unseen`` is what a request takes that the guard does not see, bytes. ``lost`` are all requests lost so far.
    """

    __slots__ = (
        "_answered",
        "_area",
        "_begun",
        "_calm",
        "_carried",
        "_cold",
        "_cold_since",
        "_delivered",
        "_ended",
        "_filled",
        "_good",
        "_growths",
        "_held_back",
        "_holds",
        "_lasts",
        "_lost",
        "_measured",
        "_missed",
        "_most",
        "_probing",
        "_refused_since",
        "_round",
        "_short",
        "_shown",
        "_since",
        "_spared",
        "_spared_least",
        "_taken",
        "_tokens",
        "_unanswered",
        "_work",
        "floor",
        "in_flight",
        "lost",
        "rate",
        "unseen",
        "window",
    )

    def __init__(self, learned: Learned | None = None) -> None:
        self.in_flight = 0
        self.lost = 0
        self.rate: float | None = None
        self.window: float | None = None
        self.floor: float | None = None
        self.unseen = 0.0
        self._since = 0.0
        self._refused_since: float | None = None
        self._begun = False
        self._good = self._lost = self._most = 0
        # how often the pace refused since the count began, what was left then, bytes, in all and at the least; and
        # whether memory refused
        self._held_back = self._spared = 0
        self._spared_least: float = math.inf
        self._short = False
        self._round = self._probing = 0
        self._delivered: float | None = None
        self._calm = 0
        # so many were in flight without one of them being lost
        self._carried = 0
        self._tokens = self._filled = 0.0
        self._taken, self._growths, self._missed = 0.0, 0, False
        # how much of it the requests in flight took at the most, for as long as one lasts, bytes each
        self._shown: float | None = None
        self._cold = self._answered = self._unanswered = 0
        self._cold_since = 0.0
        # what a request holds, bytes, and where that comes from: the integrals over time of what is held and of what is
        # in flight; the requests that ended well, and how long one of the last of them took, seconds
        self._measured = learned is not None
        self._holds = 0.0
        self._area = self._work = self._lasts = 0.0
        self._ended = 0
        if learned is not None:
            self.floor, self.unseen = learned.floor, learned.unseen
            self.rate, self.window = learned.rate, learned.window
            self._cold = _WARM

    @property
    def learned(self) -> Learned | None:
        """What others may begin with, ``None`` while it is little."""
        if self._cold < _WARM and not (self.lost or self.unseen):
            return None
        return Learned(self.floor, self.unseen, self.rate, self.window)


class Admission:
    """All questions, and the state that they are answered from. Not thread-safe: whoever asks holds a lock.

    ``floor`` is the headroom to be left, bytes, and ``lowest`` what a class that loses nothing may leave.
    """

    def __init__(self, floor: int = 0, *, lowest: int | None = None, max_in_flight: int | None = None) -> None:
        self.floor = floor
        self.lowest = floor if lowest is None else lowest
        self.max_in_flight = max_in_flight
        self.in_flight = 0
        self.pressure = Pressure.OK
        self.latency = Latency()
        self._last_refusal = self._scarce_since = -math.inf
        self._busy: set[Route] = set()
        self._reading: tuple[int, int, float] | None = None
        self._told: tuple[int, int, float] | None = None
        self._others = self._generation = 0
        self._to_show = self._loaded = 0.0
        # what headroom fell by lately, in all and unseen, bytes
        self._fell = self._fell_unseen = 0.0
        # grants of another era than this are void; what those of this one may take unseen, bytes
        self.era = 1
        self._granted = 0.0
        # what those that started a moment ago will hold, bytes, until a reading may show it
        self._starting, self._started_at = 0.0, -math.inf
        # how often a class came to be bound, from 1 on: of which nothing did is to be found out anew then
        self._unbound = 1
        # refusals for want of memory are void when this has changed
        self.openings = 0
        # the headroom while nothing was in flight, against which is measured what is held
        self._idle: int | None = None
        self._left = 0
        self._measured_at = 0.0

    # --- may it start? ---

    def decide(
        self,
        route: Route,
        left: int,
        now: float,
        *,
        need: int = 0,
        priority: Priority = Priority.DEFAULT,
        elsewhere: int = 0,
        patient: bool = False,
    ) -> Reason | None:
        """Why a request of ``route`` may not start at ``now`` seconds, or ``None``, which counts it in flight until
        :meth:`ends`. ``left`` bytes are not promised, ``need`` it will promise, ``elsewhere`` requests are in flight in
        other processes. One that is ``patient`` rather waits than starts where what its class holds does not fit."""
        if self.max_in_flight is not None and self.in_flight + elsewhere >= self.max_in_flight:
            return Reason.IN_FLIGHT
        urgent = priority is Priority.CRITICAL
        if self.in_flight == 0:
            self.latency.rests(now)
        if route.in_flight and not urgent and self.latency.binds(self.in_flight):
            return Reason.LATENCY
        beyond = int(route._holds + self._yet_to_show(now)) if patient and self.in_flight and not urgent else 0
        while left < self.wants(route, need, priority, patient=patient) + beyond:
            if not _doubts(route, now):
                route._short = True
                return Reason.MEMORY
        if not _warm_enough(route, left // (1 + self._others), now, room_for_twice=self._uses_less_than(_HALF)):
            return Reason.COLD_START
        if route.in_flight == 0:
            if route._good + route._lost == 0:
                route._since, route._begun = now, False
        elif not urgent and not _in_time(route, now):
            route._held_back += 1
            route._spared += left
            route._spared_least = min(left, route._spared_least)
            return Reason.PACE
        route._carried = max(route._carried, route.in_flight)
        self.starts(route)
        if patient:
            self._starting, self._started_at = self._yet_to_show(now) + route._holds, now
        return None

    def _yet_to_show(self, now: float) -> float:
        return self._starting if now - self._started_at < _TAKES_WITHIN else 0.0

    def answers(self, route: Route) -> None:
        """Note that a request of ``route`` began its answer, or is over: what it takes is mostly taken by then."""
        route._unanswered -= 1
        route._answered += 1

    def ends(self, route: Route, now: float, *, lost: bool, took: float) -> None:
        """Note that a request of ``route`` is over after ``took`` seconds; ``lost`` to memory, or done."""
        assert route.in_flight > 0
        self._leaves(route, 1)
        if lost:
            self._loses(route)
            # what one that is done holds is asked for
            route._work = max(0.0, route._work - took)
        else:
            route._good += 1
            if not route._begun:
                route._since, route._begun = now, True
            route._ended += 1
            route._lasts += (took - route._lasts) / min(route._ended, 2 * _RESULTS)
            if not route._measured and route._ended >= max(_MEASURED_HERE, _MEASURED // (1 + self._others)):
                self._first_ended(route, now)
        if route.window is not None:
            _slide(route, lost=lost)
        self._take_stock(route, now)

    def _leaves(self, route: Route, count: int) -> None:
        self.openings += 1
        self.in_flight -= count
        route.in_flight -= count
        route._refused_since = None
        if route.in_flight == 0:
            self._busy.discard(route)
            route._taken = 0.0

    def _loses(self, route: Route) -> None:
        self._revoke()
        route.lost += 1
        route._lost += 1
        route._carried = min(route._carried, route.in_flight - 1)
        if route.floor is not None:
            route.floor = min(self.floor, route.floor + _UP * (self.floor - self.lowest))

    def _take_stock(self, route: Route, now: float) -> None:
        elapsed = now - route._since
        if route._good >= _RESULTS:
            enough = elapsed >= max(_SHORTEST, route._lasts) and route._good + route._lost >= route._round
        else:
            enough = elapsed >= _LONGEST and route._good > 0
        if enough or elapsed >= _PATIENCE:
            self._lower(route)
            _forget(route, whole=elapsed >= route._lasts)
            free = _is_free(route)
            # what others fill is no reason for this class to start no more
            mean = route._spared / route._held_back if route._held_back and self._prevails(route) else math.inf
            _count(route, now, elapsed, self._room(mean), self._room(route._spared_least))
            if not _is_free(route):
                self._unbound += free
                self._revoke()

    def _prevails(self, route: Route) -> bool:
        """Whether what is in flight is mostly of this class."""
        return route.in_flight >= _MOST * self.in_flight

    def _room(self, left: float) -> float:
        """How many times as much as is held fits where ``left`` bytes are left, :data:`_PROBING` at the most."""
        if self._idle is None or left >= self._idle:
            return _PROBING
        return min(_PROBING, (self._idle - self.floor) / (self._idle - left))

    def starts(self, route: Route) -> None:
        """Count a request of ``route`` in flight that was not asked for, or was refused and starts all the same."""
        self.in_flight += 1
        route.in_flight += 1
        route._unanswered += 1
        route._refused_since = None
        route._most = max(route._most, route.in_flight)
        self._busy.add(route)
        if route.unseen:
            self._revoke()

    # --- starting without being asked for ---

    def grant(self, route: Route, left: int, *, others: int = 0) -> Grant | None:
        """What requests of ``route`` may do without being asked for, as long as the reading stands, the era lasts and
        fewer than ``max_in_flight`` are in flight; ``None`` when each is to be asked for. ``left`` bytes are not
        promised, ``others`` are the other processes.

        Under a grant :meth:`decide` would let in every one of them, whatever its priority: the class was measured, its
        pace has so many starts left, there is room for what each and all others granted take unseen, nothing else binds
        it, and so much is left that the state stays what it is. Of a class that takes memory unseen no more may be
        unanswered at once than of a new one, for what it takes may be more.
        """
        spare = left - math.ceil(_AMPLE * self.floor + self.unshown() + self._granted)
        starts = _ANY if route.rate is None else int(route._tokens)
        unanswered = _ANY if _is_warm(route) else route._cold - route._unanswered
        if route.unseen:
            room = spare // (1 + others)
            starts = min(starts, int(room // route.unseen))
            unanswered = min(unanswered, max(_COLD_LEAST, room // _COLD_COST) - route._unanswered)
        bound = min(starts, unanswered) < 1 or route.window is not None or self.latency.cap is not None
        shared = self.max_in_flight is not None and others
        if bound or shared or spare < 0 or not route._measured or self.pressure is not Pressure.OK:
            return None
        if route.unseen:
            taken = starts * route.unseen
            self._granted += taken
            spare -= math.ceil(taken)
        # what holds much is asked about itself with each reading, for the patient wait where it does not fit
        takes_little = not route.unseen and route._holds < _LEAST
        return Grant(spare, unanswered, starts, self._unbound if takes_little and _is_free(route) else 0)

    def settle(
        self,
        route: Route,
        started: int,
        answered: int,
        ended: int,
        lost: int,
        most: int,
        first_start: float,
        first_end: float,
        last_end: float,
    ) -> None:
        """Note what was used of grants since this was last told: requests that ``started``, began their answer,
        ``ended`` well, and were ``lost``; how many more than before were in flight at the ``most``; and when the first
        started and ended well, and the last was over, seconds."""
        if started:
            if route.in_flight == 0 and route._good + route._lost == 0:
                route._since, route._begun = first_start, False
            if route._unanswered == 0:
                route._cold_since = first_start
            if route.rate is not None:
                _refill(route, route.rate, max(route._filled, first_start))
                route._tokens = max(0.0, route._tokens - started)
            route._most = max(route._most, route.in_flight + most)
            route._carried = max(route._carried, route.in_flight + most - 1)
            self.in_flight += started
            route.in_flight += started
            self._busy.add(route)
        route._unanswered += started - answered
        route._answered += answered
        if ended:
            self._leaves(route, ended)
            route._good += ended
            if not route._begun:
                route._since, route._begun = first_end, True
            for _ in range(ended if route.window is not None else 0):
                _slide(route, lost=False)
        for _ in range(lost):
            self._leaves(route, 1)
            self._loses(route)
            if route.window is not None:
                _slide(route, lost=True)
        if ended or lost:
            self._take_stock(route, last_end)

    def _revoke(self) -> None:
        self.era += 1
        self._granted = 0.0
        self.openings += 1

    # --- being refused without being asked for ---

    def stands(self, route: Route, now: float) -> float:
        """Until when a refusal of ``route`` for want of memory at ``now`` seconds stands, as long as the headroom, the
        promises and ``openings`` stay what they are: for what only starts leaves nobody more. What it is known to
        take unseen is doubted after some time, and what starts shows a moment later."""
        since = route._refused_since
        until = since + _PATIENCE if route.unseen and since is not None else math.inf
        return min(until, self._started_at + _TAKES_WITHIN) if self._yet_to_show(now) else until

    # --- what may be left ---

    def wants(self, route: Route, need: int, priority: Priority, *, patient: bool = False) -> int:
        """What must be left, in bytes, for a request of ``route`` that will promise ``need`` to start."""
        unseen = self.unshown() + route.unseen if self.in_flight else 0.0
        return int(need + unseen + self.floor_of(route, priority, patient=patient))

    def forget(self) -> None:
        """Nothing is in flight any more: in a child process, which has none of its parent's requests."""
        for route in self._busy:
            route.in_flight = 0
            route._unanswered, route._taken = 0, 0.0
        self._busy.clear()
        self.in_flight = 0
        self._revoke()

    @property
    def least(self) -> float:
        """The headroom that critical requests leave, and those in flight, bytes."""
        return min(self.lowest, self.floor / 2)

    def floor_of(self, route: Route, priority: Priority = Priority.DEFAULT, *, patient: bool = False) -> float:
        """The headroom that requests of ``route`` leave, bytes; those that can wait rather do that than be lost."""
        if priority is Priority.CRITICAL:
            return self.least
        # the limit, and with it both bounds, may have changed since the class's own was found
        least = max(self.lowest, _UNSEEN_LEAST * self.floor) if route.unseen else self.lowest
        floor = self.floor if route.floor is None else min(self.floor, max(route.floor, least))
        if not route.unseen and self._prevails(route):
            # what ended may have left its memory with the allocator, where the next one finds it
            carried = floor < self.floor and route.in_flight < route._carried
            # while memory is full of the first ones, those that start take theirs when these leave it
            refilling = route.lost > 0 and not route._measured
            if carried or ((route.rate is not None or refilling) and not patient):
                floor = self.lowest
        return 2 * floor if priority is Priority.SHEDDABLE else floor

    def _lower(self, route: Route) -> None:
        if self.lowest < self.floor:
            down = (_DOWN if route.lost else _DOWN_UNHURT) * (self.floor - self.lowest)
            route.floor = max(self.lowest, min(self.floor, route.floor or self.floor) - down)

    # --- memory that the guard does not see ---

    def read(
        self, headroom: int, passed: int, now: float, *, others: int = 0, generation: int = 0, elsewhere: int = 0
    ) -> None:
        """Note a reading: ``headroom`` bytes are left, and the guards let ``passed`` bytes pass since they began: this
        process's and those of ``others``, which are others when ``generation`` is another one, and have ``elsewhere``
        requests in flight."""
        self._revoke()
        self._starting = 0.0
        self._measure(headroom, now, elsewhere)
        if (others, generation) != (self._others, self._generation):
            self._others, self._generation = others, generation
            self.rebase()
        if others:
            # they tell a little later what passed than it shows, so the headroom is taken from the reading before
            if self._told is not None and now - self._told[2] < _TOLD_WITHIN:
                return
            before, self._told = self._told, (headroom, passed, now)
            if before is None:
                return
            headroom = before[0]
            if self._reading is None:
                passed = before[1]
        if self._reading is None:
            self._reading = headroom, passed, now
            return
        left, passed_before, since = self._reading
        fell: float = left - headroom
        grown = fell - (passed - passed_before) - self._to_show
        if abs(grown) < _NOISE and now - since < _SHOWS_WITHIN:
            return
        self._reading = headroom, passed, now
        to_show = max(0.0, -grown - max(0, -fell))
        # what passed since that reading could not show in it yet
        early = min(to_show, passed - passed_before) if others else 0.0
        self._to_show = early + (to_show - early) * 0.5 ** ((now - since) / _SHOWS_WITHIN)
        loaded = self._loads(grown)
        fell, grown = fell - loaded, grown - loaded
        if fell < 0:
            self._shrink(-fell)
        else:
            self._fell = _FALLS_LAST * self._fell + fell
            self._fell_unseen = _FALLS_LAST * self._fell_unseen + min(max(0.0, grown), fell)
            if self._busy and grown >= _NOISE:
                grown *= self.in_flight / (self.in_flight + elsewhere)
                self._grow(grown, near_miss=headroom < self.floor / 2, now=now)
            elif fell >= _NOISE:
                self._explain(fell, now)
        for route in self._busy:
            if route.unseen and route.in_flight > _FEW and self._prevails(route):
                route._shown = max(route._shown or 0.0, route._taken / route.in_flight)

    def _loads(self, grown: float) -> float:
        """How much of it the first requests loaded, once for all: memory that stays, and is no request's."""
        loads = max(0.0, min(grown, _LOADED * self.floor - self._loaded)) if self._busy else 0.0
        self._loaded += loads
        return loads

    def _explain(self, fell: float, now: float) -> None:
        """Memory grew by what the guard let pass: what new classes in flight take is seen."""
        if not self._uses_less_than(_HALF):
            return
        for route in self._busy:
            if not route.unseen and fell / self.in_flight >= _LEAST and now - route._cold_since >= _SHOWS_WITHIN:
                route._cold, route._cold_since = 2 * route._cold, now

    def rebase(self) -> None:
        """The limits changed: what the next reading differs by from the last one was not taken by anyone."""
        self._reading = self._told = None
        self._revoke()

    def _grow(self, grown: float, *, near_miss: bool, now: float) -> None:
        """Put ``grown`` bytes down to the classes in flight, by what they are known to take."""
        weights = {route: route.in_flight * max(route.unseen, _LEAST) for route in self._busy}
        whole = sum(weights.values())
        for route, weight in weights.items():
            route._taken += grown * weight / whole
            route._growths += 1
            route._cold_since = now
            # once may be chance: another process, or what is loaded when first used
            taken = min(route._taken / route.in_flight, route._growths * self.floor)
            self._unbound += not route.unseen
            route.unseen = max(route.unseen, _unless_little(taken))
            if near_miss and not route._missed:
                route.unseen *= _NEAR_MISS
                route._missed = True
                route.floor = None

    def _shrink(self, given_back: float) -> None:
        # of what is given back as large a part was unseen as of what was taken
        unseen = given_back * (self._fell_unseen / self._fell if self._fell else 1.0)
        whole = sum(route._taken for route in self._busy)
        for route in self._busy:
            if route._taken:
                left = max(0.0, route._taken - unseen * route._taken / whole)
                # those that are left took no more than all of theirs
                route._taken = min(left, route.unseen * route.in_flight)

    def unshown(self) -> float:
        """What requests in flight are known to take unseen and have not shown yet, bytes."""
        return sum(max(0.0, route.unseen * route.in_flight - route._taken) for route in self._busy if route.unseen)

    # --- what the first requests of a class hold ---

    def _measure(self, headroom: int, now: float, elsewhere: int) -> None:
        elapsed, self._measured_at = now - self._measured_at, now
        before, self._left = self._left, headroom
        if self.in_flight == 0 or self._idle is None:
            self._idle = headroom
        elif len(self._busy) <= _TOGETHER:
            # what is taken step by step was, half of the time since the last reading, not taken yet
            held = max(0.0, self._idle - (before + headroom) / 2) * self.in_flight / (self.in_flight + elsewhere)
            for route in self._busy:
                if not route._measured and self._prevails(route):
                    route._area += held * elapsed
                    route._work += route.in_flight * elapsed

    def _uses_less_than(self, share: float) -> bool:
        """Whether what is in flight holds less than this share of what there is."""
        return self._idle is None or self._idle - self._left < share * (self._idle - self.floor)

    def _first_ended(self, route: Route, now: float) -> None:
        """Pace ``route`` by its first good results: as many start a second as fit if each holds what these held, by the
        law of J. D. C. Little (1961): what is held on average is the rate times what one holds, bytes times seconds."""
        route._measured = True
        if not route._area or not route._work or self._idle is None:
            return
        holds = route._area / route._work
        hardly = _HARDLY * holds
        if route.unseen > hardly and (route.in_flight <= _FEW or route._taken > hardly * route.in_flight):
            return
        route._cold = _WARM
        route._holds = holds
        fit = (self._idle - self.floor) / (1 + self._others) / holds
        if fit > _FEW and route._lasts:  # what takes no time that a clock could tell has no pace
            route.rate, route._filled = max(fit / route._lasts, _SLOWEST), now
            route._tokens = max(0.0, _AT_ONCE * fit - route.in_flight)
            route._lost = 0  # before there was a pace

    # --- latency ---

    def lagged(self, lag: float, now: float, *, queued: int = 0, decided: int = 0) -> None:
        """Note that the event loop came ``lag`` seconds late at ``now``, when ``queued`` connections waited for one of
        the processes to accept them, and ``decided`` requests had been decided here so far."""
        if self.latency.beat(
            lag, now, in_flight=self.in_flight, queued=queued, decided=decided, workers=1 + self._others
        ):
            self._revoke()

    # --- the state that readiness, metrics and the log follow ---

    def admitted(self, headroom: int, now: float) -> bool:
        """Note an admission at ``now`` seconds; True when it ended a time of shedding."""
        if headroom < _SCARCE * self.floor or (self.pressure is Pressure.ELEVATED and headroom < _AMPLE * self.floor):
            self._scarce_since = now
        if self.pressure is Pressure.SHEDDING and now - self._last_refusal < _DWELL:
            return False
        ended = self.pressure is Pressure.SHEDDING
        self.openings += ended  # the next one refused begins another
        self.pressure = Pressure.ELEVATED if now - self._scarce_since < _DWELL else Pressure.OK
        return ended

    def refused(self, now: float) -> bool:
        """Note a refusal at ``now`` seconds; True when it began a time of shedding."""
        began = self.pressure is not Pressure.SHEDDING
        self.pressure = Pressure.SHEDDING
        self._last_refusal = now
        if began:  # nothing is granted in such a time
            self._revoke()
        return began


def _is_warm(route: Route) -> bool:
    """Whether what is known of the class says how many may start: what it lost, once what it delivers was counted."""
    return route._cold >= _WARM or (route.lost > 0 and route._delivered is not None)


def _warm_enough(route: Route, left: int, now: float, *, room_for_twice: bool) -> bool:
    if route.unseen and route.in_flight == 0:
        # among many in flight some have not taken anything yet; those of a first burst will, all together
        route._cold = route._answered = 0
    if _is_warm(route):
        return True
    if not route._cold:
        route._cold = max(_COLD_LEAST, left // _COLD_COST)
    if route._unanswered == 0:
        route._cold_since = now
    if route.lost:
        return route._unanswered < route._cold
    if route._answered >= route._cold:
        more = _WARM if route.unseen else 4 * route._cold
        route._cold, route._answered, route._cold_since = more, 0, now
    elif room_for_twice and route._unanswered >= route._cold // 2 and now - route._cold_since >= _COLD_STEP:
        route._cold, route._answered, route._cold_since = 2 * route._cold, 0, now
    return route._unanswered < route._cold


def _is_free(route: Route) -> bool:
    """Whether no pace binds it."""
    return route.rate is None and route.window is None


def _forget(route: Route, *, whole: bool) -> None:
    """Learn anew what is taken unseen, at the end of a count that lasted a ``whole`` request or less."""
    hardly = whole and route._shown is not None and route._shown < _SHOWN_LEAST * route.unseen
    route.unseen = _unless_little((_FADES_UNSHOWN if hardly else _FADES) * route.unseen)
    route._missed = False
    if whole:
        route._shown = None


def _doubts(route: Route, now: float) -> bool:
    """Whether what is known to be taken unseen was halved, for nothing starts or ends that would teach it."""
    if route._refused_since is None:
        route._refused_since = now
    if not route.unseen or now - route._refused_since < _PATIENCE:
        return False
    route.unseen, route._refused_since = _unless_little(route.unseen / 2), now
    return True


def _unless_little(size: float) -> float:
    return size if size >= _LEAST else 0.0


def _in_time(route: Route, now: float) -> bool:
    if route.window is not None:
        return route.in_flight < route.window
    if route.rate is None:
        return True
    _refill(route, route.rate, now)
    if route._tokens < 1:
        return False
    route._tokens -= 1
    return True


def _refill(route: Route, rate: float, now: float) -> None:
    # a bucket of two, so that the spread stays even; what a pace began with is used up first
    route._tokens = max(route._tokens, min(route._tokens + (now - route._filled) * rate, max(2.0, 0.02 * rate)))
    route._filled = now


def _slide(route: Route, *, lost: bool) -> None:
    assert route.window is not None
    step = 0.5 + 0.02 * route.window
    if lost:
        route.window = max(1.0, route.window - step * GAIN * (1 - _TOLERATED))
    elif route._held_back:
        route.window += 1.0 if route._calm > 1 else step * _TOLERATED


def _count(route: Route, now: float, elapsed: float, room: float, least_room: float) -> None:
    """Take stock of what was delivered, and adjust the pace; when that refused, there was ``room`` on average, and at
    the least, for so many times what was held."""
    delivered = route._good / elapsed
    share = route._lost / (route._good + route._lost)
    before = route._delivered
    route._delivered = delivered if before is None else before + _WEIGHT * (delivered - before)
    if share > _LOSSY:
        route._calm = 0
    pace = max(GAIN * route._delivered, _SLOWEST)
    if route.window is not None:
        _adjust_window(route, now, pace)
    elif share > _TOLERATED + 0.05:
        if route.rate is None:
            route._tokens, route._filled = 0.0, now
            route._probing = 2  # the next count will show losses of what started before
        else:
            route._probing = max(0, route._probing - 1)
        route.rate = pace if route.rate is None else min(route.rate, max(pace, _SLOWER * route.rate))
        if route._most <= _FEW:
            route.rate, route.window = None, max(1.0, route._most * (1 - share))
    elif route.rate is not None:
        if share > _LOSSY:
            route._probing = max(0, route._probing - 1)
        if not route._held_back and route._calm >= _CALM:
            route.rate = None
        else:
            faster = _faster(route, share, room, least_room) if route._held_back else 1.0
            most = _BEYOND * max(delivered, route._delivered) if route._short and before is not None else math.inf
            route.rate = max(_SLOWEST, min(faster * route.rate, max(_SLOWER * route.rate, most)))
    route._calm += 1
    route._since = now
    route._good = route._lost = 0
    route._most = route._round = route.in_flight
    route._held_back = route._spared = 0
    route._spared_least, route._short = math.inf, False


def _faster(route: Route, share: float, room: float, least_room: float) -> float:
    # what was measured while the service warmed up, or the machine was slow, says too little
    if route._probing or not route.lost:
        return max(_SLIGHTLY_FASTER, least_room)
    if share >= _TOLERATED:
        return 1.0
    calm = route._calm >= _CALM_ENOUGH
    least = _SLIGHTLY_FASTER if calm and not route.unseen else 1.0  # what is taken unseen is not lost to the guard
    return max(least, min(_FASTER if calm else _SLIGHTLY_FASTER, room), (1 + least_room) / 2)


def _adjust_window(route: Route, now: float, pace: float) -> None:
    assert route.window is not None
    if route._calm >= _CALM and not route._held_back:
        route.window = None
    elif route.window > _FEW:
        route.window, route.rate = None, pace
        route._tokens, route._filled = 0.0, now
