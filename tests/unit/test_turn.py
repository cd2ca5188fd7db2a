"""Standing permissions: who starts under one, what ends it, and what is counted meanwhile."""

import gc
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest
from granted import LASTS_ON, MOST_BODY, Beside, asked, door, know_all_classes, outlive, scope, unasked
from known import known
from machine import MIB, Machine, Service

from resource_monitor import Resource, counts, reserve
from resource_monitor._native._turn import Door, Lane, Turn
from resource_monitor.admission import Admission, Priority, Reason, Route
from resource_monitor.counts import CountMonitor
from resource_monitor.limits import open_file_limits
from resource_monitor.middleware import gate as module
from resource_monitor.middleware.asking import Ask
from resource_monitor.middleware.gate import Admitted, Gate
from resource_monitor.monitor import MemoryMonitor

FLOOR = 16 * MIB
PLENTY = 200 * MIB


MONOTONIC = time.monotonic


@pytest.fixture(autouse=True)
def _one_clock(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gates go by the service's, too: what a busy machine takes for a test would change what may start."""
    monkeypatch.setattr(module.time, "monotonic", service.clock)


@pytest.fixture
def gate(service: Service, monkeypatch: pytest.MonkeyPatch) -> Gate:
    know_all_classes(monkeypatch)
    return Gate(monitor=service.monitor, allocation_guard=False)


@pytest.fixture
def way(gate: Gate) -> Door:
    return door(gate)


_let_in: list[Turn] = []


@pytest.fixture(autouse=True)
def in_flight_to_the_end() -> Iterator[None]:
    """A turn that nobody keeps is over when the garbage collector finds it."""
    yield
    _let_in.clear()


def let_in(way: Door, *what: Any, **more: Any) -> Turn:
    turn = unasked(way, *what, **more)
    assert turn is not None
    _let_in.append(turn)
    return turn


# --- what admission grants ---


def test_a_known_class_that_nothing_binds_is_granted_what_is_left_above_the_floor() -> None:
    grant = Admission(FLOOR).grant(known(), PLENTY)
    assert grant is not None
    assert grant.spare == PLENTY - 5 * FLOOR // 2
    assert grant.unanswered > 1 << 60


@pytest.mark.parametrize(
    "route",
    [Route(), known(rate=10.0), known(window=2.0)],
    ids=["new", "paced", "few"],
)
def test_a_class_that_is_new_or_bound_by_anything_is_granted_nothing(route: Route) -> None:
    assert Admission(FLOOR).grant(route, PLENTY) is None


def measured(admission: Admission) -> Route:
    """A new class that may have 16 unanswered at first, and of which eight have ended."""
    route = Route()
    for _ in range(8):
        assert admission.decide(route, PLENTY, 1.0) is None
        admission.answers(route)
        admission.ends(route, 1.1, lost=False, took=0.1)
    return route


def test_a_class_that_is_new_is_granted_as_many_unanswered_as_it_may_have_once_it_was_measured() -> None:
    admission = Admission(FLOOR)
    route = measured(admission)
    assert route._cold == 16
    for _ in range(3):
        assert admission.decide(route, PLENTY, 2.0) is None
    grant = admission.grant(route, PLENTY)
    assert grant is not None
    assert grant.unanswered == 13
    for _ in range(13):
        assert admission.decide(route, PLENTY, 2.0) is None
    assert admission.decide(route, PLENTY, 2.0) is Reason.COLD_START


def test_a_paced_class_is_granted_the_starts_that_are_there() -> None:
    admission, route = Admission(FLOOR), known(rate=1000.0)
    for _ in range(2):  # the first of them waits for no one
        assert admission.decide(route, PLENTY, 10.0) is None
    grant = admission.grant(route, PLENTY)
    assert grant is not None
    assert grant.starts == 19  # two hundredths of a second's, less one
    admission.settle(route, 15, 0, 0, 0, 15, 10.0, 0.0, 0.0)
    admission.settle(route, 2, 0, 0, 0, 2, 10.0051, 0.0, 0.0)  # before which five came
    grant = admission.grant(route, PLENTY)
    assert grant is not None
    assert grant.starts == 7
    for _ in range(8):  # and one since
        assert admission.decide(route, PLENTY, 10.0062) is None
    assert admission.decide(route, PLENTY, 10.0062) is Reason.PACE
    assert admission.grant(route, PLENTY) is None


def test_while_memory_is_scarce_nothing_is_granted() -> None:
    admission = Admission(FLOOR)
    grant = admission.grant(known(), 5 * FLOOR // 2)
    assert grant is not None
    assert grant.spare == 0
    assert admission.grant(known(), 5 * FLOOR // 2 - 1) is None


def test_while_requests_are_refused_nothing_is_granted() -> None:
    admission = Admission(FLOOR)
    admission.refused(1.0)
    assert admission.grant(known(), PLENTY) is None


def test_while_work_is_held_back_for_latency_nothing_is_granted() -> None:
    admission = Admission(FLOOR)
    for beat in range(20):
        admission.lagged(0.2, 0.25 * beat)
    assert admission.latency.cap is not None
    assert admission.grant(known(), PLENTY) is None


def test_what_others_take_unseen_and_does_not_show_yet_is_not_granted() -> None:
    admission = Admission(FLOOR)
    admission.starts(known(unseen=1.0 * MIB))
    grant = admission.grant(known(), 5 * FLOOR // 2 + MIB)
    assert grant is not None
    assert grant.spare == 0
    assert admission.grant(known(), 5 * FLOOR // 2 + MIB - 1) is None


def test_a_class_that_takes_memory_unseen_is_granted_as_many_starts_as_there_is_room_for() -> None:
    admission, route = Admission(FLOOR), known(unseen=1.5 * MIB)
    grant = admission.grant(route, 5 * FLOOR // 2 + 100 * MIB)
    assert grant == (MIB, 8, 66, 0)  # 12 MiB for each that is unanswered, as for new classes
    for _ in range(66):
        assert admission.decide(route, 5 * FLOOR // 2 + 100 * MIB, 1.0) is None
        admission.answers(route)


def test_where_other_processes_are_it_is_granted_its_part_of_the_room() -> None:
    grant = Admission(FLOOR).grant(known(unseen=1.0 * MIB), 5 * FLOOR // 2 + 100 * MIB, others=3)
    assert grant is not None
    assert (grant.starts, grant.unanswered) == (25, 4)


def test_room_that_was_granted_is_granted_to_nobody_else_before_it_is_revoked() -> None:
    admission, left = Admission(FLOOR), 5 * FLOOR // 2 + 100 * MIB
    assert admission.grant(known(unseen=1.0 * MIB), left) is not None
    assert admission.grant(known(unseen=1.0 * MIB), left) is None
    grant = admission.grant(known(), left)
    assert grant is not None
    assert grant.spare == 0
    admission.read(left, 0, 1.0)
    assert admission.grant(known(unseen=1.0 * MIB), left) is not None


def test_a_number_in_flight_that_is_shared_with_other_workers_is_asked_for_each_time() -> None:
    admission = Admission(FLOOR, max_in_flight=5)
    assert admission.grant(known(), PLENTY) is not None
    assert admission.grant(known(), PLENTY, others=1) is None


REVOKES: dict[str, Callable[[Admission, Route], object]] = {
    "a loss": lambda admission, route: admission.ends(route, 1.0, lost=True, took=0.1),
    "a refusal": lambda admission, route: admission.refused(1.0),
    "a reading": lambda admission, route: admission.read(PLENTY, 0, 1.0),
    "another limit": lambda admission, route: admission.rebase(),
    "a fork": lambda admission, route: admission.forget(),
    "unseen memory": lambda admission, route: admission.starts(known(unseen=1.0 * MIB)),
    "latency": lambda admission, route: [admission.lagged(0.2, 0.25 * beat) for beat in range(20)],
}


@pytest.mark.parametrize("event", REVOKES)
def test_what_may_change_the_answer_revokes_it(event: str) -> None:
    admission, route = Admission(FLOOR), known()
    admission.starts(route)
    era = admission.era
    REVOKES[event](admission, route)
    assert admission.era != era


def test_a_pace_that_is_found_when_stock_is_taken_revokes_it() -> None:
    admission, route = Admission(FLOOR), known()
    for _ in range(20):
        admission.starts(route)
    for _ in range(10):
        admission.ends(route, 0.1, lost=True, took=0.1)
    era = admission.era
    admission.settle(route, 0, 10, 10, 0, 0, 0.0, 0.2, 1.0)
    assert route.rate is not None
    assert admission.era != era


def test_what_is_granted_to_a_class_that_nothing_binds_has_a_number_until_another_comes_to_be_bound() -> None:
    def number() -> int:
        grant = admission.grant(known(), PLENTY)
        assert grant is not None
        return grant.unbound

    admission, route, other = Admission(FLOOR), known(), known()
    assert number() == number() != 0
    before = number()
    for _ in range(20):
        admission.starts(route)
    for _ in range(10):
        admission.ends(route, 0.1, lost=True, took=0.1)
    assert number() == before
    admission.settle(route, 0, 10, 10, 0, 0, 0.0, 0.2, 1.0)
    assert route.rate is not None
    paced = number()
    assert paced not in (0, before)
    admission.settle(route, 0, 10, 10, 0, 0, 0.0, 1.2, 2.0)
    assert number() == paced
    admission.starts(other)
    admission.read(PLENTY + FLOOR // 2, 0, 3.0)  # what the first of a service load
    admission.read(PLENTY - 8 * MIB, 0, 4.0)
    assert other.unseen
    admission.ends(other, 4.0, lost=False, took=1.0)
    assert number() not in (0, before, paced)


@pytest.mark.parametrize("route", [known(rate=1000.0), known(unseen=1.0 * MIB)], ids=["paced", "unseen"])
def test_what_is_granted_to_a_class_that_something_binds_has_none(route: Route) -> None:
    admission = Admission(FLOOR)
    for _ in range(2):
        assert admission.decide(route, PLENTY, 10.0) is None
    grant = admission.grant(route, PLENTY)
    assert grant is not None
    assert grant.unbound == 0


def test_what_is_granted_to_a_class_that_holds_much_has_none() -> None:
    admission, route = Admission(FLOOR), known()
    for held, number in ((MIB / 16, 1), (MIB, 0)):
        route._holds = held
        grant = admission.grant(route, PLENTY)
        assert grant is not None
        assert grant.unbound == number


def test_what_was_done_under_grants_counts_as_if_it_had_been_asked_for() -> None:
    def state(route: Route) -> list[object]:
        return [getattr(route, name) for name in Route.__slots__ if name not in ("_lasts", "_ended")]

    one, two, each, bulk = Admission(FLOOR, lowest=0), Admission(FLOOR, lowest=0), known(), known()
    for admission, route in ((one, each), (two, bulk)):
        assert admission.decide(route, PLENTY, 5.0) is None
    for number in range(30):
        assert one.decide(each, PLENTY, 5.0 + number / 100) is None
    for number in range(29):
        one.answers(each)
        one.ends(each, 6.3 if number == 28 else 6.0 + number / 1000, lost=False, took=0.1)
    two.settle(bulk, 30, 29, 29, 0, 30, 5.0, 6.0, 6.3)
    assert state(bulk) == state(each)
    assert (two.in_flight, two._busy) == (one.in_flight, {bulk})
    assert bulk.in_flight == 2


def test_stock_is_taken_at_the_time_of_the_last_end() -> None:
    admission, route = Admission(FLOOR, lowest=0), known()
    admission.settle(route, 20, 20, 20, 0, 3, 1.0, 2.0, 4.0)
    assert route._delivered == 10.0


# --- who starts under a grant ---


def test_the_first_request_is_asked_for_and_those_like_it_are_not(gate: Gate, way: Door) -> None:
    assert unasked(way, "/users/1") is None
    asked(gate, "/users/1")
    assert let_in(way, "/users/2")
    assert unasked(way, "/users") is None
    assert unasked(way, "/users/2", "DELETE") is None


def test_a_grant_ends_with_the_reading_and_is_renewed_by_the_next(gate: Gate, way: Door, service: Service) -> None:
    asked(gate)
    assert gate.turns.grants == 1
    service.clock.pass_(service.monitor.fresh_until - service.clock() - 1e-6)
    turns = [let_in(way)]
    assert gate.turns.grants == 1
    service.clock.pass_(2e-6)
    turns.append(let_in(way))
    assert gate.turns.grants == 2
    assert service.monitor.fresh_until > service.clock()
    turns.append(let_in(way))
    assert gate.turns.grants == 2
    assert gate.in_flight == gate.statistics().in_flight == 1 + len(turns) == 4


@pytest.mark.parametrize(
    ("spoil", "mend"),
    [(Service.fill, Service.empty), (Service.break_probe, Service.mend_probe)],
    ids=["no room", "no reading"],
)
def test_it_is_not_where_the_next_reading_gives_nothing(
    gate: Gate, way: Door, service: Service, spoil: Callable[[Service], None], mend: Callable[[Service], None]
) -> None:
    asked(gate)
    spoil(service)
    assert unasked(way) is None
    mend(service)
    assert unasked(way) is None
    assert gate.statistics().probe_errors == 0
    asked(gate)
    assert let_in(way)


def test_it_is_renewed_once_where_several_threads_come_for_that(gate: Gate, service: Service) -> None:
    asked(gate)
    outlive(service.monitor, service)
    lane, read, late = gate.turns.lane("GET", "/"), gate.readings.read, pytest.MonkeyPatch()

    def read_late() -> int:
        headroom = read()
        late.undo()
        gate.renew(lane)
        return headroom

    late.setattr(gate.readings, "read", read_late)
    gate.renew(lane)
    assert gate.turns.grants == 2


def test_who_comes_while_it_is_renewed_goes_on_for_a_moment(gate: Gate, service: Service) -> None:
    came: list[bool] = []
    other = door(gate, lambda lane: None)

    def renew(lane: Lane) -> None:
        for seconds in (0.0, 0.004, 0.002):
            service.clock.pass_(seconds)
            came.append(unasked(other) is not None)

    asked(gate)
    outlive(service.monitor, service)
    assert unasked(door(gate, renew)) is None, "it was granted nothing"
    assert came == [True, True, False]
    assert gate.turns.grants == 1


def test_of_a_class_that_takes_memory_unseen_each_reading_is_asked_about(gate: Gate, service: Service) -> None:
    renewed: list[Lane] = []
    way = door(gate, renewed.append)
    gate.turns.lane("GET", "/").route.unseen = 1.0 * MIB
    asked(gate)
    assert let_in(way)
    outlive(service.monitor, service)
    assert unasked(way) is None
    assert not renewed


def test_it_is_not_while_what_was_done_cannot_be_told_but_once_it_can(
    gate: Gate, way: Door, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(admission: Admission, *used: Any) -> None:
        raise MemoryError

    asked(gate)
    let_in(way)
    with monkeypatch.context() as patch:
        patch.setattr(Admission, "settle", fail)
        service.clock.pass_(LASTS_ON)
        assert unasked(way) is None
        assert gate.turns.grants == 1
        assert gate.attempt(Ask("GET", "/")) is Reason.MEMORY
    # what was to be told was taken from what is counted already, and is told all the same
    asked(gate)
    assert let_in(way)
    assert (gate.statistics().in_flight, gate.statistics().admitted) == (4, 4)


def test_what_was_promised_while_its_body_was_prepared_for_is_not_promised_again(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    know_all_classes(monkeypatch)
    service.use(32 * MIB, limit=1 << 30)
    gate = Gate(monitor=service.monitor, allocation_guard=False, request_cost="500MiB")
    asked(gate)
    others: list[Turn] = []

    def take_in(receive: Any, size: int) -> Any:
        others.append(let_in(door(gate)))
        return receive

    way = door(gate, take_in=take_in, most_body=MIB)
    assert unasked(way, "/", "GET", (b"content-length", b"100000")) is None
    assert len(others) == 1
    assert gate.statistics().promised == 500 * MIB


def test_what_admission_could_not_be_told_for_want_of_memory_is_told_the_next_time(
    gate: Gate, way: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked(gate)
    let_in(way).leave()
    let_in(way)
    times, settle = 0, Admission.settle

    def fail_once(admission: Admission, *used: Any) -> None:
        nonlocal times
        times += 1
        if times == 1:
            raise MemoryError
        settle(admission, *used)

    monkeypatch.setattr(Admission, "settle", fail_once)
    with suppress(MemoryError):
        gate.statistics()
    found = gate.statistics()
    assert (found.admitted, found.in_flight, found.routes["GET /"].in_flight) == (3, 2, 2)


def test_a_request_leaves_also_where_there_is_no_memory_to_tell_what_others_did(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(gate: Gate) -> None:
        raise MemoryError

    know_all_classes(monkeypatch)
    monkeypatch.setattr(Gate, "_settle", fail)
    gate = Gate(monitor=service.monitor, allocation_guard=False)
    first = asked(gate)
    turn = let_in(door(gate))
    first.leave()
    assert gate.in_flight == 1
    turn.leave()
    assert gate.in_flight == 0


def test_who_ends_while_its_own_thread_holds_the_lock_does_not_wait_for_it(gate: Gate) -> None:
    """As the garbage collector has a request end, in the middle of anything."""
    with gate._lock:
        gate._idle()


def test_with_a_new_reading_one_class_is_granted_for_all_that_were_before(
    gate: Gate, way: Door, service: Service
) -> None:
    for path in ("/a", "/b"):
        asked(gate, path).leave()
    service.use(40 * MIB)
    before = gate.turns.grants
    assert let_in(way, "/b")
    assert let_in(way, "/a")
    assert gate.turns.grants == before + 1
    assert unasked(way, "/c") is None
    outlive(service.monitor, service)
    asked(gate, "/a")
    assert let_in(way, "/b")
    assert gate.turns.grants == before + 2


def test_of_those_one_that_takes_memory_unseen_since_is_asked_about_itself(
    gate: Gate, way: Door, service: Service
) -> None:
    asked(gate, "/a").leave()
    held = asked(gate, "/b")
    service.use(60 * MIB)
    asked(gate, "/a")
    assert gate._routes.find("GET", "/b").unseen
    assert unasked(way, "/b") is None
    held.leave()


def test_where_one_of_those_is_granted_nothing_the_others_are_asked_about_too(
    gate: Gate, way: Door, service: Service
) -> None:
    for path in ("/a", "/b"):
        asked(gate, path).leave()
    service.use(40 * MIB)
    asked(gate, "/a")
    assert let_in(way, "/b")
    gate._admission.latency.cap = 100.0
    asked(gate, "/a")
    assert unasked(way, "/b") is None


def test_none_of_those_has_more_unanswered_than_it_may(service: Service) -> None:
    gate = Gate(monitor=service.monitor, allocation_guard=False)
    way = door(gate)
    for path in ("/", "/other"):
        for _ in range(8):
            asked(gate, path).leave()
        asked(gate, path)
    turns = [let_in(way) for _ in range(gate._routes.find("GET", "/")._cold - 2)]
    service.clock.pass_(10)
    asked(gate, "/other")
    turns.append(let_in(way))
    assert unasked(way) is None
    turns[0].answered()
    assert let_in(way)


def test_in_a_child_process_nothing_is_granted_to_all(gate: Gate, way: Door) -> None:
    for path in ("/a", "/b"):
        asked(gate, path).leave()
    gate.turns.forget()
    assert unasked(way, "/a") is None
    assert unasked(way, "/b") is None


def test_it_ends_by_the_real_clock_too(machine: Machine, service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    know_all_classes(monkeypatch)
    monkeypatch.setattr(module.time, "monotonic", MONOTONIC)
    monitor = MemoryMonitor(root=str(machine.root))
    gate = Gate(monitor=monitor, allocation_guard=False)
    way = door(gate)
    asked(gate).leave()
    for grants in range(1, 4):
        until = monitor.fresh_until
        while gate.turns.grants == grants:
            let_in(way).leave()
        assert time.monotonic() >= until
    assert gate.statistics().in_flight == 0


def test_a_grant_ends_with_the_reading_of_what_is_counted_too(
    service: Service, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    know_all_classes(monkeypatch)
    machine.write("/proc/sys/fs/file-nr", "0 0 1000")
    machine.write(
        "/proc/self/limits", "Max open files            99990                99990                files     \n"
    )
    (machine.root / "proc/self/fd").mkdir()
    sampler = CountMonitor(lambda: open_file_limits(root=str(machine.root)), clock=service.clock)
    monkeypatch.setattr(counts, "open_files", lambda: sampler)
    gate = Gate(monitor=service.monitor, allocation_guard=False, also={Resource.OPEN_FILES: 32})
    way = door(gate)
    asked(gate)
    assert let_in(way)
    assert sampler.fresh_until < service.monitor.fresh_until
    outlive(sampler, service)
    assert let_in(way)
    assert gate.turns.grants == 2
    machine.write("/proc/sys/fs/file-nr", "990 0 1000")
    outlive(sampler, service)
    assert unasked(way) is None
    assert gate.turns.grants == 2


@pytest.mark.parametrize(
    "request_",
    [
        scope("/", "POST", (b"content-length", str(MOST_BODY + 1).encode())),
        scope("/", "POST", (b"content-length", b"9" * 40)),
        scope("/", "POST", (b"content-length", b"")),
        scope("/", "POST", (b"content-length", b"-1")),
        scope("/", "POST", (b"content-length", b"1a")),
        scope("/", "POST", (b"content-length", b"7"), (b"content-length", b"7")),
        scope("/", "POST", (b"content-length", b"7"), (b"transfer-encoding", b"chunked")),
        scope("/", "GET", (b"transfer-encoding", b"chunked")),
        scope("/", "POST", http_version="2"),
        scope("/", "DELETE", http_version="2"),
        scope("/", "OPTIONS"),
        {**scope(), "type": "websocket"},
        {**scope(), "headers": iter([])},
        {**scope(), "headers": [b"host"]},
        {**scope(), "headers": [("host", "text")]},
        {key: value for key, value in scope().items() if key != "path"},
        {**scope(), "path": 7},
    ],
    ids=lambda value: str(value)[:80],
)
def test_what_is_no_plain_request_with_a_short_body_or_none_is_asked_for(
    gate: Gate, way: Door, request_: dict[str, Any]
) -> None:
    for method in ("GET", "POST", "DELETE", "OPTIONS"):
        asked(gate, "/", method)
    assert way.enter(None, request_, None, None) is None
    assert "resource_monitor.admitted" not in request_


@pytest.mark.parametrize(
    "request_",
    [
        scope("/", "POST"),
        scope("/", "POST", (b"content-length", b"0"), http_version="2"),
        scope("/", "POST", (b"content-length", b"1")),
        scope("/", "POST", (b"content-length", str(MOST_BODY).encode()), http_version="2"),
        scope("/", "GET", (b"content-length", b"0007")),
        scope("/", "GET", http_version="2"),
        scope("/", "GET", (b"host", b"test"), (b"accept", b"*/*"), root_path=""),
        {**scope(), "headers": [[b"host", b"test"]]},
        {**scope(), "headers": ((b"host", b"test"),)},
    ],
    ids=lambda value: str(value)[:80],
)
def test_a_request_with_a_short_body_or_none_is_one_however_it_is_told(
    gate: Gate, way: Door, request_: dict[str, Any]
) -> None:
    asked(gate, "/", request_["method"])
    turn = way.enter(None, request_, None, None)
    assert turn is not None
    assert request_["resource_monitor.admitted"] is turn


@pytest.mark.parametrize(
    ("exempt", "path", "mount"),
    [
        (["/a/1"], "/a/1", ""),
        (["/a/1"], "/a/1/", ""),
        (["/a/1*"], "/a/1", ""),
        (["/a/1"], "/mount/a/1", "/mount"),
        (lambda path: path == "/a/1", "/a/1", ""),
    ],
)
def test_what_is_exempt_is_found_to_be_also_where_its_class_has_a_grant(
    service: Service, monkeypatch: pytest.MonkeyPatch, exempt: Any, path: str, mount: str
) -> None:
    know_all_classes(monkeypatch)
    gate = Gate(monitor=service.monitor, allocation_guard=False, exempt=exempt)
    way = door(gate)
    asked(gate, path.replace("1", "2"))
    assert unasked(way, path, root_path=mount) is None
    assert let_in(way, path.replace("1", "3"), root_path=mount)


def test_on_another_thread_than_the_event_loop_s_everyone_is_asked_for(gate: Gate, way: Door) -> None:
    asked(gate)
    found: list[object] = []
    thread = threading.Thread(target=lambda: found.append(unasked(way)))
    thread.start()
    thread.join()
    assert found == [None]
    assert let_in(way)
    way.shut()
    assert unasked(way) is None


def test_while_anyone_waits_nobody_passes(gate: Gate, way: Door) -> None:
    asked(gate)
    gate.waits(1)
    assert unasked(way) is None
    gate.waits(-1)
    assert let_in(way)


def test_while_admission_is_being_changed_nobody_starts(gate: Gate, way: Door) -> None:
    asked(gate)
    with gate._lock, gate.turns:
        assert unasked(way) is None
    assert let_in(way)


def test_no_more_of_a_new_class_start_than_may_be_unanswered(service: Service) -> None:
    gate = Gate(monitor=service.monitor, allocation_guard=False)
    way = door(gate)
    for _ in range(8):
        assert unasked(way) is None
        asked(gate).leave()
    asked(gate)
    cold = gate._routes.find("GET", "/")._cold
    turns = [let_in(way) for _ in range(cold - 1)]
    assert unasked(way) is None
    assert gate.attempt(Ask("GET", "/")) is Reason.COLD_START
    turns[0].answered()
    assert let_in(way)
    assert unasked(way) is None
    turns[1].leave()
    gate.statistics()
    assert let_in(way)
    assert unasked(way) is None


def test_no_more_of_a_paced_class_start_than_its_pace_has(gate: Gate, way: Door) -> None:
    gate._routes.find("GET", "/").rate = 1000.0
    asked(gate)
    asked(gate)
    for _ in range(19):
        let_in(way).leave()
    assert unasked(way) is None
    assert gate.attempt(Ask("GET", "/")) is Reason.PACE


def test_no_more_start_than_may_be_in_flight(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    know_all_classes(monkeypatch)
    gate = Gate(monitor=service.monitor, allocation_guard=False, max_in_flight=3)
    way, first = door(gate), asked(gate)
    turns = [let_in(way), let_in(way)]
    assert unasked(way) is None
    assert gate.attempt(Ask("GET", "/")) is Reason.IN_FLIGHT
    turns.pop().leave()
    assert let_in(way)
    first.leave()
    asked(gate)
    assert unasked(way) is None


# --- what a request is known to need ---


def test_requests_promise_what_they_cost_until_they_leave(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    know_all_classes(monkeypatch)
    gate = Gate(monitor=service.monitor, allocation_guard=False, request_cost="1MiB")
    way = door(gate)
    asked(gate).leave()
    turns = [let_in(way) for _ in range(3)]
    assert gate.statistics().promised == 3 * MIB
    turns.pop().leave()
    assert gate.statistics().promised == 2 * MIB
    for turn in turns:
        turn.leave()
    assert gate.statistics().promised == 0


def test_a_short_body_is_promised_until_its_request_answers(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    know_all_classes(monkeypatch)
    gate = Gate(monitor=service.monitor, allocation_guard=False, request_cost="1MiB")
    way = door(gate)
    asked(gate, "/", "POST")
    turns = [let_in(way, "/", "POST", (b"content-length", b"700")) for _ in range(2)]
    assert gate.statistics().promised == 2 * (MIB + 700)
    turns[0].answered()
    assert gate.statistics().promised == 2 * MIB + 700
    turns[0].leave()
    turns[1].leave()
    assert gate.statistics().promised == 0


def test_no_more_start_than_what_is_left_can_be_promised_to(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    know_all_classes(monkeypatch)
    gate = Gate(monitor=service.monitor, allocation_guard=False, request_cost="60MiB", exempt=[])
    way = door(gate)
    answer = gate.attempt(gate.ask({}, "GET", "/"))
    assert isinstance(answer, Admitted)
    first = let_in(way)  # of 224 MiB that are left, 2.5 floors of 16 MiB stay
    let_in(way)
    assert unasked(way) is None
    first.leave()
    assert let_in(way)


@pytest.mark.parametrize(("size", "still"), [(100 * MIB, True), (190 * MIB, False)])
def test_a_reservation_elsewhere_revokes_what_it_leaves_no_room_for(
    gate: Gate, way: Door, service: Service, size: int, still: bool
) -> None:
    asked(gate)
    with reserve(size, monitor=service.monitor):
        assert (unasked(way) is not None) is still


def test_a_reservation_finds_what_was_promised_under_grants(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    know_all_classes(monkeypatch)
    gate = Gate(monitor=service.monitor, allocation_guard=False, request_cost="40MiB")
    way = door(gate)
    asked(gate)
    turns = [let_in(way), let_in(way)]
    with pytest.raises(MemoryError), reserve("150MiB", monitor=service.monitor):
        raise AssertionError
    for turn in turns:
        turn.leave()
    with reserve("150MiB", monitor=service.monitor):
        pass


@pytest.mark.parametrize("option", ["priority", "request_cost"])
def test_what_the_user_s_functions_say_is_heard(service: Service, monkeypatch: pytest.MonkeyPatch, option: str) -> None:
    know_all_classes(monkeypatch)
    answers: list[Any] = []

    def function(carrier: Any) -> Any:
        assert carrier["type"] == "http"
        answer = answers.pop(0)
        if isinstance(answer, BaseException):
            raise answer
        return answer

    gate = Gate(monitor=service.monitor, allocation_guard=False, **{option: function})  # type: ignore[arg-type]
    way = door(gate)
    asked(gate)
    good: list[Any] = [Priority.SHEDDABLE, Priority.CRITICAL] if option == "priority" else [0, 5 * MIB]
    odd: list[Any] = ["critical", None, ValueError()] if option == "priority" else [-1, 1 << 70, "1MiB", ValueError()]
    for answers[:] in ([answer] for answer in good):
        assert let_in(way)
    for answers[:] in ([answer] for answer in odd):
        assert unasked(way) is None
    answers[:] = [KeyboardInterrupt()]
    with pytest.raises(KeyboardInterrupt):
        unasked(way)


def test_a_function_that_changes_everything_is_asked_before_that_is_looked_at(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    know_all_classes(monkeypatch)

    def priority(carrier: Any) -> Priority:
        gate.count_refusal(Ask("GET", "/other"), Reason.MEMORY)
        return Priority.DEFAULT

    gate = Gate(monitor=service.monitor, allocation_guard=False, priority=priority)
    way = door(gate)
    asked(gate)
    request = scope()
    assert way.enter(None, request, None, None) is None
    assert "resource_monitor.admitted" not in request
    assert gate.in_flight == 1


def test_so_is_one_that_says_which_paths_are_exempt(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    know_all_classes(monkeypatch)
    changes = False

    def exempt(path: str) -> bool:
        if changes:
            gate.count_refusal(Ask("GET", "/other"), Reason.MEMORY)
        return False

    gate = Gate(monitor=service.monitor, allocation_guard=False, exempt=exempt)
    way = door(gate)
    asked(gate)
    assert let_in(way)
    changes = True
    request = scope()
    assert way.enter(None, request, None, None) is None
    assert "resource_monitor.admitted" not in request


def test_one_that_changes_admission_meanwhile_lets_nobody_start(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    know_all_classes(monkeypatch)

    def priority(carrier: Any) -> Priority:
        gate._lock.__enter__()
        gate.turns.__enter__()
        return Priority.DEFAULT

    gate = Gate(monitor=service.monitor, allocation_guard=False, priority=priority)
    way = door(gate)
    asked(gate)
    assert unasked(way) is None
    gate.turns.__exit__()
    gate._lock.__exit__(None, None, None)


# --- what ends it, and what is counted ---


def test_a_loss_while_admission_is_being_changed_revokes_every_grant_too(gate: Gate, way: Door) -> None:
    asked(gate)
    lost = let_in(way)
    with gate._lock, gate.turns:
        lost.lose()
        lost.leave()
    assert unasked(way) is None
    asked(gate)
    assert gate.statistics().wasted == 1


def test_a_loss_revokes_every_grant_at_once(gate: Gate, way: Door) -> None:
    asked(gate)
    asked(gate, "/other")
    lost = let_in(way)
    lost.lose()
    assert let_in(way, "/other")
    lost.leave()
    assert unasked(way) is None
    assert unasked(way, "/other") is None
    assert gate.statistics().wasted == 1
    assert gate.statistics().routes["GET /"].wasted == 1


def test_a_refusal_revokes_every_grant_at_once(gate: Gate, way: Door) -> None:
    asked(gate)
    gate.count_refusal(Ask("GET", "/other"), Reason.MEMORY)
    assert unasked(way) is None


def test_a_limit_that_changes_revokes_every_grant(gate: Gate, way: Door, service: Service) -> None:
    asked(gate)
    service.use(32 * MIB, limit=64 * MIB)
    gate.statistics()
    assert unasked(way) is None


def test_what_is_counted_is_exact_at_any_moment(gate: Gate, way: Door) -> None:
    first = asked(gate)
    turns = [let_in(way) for _ in range(5)]
    assert gate.in_flight == 6
    found = gate.statistics()
    assert (found.in_flight, found.admitted, found.routes["GET /"].in_flight) == (6, 6, 6)
    turns[0].answered()
    turns[0].answered()
    for turn in turns[:3]:
        turn.leave()
        turn.leave()
    assert gate.in_flight == 3
    found = gate.statistics()
    assert (found.in_flight, found.admitted, found.routes["GET /"].in_flight) == (3, 6, 3)
    assert gate._routes.find("GET", "/")._unanswered == 3
    first.leave()
    del turn, turns[2:], _let_in[:]  # those that nobody runs to their end leave too
    gc.collect()
    assert gate.statistics().in_flight == 0
    assert gate._routes.find("GET", "/")._unanswered == 0


def test_what_is_over_of_a_class_that_nothing_binds_can_wait_to_be_told(
    gate: Gate, way: Door, service: Service
) -> None:
    """Or to settle a few would take as long as to settle all classes of a service."""
    for path in ("/a", "/b"):
        asked(gate, path).leave()
    route = gate._routes.find("GET", "/a")
    before = route._answered
    let_in(way, "/a").leave()
    asked(gate, "/b").leave()
    assert (route._answered, gate.turns.untold) == (before, 1)
    service.clock.pass_(0.249)
    asked(gate, "/b").leave()
    assert (route._answered, gate.turns.untold) == (before, 1)
    service.clock.pass_(0.002)
    asked(gate, "/b").leave()
    assert (route._answered, gate.turns.untold) == (before + 1, 0)


def test_what_is_in_flight_or_lost_cannot_wait(gate: Gate, way: Door) -> None:
    for path in ("/a", "/b"):
        asked(gate, path).leave()
    route = gate._routes.find("GET", "/a")
    turn = let_in(way, "/a")
    asked(gate, "/b").leave()
    assert route.in_flight == 1
    turn.leave()
    asked(gate, "/b").leave()
    assert route.in_flight == 0
    turns = [let_in(way, "/a") for _ in range(2)]
    turns[0].leave()
    turns[1].lose()
    turns[1].leave()
    asked(gate, "/b").leave()
    assert route.lost == 1
    turn = let_in(way, "/a")
    asked(gate, "/b").leave()
    let_in(way, "/a").leave()
    turn.lose()
    turn.leave()  # so that as many started as ended well
    asked(gate, "/b").leave()
    assert (route.lost, route.in_flight) == (2, 0)


def test_nor_can_what_something_binds(gate: Gate, way: Door) -> None:
    route = gate._routes.find("GET", "/a")
    route.rate = 1000.0
    for path in ("/a", "/b", "/a"):
        asked(gate, path)
    let_in(way, "/a").leave()
    asked(gate, "/b")
    assert gate.turns.untold == 0


def test_who_asks_about_a_class_is_told_of_it(gate: Gate, way: Door) -> None:
    asked(gate, "/a").leave()
    route = gate._routes.find("GET", "/a")
    before = route._answered
    let_in(way, "/a").leave()
    asked(gate, "/a")
    assert (route._answered, gate.turns.untold) == (before + 1, 0)


def test_what_waits_to_be_told_is_counted(gate: Gate, way: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    decided: list[int] = []
    monkeypatch.setattr(gate._admission, "lagged", lambda *_, **how: decided.append(how["decided"]))
    asked(gate, "/a").leave()
    for _ in range(3):
        let_in(way, "/a").leave()
    gate.lagged(0.0)
    assert decided == [4]
    assert gate.turns.untold == 3
    assert gate.statistics().admitted == 4
    assert gate.turns.untold == 0
    gate.lagged(0.0)
    assert decided == [4, 4]


def test_only_a_lane_can_be_asked_for(gate: Gate) -> None:
    with pytest.raises(TypeError, match="takes a Lane"):
        gate.turns.take_of("GET /")  # type: ignore[arg-type]


def test_what_is_told_has_its_times(gate: Gate, way: Door, service: Service) -> None:
    asked(gate)
    begin = service.clock()
    turns = []
    for _ in range(3):
        service.clock.pass_(0.001)
        turns.append(let_in(way))
    for turn in turns:
        service.clock.pass_(0.001)
        if turn is turns[2]:
            turn.lose()
        turn.leave()
    used = gate.turns.take()
    assert used is not None
    assert used[:6] == (gate._routes.find("GET", "/"), 3, 3, 2, 1, 3)
    assert [round(at - begin, 6) for at in used[6:]] == [0.001, 0.004, 0.006]
    assert gate.turns.take() is None


def test_other_workers_are_told_once_nothing_is_in_flight(gate: Gate, way: Door) -> None:
    gate._sharing = others = Beside(workers=0)  # type: ignore[assignment]
    first = asked(gate)
    turns = [let_in(way) for _ in range(3)]
    first.leave()
    assert others.told == [1, 3]
    for turn in turns:
        turn.leave()
    assert others.told == [1, 3, 0]
    let_in(way).leave()
    assert others.told == [1, 3, 0]


def test_beside_other_workers_a_grant_is_short_while_anything_is_promised(
    gate: Gate, way: Door, service: Service
) -> None:
    gate._sharing = others = Beside()  # type: ignore[assignment]
    assert gate._ledger is not None
    promise = gate._ledger.make(1)
    asked(gate)
    turns = [let_in(way)]
    assert gate.turns.grants == len(others.told) == 1
    service.clock.pass_(0.0051)
    assert service.clock() < service.monitor.fresh_until
    turns.append(let_in(way))
    assert gate.turns.grants == 2
    assert others.told == [1, 2]
    others.promised = PLENTY
    service.clock.pass_(0.0051)
    assert unasked(way) is None
    promise.end()


def test_or_what_binds_the_class_is(gate: Gate, way: Door, service: Service) -> None:
    gate._sharing = Beside()  # type: ignore[assignment]
    asked(gate).leave()
    route = gate.turns.lane("GET", "/").route
    route.rate, route._tokens, route._filled = 1000.0, 20.0, service.clock()
    asked(gate)
    let_in(way)
    service.clock.pass_(0.0051)
    assert unasked(way) is None


def test_otherwise_it_lasts_as_long_as_the_reading_but_promises_little(gate: Gate, way: Door, service: Service) -> None:
    gate._sharing = others = Beside()  # type: ignore[assignment]
    asked(gate, "/", "POST")
    asked(gate)
    assert gate.turns.grants == 2
    service.clock.pass_(0.0051)
    turns = [let_in(way)]
    bodies, part = door(gate, most_body=1 << 20), (b"content-length", b"%d" % (1 << 16))
    turns += [let_in(bodies, "/", "POST", part) for _ in range(16)]
    assert unasked(bodies, "/", "POST", (b"content-length", b"1")) is None, "of what others do not know"
    turns.append(let_in(way))
    assert gate.turns.grants == 2
    service.clock.pass_(service.monitor.fresh_until - service.clock())
    turns.append(let_in(way))
    assert gate.turns.grants == 3
    assert others.told[-1] == len(turns) + 1


def test_beside_others_much_is_promised_by_asking_alone(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    know_all_classes(monkeypatch)
    gate = Gate(monitor=service.monitor, allocation_guard=False, request_cost=MIB + 1)
    way = door(gate)
    gate._sharing = others = Beside()  # type: ignore[assignment]
    asked(gate)
    first = gate.attempt(gate.ask({}, "GET", "/"))
    assert isinstance(first, Admitted)
    assert gate.turns.grants == 2
    assert unasked(way) is None
    others.workers = 0
    second = gate.attempt(gate.ask({}, "GET", "/"))
    assert isinstance(second, Admitted)
    let_in(way)


def test_what_others_promise_revokes_it_as_soon_as_it_is_seen(gate: Gate, way: Door) -> None:
    gate._sharing = others = Beside(workers=0)  # type: ignore[assignment]
    asked(gate)
    assert let_in(way)
    others.promised = 190 * MIB
    asked(gate)
    assert unasked(way) is None


def test_in_a_child_process_nothing_is_granted_and_what_its_parent_let_in_does_not_count(gate: Gate, way: Door) -> None:
    asked(gate)
    turns = [let_in(way) for _ in range(3)]
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            assert unasked(way) is None
            turns[0].lose()
            for turn in turns:
                turn.answered()
                turn.leave()
            found = gate.statistics()
            assert (found.in_flight, found.wasted, found.routes) == (0, 0, {})
            assert gate.turns.untold == 0
            code = 0
        finally:
            os._exit(code)
    assert os.waitpid(pid, 0)[1] == 0
    assert gate.statistics().in_flight == 4


def test_threads_that_come_and_go_leave_nothing_behind(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    know_all_classes(monkeypatch)
    gate = Gate(monitor=service.monitor, allocation_guard=False, max_in_flight=40, request_cost=100)
    started, over = [0], threading.Event()

    def work() -> None:
        way = door(gate)
        for number in range(2000):
            turn = unasked(way) or gate.attempt(gate.ask({}, "GET", "/"))
            if isinstance(turn, Reason):
                continue
            started[0] += isinstance(turn, Turn)
            turn.answered()
            if number % 97 == 0:
                turn.lose()
            turn.leave()
            if number % 50 == 0:
                gate.statistics()

    def look() -> None:
        while not over.wait(0.001):
            found = gate.statistics()
            assert 0 <= found.in_flight <= 4
            assert 0 <= found.promised <= 400

    threads = [threading.Thread(target=work) for _ in range(4)]
    looking = threading.Thread(target=look)
    looking.start()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    over.set()
    looking.join()
    found = gate.statistics()
    assert started[0]
    assert (found.in_flight, found.promised) == (0, 0)
    assert found.routes["GET /"].in_flight == 0
    assert gate._routes.find("GET", "/")._unanswered == 0
