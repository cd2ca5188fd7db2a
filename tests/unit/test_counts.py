"""Samplers of what is counted: descriptors and tasks."""

import os
import threading

import pytest
from machine import Clock, Machine, descriptors

from resource_monitor import NotApplicable, ProbeError, Resource, counts
from resource_monitor.counts import CountMonitor
from resource_monitor.limits import UNBOUNDED, LimitReader, open_file_limits, task_limits
from resource_monitor.sampling import FULL_INTERVAL

LONGEST = 0.05


@pytest.fixture
def monitor(machine: Machine, clock: Clock) -> CountMonitor:
    """64 descriptors, of which 10 are open."""
    machine.rlimits(open_files=64)
    machine.descriptors(10)
    monitor = CountMonitor(lambda: open_file_limits(root=str(machine)), clock=clock)
    assert monitor.headroom() == 54
    return monitor


def test_a_fresh_count_is_not_repeated(monitor: CountMonitor, machine: Machine, clock: Clock) -> None:
    machine.descriptors(20)
    assert monitor.headroom() == 54
    clock.pass_(LONGEST)
    assert monitor.headroom() == 44


def test_a_count_ages_the_faster_the_less_is_left(machine: Machine, clock: Clock) -> None:
    machine.rlimits(open_files=10 + 4_000 * (os.cpu_count() or 1))
    machine.descriptors(10)
    monitor = CountMonitor(lambda: open_file_limits(root=str(machine)), clock=clock)
    machine.descriptors(20)
    before = monitor.headroom()
    clock.pass_(0.00098)  # a quarter of what is left can be gone in a millisecond
    assert monitor.headroom() == before
    clock.pass_(0.00004)
    assert monitor.headroom() == before - 10


def test_a_limit_changed_at_run_time_is_followed(monitor: CountMonitor, machine: Machine, clock: Clock) -> None:
    machine.rlimits(open_files=32)
    clock.pass_(FULL_INTERVAL)
    assert monitor.headroom() == 22
    assert monitor.tightest() == 32


def test_the_first_limit_is_read_anew(monitor: CountMonitor, machine: Machine) -> None:
    machine.descriptors(12)
    first = monitor.first()
    assert first is not None
    assert (first.used, first.headroom) == (12, 52)


def test_a_machine_that_limits_nothing_is_unbounded(machine: Machine, clock: Clock) -> None:
    monitor = CountMonitor(lambda: task_limits(root=str(machine)), clock=clock)
    assert (monitor.headroom(), monitor.first()) == (UNBOUNDED, None)


def test_what_cannot_be_read_is_an_error_that_names_it(monitor: CountMonitor, machine: Machine, clock: Clock) -> None:
    machine.write("/proc/self/limits", "?")
    clock.pass_(FULL_INTERVAL)
    with pytest.raises(ProbeError, match=r"^/proc/self/limits: does not hold"):
        monitor.headroom()


# --- as resources ---


@pytest.fixture
def machines_counts(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> Machine:
    def sample(find: object) -> CountMonitor:
        assert find in (open_file_limits, task_limits)
        return CountMonitor(lambda: reader(find), clock=Clock())

    def reader(find: object) -> LimitReader:
        return find(root=str(machine))  # type: ignore[operator,no-any-return]

    monkeypatch.setattr(counts, "open_files", lambda: sample(open_file_limits))
    monkeypatch.setattr(counts, "tasks", lambda: sample(task_limits))
    return machine


def test_open_files_are_a_resource(machines_counts: Machine) -> None:
    machines_counts.rlimits(open_files=64)
    machines_counts.descriptors(10)
    resource = Resource.OPEN_FILES
    assert (resource.limit(), resource.used(), resource.available()) == (64, 10, 54)


def test_tasks_are_a_resource(machines_counts: Machine) -> None:
    machines_counts.v2("/")
    machines_counts.tasks_level("/sys/fs/cgroup", limit=9, usage=12)
    resource = Resource.TASKS
    assert (resource.limit(), resource.used(), resource.available()) == (9, 12, 0)


@pytest.mark.usefixtures("machines_counts")
@pytest.mark.parametrize("resource", [Resource.OPEN_FILES, Resource.TASKS])
def test_what_nothing_limits_has_no_limit_and_everything_left(resource: Resource) -> None:
    assert resource.available() == UNBOUNDED
    for figure in (resource.limit, resource.used):
        with pytest.raises(NotApplicable, match=f"Nothing limits {resource.name} for this process"):
            figure()


def test_the_real_descriptors_are_counted_exactly() -> None:
    before = Resource.OPEN_FILES.used(), len(descriptors())
    held = [os.open(os.devnull, os.O_RDONLY) for _ in range(20)]
    try:
        grown = Resource.OPEN_FILES.used(), len(descriptors())
    finally:
        for descriptor in held:
            os.close(descriptor)
    assert grown[0] - before[0] == grown[1] - before[1] == 20


def test_the_real_tasks_are_counted() -> None:
    sampler = counts.tasks()
    first = sampler.first()
    assert first is not None
    cgroups = [limit for limit in sampler.limits() if limit.kind.endswith(" tasks") and limit.used is not None]
    end = threading.Event()
    threads = [threading.Thread(target=end.wait) for _ in range(8)]
    for thread in threads:
        thread.start()
    try:
        grown = {limit.where: limit.used for limit in sampler.limits()}
        assert Resource.TASKS.available() > 0
    finally:
        end.set()
        for thread in threads:
            thread.join()
    for limit in cgroups:
        assert limit.used is not None
        assert (grown[limit.where] or 0) >= limit.used + 8


def test_everything_in_a_process_shares_one_sampler_of_each() -> None:
    assert Resource.OPEN_FILES.count() is counts.open_files() is counts.open_files()
    assert Resource.TASKS.count() is counts.tasks() is counts.tasks()
    assert Resource.MEMORY.count() is None
