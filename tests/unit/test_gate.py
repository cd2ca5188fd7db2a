import logging
from collections.abc import Callable
from typing import Any

import pytest
from machine import GIB, MIB, Machine, Service

from resource_monitor import Resource, counts
from resource_monitor.admission import Pressure
from resource_monitor.counts import CountMonitor
from resource_monitor.errors import ConfigurationError
from resource_monitor.limits import open_file_limits, task_limits
from resource_monitor.middleware import gate as module
from resource_monitor.middleware.gate import Gate
from resource_monitor.monitor import MemoryMonitor


@pytest.fixture
def gate(service: Service) -> Gate:
    return Gate(monitor=service.monitor)


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
    class Holder:
        def dirty(self) -> int:
            return 100 * MIB

        def relieve(self) -> bool:
            service.machine.container(usage=155 * MIB)
            return True

    service.monitor.allocator = Holder()  # type: ignore[assignment]
    service.fill()
    assert gate.enter("GET", "/")
    assert gate.statistics().shed == 0


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
    monkeypatch.setattr(module, "default_monitor", make)
    monkeypatch.setattr(module, "MemoryMonitor", make)
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
