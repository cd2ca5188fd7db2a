import logging
import os
import signal
import threading
from collections.abc import Callable

import pytest
from machine import GIB, MIB, Clock, Holder, Machine

from resource_monitor.errors import ConfigurationError, ProbeError
from resource_monitor.limits import UNBOUNDED, USAGE
from resource_monitor.monitor import MemoryMonitor, Reading, default_monitor
from resource_monitor.sampling import _after_fork_in_child

LONGEST, SHORTEST, FULL_INTERVAL, RETRY = 0.05, 0.0002, 0.1, 0.05
CURRENT, STAT = "/sys/fs/cgroup/memory.current", "/sys/fs/cgroup/memory.stat"


@pytest.fixture
def monitor(machine: Machine, clock: Clock) -> MemoryMonitor:
    machine.container(limit=256 * MIB, usage=100 * MIB, inactive_file=40 * MIB)
    monitor = MemoryMonitor(root=str(machine), clock=clock)
    monitor.allocator = Holder(machine)  # type: ignore[assignment]
    assert monitor.headroom() == (256 - 100 + 40) * MIB
    return monitor


def hold(monitor: MemoryMonitor, machine: Machine, held: int, *, tells: bool = True) -> Holder:
    holder = Holder(machine, held, tells=tells)
    monitor.allocator = holder  # type: ignore[assignment]
    return holder


# --- freshness ---


def test_a_fresh_reading_is_not_repeated(monitor: MemoryMonitor, machine: Machine, clock: Clock) -> None:
    machine.write(CURRENT, str(200 * MIB))
    assert monitor.headroom() == 196 * MIB
    clock.pass_(LONGEST)
    assert monitor.headroom() == 96 * MIB


def test_between_full_readings_usage_alone_is_read(monitor: MemoryMonitor, machine: Machine, clock: Clock) -> None:
    machine.container(limit=512 * MIB, usage=105 * MIB, inactive_file=0)
    clock.pass_(LONGEST)
    assert monitor.headroom() == (256 - 105 + 40) * MIB
    clock.pass_(FULL_INTERVAL)
    assert monitor.headroom() == (512 - 105) * MIB


@pytest.mark.parametrize(("moved", "read"), [(10 * MIB, False), (10 * MIB + 1, True), (-10 * MIB - 1, True)])
def test_where_usage_moves_by_more_than_a_quarter_of_the_reclaimable_part_that_is_read_too(
    monitor: MemoryMonitor, machine: Machine, clock: Clock, moved: int, read: bool
) -> None:
    machine.container(usage=100 * MIB + moved, inactive_file=20 * MIB)
    clock.pass_(LONGEST)
    assert monitor.headroom() == (256 - 100 + (20 if read else 40)) * MIB - moved


def test_movements_below_a_mebibyte_are_too_small_for_that(machine: Machine, clock: Clock) -> None:
    machine.container(usage=100 * MIB)
    monitor = MemoryMonitor(root=str(machine), clock=clock)
    machine.container(usage=101 * MIB, inactive_file=50 * MIB)
    clock.pass_(LONGEST)
    assert monitor.headroom() == 155 * MIB


def test_near_the_floor_every_reading_is_also_of_what_is_reclaimable(
    monitor: MemoryMonitor, machine: Machine, clock: Clock
) -> None:
    """Usage stands still while the kernel reclaims, so only the statistics show that what is reclaimable melts away."""
    monitor.watch(80 * MIB)
    machine.container(limit=512 * MIB, usage=100 * MIB, inactive_file=5 * MIB)
    clock.pass_(LONGEST)
    assert monitor.headroom() == 161 * MIB, "by the limit that was known, which is not read each time"
    clock.pass_(FULL_INTERVAL)
    assert monitor.headroom() == 417 * MIB


def test_the_most_demanding_watcher_counts(monitor: MemoryMonitor, machine: Machine, clock: Clock) -> None:
    monitor.watch(80 * MIB)
    monitor.watch(1 * MIB)
    machine.container(usage=100 * MIB, inactive_file=5 * MIB)
    clock.pass_(LONGEST)
    assert monitor.headroom() == 161 * MIB


@pytest.mark.parametrize(
    ("headroom", "age"),
    [
        (0, SHORTEST),
        (8 * GIB, LONGEST),
        (None, 0.005),  # what every core together could fill a quarter of in 5 ms
    ],
)
def test_a_reading_ages_as_fast_as_the_machine_could_eat_a_quarter_of_the_headroom(
    machine: Machine, clock: Clock, headroom: int | None, age: float
) -> None:
    if headroom is None:
        headroom = int(4 * 2.4e9 * len(os.sched_getaffinity(0)) * age)
    machine.container(limit=16 * GIB, usage=16 * GIB - headroom)
    monitor = MemoryMonitor(root=str(machine), clock=clock)
    machine.container(limit=16 * GIB, usage=1 * GIB)
    clock.pass_(age * 0.98)
    assert monitor.headroom() == headroom
    clock.pass_(age * 0.04)
    assert monitor.headroom() != headroom


def test_a_thread_that_had_to_wait_takes_the_reading_of_the_one_before(
    monitor: MemoryMonitor, machine: Machine, clock: Clock
) -> None:
    clock.pass_(LONGEST)
    found: list[int] = []
    waiting = threading.Thread(target=lambda: found.append(monitor.headroom()))
    looked = threading.Event()
    monitor._clock = lambda: looked.set() or clock.now  # type: ignore[func-returns-value]
    with monitor._lock:
        waiting.start()
        assert looked.wait(10)
        machine.write(CURRENT, str(150 * MIB))
        monitor._update(clock.now, USAGE)
        machine.write(CURRENT, str(10 * MIB))
    waiting.join(10)
    assert found == [(256 - 150 + 40) * MIB]


# --- readings ---


def test_a_reading_tells_everything_anew(monitor: MemoryMonitor, machine: Machine, clock: Clock) -> None:
    hold(monitor, machine, 12 * MIB)
    clock.pass_(FULL_INTERVAL)
    machine.container(limit=300 * MIB, usage=110 * MIB, inactive_file=10 * MIB)
    assert monitor.read() == Reading(
        available=(300 - 110 + 10 + 12) * MIB,
        headroom=(300 - 110 + 10) * MIB,
        recoverable=12 * MIB,
        limit=300 * MIB,
        used=110 * MIB,
        where="/sys/fs/cgroup/memory.max",
        at=clock.now,
    )


def test_what_the_allocator_holds_is_no_address_space(monitor: MemoryMonitor, machine: Machine) -> None:
    hold(monitor, machine, 50 * MIB)
    machine.rlimits(address_space=1024 * MIB)
    machine.statm(size=(1024 - 210) * MIB)
    monitor = MemoryMonitor(root=str(machine))
    hold(monitor, machine, 50 * MIB)
    reading = monitor.read()
    assert (reading.headroom, reading.recoverable) == (196 * MIB, 50 * MIB)
    assert reading.available == 210 * MIB, "more than that cannot be mapped, whatever is given back"


def test_a_reading_without_a_limit_says_so(machine: Machine) -> None:
    machine.path("/proc/meminfo").unlink()
    monitor = MemoryMonitor(root=str(machine))
    reading = monitor.read()
    assert (reading.available, reading.headroom, reading.limit, reading.where) == (UNBOUNDED, UNBOUNDED, None, None)
    assert monitor.headroom() == monitor.tightest() == UNBOUNDED


def test_limits_are_read_anew(monitor: MemoryMonitor, machine: Machine) -> None:
    machine.container(limit=512 * MIB)
    assert [limit.value for limit in monitor.limits() if limit.value] == [64 * GIB, 512 * MIB]
    assert monitor.tightest() == 512 * MIB


def test_limits_are_told_with_reclaimable_parts_that_decide_nothing(machine: Machine, clock: Clock) -> None:
    machine.v2("/leaf")
    machine.v2_level("/sys/fs/cgroup", limit=512 * MIB, usage=100 * MIB, stat={"inactive_file": 70 * MIB})
    machine.v2_level("/sys/fs/cgroup/leaf", limit=64 * MIB, usage=32 * MIB, stat={"inactive_file": 1 * MIB})
    monitor = MemoryMonitor(root=str(machine), clock=clock)
    assert [limit.reclaimable for limit in monitor.limits() if limit.kind == "cgroup v2"] == [1 * MIB, 70 * MIB]


def test_a_process_that_was_moved_is_followed(monitor: MemoryMonitor, machine: Machine, clock: Clock) -> None:
    machine.v2("/new")
    machine.v2_level("/sys/fs/cgroup/new", limit=64 * MIB, usage=4 * MIB)
    clock.pass_(FULL_INTERVAL)
    assert monitor.headroom() == 60 * MIB


# --- a declared limit ---


def test_a_declared_limit_counts(machine: Machine) -> None:
    machine.resident(100 * MIB)
    assert MemoryMonitor(limit="128MiB", root=str(machine)).headroom() == 28 * MIB


def test_the_environment_declares_a_limit(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.resident(100 * MIB)
    monkeypatch.setenv("RESOURCE_MONITOR_LIMIT", "160m")
    assert MemoryMonitor(root=str(machine)).headroom() == 60 * MIB
    assert MemoryMonitor(limit=128 * MIB, root=str(machine)).headroom() == 28 * MIB


@pytest.mark.parametrize("text", ["", "none"])
def test_an_empty_variable_declares_nothing(machine: Machine, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("RESOURCE_MONITOR_LIMIT", text)
    assert MemoryMonitor(root=str(machine)).headroom() == 60 * GIB


def test_a_declared_limit_that_is_none_is_refused_by_its_source(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigurationError, match=r"^limit: 'much' is not a size; give"):
        MemoryMonitor(limit="much")
    with pytest.raises(ConfigurationError, match=r"^limit is 0: a process cannot live in no memory; give its real"):
        MemoryMonitor(limit=0)
    monkeypatch.setenv("RESOURCE_MONITOR_LIMIT", "5%")
    with pytest.raises(ConfigurationError, match=r"^RESOURCE_MONITOR_LIMIT: '5%' is not a size; give"):
        MemoryMonitor()


# --- failures ---


def break_everything(machine: Machine) -> None:
    machine.write("/proc/meminfo", "")
    machine.write("/sys/fs/cgroup/memory.max", "?")


def test_a_failed_reading_is_not_tried_again_for_a_while(
    monitor: MemoryMonitor, machine: Machine, clock: Clock
) -> None:
    break_everything(machine)
    clock.pass_(FULL_INTERVAL)
    with pytest.raises(ProbeError, match="/proc/meminfo") as first:
        monitor.headroom()
    machine.memory(total=GIB, available=GIB // 2)
    for ask in (monitor.headroom, monitor.read, monitor.limits, monitor.relieve):
        with pytest.raises(ProbeError) as again:
            ask()
        assert again.value is first.value
    clock.pass_(RETRY)
    assert monitor.headroom() == GIB // 2


def test_one_unreadable_limit_is_left_out_and_logged_once_a_change(
    monitor: MemoryMonitor, machine: Machine, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    machine.write("/sys/fs/cgroup/memory.max", "?")
    for _ in range(3):
        clock.pass_(FULL_INTERVAL)
        assert monitor.headroom() == 60 * GIB
    assert [record.getMessage() for record in caplog.records] == [
        "/sys/fs/cgroup/memory.max: does not hold what the kernel documents for it: this limit is left out until it "
        "can be read again"
    ]
    machine.container(usage=10 * MIB)
    clock.pass_(FULL_INTERVAL)
    assert monitor.headroom() == 246 * MIB
    machine.write("/sys/fs/cgroup/memory.max", "?")
    clock.pass_(FULL_INTERVAL)
    monitor.headroom()
    assert len([record for record in caplog.records if record.levelno == logging.WARNING]) == 2


# --- relief ---


def test_relief_is_asked_for_and_its_effect_read(monitor: MemoryMonitor, machine: Machine) -> None:
    holder = hold(monitor, machine, 50 * MIB)
    assert monitor.relieve() == (256 - 50 + 40) * MIB
    assert holder.asked == 1


def test_relief_looks_at_limits_no_more_often_than_readings_do(
    monitor: MemoryMonitor, machine: Machine, clock: Clock
) -> None:
    machine.container(limit=512 * MIB, usage=56 * MIB, inactive_file=10 * MIB)
    assert monitor.relieve() == 210 * MIB
    clock.pass_(FULL_INTERVAL)
    assert monitor.relieve() == 466 * MIB


def test_relief_of_nothing_is_not_asked_for(monitor: MemoryMonitor, machine: Machine) -> None:
    holder = hold(monitor, machine, MIB - 1)
    assert monitor.relieve() == 196 * MIB
    assert holder.asked == 0


def test_relief_is_asked_for_at_most_every_five_milliseconds(
    monitor: MemoryMonitor, machine: Machine, clock: Clock
) -> None:
    holder = hold(monitor, machine, 10 * MIB)
    monitor.relieve()
    holder.held = 10 * MIB
    clock.pass_(0.0049)
    monitor.relieve()
    assert holder.asked == 1
    clock.pass_(0.0002)
    monitor.relieve()
    assert holder.asked == 2


def test_between_two_reliefs_the_headroom_is_still_fresh(
    monitor: MemoryMonitor, machine: Machine, clock: Clock
) -> None:
    machine.container(limit=256 * MIB, usage=255 * MIB)
    monitor.relieve()
    machine.container(limit=256 * MIB, usage=56 * MIB)
    clock.pass_(0.004)
    assert monitor.relieve() == 200 * MIB


def test_blind_trimming_that_does_not_help_waits_twice_as_long_each_time(
    monitor: MemoryMonitor, machine: Machine, clock: Clock
) -> None:
    holder = hold(monitor, machine, 0, tells=False)
    wait = 0.005
    for asked in range(1, 13):
        monitor.relieve()
        assert holder.asked == asked
        wait = min(2 * wait, 0.25)
        clock.pass_(wait * 0.99)
        monitor.relieve()
        assert holder.asked == asked
        clock.pass_(wait * 0.02)
    holder.held = 20 * MIB
    monitor.relieve()
    clock.pass_(0.0051)  # it helped: the next one waits no longer than usual
    monitor.relieve()
    assert holder.asked == 14


def test_an_allocator_that_tells_what_it_holds_need_not_be_patient(
    monitor: MemoryMonitor, machine: Machine, clock: Clock
) -> None:
    """Others may eat what a purge gave back before it is read; that makes the next purge no less useful."""
    holder = hold(monitor, machine, 0)
    holder.dirty = lambda: 10 * MIB  # type: ignore[method-assign]
    for asked in range(1, 4):
        monitor.relieve()
        assert holder.asked == asked
        clock.pass_(0.0051)


# --- fork ---


def test_after_a_fork_the_child_reads_its_own_memory() -> None:
    monitor = MemoryMonitor(limit="8GiB")
    ballast = bytearray(b"x") * (64 * MIB)
    parent = monitor.read()
    reading, writing = os.pipe()
    with monitor._lock:  # held by another thread at the moment of the fork
        child = os.fork()
        if child == 0:
            signal.alarm(60)  # a child that waits for a lock must not outlive the test
            del ballast
            grown = bytearray(b"y") * (256 * MIB)
            declared = next(limit for limit in monitor.limits() if limit.kind == "declared limit")
            os.write(writing, f"{declared.used} {monitor.headroom()}".encode())
            os._exit(len(grown) and 0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        used, headroom = map(int, pipe.read().split())
    assert os.waitpid(child, 0)[1] == 0
    assert parent.used is not None
    assert used > parent.used + 128 * MIB
    assert headroom < parent.headroom - 128 * MIB
    assert monitor.read().used == pytest.approx(parent.used, abs=32 * MIB)


@pytest.mark.parametrize("ask", [MemoryMonitor.headroom, lambda monitor: monitor.read().headroom])
def test_files_that_another_process_opened_are_opened_anew(
    monitor: MemoryMonitor, machine: Machine, clock: Clock, ask: Callable[[MemoryMonitor], int]
) -> None:
    monitor._reader.owner = os.getppid()
    machine.container(usage=101 * MIB)
    clock.pass_(LONGEST)
    assert ask(monitor) == 155 * MIB


def test_a_fork_makes_every_reading_stale_and_every_lock_free(monitor: MemoryMonitor, machine: Machine) -> None:
    """What the child does first, done here: whoever held the lock in the parent is not there to release it."""
    holder = threading.Thread(target=monitor._lock.acquire)
    holder.start()
    holder.join()
    _after_fork_in_child()
    assert monitor._lock.acquire(blocking=False)
    monitor._lock.release()
    machine.write(CURRENT, str(101 * MIB))
    assert monitor.headroom() == 195 * MIB


def test_everything_in_a_process_shares_one_monitor() -> None:
    assert default_monitor() is default_monitor()
