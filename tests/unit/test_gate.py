import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from machine import GIB, MIB, Holder, Machine, Service

from resource_monitor import Resource, counts, guard, reserve
from resource_monitor.admission import Pressure, Priority, Reason
from resource_monitor.counts import CountMonitor
from resource_monitor.errors import ConfigurationError
from resource_monitor.limits import open_file_limits, task_limits
from resource_monitor.middleware import gate as module
from resource_monitor.middleware import readings
from resource_monitor.middleware.asking import Ask
from resource_monitor.middleware.gate import Admitted, Gate
from resource_monitor.middleware.refusing import Shed
from resource_monitor.monitor import MemoryMonitor


@pytest.fixture
def gate(service: Service) -> Gate:
    return Gate(monitor=service.monitor)


@pytest.fixture
def real_clock_stopped(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """Time passes when the service's clock says so."""
    monkeypatch.setattr(module.time, "monotonic", service.clock)


def enter(gate: Gate, path: str = "/", method: str = "GET") -> Admitted:
    """A request that is let in."""
    admitted = gate.enter(method, path)
    assert admitted is not None
    return admitted


def shed(gate: Gate, path: str = "/") -> None:
    """A request that is not."""
    assert gate.enter("GET", path) is None


def messages(caplog: pytest.LogCaptureFixture) -> list[tuple[int, str]]:
    return [(record.levelno, record.getMessage()) for record in caplog.records]


# --- options ---


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"min_available": "lots"},
            "min_available: 'lots' is not a size; give bytes as a number, a size such as \"64MiB\", or a share of the "
            'limit such as "5%".',
        ),
        ({"min_available": "120%"}, "min_available: '120%' is more than the whole limit; give at most 100%."),
        (
            {"min_available": "256MiB"},
            "min_available='256MiB' is not below the memory limit of 256.0 MiB, so every request would be refused; "
            "give less, or a share such as '5%'.",
        ),
        (
            {"min_available": "100%"},
            "min_available='100%' is not below the memory limit of 256.0 MiB, so every request would be refused; "
            "give less, or a share such as '5%'.",
        ),
        (
            {"limit": "1GiB"},
            "limit='1GiB' and monitor are given; declare the limit on the monitor alone.",
        ),
        (
            {"on_probe_error": "panic"},
            "on_probe_error='panic' is neither 'admit' nor 'refuse'; give one of them.",
        ),
        ({"exempt": "/x"}, "exempt='/x' is one text; give a list of paths, such as ['/x']."),
        (
            {"also": {Resource.MEMORY: 32}},
            "also has <Resource.MEMORY: 'memory'>, which is not counted; give Resource.OPEN_FILES or Resource.TASKS "
            "(min_available is for memory).",
        ),
        (
            {"also": {"open_files": 32}},
            "also has 'open_files', which is not counted; give Resource.OPEN_FILES or Resource.TASKS "
            "(min_available is for memory).",
        ),
        (
            {"also": {Resource.TASKS: -1}},
            "also has -1 for Resource.TASKS; give how many must be left, such as 32.",
        ),
        (
            {"also": {Resource.TASKS: True}},
            "also has True for Resource.TASKS; give how many must be left, such as 32.",
        ),
        (
            {"also": {Resource.OPEN_FILES: "5%"}},
            "also has '5%' for Resource.OPEN_FILES; give how many must be left, such as 32.",
        ),
        *(
            (
                {"max_in_flight": number},
                f"max_in_flight={number!r} is no number of requests; give a whole number from 1 to 10**9, or None.",
            )
            for number in (0, -1, True, 1.5, "3")
        ),
        *(
            ({name: value}, f"{name}={value!r} is no time to wait; give seconds, from 0 to 3600.")
            for name in ("max_wait", "body_timeout")
            for value in (-1, 3601, True, "1", None, float("nan"))
        ),
        ({"retry_after": 0}, "retry_after=0 is not a number of seconds; give a whole number from 1 to 86400."),
    ],
)
def test_an_option_that_cannot_be_meant_is_refused_in_one_sentence(
    service: Service, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigurationError) as e:
        Gate(monitor=service.monitor, **options)
    assert str(e.value) == message


def test_a_declared_limit_is_checked_too() -> None:
    with pytest.raises(ConfigurationError, match=r"^limit: 'x' is not a size"):
        Gate(limit="x")


def test_a_limit_can_be_declared_on_the_middleware() -> None:
    gate = Gate(limit="200MiB", min_available="10%", allocation_guard=False)  # it would refuse memory to the tests
    assert gate.statistics().min_available == 20 * MIB


def test_the_default_floor_fits_small_and_large_machines(service: Service) -> None:
    def floor(limit: int) -> int:
        service.use(1, limit=limit)
        return Gate(monitor=service.monitor).statistics().min_available

    assert floor(256 * MIB) == 16 * MIB
    assert floor(1 * GIB) == int(0.05 * GIB)
    assert floor(32 * GIB) == 512 * MIB


# --- decisions ---


def test_admits_while_the_floor_is_left_and_refuses_below(service: Service, gate: Gate) -> None:
    service.use(240 * MIB)
    assert gate.enter("GET", "/")
    service.use(240 * MIB + 1)
    assert not gate.enter("GET", "/")
    service.use(240 * MIB)
    assert gate.enter("GET", "/")


def test_a_container_full_of_page_cache_refuses_nothing(service: Service, gate: Gate) -> None:
    service.machine.container(usage=256 * MIB, inactive_file=180 * MIB)
    service.clock.pass_(10)
    assert gate.enter("GET", "/")


def test_page_cache_that_melts_away_at_the_same_usage_is_noticed_at_once(service: Service, gate: Gate) -> None:
    service.machine.container(usage=245 * MIB, inactive_file=100 * MIB)
    service.clock.pass_(10)
    assert gate.enter("GET", "/")
    service.machine.container(usage=245 * MIB, inactive_file=0)
    service.clock.pass_(0.05)
    assert not gate.enter("GET", "/")


def test_what_the_allocator_gives_back_is_used_before_anything_is_refused(service: Service, gate: Gate) -> None:
    service.monitor.allocator = Holder(service.machine, 100 * MIB)  # type: ignore[assignment]
    service.fill()
    assert gate.enter("GET", "/")
    assert gate.statistics().shed == 0


def test_requests_that_can_wait_rather_wait_than_start_where_what_they_hold_does_not_fit(service: Service) -> None:
    service.use(200 * MIB)
    for max_wait, answer in ((0.0, Admitted), (1.0, Reason)):
        gate = Gate(monitor=service.monitor, max_wait=max_wait)
        enter(gate)
        gate.turns.lane("GET", "/").route._holds = 50 * MIB  # 56 are left, of which 16 are the floor
        assert isinstance(gate.attempt(Ask("GET", "/")), answer)


def test_a_limit_changed_at_run_time_moves_the_floor(service: Service) -> None:
    gate = Gate(min_available="10%", monitor=service.monitor)
    service.use(450 * MIB, limit=500 * MIB)
    assert gate.enter("GET", "/")
    assert gate.statistics().min_available == 50 * MIB
    service.use(450 * MIB + 4096, limit=500 * MIB)
    assert not gate.enter("GET", "/")


def test_a_process_moved_to_where_nothing_limits_it_is_refused_nothing(service: Service, gate: Gate) -> None:
    service.fill()
    assert not gate.enter("GET", "/")
    service.machine.path("/proc/meminfo").unlink()
    service.machine.process("0::/elsewhere\n", "")
    service.clock.pass_(10)
    assert gate.enter("GET", "/")
    assert gate.statistics().min_available == 0


def test_a_floor_above_a_limit_lowered_at_run_time_refuses(service: Service) -> None:
    gate = Gate(min_available="64MiB", monitor=service.monitor)
    service.use(1 * MIB, limit=60 * MIB)
    assert not gate.enter("GET", "/")


def test_exempt_paths_are_never_refused(service: Service, gate: Gate) -> None:
    service.fill()
    assert gate.enter("GET", "/livez")
    assert gate.enter("GET", "/mnt/healthz", "/mnt")
    assert not gate.enter("GET", "/other")
    assert gate.statistics().exempt == 2


# --- descriptors and tasks ---


@pytest.fixture
def few_descriptors(service: Service, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Lets the service have so many descriptors left."""
    machine = service.machine
    machine.descriptors(4)

    def leave(number: int) -> None:
        machine.rlimits(open_files=4 + number)
        service.clock.pass_(10)

    leave(1000)
    sampler = CountMonitor(lambda: open_file_limits(root=str(machine)), clock=service.clock)
    monkeypatch.setattr(counts, "open_files", lambda: sampler)
    return leave


def test_descriptors_that_run_short_refuse_too(service: Service, few_descriptors: Callable[[int], None]) -> None:
    gate = Gate(monitor=service.monitor, also={Resource.OPEN_FILES: 32})
    few_descriptors(32)
    assert gate.enter("GET", "/")
    few_descriptors(31)
    assert not gate.enter("GET", "/")
    assert gate.enter("GET", "/livez")
    few_descriptors(32)
    assert gate.enter("GET", "/")
    assert gate.statistics().shed == 1


def test_a_shortage_of_descriptors_is_logged_in_their_name(
    service: Service, few_descriptors: Callable[[int], None], caplog: pytest.LogCaptureFixture
) -> None:
    gate = Gate(monitor=service.monitor, also={Resource.OPEN_FILES: 32})
    few_descriptors(5)
    for _ in range(3):
        gate.enter("GET", "/")
    assert messages(caplog) == [
        (
            logging.WARNING,
            "Shedding: 5 open files left, 32 wanted; requests are answered 503 until there is room again.",
        )
    ]


@pytest.mark.parametrize("policy", ["admit", "refuse"])
def test_descriptors_that_cannot_be_counted_follow_the_policy(
    service: Service, few_descriptors: Callable[[int], None], policy: str, caplog: pytest.LogCaptureFixture
) -> None:
    gate = Gate(monitor=service.monitor, also={Resource.OPEN_FILES: 32}, on_probe_error=policy)
    service.machine.write("/proc/self/limits", "?")
    service.clock.pass_(10)
    assert (gate.enter("GET", "/") is not None) is (policy == "admit")
    assert gate.statistics().probe_errors == 1
    assert [
        text for level, text in messages(caplog) if level == logging.ERROR and "/proc/self/limits: does not" in text
    ]
    few_descriptors(100)
    assert gate.enter("GET", "/")


def test_tasks_that_run_short_refuse_too(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    service.machine.tasks_level("/sys/fs/cgroup", limit=100, usage=99)
    sampler = CountMonitor(lambda: task_limits(root=str(service.machine)), clock=service.clock)
    monkeypatch.setattr(counts, "tasks", lambda: sampler)
    assert not Gate(monitor=service.monitor, also={Resource.TASKS: 2}).enter("GET", "/")
    assert Gate(monitor=service.monitor, also={Resource.TASKS: 1}).enter("GET", "/")


# --- the machine without a limit ---


def test_no_limit_at_all_is_said_once_and_everything_admitted(
    machine: Machine, caplog: pytest.LogCaptureFixture
) -> None:
    machine.path("/proc/meminfo").unlink()
    gate = Gate(monitor=MemoryMonitor(root=str(machine)))
    assert all(gate.enter("GET", "/") for _ in range(10))
    assert messages(caplog) == [
        (
            logging.WARNING,
            "No memory limit was found, so every request will be admitted; run in a container with a memory limit or "
            "declare one with RESOURCE_MONITOR_LIMIT.",
        )
    ]


def test_only_the_hosts_memory_is_said_once(machine: Machine, caplog: pytest.LogCaptureFixture) -> None:
    gate = Gate(monitor=MemoryMonitor(root=str(machine)))
    assert gate.enter("GET", "/")
    assert messages(caplog) == [
        (
            logging.WARNING,
            "No cgroup limits the memory of this process, so only the machine's 64.0 GiB protect it; run in a "
            "container with a memory limit or declare one with RESOURCE_MONITOR_LIMIT.",
        )
    ]


def test_a_container_with_a_limit_has_nothing_to_warn_of(gate: Gate, caplog: pytest.LogCaptureFixture) -> None:
    assert gate.enter("GET", "/")
    assert messages(caplog) == []


# --- what cannot be read ---


@pytest.mark.parametrize("policy", ["admit", "refuse"])
def test_a_failing_probe_follows_the_policy_and_is_logged_once_a_change(
    service: Service, policy: str, caplog: pytest.LogCaptureFixture
) -> None:
    gate = Gate(monitor=service.monitor, on_probe_error=policy)
    service.break_probe()
    assert [gate.enter("GET", "/") is not None for _ in range(3)] == [policy == "admit"] * 3
    consequence = "admitted unchecked" if policy == "admit" else "refused"
    assert [text for level, text in messages(caplog) if level == logging.ERROR] == [
        "Memory cannot be read (/proc/meminfo: does not hold what the kernel documents for it); requests are "
        f"{consequence} until it can."
    ]
    assert gate.statistics().probe_errors == 3
    service.mend_probe()
    assert gate.enter("GET", "/")
    assert gate.enter("GET", "/")
    assert [text for _, text in messages(caplog)].count("Memory can be read again; requests are decided by it.") == 1
    service.break_probe()
    gate.enter("GET", "/")
    assert len([level for level, _ in messages(caplog) if level == logging.ERROR]) == 2


def test_a_probe_that_fails_at_the_start_stops_no_service(service: Service, caplog: pytest.LogCaptureFixture) -> None:
    service.break_probe()
    gate = Gate(monitor=service.monitor)
    assert gate.enter("GET", "/")
    service.mend_probe()
    assert gate.enter("GET", "/")
    assert gate.statistics().min_available == 16 * MIB
    service.fill()
    assert not gate.enter("GET", "/")


@pytest.mark.parametrize("limit", [None, "100MiB"])
def test_a_monitor_that_cannot_be_made_at_the_start_is_made_later(
    limit: str | None, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def make(*, limit: str | None = None) -> MemoryMonitor:
        return MemoryMonitor(limit=limit, root=str(machine))

    machine.resident(10 * MIB)
    machine.memory(total=100 * MIB, available=90 * MIB)
    monkeypatch.setattr(readings, "default_monitor", make)
    monkeypatch.setattr(readings, "MemoryMonitor", make)
    machine.make_unreadable("/proc/self/cgroup")
    gate = Gate(limit=limit, min_available="10%")
    assert gate.enter("GET", "/")
    assert gate.statistics().probe_errors == 2
    machine.path("/proc/self/cgroup").rmdir()
    assert gate.enter("GET", "/")
    assert gate.statistics().probe_errors == 2
    assert gate.statistics().min_available == 10 * MIB


# --- counts and log lines ---


def test_counts_what_it_did(service: Service, gate: Gate) -> None:
    assert gate.enter("GET", "/a")
    assert gate.enter("GET", "/b")
    exempt = gate.enter("GET", "/livez")
    assert exempt
    exempt.leave()
    exempt.leave()
    service.fill()
    assert not gate.enter("GET", "/c")
    found = gate.statistics()
    assert (found.in_flight, found.admitted, found.shed, found.exempt, found.probe_errors) == (2, 2, 1, 1, 0)
    assert found.pressure is Pressure.SHEDDING
    assert found.min_available == 16 * MIB


def test_shedding_is_logged_when_it_begins_and_when_it_ends(
    service: Service, gate: Gate, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(module.time, "monotonic", service.clock)
    service.fill()
    for _ in range(5):
        assert not gate.enter("GET", "/")
    service.empty()
    for _ in range(5):
        assert gate.enter("GET", "/")
    assert messages(caplog) == [
        (
            logging.WARNING,
            "Shedding: 1.0 MiB of memory available, 16.0 MiB wanted; requests are answered 503 until there is room "
            "again.",
        ),
        (logging.INFO, "Shedding ended: 224.0 MiB available."),
    ]
    assert gate.statistics().pressure is Pressure.OK


# --- every refusal has its reason ---


def filled(service: Service, gate: Gate) -> None:
    service.fill()


def paced(service: Service, gate: Gate) -> None:
    """Half of what started was lost, and one is in flight still."""
    requests = [enter(gate) for _ in range(18)]
    for request in requests[1::2]:
        request.lose()
        request.leave()
    for request in requests[::2]:
        service.clock.pass_(0.05)
        request.leave()
    enter(gate)


def lagging(service: Service, gate: Gate) -> None:
    for _ in range(5):
        enter(gate)
    for _ in range(20):
        service.clock.pass_(0.15)
        gate.lagged(0.1)


def new(service: Service, gate: Gate) -> None:
    """As many are unanswered as may be while it is not known what they take."""
    for _ in range(18):
        enter(gate)


def at_the_cap(service: Service, gate: Gate) -> None:
    for number in range(10):
        enter(gate, f"/a{number % 2}")


def unreadable(service: Service, gate: Gate) -> None:
    service.break_probe()


@pytest.mark.usefixtures("real_clock_stopped")
@pytest.mark.parametrize(
    ("make", "options", "reason", "sentence"),
    [
        (filled, {}, Reason.MEMORY, "1.0 MiB of memory available, 16.0 MiB wanted"),
        (paced, {}, Reason.PACE, "GET / starts no faster than it completes"),
        (lagging, {}, Reason.LATENCY, "the event loop lags"),
        (new, {}, Reason.COLD_START, "what GET / needs is not known yet"),
        (at_the_cap, {"max_in_flight": 10}, Reason.IN_FLIGHT, "max_in_flight requests are in flight"),
        (unreadable, {"on_probe_error": "refuse"}, Reason.PROBE_ERROR, "memory cannot be read"),
    ],
)
def test_every_refusal_is_counted_by_its_reason_and_the_first_one_logged_with_it(
    service: Service,
    make: Callable[[Service, Gate], None],
    options: dict[str, Any],
    reason: Reason,
    sentence: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    gate = Gate(monitor=service.monitor, **options)
    make(service, gate)
    while gate.enter("GET", "/") is not None:
        pass
    shed(gate)
    found = gate.statistics()
    assert found.shed_by_reason == {reason: 2}
    assert found.shed == 2
    assert found.pressure is Pressure.SHEDDING
    assert [text for level, text in messages(caplog) if level == logging.WARNING] == [
        f"Shedding: {sentence}; requests are answered 503 until there is room again."
    ]


def test_a_body_that_finds_no_room_is_counted_and_logged(gate: Gate, caplog: pytest.LogCaptureFixture) -> None:
    gate.count_refusal(Ask("POST", "/files/17"), Reason.BODY)
    assert gate.statistics().shed_by_reason == {Reason.BODY: 1}
    assert messages(caplog) == [
        (
            logging.WARNING,
            "Shedding: no room for the body of POST /files/{}; requests are answered 503 until there is room again.",
        )
    ]


def test_a_body_that_is_too_large_is_counted_and_no_time_of_shedding(
    gate: Gate, caplog: pytest.LogCaptureFixture
) -> None:
    gate.count_refusal(Ask("POST", "/files/17"), Reason.TOO_LARGE)
    assert gate.statistics().shed_by_reason == {Reason.TOO_LARGE: 1}
    assert gate.statistics().pressure is Pressure.OK
    assert messages(caplog) == []


def test_reasons_are_counted_apart(service: Service, few_descriptors: Callable[[int], None]) -> None:
    gate = Gate(monitor=service.monitor, also={Resource.OPEN_FILES: 32}, max_in_flight=1)
    request = enter(gate)
    shed(gate)
    request.leave()
    few_descriptors(1)
    shed(gate)
    few_descriptors(100)
    service.fill()
    shed(gate)
    assert gate.statistics().shed_by_reason == {Reason.IN_FLIGHT: 1, Reason.COUNT: 1, Reason.MEMORY: 1}


def test_to_ask_again_is_no_refusal(service: Service, gate: Gate, caplog: pytest.LogCaptureFixture) -> None:
    service.fill()
    ask = Ask("GET", "/")
    assert [gate.attempt(ask) for _ in range(3)] == [Reason.MEMORY] * 3
    assert gate.statistics().shed == 0
    assert messages(caplog) == []
    assert isinstance(gate.refuse(ask, Reason.MEMORY), Shed)
    assert gate.statistics().shed == 1


@pytest.mark.usefixtures("real_clock_stopped")
def test_pressure_rises_before_anything_is_refused(service: Service, gate: Gate) -> None:
    service.use(225 * MIB)
    enter(gate, "/a")
    assert gate.statistics().pressure is Pressure.ELEVATED
    service.empty()
    enter(gate, "/a")
    assert gate.statistics().pressure is Pressure.OK


# --- dry run ---


def test_a_dry_run_decides_counts_and_logs_but_admits(service: Service, caplog: pytest.LogCaptureFixture) -> None:
    gate = Gate(monitor=service.monitor, dry_run=True)
    service.fill()
    requests = [enter(gate) for _ in range(3)]
    found = gate.statistics()
    assert (found.shed_by_reason, found.in_flight) == ({Reason.MEMORY: 3}, 3)
    assert found.routes["GET /"].in_flight == 3
    assert found.pressure is Pressure.SHEDDING
    assert messages(caplog) == [
        (
            logging.WARNING,
            "Dry run, nothing is refused: Shedding: 1.0 MiB of memory available, 16.0 MiB wanted; requests are "
            "answered 503 until there is room again.",
        )
    ]
    for request in requests:
        request.leave()
    assert gate.statistics().in_flight == 0


def test_a_dry_run_installs_no_guard_unless_it_is_told_to() -> None:
    Gate(limit="8GiB", dry_run=True)
    assert guard._installed is None
    Gate(limit="8GiB", dry_run=True, allocation_guard=True)
    assert guard._installed is not None


# --- what is known of requests ---


def test_what_a_request_costs_is_kept_for_it_until_it_ends(service: Service) -> None:
    gate = Gate(monitor=service.monitor, request_cost="100MiB")
    ask = gate.ask({}, "GET", "/")
    first, second = gate.attempt(ask), gate.attempt(ask)
    assert isinstance(first, Admitted)
    assert isinstance(second, Admitted)
    assert gate.statistics().promised == 200 * MIB
    assert gate.attempt(ask) is Reason.MEMORY
    assert gate.attempt(Ask("GET", "/ping")) is not Reason.MEMORY
    first.leave()
    first.leave()
    assert gate.statistics().promised == 100 * MIB
    assert isinstance(gate.attempt(ask), Admitted)


def test_a_refused_request_is_promised_nothing(service: Service) -> None:
    gate = Gate(monitor=service.monitor, request_cost="300MiB")
    assert gate.attempt(gate.ask({}, "GET", "/")) is Reason.MEMORY
    assert gate.statistics().promised == 0


def test_the_log_says_what_a_request_would_have_needed(service: Service, caplog: pytest.LogCaptureFixture) -> None:
    gate = Gate(monitor=service.monitor, request_cost="300MiB")
    ask = gate.ask({}, "GET", "/")
    gate.refuse(ask, Reason.MEMORY if gate.attempt(ask) is Reason.MEMORY else Reason.BODY)
    assert "Shedding: 224.0 MiB of memory available, 316.0 MiB wanted;" in caplog.text


def test_reserved_memory_is_not_left_for_requests(service: Service, gate: Gate) -> None:
    with reserve(200 * MIB, monitor=service.monitor):
        assert gate.statistics().promised == 200 * MIB
        enter(gate).leave()
        with reserve(12 * MIB, monitor=service.monitor):
            shed(gate)
    enter(gate)


def test_a_request_is_asked_for_as_the_users_callables_say(service: Service) -> None:
    gate = Gate(
        monitor=service.monitor,
        request_cost=lambda carrier: carrier["cost"],
        priority=lambda carrier: carrier["priority"],
    )
    ask = gate.ask({"cost": 10, "priority": Priority.SHEDDABLE}, "GET", "/x", "/app", body=5)
    assert ask == Ask("GET", "/x", "/app", 15, Priority.SHEDDABLE)


def test_critical_requests_are_let_in_where_others_are_not_and_sheddable_ones_go_first(service: Service) -> None:
    gate = Gate(monitor=service.monitor, priority=lambda carrier: carrier["priority"])

    def admits(priority: Priority) -> bool:
        answer = gate.attempt(gate.ask({"priority": priority}, "GET", f"/{priority}"))
        if isinstance(answer, Admitted):
            answer.leave()
        return isinstance(answer, Admitted)

    for left, admitted in [(32, 3), (31, 2), (16, 2), (15, 1), (8, 1), (7, 0)]:
        service.use((256 - left) * MIB)
        assert [admits(priority) for priority in (Priority.CRITICAL, Priority.DEFAULT, Priority.SHEDDABLE)] == [
            number < admitted for number in range(3)
        ]


def test_exempt_requests_take_no_place_of_the_others(service: Service) -> None:
    gate = Gate(monitor=service.monitor, max_in_flight=1)
    exempt = enter(gate, "/livez")
    assert exempt.exempt
    request = enter(gate)
    assert not request.exempt
    shed(gate)
    enter(gate, "/livez")
    assert gate.in_flight == gate.statistics().in_flight == 3


# --- what a request says of itself ---


def test_a_request_that_ran_out_of_memory_is_counted_once(gate: Gate) -> None:
    request = enter(gate, "/work")
    request.lose()
    request.lose()
    request.leave()
    request.leave()
    found = gate.statistics()
    assert (found.in_flight, found.wasted, found.admitted) == (0, 1, 1)
    assert found.routes["GET /work"].wasted == 1


def test_an_answer_is_told_once_and_lets_others_of_a_new_class_start(gate: Gate) -> None:
    requests = [enter(gate, "/new") for _ in range(18)]
    shed(gate, "/new")
    for _ in range(3):
        requests[0].answered()
    enter(gate, "/new")
    shed(gate, "/new")
    requests[0].leave()
    shed(gate, "/new")


def test_classes_are_told_of_while_there_is_something_to_tell(gate: Gate) -> None:
    assert gate.statistics().routes == {}
    requests = [enter(gate, f"/users/{number}/orders") for number in range(2)]
    [(name, route)] = gate.statistics().routes.items()
    assert name == "GET /users/{}/orders"
    assert (route.in_flight, route.wasted, route.rate, route.window) == (2, 0, None, None)
    assert (route.floor, route.unseen) == (16 * MIB, 0)
    for request in requests:
        request.leave()
    assert gate.statistics().routes == {}


@pytest.mark.usefixtures("real_clock_stopped")
def test_a_class_s_pace_is_told(service: Service, gate: Gate) -> None:
    paced(service, gate)
    route = gate.statistics().routes["GET /"]
    assert (route.in_flight, route.wasted) == (1, 9)
    assert route.rate or route.window


@pytest.mark.usefixtures("real_clock_stopped")
@pytest.mark.parametrize(("max_wait", "floor"), [(0.0, 3 * MIB), (1.0, 16 * MIB)])
def test_the_floor_that_is_told_is_the_one_that_holds(
    service: Service, caplog: pytest.LogCaptureFixture, max_wait: float, floor: int
) -> None:
    gate = Gate(monitor=service.monitor, max_wait=max_wait)
    enter(gate)
    gate._admission.lowest = 3 * MIB
    gate._routes.find("GET", "/").rate = 10.0
    assert gate.statistics().routes["GET /"].floor == floor
    service.fill()
    gate.count_refusal(Ask("GET", "/"), Reason.MEMORY)
    assert f"{floor // MIB}.0 MiB wanted" in caplog.text


def test_what_a_class_takes_unseen_is_told(service: Service, gate: Gate) -> None:
    for _ in range(4):
        enter(gate, "/array")
    service.use(8 * MIB + 64 * MIB)  # half of the floor of what grows first is what they load
    enter(gate, "/ping")
    found = gate.statistics().routes
    assert found["GET /array"].unseen == 8 * MIB
    assert found["GET /ping"].unseen == 0


def test_the_age_of_the_reading_is_told(service: Service) -> None:
    gate = Gate(monitor=service.monitor)
    enter(gate)
    assert gate.statistics().reading_age == 0
    service.clock.pass_(3)
    assert gate.statistics().reading_age == 3


def test_what_the_allocator_gave_back_is_told(service: Service, gate: Gate) -> None:
    service.monitor.allocator = Holder(service.machine, 100 * MIB)  # type: ignore[assignment]
    service.fill()
    enter(gate)
    found = gate.statistics()
    assert (found.reliefs, found.relieved) == (1, 100 * MIB)


def test_before_memory_could_be_read_there_is_nothing_to_tell_of_it(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readings, "default_monitor", lambda: MemoryMonitor(root=str(machine)))
    machine.make_unreadable("/proc/self/cgroup")
    found = Gate().statistics()
    assert (found.reading_age, found.reliefs, found.promised, found.workers) == (None, 0, 0, 0)


def test_those_that_wait_are_told(gate: Gate) -> None:
    gate.waits(1)
    gate.waits(1)
    gate.waits(-1)
    assert gate.statistics().waiting == 1


# --- readings that are no measure ---


@pytest.mark.usefixtures("real_clock_stopped")
def test_memory_that_could_not_be_read_for_a_while_was_not_taken_unseen(service: Service, gate: Gate) -> None:
    enter(gate, "/a")
    service.break_probe()
    enter(gate, "/b")
    service.mend_probe()
    enter(gate, "/c")
    assert [route.unseen for route in gate.statistics().routes.values()] == [0, 0, 0]


def test_promises_still_count_when_memory_could_not_be_read_for_a_while(service: Service, gate: Gate) -> None:
    with reserve(212 * MIB, monitor=service.monitor):
        service.use(40 * MIB)
        shed(gate)
        service.break_probe()
        enter(gate).leave()
        service.mend_probe()
        service.use(41 * MIB)
        shed(gate)


@pytest.mark.usefixtures("real_clock_stopped")
def test_a_limit_that_was_lowered_was_not_taken_unseen(service: Service, gate: Gate) -> None:
    enter(gate, "/a")
    service.use(32 * MIB, limit=192 * MIB)
    enter(gate, "/b")
    enter(gate, "/c")
    assert [route.unseen for route in gate.statistics().routes.values()] == [0, 0, 0]


# --- fork ---


@pytest.fixture
def in_child() -> Iterator[Callable[[Callable[[], None]], None]]:
    """Runs a function in a child process, which must find everything in order."""

    def run(check: Callable[[], None]) -> None:
        pid = os.fork()
        if pid == 0:
            signal.alarm(60)  # ends what hangs
            code = 1
            try:
                check()
                code = 0
            finally:
                os._exit(code)
        assert os.waitpid(pid, 0)[1] == 0

    return run


def test_requests_of_before_a_fork_do_not_count_in_the_child(
    service: Service, in_child: Callable[[Callable[[], None]], None]
) -> None:
    gate = Gate(monitor=service.monitor, allocation_guard=False, max_in_flight=18, request_cost="1MiB")
    requests = [gate.attempt(gate.ask({}, "GET", "/")) for _ in range(18)]
    gate.waits(1)

    def check() -> None:
        found = gate.statistics()
        assert (found.in_flight, found.waiting, found.promised, found.routes) == (0, 0, 0, {})
        for request in requests:
            assert isinstance(request, Admitted)
            request.lose()
            request.answered()
            request.leave()
        found = gate.statistics()
        assert (found.in_flight, found.promised, found.wasted) == (0, 0, 0)
        for _ in range(18):
            assert isinstance(gate.attempt(gate.ask({}, "GET", "/")), Admitted)
        assert gate.attempt(gate.ask({}, "GET", "/")) is Reason.IN_FLIGHT
        assert gate.statistics().promised == 18 * MIB

    in_child(check)
    found = gate.statistics()
    assert (found.in_flight, found.waiting, found.promised) == (18, 1, 18 * MIB)


def test_an_answer_to_a_request_of_before_a_fork_makes_no_class_better_known(
    service: Service, in_child: Callable[[Callable[[], None]], None]
) -> None:
    gate = Gate(monitor=service.monitor, allocation_guard=False)
    requests = [enter(gate) for _ in range(18)]

    def check() -> None:
        for request in requests:
            request.leave()
        for _ in range(18):
            enter(gate)
        shed(gate)

    in_child(check)


def test_a_child_can_ask_whatever_its_parent_s_threads_were_doing(
    service: Service, in_child: Callable[[Callable[[], None]], None]
) -> None:
    gate = Gate(monitor=service.monitor, allocation_guard=False, request_cost="1MiB")
    enter(gate).leave()
    held, over = threading.Event(), threading.Event()

    def hold() -> None:
        assert gate._ledger is not None
        with gate._lock, gate._ledger._lock, service.monitor._lock:
            held.set()
            over.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    try:
        in_child(lambda: enter(gate).leave())
    finally:
        over.set()
        thread.join()


def test_a_request_for_whose_admission_there_is_no_memory_is_refused_and_leaves_nothing(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(monitor=service.monitor, request_cost=10 * MIB)

    def fail(ledger: Any, size: int) -> None:
        raise MemoryError

    monkeypatch.setattr("resource_monitor.reservation.Ledger.make", fail)
    assert gate.enter("GET", "/")  # asks for nothing: cost is told by ask()
    ask = gate.ask({}, "GET", "/")
    assert gate.attempt(ask) is Reason.MEMORY
    statistics = gate.statistics()
    assert (statistics.in_flight, statistics.admitted, statistics.promised) == (1, 1, 0)
    assert statistics.routes["GET /"].in_flight == 1


def test_one_for_whose_grant_there_is_none_leaves_nothing_either(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(monitor=service.monitor, request_cost=10 * MIB)

    def fail(admission: Any, *_: Any, **__: Any) -> None:
        raise MemoryError

    monkeypatch.setattr("resource_monitor.admission.Admission.grant", fail)
    assert gate.attempt(gate.ask({}, "GET", "/")) is Reason.MEMORY
    statistics = gate.statistics()
    assert (statistics.in_flight, statistics.admitted, statistics.promised) == (0, 0, 0)
    assert statistics.routes["GET /"].in_flight == 0


def test_what_was_promised_to_a_request_is_no_room_where_others_took_it(service: Service) -> None:
    gate = Gate(monitor=service.monitor, allocation_guard=False, request_cost=4 * MIB, min_available=0)
    admitted = gate.attempt(gate.ask({}, "GET", "/"))
    assert isinstance(admitted, Admitted)
    assert gate.room(admitted, MIB, promised=False) > 0
    service.use(256 * MIB)
    assert gate.room(admitted, MIB, promised=False) < 0


# --- several workers that want the same memory at once ---


class Neighbours:
    """They promise ``more`` bytes when they are told of something for the first time, not knowing of it yet."""

    def __init__(self, gate: Gate, more: int) -> None:
        self.gate, self.more = gate, more
        self.promised = 0
        self.told: list[int] = []

    def tell(self, to_take: int, in_flight: int, now: float, *, exactly: bool) -> int:
        assert self.gate._ledger is not None
        self.told.append(self.gate._ledger.unshown)
        self.promised = self.more
        return in_flight

    def teach(self, routes: Any, now: float) -> None: ...

    def learned(self, name: str, now: float) -> None: ...

    def others(self, now: float, *, at_once: bool = False) -> module.Others:
        return module.Others(promised=self.promised if at_once else 0, in_flight=0, workers=1)


@pytest.mark.parametrize(
    ("need", "more", "outcome", "told"),
    [
        (100 * MIB, 50 * MIB, None, [100 * MIB, 100 * MIB]),  # both fit
        (100 * MIB, 120 * MIB, Reason.MEMORY, [100 * MIB, 0]),
        (MIB, 250 * MIB, None, [MIB]),  # what is little is told afterwards
        (300 * MIB, 0, Reason.MEMORY, []),  # for what cannot fit nobody has to make room
    ],
)
def test_what_is_wanted_is_told_before_it_is_seen_what_others_want(
    service: Service, need: int, more: int, outcome: Reason | None, told: list[int]
) -> None:
    gate = Gate(monitor=service.monitor, allocation_guard=False, request_cost=need)
    gate._sharing = others = Neighbours(gate, more)  # type: ignore[assignment]
    answer = gate.attempt(gate.ask({}, "GET", "/"))
    assert answer is outcome if outcome else isinstance(answer, Admitted)
    assert others.told == told
    assert gate.statistics().promised == (0 if outcome else need)
    assert gate.in_flight == (0 if outcome else 1)


def test_nothing_stays_promised_where_there_is_no_memory_to_see_it(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(monitor=service.monitor, allocation_guard=False, request_cost="100MiB")
    gate._sharing = others = Neighbours(gate, 0)  # type: ignore[assignment]

    def fail(admission: Any, *given: Any, **how: Any) -> None:
        raise MemoryError

    monkeypatch.setattr("resource_monitor.admission.Admission.decide", fail)
    assert gate.attempt(gate.ask({}, "GET", "/")) is Reason.MEMORY
    assert others.told == [100 * MIB]
    assert gate.statistics().promised == 0
