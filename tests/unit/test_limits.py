import errno
import gc
import os

import pytest
from machine import GIB, MIB, Machine, descriptors, descriptors_to_compare_with

from resource_monitor import limits
from resource_monitor.errors import ProbeError
from resource_monitor.limits import FULL, USAGE, Consequence, Flag, Limit, LimitReader, memory_limits

UNBOUNDED = 2**64 - 1


def read(machine: Machine, *, declared: int | None = None) -> LimitReader:
    reader = memory_limits(declared=declared, root=str(machine))
    assert reader.read(FULL)
    return reader


def named(reader: LimitReader, kind: str) -> Limit:
    [limit] = [limit for limit in reader.limits() if limit.kind == kind]
    return limit


def test_headroom_is_limit_minus_usage_plus_what_the_kernel_would_reclaim(machine: Machine) -> None:
    machine.container(
        limit=256 * MIB,
        usage=240 * MIB,
        inactive_file=100 * MIB,
        active_file=40 * MIB,
        file_mapped=15 * MIB,
        shmem=5 * MIB,
        file_dirty=8 * MIB,
        file_writeback=2 * MIB,
        slab_reclaimable=6 * MIB,
    )
    reader = read(machine)
    # R = 100 + 40 − 8 − 2 − (15 − 5) + 6/2 = 123; the pessimist: 100 − 8 − 2 = 90
    assert reader.first() == Limit(
        kind="cgroup v2",
        where="/sys/fs/cgroup/memory.max",
        value=256 * MIB,
        used=240 * MIB,
        reclaimable=123 * MIB,
        headroom=(256 - 240 + 123) * MIB,
        headroom_low=(256 - 240 + 90) * MIB,
        consequence=Consequence.KILL,
        flags=frozenset(),
    )
    assert (reader.headroom, reader.free, reader.tightest) == (139 * MIB, 16 * MIB, 256 * MIB)


def test_v1_counts_the_hierarchical_keys_and_no_slab(machine: Machine) -> None:
    machine.v1("/")
    machine.v1_level(
        "/sys/fs/cgroup/memory",
        limit=256 * MIB,
        usage=200 * MIB,
        stat={
            "inactive_file": 1 * MIB,
            "active_file": 1 * MIB,
            "total_inactive_file": 50 * MIB,
            "total_active_file": 20 * MIB,
            "total_mapped_file": 12 * MIB,
            "total_shmem": 4 * MIB,
            "total_dirty": 3 * MIB,
            "total_writeback": 2 * MIB,
            "slab_reclaimable": 30 * MIB,
        },
    )
    reader = read(machine)
    # R = 50 + 20 − 3 − 2 − (12 − 4) = 57
    assert reader.headroom == (256 - 200 + 57) * MIB
    first = reader.first()
    assert first is not None
    assert first.headroom_low == (256 - 200 + 45) * MIB


def test_the_least_headroom_counts_and_not_the_least_limit(machine: Machine) -> None:
    machine.v2("/parent/leaf")
    machine.v2_level("/sys/fs/cgroup/parent", limit=100 * MIB, usage=74 * MIB)
    machine.v2_level("/sys/fs/cgroup/parent/leaf", limit=64 * MIB, usage=1 * MIB)
    reader = read(machine)
    first = reader.first()
    assert first is not None
    assert first.where == "/sys/fs/cgroup/parent/memory.max"
    assert reader.headroom == 26 * MIB
    assert reader.tightest == 64 * MIB


def test_every_level_is_reported_the_unlimited_ones_too(machine: Machine) -> None:
    machine.v2("/a/b")
    machine.v2_level("/sys/fs/cgroup/a", limit=None, usage=9 * MIB)
    machine.v2_level("/sys/fs/cgroup/a/b", limit=64 * MIB, usage=8 * MIB)
    found = {limit.where: (limit.value, limit.used, limit.headroom) for limit in read(machine).limits()}
    unlimited = (None, None, None)
    assert found == {
        "/proc/meminfo": (64 * GIB, 4 * GIB, 60 * GIB),
        "CommitLimit": unlimited,
        "RLIMIT_AS": unlimited,
        "RLIMIT_DATA": unlimited,
        "/sys/fs/cgroup/a/b/memory.max": (64 * MIB, 8 * MIB, 56 * MIB),
        "/sys/fs/cgroup/a/b/memory.high": unlimited,
        "/sys/fs/cgroup/a/memory.max": unlimited,
        "/sys/fs/cgroup/a/memory.high": unlimited,
    }


@pytest.mark.parametrize("limit", [9223372036854771712, 9223372036854710272, 65 * GIB])
def test_a_limit_of_more_than_the_machine_has_is_none(machine: Machine, limit: int) -> None:
    machine.v1("/")
    machine.v1_level("/sys/fs/cgroup/memory", limit=limit, usage=1)
    reader = read(machine)
    assert named(reader, "host memory").value == 64 * GIB
    assert (named(reader, "cgroup v1").value, named(reader, "cgroup v1").flags) == (None, frozenset())
    assert [limit.kind for limit in reader.limits() if limit.value] == ["host memory"]


def test_a_limit_that_lxcfs_shows_as_the_machines_memory_still_binds(machine: Machine) -> None:
    """In its ``MemAvailable`` files in tmpfs count as free, which the kernel cannot reclaim."""
    machine.container(limit=GIB, usage=700 * MIB, inactive_file=10 * MIB)
    machine.memory(total=GIB, available=900 * MIB)
    reader = read(machine)
    assert reader.headroom == 334 * MIB
    assert (first := reader.first()) is not None
    assert first.kind == "cgroup v2"


def test_no_limit_is_none_also_where_the_machines_memory_is_unknown(machine: Machine) -> None:
    machine.v1("/")
    machine.v1_level("/sys/fs/cgroup/memory", usage=1)
    machine.path("/proc/meminfo").unlink()
    assert read(machine).first() is None


def test_usage_where_there_is_no_limit_is_of_no_interest(machine: Machine) -> None:
    machine.container(limit=None)
    machine.write("/sys/fs/cgroup/memory.current", "?")
    reader = read(machine)
    assert reader.read(USAGE)
    assert reader.failure() is None


def test_a_missing_file_is_no_limit_at_that_level(machine: Machine) -> None:
    machine.container(limit=64 * MIB)
    machine.path("/sys/fs/cgroup/memory.max").unlink()
    reader = read(machine)
    assert reader.failure() is None
    first = reader.first()
    assert first is not None
    assert first.kind == "host memory"


def test_without_statistics_nothing_is_taken_for_reclaimable(machine: Machine) -> None:
    machine.container(limit=64 * MIB, usage=60 * MIB)
    machine.path("/sys/fs/cgroup/memory.stat").unlink()
    assert read(machine).headroom == 4 * MIB


@pytest.mark.parametrize("file", ["memory.max", "memory.current", "memory.stat"])
def test_a_limit_that_cannot_be_read_is_flagged_and_left_out(machine: Machine, file: str) -> None:
    machine.container(limit=64 * MIB)
    machine.make_unreadable(f"/sys/fs/cgroup/{file}")
    reader = read(machine)
    failure = reader.failure()
    assert failure is not None
    assert failure.path == f"/sys/fs/cgroup/{file}"
    assert failure.problem == "cannot be read: Is a directory"
    cgroup = named(reader, "cgroup v2")
    assert cgroup.flags == {Flag.UNREADABLE}
    assert (cgroup.value, cgroup.used, cgroup.headroom) == (None, None, None)
    assert reader.first() == named(reader, "host memory")


@pytest.mark.parametrize(
    ("file", "content"),
    [("memory.max", ""), ("memory.max", "lots\n"), ("memory.current", "?\n"), ("memory.stat", "inactive_file none\n")],
)
def test_a_file_that_holds_something_else_is_told_from_one_that_is_missing(
    machine: Machine, file: str, content: str
) -> None:
    machine.container(limit=64 * MIB)
    machine.write(f"/sys/fs/cgroup/{file}", content)
    reader = read(machine)
    failure = reader.failure()
    assert failure is not None
    assert str(failure) == f"/sys/fs/cgroup/{file}: does not hold what the kernel documents for it"
    assert named(reader, "cgroup v2").flags == {Flag.UNREADABLE}


def test_nothing_readable_at_all_is_an_error(machine: Machine) -> None:
    machine.make_unreadable("/proc/meminfo")
    with pytest.raises(ProbeError, match=r"^/proc/meminfo: cannot be read: Is a directory$"):
        read(machine)


def test_a_meminfo_without_its_figures_is_an_error(machine: Machine) -> None:
    machine.write("/proc/meminfo", "MemTotal: 1024 kB\n")
    with pytest.raises(ProbeError, match=r"^/proc/meminfo: does not hold"):
        read(machine)


def test_no_file_at_all_is_no_limit(machine: Machine) -> None:
    machine.path("/proc/meminfo").unlink()
    reader = read(machine)
    assert (reader.headroom, reader.tightest, reader.first()) == (UNBOUNDED, UNBOUNDED, None)


def test_the_host_counts_where_it_has_less_than_the_cgroup(machine: Machine) -> None:
    machine.container(limit=256 * MIB, usage=32 * MIB)
    machine.memory(total=64 * GIB, available=20 * MIB)
    reader = read(machine)
    first = reader.first()
    assert first is not None
    assert first.kind == "host memory"
    assert reader.headroom == 20 * MIB


def test_a_declared_limit_is_measured_against_resident_memory(machine: Machine) -> None:
    machine.resident(100 * MIB)
    first = read(machine, declared=128 * MIB).first()
    assert first is not None
    assert (first.kind, first.where, first.value, first.used) == (
        "declared limit",
        "resident memory",
        128 * MIB,
        100 * MIB,
    )
    assert first.headroom == 28 * MIB


@pytest.mark.parametrize("statm", ["", "100", "100 \n", "100 x 5\n", "100x5 6\n", "x 100\n"])
def test_a_malformed_statm_is_a_limit_that_cannot_be_read(machine: Machine, statm: str) -> None:
    machine.write("/proc/self/statm", statm)
    reader = read(machine, declared=128 * MIB)
    failure = reader.failure()
    assert failure is not None
    assert failure.path == "/proc/self/statm"


def test_an_unreadable_statm_is_a_limit_that_cannot_be_read(machine: Machine) -> None:
    machine.make_unreadable("/proc/self/statm")
    failure = read(machine, declared=128 * MIB).failure()
    assert failure is not None
    assert failure.problem == "cannot be read: Is a directory"


def test_a_usage_reading_keeps_the_limit_and_the_reclaimable_part(machine: Machine) -> None:
    machine.container(limit=256 * MIB, usage=100 * MIB, inactive_file=20 * MIB)
    reader = read(machine)
    machine.container(limit=999 * MIB, usage=110 * MIB, inactive_file=0)
    assert reader.read(USAGE)
    assert reader.headroom == (256 - 110 + 20) * MIB
    assert reader.read(FULL)
    assert reader.headroom == (999 - 110) * MIB


def test_a_limit_that_could_not_be_read_is_back_with_the_next_full_reading(machine: Machine) -> None:
    machine.container(limit=64 * MIB)
    machine.write("/sys/fs/cgroup/memory.current", "?")
    reader = read(machine)
    machine.write("/sys/fs/cgroup/memory.current", f"{4 * MIB}")
    assert reader.read(USAGE)
    assert reader.failure() is not None
    assert reader.read(FULL)
    assert reader.failure() is None
    assert reader.headroom == 60 * MIB


def test_an_uncertain_place_is_flagged(machine: Machine) -> None:
    machine.v2("/../elsewhere")
    machine.v2_level("/sys/fs/cgroup", limit=64 * MIB, usage=1)
    reader = read(machine)
    assert named(reader, "cgroup v2").flags == {Flag.UNCERTAIN}
    assert named(reader, "cgroup v2 high").flags == {Flag.UNCERTAIN}


def test_notices_that_the_process_was_moved(machine: Machine) -> None:
    machine.container()
    reader = read(machine)
    assert not reader.moved()
    machine.write("/proc/self/cgroup", "0::/elsewhere\n")
    assert reader.moved()


def test_a_machine_without_proc_self_cgroup_moves_nothing(machine: Machine) -> None:
    assert not read(machine).moved()


def test_nothing_has_vanished_while_files_can_be_read(machine: Machine) -> None:
    machine.container()
    assert not read(machine).vanished()


def test_reads_nothing_in_another_process(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getpid", lambda: 1)
    reader = memory_limits(root=str(machine))
    assert not reader.read(FULL)


def test_descriptors_are_closed_on_exec_and_given_back(machine: Machine) -> None:
    machine.container()
    gc.collect()
    before = descriptors_to_compare_with()
    reader = read(machine)
    opened = descriptors() - before
    assert len(opened) == 5  # cgroup membership, meminfo, usage, limit, statistics
    assert not any(os.get_inheritable(descriptor) for descriptor in opened)
    del reader
    gc.collect()
    assert descriptors() == before


def test_running_out_of_descriptors_is_an_error_and_no_missing_limit(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.container()
    really_open = os.open

    def exhausted(path: str, flags: int) -> int:
        if path.endswith("memory.max"):
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return really_open(path, flags)

    monkeypatch.setattr(os, "open", exhausted)
    with pytest.raises(ProbeError, match=r"/sys/fs/cgroup/memory\.max: cannot be read: Too many open files"):
        memory_limits(root=str(machine))


def test_an_unreadable_membership_is_an_error_that_names_it(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.container()

    def refused(*_: object) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(limits.os, "pread", refused)
    with pytest.raises(ProbeError, match=r"^/proc/self/cgroup: cannot be read: Input/output error$"):
        memory_limits(root=str(machine))
