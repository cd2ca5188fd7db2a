"""A service on a virtual clock: so much memory, requests that take some of it, a guard that refuses what it sees and a
kernel that kills for the rest. Admission is asked as the gate asks it; nothing here takes time."""

import heapq
import itertools
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from resource_monitor.admission import Admission, Route

MB = 10**6
ROOM, FLOOR, GUARDED, LOWEST = 203 * MB, 16 * MB, 8 * MB, 5 * MB

Step = tuple[str, float]
"""``wait`` and ``work`` (on the one core) are in seconds; ``take``, which the guard sees, ``grab``, which it does not,
and ``drop`` of what was grabbed are in bytes."""
Job = Callable[[random.Random], tuple[str, list[Step]]]
"""The class of the next request and what it does."""

_BEAT = 0.05


@dataclass(eq=False)
class Worker:
    """A process of the service: its own admission and classes, and the bytes that its guard let pass."""

    admission: Admission
    routes: dict[str, Route] = field(default_factory=dict)
    passed: float = 0
    seen: float = -1


@dataclass(eq=False)
class Request:
    name: str
    steps: Iterator[Step]
    worker: Worker
    route: Route
    life: int
    began: float
    held: float = 0
    answered: bool = False


@dataclass
class Service:
    """Runs jobs in virtual time; ``good``, ``lost`` and ``shed`` are (seconds, name of the class).

    Unpaced, a request starts while the floor is left and fewer than ``limit`` are in flight. ``kills`` are those of the
    kernel: all that is in flight is gone then, with all that was learned. ``least`` is what was free at the worst.
    """

    paced: bool = True
    limit: int | None = None
    lowest: float = FLOOR
    workers: int = 1
    free: float = ROOM
    least: float = ROOM
    kills: int = 0
    good: list[tuple[float, str]] = field(default_factory=list)
    lost: list[tuple[float, str]] = field(default_factory=list)
    shed: list[tuple[float, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._life = 0
        self._core_free = self._beat_due = 0.0
        self._restart()

    def run(self, job: Job, arrivals: Iterator[float], seed: int = 1) -> None:
        """Everything that arrives, until the last of it is over."""
        rng, balancer, order, events = random.Random(seed), random.Random(seed), itertools.count(), []
        for at in arrivals:
            heapq.heappush(events, (at, next(order), None))
        while events:
            now, _, request = heapq.heappop(events)
            if self._core_free > now and self._beat_due <= now:
                self._beat(now)
            if request is None:
                request = self._arrive(now, self.processes[balancer.randrange(self.workers)], *job(rng))
            if request is None or request.life != self._life:
                continue
            if (wait := self._proceed(now, request)) is not None:
                heapq.heappush(events, (now + wait, next(order), request))

    def rate(self, results: list[tuple[float, str]], since: float, until: float, name: str | None = None) -> float:
        """Results a second in that time."""
        return sum(since <= at < until and name in (None, kind) for at, kind in results) / (until - since)

    def share_lost(self, since: float, until: float, name: str | None = None) -> float:
        """Of what was let in and ended in that time."""
        good, lost = self.rate(self.good, since, until, name), self.rate(self.lost, since, until, name)
        return lost / (good + lost)

    @property
    def routes(self) -> dict[str, Route]:
        return self.processes[0].routes

    def _restart(self) -> None:
        self.processes = [Worker(Admission(FLOOR, lowest=int(self.lowest))) for _ in range(self.workers)]

    def _arrive(self, now: float, worker: Worker, name: str, steps: list[Step]) -> Request | None:
        route = worker.routes.setdefault(name, Route())
        if not self._may_start(now, worker, route):
            self.shed.append((now, name))
            return None
        return Request(name, iter(steps), worker, route, self._life, now)

    def _may_start(self, now: float, worker: Worker, route: Route) -> bool:
        admission = worker.admission
        if not self.paced:
            if self.free < FLOOR or (self.limit is not None and admission.in_flight >= self.limit):
                return False
            admission.starts(route)
            return True
        others = [other for other in self.processes if other is not worker]
        elsewhere = sum(other.admission.in_flight for other in others)
        if self.free != worker.seen:
            worker.seen = self.free
            passed = int(sum(process.passed for process in self.processes))
            admission.read(int(self.free), passed, now, others=len(others), elsewhere=elsewhere)
        left = int(self.free - sum(other.admission.unshown() for other in others))
        return admission.decide(route, left, now, elsewhere=elsewhere) is None

    def _beat(self, now: float) -> None:
        """The event loop was to come by now and comes when the core is free."""
        late = self._core_free - now
        for process in self.processes:
            process.admission.lagged(late, self._core_free)
        self._beat_due = self._core_free + _BEAT

    def _proceed(self, now: float, request: Request) -> float | None:
        for what, amount in request.steps:
            if what == "wait":
                return amount
            if what == "work":
                self._core_free = max(now, self._core_free) + amount
                return self._core_free - now
            if what == "take" and self.free - amount < GUARDED:
                return self._end(now, request, self.lost)
            if what == "drop":
                amount = -min(amount, request.held)
            self.free -= amount
            request.held += amount
            self.least = min(self.least, self.free)
            if what == "take":
                request.worker.passed += amount
            if self.free < 0:
                return self._kill()
        return self._end(now, request, self.good)

    def _kill(self) -> None:
        self.kills += 1
        self._life += 1
        self.free = ROOM
        self._restart()

    def _end(self, now: float, request: Request, results: list[tuple[float, str]]) -> None:
        self.free += request.held
        results.append((now, request.name))
        admission = request.worker.admission
        admission.answers(request.route)
        if self.paced:
            admission.ends(request.route, now, lost=results is self.lost, took=now - request.began)
        else:
            admission.in_flight -= 1
            request.route.in_flight -= 1


def poisson(rate: float, until: float, seed: int, since: float = 0.0) -> Iterator[float]:
    """When requests arrive."""
    rng = random.Random(1000 + seed)  # not the sequence that the sizes are drawn from
    at = since
    while (at := at + rng.expovariate(rate)) < until:
        yield at
