"""Requests, grants, promises, readings and forks in any order: what is counted is there, nobody starts unasked who
would not have been let in, and nothing is left at the end.

The gate, admission, promises and readers are the real ones, on a directory tree and on a clock of the test's own. What
the allocation guard let pass is made up, and a fork is what the hooks of ``os.register_at_fork`` make of one.
"""

import copy
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
from granted import door
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from machine import MIB, Clock, Machine, Service

from resource_monitor import reservation, sampling
from resource_monitor._native._turn import Turn
from resource_monitor.admission import Admission, Learned, Priority, Reason, Route
from resource_monitor.errors import MemoryPressure
from resource_monitor.limits import UNBOUNDED
from resource_monitor.middleware import gate as gates
from resource_monitor.middleware import readings
from resource_monitor.middleware.asking import Ask
from resource_monitor.middleware.gate import Admitted, Gate
from resource_monitor.middleware.readings import DEFAULT_MIN_AVAILABLE
from resource_monitor.middleware.standing import Standing
from resource_monitor.reservation import Reservation, reserve
from resource_monitor.units import parse_amount

PATHS = ["/a", "/b", "/c/1", "/c/2", "/livez"]
SIZES = st.integers(0, 64 * MIB)
GUARDED = 8 * MIB
# between which every constant of admission's lies
SECONDS = st.sampled_from([0.0, 0.001, 0.05, 0.3, 0.6, 1.1, 6.0])


@dataclass(eq=False)
class Held:
    """A request in flight as it should be counted."""

    admitted: Admitted | Turn
    path: str
    promised: int = 0
    answered: bool = False


class AdmissionMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        place = Path("/dev/shm") if Path("/dev/shm").is_dir() else None
        self.root = Path(tempfile.mkdtemp(prefix="resource-monitor-fuzz-", dir=place))
        self.patch = pytest.MonkeyPatch()
        self.clock = Clock()
        self.pid, self.passed, self.shed, self.waiting = 1, 0, 0, 0
        self.held: list[Held] = []
        self.over: list[Held] = []
        self.reservations: list[tuple[Reservation, int]] = []
        self.readable = True

    @initialize(
        max_in_flight=st.sampled_from([None, 1, 5]),
        dry_run=st.booleans(),
        guarded=st.booleans(),
        on_probe_error=st.sampled_from(["admit", "refuse"]),
        min_available=st.sampled_from([None, 0, "24MiB", "10%"]),
        request_cost=st.sampled_from([0, 0, MIB, 40 * MIB]),
        known=st.booleans(),
    )
    def start(
        self,
        max_in_flight: int | None,
        dry_run: bool,
        guarded: bool,
        on_probe_error: str,
        min_available: str | int | None,
        request_cost: int,
        known: bool,
    ) -> None:
        self.patch.setattr(gates, "time", SimpleNamespace(monotonic=self.clock))
        self.patch.setattr(gates, "passed", lambda: self.passed)
        self.patch.setattr(readings, "ensure_installed", lambda monitor: None)
        self.patch.setattr(readings, "guarded_floor", lambda: GUARDED)
        if known:  # to another worker: else no class is ever so well known that it gets a grant
            self.patch.setattr(Gate, "_learned", lambda gate, name: Learned(None, 0.0, None, None))
        self.patch.setattr(reservation, "os", SimpleNamespace(getpid=lambda: self.pid))
        self.service = Service(Machine(self.root / "machine"), self.clock)
        self.used, self.limit = 32 * MIB, 256 * MIB
        self.max_in_flight, self.guarded, self.min_available = max_in_flight, guarded, min_available
        self.blind_is_open = on_probe_error == "admit"
        self.gate = Gate(
            monitor=self.service.monitor,
            max_in_flight=max_in_flight,
            dry_run=dry_run,
            allocation_guard=guarded,
            on_probe_error=on_probe_error,
            min_available=min_available,
            request_cost=request_cost,
        )
        self.cost = request_cost
        self.door = door(self.gate)

    # --- requests ---

    @rule(path=st.sampled_from(PATHS), priority=st.sampled_from(Priority), need=SIZES, gives_up=st.booleans())
    def request(self, path: str, priority: Priority, need: int, gives_up: bool) -> None:
        gate, ask = self.gate, Ask("GET", path, need=need, priority=priority)
        assert gate._ledger is not None
        left = gate._ledger.left(self.headroom) if self.readable else UNBOUNDED
        free = self.max_in_flight is None or gate._admission.in_flight < self.max_in_flight
        answer = gate.attempt(ask)
        if isinstance(answer, Admitted):
            if not answer.exempt:
                assert free
                floor = gate._admission.floor_of(gate._routes.find("GET", path), priority)
                assert left >= need + floor
                assert self.readable or self.blind_is_open
            self.held.append(Held(answer, path, 0 if answer.exempt else need, answered=answer.exempt))
            return
        assert path != "/livez"
        if answer is Reason.MEMORY:  # what stands is what admission says, which names a cap first where one binds
            gate._standing = Standing()
            assert gate.attempt(ask) is (self.binding_cap(path, priority) or Reason.MEMORY)
        if gives_up:
            return
        self.shed += 1
        final = gate.refuse(ask, answer)
        assert isinstance(final, Admitted) is gate.dry_run
        if isinstance(final, Admitted):
            self.held.append(Held(final, path))

    @rule(path=st.sampled_from(PATHS), count=st.integers(1, 30))
    def request_unasked(self, path: str, count: int) -> None:
        """Under a grant, if there is one."""
        for _ in range(count):
            gate = self.gate
            with gate._lock, gate.turns:
                route = gate._routes.find("GET", path)
                admission, alike = copy.deepcopy((gate._admission, route))
            self.fit(admission)  # as whoever asks does first
            assert gate._ledger is not None
            left = gate._ledger.left(self.headroom)
            scope = {"type": "http", "method": "GET", "path": path, "headers": []}
            turn = self.door.enter(None, scope, None, None)
            if turn is None:
                return
            self.held.append(Held(turn, path, self.cost))
            assert path != "/livez"
            assert self.readable
            pressure = admission.pressure
            assert admission.decide(alike, left, self.clock(), need=self.cost) is None
            assert not admission.admitted(left, self.clock())
            assert admission.pressure is pressure
            assert (gate._admission.floor, gate._admission.lowest) == (admission.floor, admission.lowest)

    @rule(path=st.sampled_from(PATHS), count=st.integers(1, 30))
    def request_and_more_unasked(self, path: str, count: int) -> None:
        self.request(path, Priority.DEFAULT, self.cost, gives_up=True)
        self.request_unasked(path, count)

    @rule(reason=st.sampled_from([Reason.BODY, Reason.TOO_LARGE]))
    def refuse_a_body(self, reason: Reason) -> None:
        self.shed += 1
        self.gate.count_refusal(Ask("POST", "/a"), reason)

    @precondition(lambda self: self.held)
    @rule(data=st.data(), lost=st.booleans(), twice=st.booleans())
    def leave(self, data: st.DataObject, lost: bool, twice: bool) -> None:
        held = self.held.pop(data.draw(st.integers(0, len(self.held) - 1)))
        if lost:
            held.admitted.lose()
        held.admitted.leave()
        if twice:
            held.admitted.leave()
        self.over.append(held)

    @precondition(lambda self: self.held)
    @rule(count=st.integers(1, 30), lost=st.sampled_from([0, 2, 5]), seconds=SECONDS)
    def leave_many(self, count: int, lost: int, seconds: float) -> None:
        for number in range(min(count, len(self.held))):
            held = self.held.pop(0)
            if lost and number % lost == 0:
                held.admitted.lose()
            held.admitted.leave()
            self.clock.pass_(seconds / count)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def answer(self, data: st.DataObject) -> None:
        held = data.draw(st.sampled_from(self.held))
        held.admitted.answered()
        held.answered = True

    @precondition(lambda self: self.held)
    @rule(data=st.data(), size=SIZES, taken=SIZES)
    def promise(self, data: st.DataObject, size: int, taken: int) -> None:
        held = data.draw(st.sampled_from(self.held))
        if isinstance(held.admitted, Admitted):  # else it has no body
            self.gate.promise(held.admitted, size, taken=taken)
            held.promised = size

    @precondition(lambda self: self.held)
    @rule(data=st.data(), size=SIZES, promised=st.booleans())
    def ask_for_more(self, data: st.DataObject, size: int, promised: bool) -> None:
        held = data.draw(st.sampled_from(self.held))
        if not isinstance(held.admitted, Admitted):
            return
        if not held.admitted.exempt and self.gate.room(held.admitted, size, promised=promised) >= 0:
            assert self.headroom >= size or not self.readable

    @precondition(lambda self: self.over)
    @rule(data=st.data(), size=SIZES)
    def touch_what_is_over(self, data: st.DataObject, size: int) -> None:
        admitted = data.draw(st.sampled_from(self.over)).admitted
        if isinstance(admitted, Admitted):
            self.gate.promise(admitted, size)
        admitted.lose()
        admitted.answered()
        admitted.leave()

    @rule(path=st.sampled_from(PATHS[:2]), count=st.integers(5, 40))
    def burst(self, path: str, count: int) -> None:
        for _ in range(count):
            self.request(path, Priority.DEFAULT, 0, gives_up=True)

    @rule(change=st.sampled_from([1, -1]))
    def wait(self, change: int) -> None:
        if self.waiting + change >= 0:
            self.waiting += change
            self.gate.waits(change)

    # --- reservations ---

    @rule(size=SIZES)
    def reserve(self, size: int) -> None:
        held = reserve(size, monitor=self.service.monitor)
        try:
            held.__enter__()
        except MemoryPressure:
            assert self.readable
            return
        if self.readable:
            assert self.headroom >= size
        self.reservations.append((held, size if self.readable else 0))

    @precondition(lambda self: self.reservations)
    @rule(data=st.data())
    def end_reservation(self, data: st.DataObject) -> None:
        held, _ = self.reservations.pop(data.draw(st.integers(0, len(self.reservations) - 1)))
        held.__exit__(None, None, None)

    # --- the machine ---

    @rule(used=st.integers(0, 256 * MIB), seen=st.booleans())
    def take(self, used: int, seen: bool) -> None:
        if seen:
            self.passed += max(0, used - self.used)
        self.used = used
        self.show()

    @rule(limit=st.sampled_from([64 * MIB, 128 * MIB, 256 * MIB, 1024 * MIB]))
    def change_limit(self, limit: int) -> None:
        self.limit = limit
        self.show()

    @rule()
    def cannot_be_read(self) -> None:
        self.service.break_probe()
        self.readable = False

    @rule(seconds=SECONDS)
    def time_passes(self, seconds: float) -> None:
        self.clock.pass_(seconds)

    @rule(lag=st.sampled_from([0.0, 0.06, 0.4, 2.0]), beats=st.integers(1, 20))
    def event_loop_comes_late(self, lag: float, beats: int) -> None:
        for _ in range(beats):
            self.clock.pass_(0.05 + lag)
            self.gate.lagged(lag)

    @rule()
    def fork(self) -> None:
        """We are the child from here on."""
        self.pid += 1
        for hook in (sampling, reservation, gates):
            hook._after_fork_in_child()
        self.over += self.held
        self.held = []
        self.waiting = 0
        self.reservations = [(held, 0) for held, _ in self.reservations]

    # --- what always holds ---

    @rule(path=st.sampled_from(PATHS[:3]), need=SIZES, left=st.integers(0, 256 * MIB))
    def what_matters_more_is_let_in_where_what_matters_less_is(self, path: str, need: int, left: int) -> None:
        route = self.gate._routes.find("GET", path)
        admits = {}
        for priority in Priority:
            admission, alike = copy.deepcopy((self.gate._admission, route))
            admits[priority] = admission.decide(alike, left, self.clock(), need=need, priority=priority) is None
        assert admits[Priority.CRITICAL] >= admits[Priority.DEFAULT] >= admits[Priority.SHEDDABLE]

    @invariant()
    def what_is_counted_is_there(self) -> None:
        if not hasattr(self, "gate"):
            return
        assert self.gate.in_flight == len(self.held)
        found, admission = self.gate.statistics(), self.gate._admission
        assert found.in_flight == self.gate.in_flight == len(self.held)
        assert found.promised == sum(held.promised for held in self.held) + sum(size for _, size in self.reservations)
        assert found.waiting == self.waiting
        assert found.shed == sum(found.shed_by_reason.values()) == self.shed
        assert admission.in_flight == sum(not held.admitted.exempt for held in self.held)
        for route in {self.gate._routes.find("GET", path) for path in PATHS}:
            mine = [held for held in self.held if self.route_of(held) is route]
            assert route.in_flight == len(mine)
            assert route._unanswered == sum(not held.answered for held in mine)
            assert (route in admission._busy) is bool(mine)

    @invariant()
    def what_was_learned_can_be(self) -> None:
        if not hasattr(self, "gate"):
            return
        admission = self.gate._admission
        assert 0 <= admission.lowest <= admission.floor
        assert admission.latency.cap is None or admission.latency.cap >= 1
        assert admission.unshown() >= 0
        for route in {self.gate._routes.find("GET", path) for path in PATHS}:
            assert admission.lowest <= admission.floor_of(route) <= admission.floor
            assert route.rate is None or route.rate >= 1
            assert route.window is None or route.window >= 1
            assert route.unseen >= 0
            assert route._taken >= 0

    def teardown(self) -> None:
        try:
            if hasattr(self, "gate"):
                for held in [*self.held, *self.over]:
                    held.admitted.leave()
                for reservation_, _ in self.reservations:
                    reservation_.__exit__(None, None, None)
                self.held, self.reservations = [], []
                self.what_is_counted_is_there()
                self.what_was_learned_can_be()
                assert self.gate._admission.unshown() == 0
        finally:
            self.patch.undo()
            shutil.rmtree(self.root)

    def route_of(self, held: Held) -> Route | None:
        return None if held.admitted.exempt else self.gate._routes.find("GET", held.path)

    def binding_cap(self, path: str, priority: Priority) -> Reason | None:
        admission, route = self.gate._admission, self.gate._routes.find("GET", path)
        if self.max_in_flight is not None and admission.in_flight >= self.max_in_flight:
            return Reason.IN_FLIGHT
        slow = admission.latency.cap is not None and route.in_flight and admission.in_flight >= admission.latency.cap
        return Reason.LATENCY if slow and priority is not Priority.CRITICAL else None

    def fit(self, admission: Admission) -> None:
        """Have it leave what is to be left of the limit of this moment."""
        floor = parse_amount(DEFAULT_MIN_AVAILABLE if self.min_available is None else self.min_available).of(self.limit)
        lowest = min(floor, GUARDED * 2 // 5) if self.guarded and self.min_available is None else floor
        if (floor, lowest) != (admission.floor, admission.lowest):
            admission.floor, admission.lowest = floor, lowest
            admission.rebase()

    @property
    def headroom(self) -> int:
        return max(0, self.limit - self.used)

    def show(self) -> None:
        self.service.machine.memory(total=64 << 30, available=60 << 30)
        self.service.use(self.used, limit=self.limit)
        self.readable = True


TestAdmission = AdmissionMachine.TestCase
# an example here is fifty steps, each of which is worth one of the others'
TestAdmission.settings = settings(max_examples=max(200, settings().max_examples // 10))
