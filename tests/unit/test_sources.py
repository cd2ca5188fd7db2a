"""Every kind of limit: what it is read from, what it means, and when there is none."""

import os
import resource
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from machine import GIB, MIB, V1_UNLIMITED, Machine, descriptors, descriptors_to_compare_with

from resource_monitor.errors import ProbeError
from resource_monitor.limits import (
    DECISIVE,
    FULL,
    RECLAIMABLE,
    USAGE,
    Limit,
    LimitReader,
    memory_limits,
    open_file_limits,
    task_limits,
)
from resource_monitor.sources import Consequence, Flag

UNBOUNDED = 2**64 - 1
CAP_SYS_ADMIN, CAP_SYS_RESOURCE, CAP_NET_RAW = 1 << 21, 1 << 24, 1 << 13


def memory(machine: Machine, **options: int) -> LimitReader:
    reader = memory_limits(root=str(machine), **options)
    assert reader.read(FULL)
    return reader


def files(machine: Machine) -> LimitReader:
    reader = open_file_limits(root=str(machine))
    assert reader.read(FULL)
    return reader


def tasks(machine: Machine) -> LimitReader:
    reader = task_limits(root=str(machine))
    assert reader.read(FULL)
    return reader


def kinds(reader: LimitReader) -> list[str]:
    return [limit.kind for limit in reader.limits()]


def named(reader: LimitReader, kind: str) -> Limit:
    [limit] = [limit for limit in reader.limits() if limit.kind == kind]
    return limit


def figures(limit: Limit) -> tuple[int | None, int | None, int | None]:
    return limit.value, limit.used, limit.headroom


# --- the commit limit ---


def commit(machine: Machine, mode: int) -> Limit:
    machine.memory(total=64 * GIB, available=60 * GIB, commit_limit=3 * GIB, committed=2 * GIB)
    machine.overcommit(mode)
    return named(memory(machine), "commit limit")


def test_the_commit_limit_binds_where_overcommit_is_forbidden(machine: Machine) -> None:
    limit = commit(machine, 2)
    assert figures(limit) == (3 * GIB, 2 * GIB, 1 * GIB)
    assert (limit.where, limit.consequence, limit.flags) == ("CommitLimit", Consequence.MEMORY_ERROR, frozenset())
    assert memory(machine).first() == limit


@pytest.mark.parametrize("mode", [0, 1])
def test_the_commit_limit_binds_no_one_elsewhere(machine: Machine, mode: int) -> None:
    assert figures(commit(machine, mode)) == (None, None, None)


def test_an_overcommit_mode_that_cannot_be_read_leaves_the_commit_limit_open(machine: Machine) -> None:
    machine.write("/proc/sys/vm/overcommit_memory", "strict\n")
    reader = memory(machine)
    assert named(reader, "commit limit").flags == {Flag.UNREADABLE}
    failure = reader.failure()
    assert failure is not None
    assert failure.path == "/proc/sys/vm/overcommit_memory"


def test_a_meminfo_without_a_commit_limit_names_itself(machine: Machine) -> None:
    machine.overcommit(2)
    machine.write("/proc/meminfo", "MemTotal: 4096 kB\nMemAvailable: 1024 kB\n")
    reader = memory(machine)
    failure = reader.failure()
    assert failure is not None
    assert failure.path == "/proc/meminfo"
    assert named(reader, "host memory").headroom == 1 * MIB


def test_what_is_committed_is_followed_between_full_readings(machine: Machine) -> None:
    commit(machine, 2)
    reader = memory(machine)
    machine.memory(total=64 * GIB, available=60 * GIB, commit_limit=3 * GIB, committed=3 * GIB - MIB)
    assert reader.read(USAGE)
    assert reader.headroom == reader.fixed == MIB


# --- limits on address space ---


@pytest.mark.parametrize(
    ("kind", "where", "rlimit", "used"),
    [("address space", "RLIMIT_AS", "address_space", "size"), ("data segment", "RLIMIT_DATA", "data_size", "data")],
)
def test_a_resource_limit_on_memory_raises_memory_errors(
    machine: Machine, kind: str, where: str, rlimit: str, used: str
) -> None:
    machine.rlimits(**{rlimit: 1 * GIB})
    machine.statm(**{"size": 10 * GIB, "data": 10 * GIB, used: 300 * MIB})
    limit = named(memory(machine), kind)
    assert figures(limit) == (1 * GIB, 300 * MIB, 724 * MIB)
    assert (limit.where, limit.consequence, limit.flags) == (where, Consequence.MEMORY_ERROR, frozenset())
    assert memory(machine).first() == limit


def test_unlimited_resource_limits_limit_nothing(machine: Machine) -> None:
    machine.rlimits()
    machine.statm()
    reader = memory(machine)
    assert named(reader, "address space").value is None
    assert named(reader, "data segment").value is None
    assert reader.fixed == UNBOUNDED


def test_a_table_without_the_line_is_a_limit_that_cannot_be_read(machine: Machine) -> None:
    machine.write("/proc/self/limits", "Max cpu time  unlimited  unlimited  seconds\n")
    reader = memory(machine)
    assert named(reader, "address space").flags == {Flag.UNREADABLE}
    failure = reader.failure()
    assert failure is not None
    assert failure.path == "/proc/self/limits"


def test_address_space_gets_no_credit_for_what_could_be_given_back(machine: Machine) -> None:
    """``fixed`` is the least headroom that relief cannot raise."""
    machine.container(limit=256 * MIB, usage=200 * MIB)
    machine.rlimits(address_space=1 * GIB, data_size=2 * GIB)
    machine.statm(size=1 * GIB - 100 * MIB, data=500 * MIB)
    reader = memory(machine)
    assert (reader.headroom, reader.fixed) == (56 * MIB, 100 * MIB)


# --- cgroup v1 ---

MEMSW = "/sys/fs/cgroup/memory/memory.memsw"


def test_memory_and_swap_together_are_a_limit_of_their_own(machine: Machine) -> None:
    machine.v1("/")
    machine.v1_level("/sys/fs/cgroup/memory", limit=256 * MIB, usage=100 * MIB, stat={"total_inactive_file": 10 * MIB})
    machine.write(f"{MEMSW}.limit_in_bytes", f"{300 * MIB}\n")
    machine.write(f"{MEMSW}.usage_in_bytes", f"{280 * MIB}\n")
    reader = memory(machine)
    limit = named(reader, "cgroup v1 with swap")
    assert figures(limit) == (300 * MIB, 280 * MIB, 30 * MIB)
    assert (limit.where, limit.consequence) == (f"{MEMSW}.limit_in_bytes", Consequence.KILL)
    assert reader.first() == limit


def test_a_kernel_without_swap_accounting_has_no_such_limit(machine: Machine) -> None:
    machine.v1("/")
    machine.v1_level("/sys/fs/cgroup/memory", limit=256 * MIB, usage=100 * MIB)
    assert figures(named(memory(machine), "cgroup v1 with swap")) == (None, None, None)


def hidden(machine: Machine, hierarchical: int, *, visible: int = V1_UNLIMITED) -> Limit:
    machine.v1("/a")
    machine.v1_level("/sys/fs/cgroup/memory", usage=90 * MIB, stat={"hierarchical_memory_limit": hierarchical})
    machine.v1_level(
        "/sys/fs/cgroup/memory/a",
        limit=visible,
        usage=60 * MIB,
        stat={"hierarchical_memory_limit": min(hierarchical, visible)},
    )
    return named(memory(machine), "cgroup v1 above")


def test_a_limit_above_every_visible_cgroup_shows_in_the_statistics(machine: Machine) -> None:
    limit = hidden(machine, 128 * MIB, visible=200 * MIB)
    assert figures(limit) == (128 * MIB, 90 * MIB, 38 * MIB)
    assert limit.where == "/sys/fs/cgroup/memory/memory.stat: hierarchical_memory_limit"
    assert (limit.consequence, limit.flags) == (Consequence.KILL, {Flag.HIDDEN, Flag.UNCERTAIN})
    assert memory(machine).first() == limit


@pytest.mark.parametrize("hierarchical", [V1_UNLIMITED, 64 * GIB, 200 * MIB, 300 * MIB])
def test_a_limit_that_a_visible_cgroup_explains_is_not_hidden(machine: Machine, hierarchical: int) -> None:
    assert figures(hidden(machine, hierarchical, visible=200 * MIB)) == (None, None, None)


def test_statistics_without_the_key_hide_nothing(machine: Machine) -> None:
    machine.v1("/")
    machine.v1_level("/sys/fs/cgroup/memory", usage=90 * MIB, stat={"cache": 5})
    assert named(memory(machine), "cgroup v1 above").value is None


# --- cgroup v2's memory.high ---


def throttled(machine: Machine) -> LimitReader:
    machine.container(limit=256 * MIB, usage=100 * MIB, inactive_file=10 * MIB)
    machine.write("/sys/fs/cgroup/memory.high", f"{120 * MIB}\n")
    return memory(machine)


def test_memory_high_throttles(machine: Machine) -> None:
    limit = named(throttled(machine), "cgroup v2 high")
    assert figures(limit) == (120 * MIB, 100 * MIB, 30 * MIB)
    assert (limit.where, limit.consequence) == ("/sys/fs/cgroup/memory.high", Consequence.THROTTLE)


def test_what_only_throttles_is_never_the_limit_that_bites(machine: Machine) -> None:
    reader = throttled(machine)
    assert reader.first() == named(reader, "cgroup v2")
    assert (reader.headroom, reader.tightest) == (166 * MIB, 256 * MIB)


# --- open files ---


def test_descriptors_are_counted_against_the_soft_limit(machine: Machine) -> None:
    machine.rlimits(open_files=64)
    machine.descriptors(10)
    limit = named(files(machine), "open files")
    assert figures(limit) == (64, 10, 54)
    assert (limit.where, limit.consequence, limit.flags) == ("RLIMIT_NOFILE", Consequence.OS_ERROR, frozenset())


def test_the_whole_systems_descriptors_can_run_out_first(machine: Machine) -> None:
    machine.rlimits(open_files=1024)
    machine.descriptors(3)
    machine.write("/proc/sys/fs/file-nr", "9000\t100\t9216\n")
    reader = files(machine)
    limit = named(reader, "open files of the system")
    assert figures(limit) == (9216, 8900, 316)
    assert (limit.where, limit.consequence) == ("/proc/sys/fs/file-nr", Consequence.OS_ERROR)
    assert reader.first() == limit


@pytest.mark.parametrize("text", ["", "9000", "9000\t0\n", "9000\t0\tmany\n"])
def test_a_malformed_file_nr_names_itself(machine: Machine, text: str) -> None:
    machine.write("/proc/sys/fs/file-nr", text)
    with pytest.raises(ProbeError, match=r"^/proc/sys/fs/file-nr: does not hold"):
        files(machine)


def test_unlimited_descriptors_limit_nothing(machine: Machine) -> None:
    machine.rlimits()
    machine.descriptors(3)
    assert files(machine).first() is None


# --- tasks ---


def test_pids_max_counts_at_every_level(machine: Machine) -> None:
    machine.v2("/pod/app")
    machine.tasks_level("/sys/fs/cgroup/pod", limit=100, usage=95)
    machine.tasks_level("/sys/fs/cgroup/pod/app", limit=50, usage=5)
    reader = tasks(machine)
    assert [figures(limit) for limit in reader.limits() if limit.kind == "cgroup v2 tasks"] == [
        (50, 5, 45),
        (100, 95, 5),
    ]
    first = reader.first()
    assert first is not None
    assert (first.where, first.consequence) == ("/sys/fs/cgroup/pod/pids.max", Consequence.OS_ERROR)


def test_pids_max_of_v1_lives_in_a_hierarchy_of_its_own(machine: Machine) -> None:
    machine.process(
        "8:pids:/app\n4:memory:/elsewhere\n",
        "30 20 0:26 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids\n"
        "31 20 0:27 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n",
    )
    machine.tasks_level("/sys/fs/cgroup/pids/app", limit=20, usage=19)
    first = tasks(machine).first()
    assert first is not None
    assert (first.kind, first.headroom) == ("cgroup v1 tasks", 1)


def test_an_unlimited_pids_max_is_no_limit(machine: Machine) -> None:
    machine.v2("/")
    machine.tasks_level("/sys/fs/cgroup", limit=None, usage=19)
    assert tasks(machine).first() is None


def test_the_whole_systems_tasks_can_run_out(machine: Machine) -> None:
    machine.write("/proc/loadavg", "0.10 0.20 0.30 3/180 4711\n")
    machine.write("/proc/sys/kernel/threads-max", "200\n")
    limit = named(tasks(machine), "tasks of the system")
    assert figures(limit) == (200, 180, 20)
    assert (limit.where, limit.consequence) == ("/proc/sys/kernel/threads-max", Consequence.OS_ERROR)


@pytest.mark.parametrize("text", ["", "0.10 0.20 0.30", "0.10 0.20 0.30 3/", "0.10 0.20 0.30 3/x 5\n"])
def test_a_malformed_loadavg_names_itself(machine: Machine, text: str) -> None:
    machine.write("/proc/loadavg", text)
    machine.write("/proc/sys/kernel/threads-max", "200\n")
    with pytest.raises(ProbeError, match=r"^/proc/loadavg: does not hold"):
        tasks(machine)


def of_user(machine: Machine, uid: int, *, capabilities: int = 0) -> LimitReader:
    """This user owns the two processes of the fake /proc, with 3 and 1 threads."""
    machine.owner(uid, capabilities=capabilities)
    machine.rlimits(processes=10)
    for task in ("100/task/100", "100/task/101", "100/task/102", "200/task/200"):
        machine.path(f"/proc/{task}").mkdir(parents=True)
    machine.path("/proc/fs/nfs").mkdir(parents=True)
    return tasks(machine)


def test_every_thread_of_the_user_counts(machine: Machine) -> None:
    limit = named(of_user(machine, os.getuid() or 1), "tasks of the user")
    # nobody else's directories can be made without being root, and root's own are then not this user's
    assert figures(limit) == ((10, 4, 6) if os.getuid() else (10, 0, 10))
    assert (limit.where, limit.consequence, limit.flags) == ("RLIMIT_NPROC", Consequence.OS_ERROR, {Flag.UNCERTAIN})


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a directory to another user")
def test_the_tasks_of_others_do_not_count(machine: Machine) -> None:
    reader = of_user(machine, 1234)
    os.chown(machine.path("/proc/100/task"), 1234, 1234)
    assert reader.read(FULL)
    assert figures(named(reader, "tasks of the user")) == (10, 3, 7)


@pytest.mark.parametrize(("uid", "capabilities"), [(0, 0), (7, CAP_SYS_ADMIN), (7, CAP_SYS_RESOURCE)])
def test_whom_the_kernel_exempts_has_no_limit_on_the_users_tasks(machine: Machine, uid: int, capabilities: int) -> None:
    assert "tasks of the user" not in kinds(of_user(machine, uid, capabilities=capabilities))


@pytest.mark.parametrize(("mapped", "exempt"), [("0 0 4294967295", True), ("0 100000 65536", False)])
def test_the_root_of_a_namespace_of_its_own_is_not_exempt(machine: Machine, mapped: str, exempt: bool) -> None:
    machine.write("/proc/self/uid_map", f"         {mapped}\n")
    assert ("tasks of the user" in kinds(of_user(machine, 0, capabilities=CAP_SYS_ADMIN))) is not exempt


def test_other_capabilities_exempt_no_one(machine: Machine) -> None:
    assert "tasks of the user" in kinds(of_user(machine, 7, capabilities=CAP_NET_RAW))


@pytest.mark.parametrize("uid", ["me", "", "-1", "4294967296"])
def test_a_status_that_cannot_be_understood_names_itself(machine: Machine, uid: str) -> None:
    machine.write("/proc/self/status", f"Name:\tpython\nUid:\t{uid}\nCapEff:\t0\n")
    with pytest.raises(ProbeError, match=r"^/proc/self/status: does not hold"):
        tasks(machine)


def test_a_walk_through_proc_is_too_dear_for_a_reading_of_usage(machine: Machine) -> None:
    reader = of_user(machine, 1234)
    machine.path("/proc/self/limits").write_text("?")
    assert reader.read(USAGE)
    assert reader.failure() is None


# --- which are read when ---


def two_levels(machine: Machine) -> LimitReader:
    """A near limit in the leaf, 10 MiB, and a far one in the parent, 400 MiB."""
    machine.v2("/parent/leaf")
    machine.v2_level("/sys/fs/cgroup/parent", limit=500 * MIB, usage=100 * MIB)
    machine.v2_level("/sys/fs/cgroup/parent/leaf", limit=64 * MIB, usage=54 * MIB)
    reader = memory(machine)
    machine.v2_level("/sys/fs/cgroup/parent", limit=500 * MIB, usage=499 * MIB)
    machine.v2_level("/sys/fs/cgroup/parent/leaf", limit=64 * MIB, usage=53 * MIB)
    return reader


def test_a_limit_beyond_the_margin_is_not_read_for_usage(machine: Machine) -> None:
    reader = two_levels(machine)
    assert reader.read(USAGE, margin=390 * MIB - 1)
    assert reader.headroom == 11 * MIB
    assert reader.read(FULL)
    assert reader.headroom == 1 * MIB


def test_a_limit_within_the_margin_is_read_for_usage(machine: Machine) -> None:
    reader = two_levels(machine)
    assert reader.read(USAGE, margin=390 * MIB)
    assert reader.headroom == 1 * MIB


def test_a_margin_beyond_all_numbers_reads_everything(machine: Machine) -> None:
    reader = two_levels(machine)
    assert reader.read(USAGE, margin=UNBOUNDED)
    assert reader.headroom == 1 * MIB


def three_levels(machine: Machine) -> LimitReader:
    """By what is free and what the leaf's cache adds to it: 60 + 30 MiB in the leaf, 20 + 30 in the middle, 10 + 30 at
    the top, whose own cache adds 50."""
    machine.v2("/a/b")
    machine.v2_level("/sys/fs/cgroup", limit=200 * MIB, usage=190 * MIB, stat={"inactive_file": 50 * MIB})
    machine.v2_level("/sys/fs/cgroup/a", limit=200 * MIB, usage=180 * MIB, stat={"inactive_file": 41 * MIB})
    machine.v2_level("/sys/fs/cgroup/a/b", limit=200 * MIB, usage=140 * MIB, stat={"inactive_file": 30 * MIB})
    return memory(machine)


of_what_decides = pytest.mark.parametrize("tier", [RECLAIMABLE, DECISIVE])


@of_what_decides
def test_what_is_left_before_the_first_limit_bites_is_found(machine: Machine, tier: int) -> None:
    reader = three_levels(machine)
    assert reader.headroom == 60 * MIB
    machine.v2_level("/sys/fs/cgroup", limit=200 * MIB, usage=190 * MIB, stat={"inactive_file": 45 * MIB})
    assert reader.read(tier, margin=UNBOUNDED)
    assert (reader.headroom, reader.free) == (55 * MIB, 10 * MIB)


def test_a_decisive_reading_reads_limits_too(machine: Machine) -> None:
    reader = three_levels(machine)
    assert reader.headroom == 60 * MIB
    machine.v2_level("/sys/fs/cgroup/a", limit=190 * MIB, usage=180 * MIB, stat={"inactive_file": 41 * MIB})
    assert reader.read(RECLAIMABLE, margin=UNBOUNDED)
    assert reader.headroom == 60 * MIB
    assert reader.read(DECISIVE)
    assert reader.headroom == 51 * MIB


@of_what_decides
def test_what_is_reclaimable_is_read_where_it_decides_alone(machine: Machine, tier: int) -> None:
    """The leaf's, which the others have at least, and that of the limit that bites first."""
    reader = three_levels(machine)
    machine.v2_level("/sys/fs/cgroup", limit=200 * MIB, usage=190 * MIB, stat={"inactive_file": 35 * MIB})
    machine.write("/sys/fs/cgroup/a/memory.stat", "inactive_file ?\n")
    assert reader.read(tier, margin=UNBOUNDED)
    assert reader.headroom == 45 * MIB
    assert reader.failure() is None
    assert reader.read(FULL)
    assert reader.failure() is not None


@of_what_decides
def test_no_reclaimable_part_is_kept_where_others_are_read(machine: Machine, tier: int) -> None:
    """What was known of the middle, 61 MiB, is more than the top's 60, and more than the 51 that are left of it."""
    reader = three_levels(machine)
    machine.v2_level("/sys/fs/cgroup/a", limit=200 * MIB, usage=180 * MIB, stat={"inactive_file": 31 * MIB})
    assert reader.read(tier, margin=UNBOUNDED)
    assert reader.headroom == 51 * MIB


def test_a_reclaimable_part_that_decides_nothing_is_taken_for_the_leafs_by_both_bounds(machine: Machine) -> None:
    reader = three_levels(machine)
    machine.v2_level("/sys/fs/cgroup/a", limit=1 * GIB, usage=180 * MIB, stat={"inactive_file": 90 * MIB})
    machine.v2_level(
        "/sys/fs/cgroup/a/b",
        limit=200 * MIB,
        usage=140 * MIB,
        stat={"inactive_file": 20 * MIB, "slab_reclaimable": 8 * MIB},
    )
    assert reader.read(DECISIVE)
    left = [(limit.headroom, limit.headroom_low) for limit in reader.limits() if limit.kind == "cgroup v2"]
    assert left == [(84 * MIB, 80 * MIB), ((844 + 24) * MIB, (844 + 20) * MIB), (60 * MIB, 60 * MIB)]


def test_a_reading_of_usage_reads_what_is_reclaimable_where_it_was_not_and_decides(machine: Machine) -> None:
    """The parent's cache, 50 MiB, decided nothing and was taken for the leaf's, 30; now the parent would bite first."""
    machine.v2("/leaf")
    machine.v2_level("/sys/fs/cgroup", limit=200 * MIB, usage=130 * MIB, stat={"inactive_file": 50 * MIB})
    machine.v2_level("/sys/fs/cgroup/leaf", limit=200 * MIB, usage=140 * MIB, stat={"inactive_file": 30 * MIB})
    reader = memory_limits(root=str(machine))
    assert reader.read(DECISIVE)
    assert reader.headroom == 90 * MIB
    machine.v2_level("/sys/fs/cgroup", limit=200 * MIB, usage=150 * MIB, stat={"inactive_file": 50 * MIB})
    assert reader.read(USAGE, margin=UNBOUNDED)
    assert (reader.headroom, reader.free) == (90 * MIB, 60 * MIB), "the leaf's again, since the parent has 100"
    machine.v2_level("/sys/fs/cgroup", limit=200 * MIB, usage=170 * MIB, stat={"inactive_file": 45 * MIB})
    assert reader.read(USAGE, margin=UNBOUNDED)
    assert (reader.headroom, reader.free) == (80 * MIB, 30 * MIB), "what was read is kept"


def test_a_limit_whose_reclaimable_part_cannot_be_read_does_not_decide(machine: Machine) -> None:
    reader = three_levels(machine)
    machine.write("/sys/fs/cgroup/memory.stat", "inactive_file ?\n")
    assert reader.read(DECISIVE)
    failure = reader.failure()
    assert failure is not None
    assert failure.path == "/sys/fs/cgroup/memory.stat"
    assert reader.headroom == 61 * MIB, "the middle's, with its own cache"


def test_above_a_leaf_whose_reclaimable_part_cannot_be_read_the_next_is_read_for_itself(machine: Machine) -> None:
    reader = three_levels(machine)
    machine.write("/sys/fs/cgroup/a/b/memory.stat", f"inactive_file {90 * MIB}\nfile_dirty ?\n")
    machine.v2_level("/sys/fs/cgroup/a", limit=200 * MIB, usage=180 * MIB, stat={"inactive_file": 31 * MIB})
    assert reader.read(DECISIVE)
    assert reader.headroom == 51 * MIB


def test_what_throttles_is_read_for_those_who_show_it_alone(machine: Machine) -> None:
    machine.container(limit=256 * MIB)
    machine.write("/sys/fs/cgroup/memory.high", f"{120 * MIB}\n")
    reader = memory(machine)
    machine.write("/sys/fs/cgroup/memory.high", "?")
    for tier in (DECISIVE, RECLAIMABLE, USAGE):
        assert reader.read(tier)
        assert reader.failure() is None
    assert reader.read(FULL)
    assert reader.failure() is not None


@given(st.lists(st.tuples(*[st.integers(0, 100)] * 5), min_size=1, max_size=6))
def test_a_decisive_reading_and_a_full_one_agree_also_where_swap_is_limited(
    levels: list[tuple[int, int, int, int, int]],
) -> None:
    """Each level with both limits, and what is in it but not below: anonymous memory, swapped out or not, and cache."""
    with tempfile.TemporaryDirectory() as directory:
        machine = Machine(Path(directory))
        names = [f"/{'/'.join('abcdef'[:depth])}".rstrip("/") for depth in range(len(levels))]
        machine.v1(names[-1] or "/")
        used = cache = swapped = 0
        for name, (limit, with_swap, own, own_cache, own_swapped) in reversed(list(zip(names, levels, strict=True))):
            used, cache, swapped = used + own + own_cache, cache + own_cache, swapped + own_swapped
            level = f"/sys/fs/cgroup/memory{name}"
            value = limit + used // 2
            stat = {"total_inactive_file": cache * MIB}
            machine.v1_level(level, limit=value * MIB, usage=used * MIB, stat=stat)
            machine.write(f"{level}/memory.memsw.limit_in_bytes", f"{(value + max(0, with_swap - 50)) * MIB}\n")
            machine.write(f"{level}/memory.memsw.usage_in_bytes", f"{(used + swapped) * MIB}\n")
        reader = memory_limits(root=directory)
        assert reader.read(DECISIVE)
        decisive = reader.headroom, reader.free, reader.tightest, reader.first()
        assert reader.read(FULL)
        assert decisive == (reader.headroom, reader.free, reader.tightest, reader.first())


Held = tuple[int, int, int]


@given(st.lists(st.tuples(st.integers(0, 100), *[st.tuples(*[st.integers(0, 100)] * 3)] * 2), min_size=1, max_size=6))
def test_readings_of_what_decides_and_full_ones_agree(levels: list[tuple[int, Held, Held]]) -> None:
    """Each level with a limit, and what is in it but not below, at first and then: anonymous memory, cache, kernel
    objects."""
    with tempfile.TemporaryDirectory() as directory:
        machine = Machine(Path(directory))
        names = [f"/{'/'.join('abcdef'[:depth])}".rstrip("/") for depth in range(len(levels))]
        machine.v2(names[-1] or "/")

        limits: dict[str, int] = {}

        def fill(held: list[Held]) -> None:
            used = cache = slab = 0
            for name, (more, _, _), (own, own_cache, own_slab) in reversed(list(zip(names, levels, held, strict=True))):
                used, cache, slab = used + own + own_cache + own_slab, cache + own_cache, slab + own_slab
                machine.v2_level(
                    f"/sys/fs/cgroup{name}",
                    limit=limits.setdefault(name, more + used // 2) * MIB,
                    usage=used * MIB,
                    stat={"inactive_file": cache * MIB, "slab_reclaimable": slab * MIB},
                )

        fill([first for _, first, _ in levels])
        reader = memory_limits(root=directory)
        assert reader.read(DECISIVE)
        decisive = reader.headroom, reader.free, reader.tightest, reader.first()
        assert reader.read(FULL)
        assert decisive[0] == reader.headroom
        assert decisive[2] == reader.tightest
        assert decisive[3] is not None
        assert decisive[3].headroom == reader.headroom
        fill([then for _, _, then in levels])
        assert reader.read(RECLAIMABLE, margin=UNBOUNDED)
        headroom, first = reader.headroom, reader.first()
        assert reader.read(FULL)
        assert headroom == reader.headroom
        assert first is not None
        assert first.headroom == headroom


def with_swap(machine: Machine, *, limit: int, usage: int, swap_limit: int, swap_usage: int) -> None:
    machine.v1("/")
    machine.v1_level("/sys/fs/cgroup/memory", limit=limit, usage=usage)
    machine.write("/sys/fs/cgroup/memory/memory.memsw.limit_in_bytes", f"{swap_limit}\n")
    machine.write("/sys/fs/cgroup/memory/memory.memsw.usage_in_bytes", f"{swap_usage}\n")


def test_of_one_limit_for_memory_with_and_without_swap_one_usage_is_read(machine: Machine) -> None:
    same = {"limit": 100 * MIB, "swap_limit": 100 * MIB}
    with_swap(machine, **same, usage=50 * MIB, swap_usage=60 * MIB)
    reader = memory(machine)
    assert reader.headroom == 40 * MIB
    with_swap(machine, **same, usage=70 * MIB, swap_usage=75 * MIB)
    machine.write("/sys/fs/cgroup/memory/memory.usage_in_bytes", "?")
    for tier in (USAGE, RECLAIMABLE):
        assert reader.read(tier, margin=UNBOUNDED)
        assert (reader.headroom, reader.free) == (25 * MIB, 25 * MIB)
        assert reader.failure() is None
    machine.write("/sys/fs/cgroup/memory/memory.memsw.usage_in_bytes", f"{45 * MIB}\n")
    assert reader.read(USAGE, margin=UNBOUNDED)
    assert reader.headroom == 55 * MIB, "what was last known of memory alone, 50, has gone out of date"


@pytest.mark.parametrize(("used_with_swap", "which"), [(50, "limit_in_bytes"), (51, "memsw.limit_in_bytes")])
def test_of_two_limits_that_bite_at_the_same_time_the_one_without_swap_is_told(
    machine: Machine, used_with_swap: int, which: str
) -> None:
    with_swap(machine, limit=100 * MIB, swap_limit=100 * MIB, usage=20 * MIB, swap_usage=30 * MIB)
    reader = memory(machine)
    with_swap(machine, limit=100 * MIB, swap_limit=100 * MIB, usage=50 * MIB, swap_usage=used_with_swap * MIB)
    assert reader.read(DECISIVE)
    first = reader.first()
    assert first is not None
    assert first.where == f"/sys/fs/cgroup/memory/memory.{which}"
    assert (reader.headroom, reader.free) == ((100 - used_with_swap) * MIB, (100 - used_with_swap) * MIB)


def test_of_limits_with_and_without_swap_only_those_that_decide_are_looked_at_twice(machine: Machine) -> None:
    machine.v1("/a")
    for name, usage in (("", 60), ("/a", 50)):
        level = f"/sys/fs/cgroup/memory{name}"
        machine.v1_level(level, limit=100 * MIB, usage=usage * MIB, stat={"total_inactive_file": 30 * MIB})
        machine.write(f"{level}/memory.memsw.limit_in_bytes", f"{100 * MIB}\n")
        machine.write(f"{level}/memory.memsw.usage_in_bytes", f"{usage * MIB}\n")
    machine.write("/sys/fs/cgroup/memory/memory.stat", f"total_inactive_file {35 * MIB}\n")
    machine.write("/sys/fs/cgroup/memory/a/memory.usage_in_bytes", "?")
    reader = memory_limits(root=str(machine))
    assert reader.read(DECISIVE)
    assert reader.failure() is None
    assert (reader.headroom, reader.free) == (75 * MIB, 40 * MIB), "the top's, by its own cache"
    machine.write("/sys/fs/cgroup/memory/memory.usage_in_bytes", "?")
    assert reader.read(DECISIVE)
    assert reader.failure() is not None


def test_where_more_is_allowed_with_swap_both_usages_are_read(machine: Machine) -> None:
    more = {"limit": 100 * MIB, "swap_limit": 130 * MIB}
    with_swap(machine, **more, usage=50 * MIB, swap_usage=60 * MIB)
    reader = memory(machine)
    for usage, swap_usage, headroom in ((70, 75, 30), (70, 110, 20)):
        with_swap(machine, **more, usage=usage * MIB, swap_usage=swap_usage * MIB)
        assert reader.read(USAGE, margin=UNBOUNDED)
        assert reader.headroom == headroom * MIB


@pytest.mark.skipif(len(Path("/proc/swaps").read_text().splitlines()) > 1, reason="this machine has swap")
def test_where_there_is_no_swap_the_limit_with_it_is_read_for_those_who_show_it_alone(machine: Machine) -> None:
    more = {"limit": 100 * MIB, "swap_limit": 130 * MIB}
    with_swap(machine, **more, usage=50 * MIB, swap_usage=110 * MIB)
    with open(f"{machine}/proc/meminfo", "a") as meminfo:
        meminfo.write("SwapTotal:             0 kB\n")
    reader = memory(machine)
    for tier in (DECISIVE, USAGE, RECLAIMABLE):
        assert reader.read(tier, margin=UNBOUNDED)
        assert reader.headroom == 50 * MIB
    assert reader.read(FULL)
    assert reader.headroom == 20 * MIB, "which no kernel would allow"
    assert figures(named(reader, "cgroup v1 with swap")) == (130 * MIB, 110 * MIB, 20 * MIB)


def test_a_machine_that_does_not_say_whether_it_has_swap_may_have_some(machine: Machine) -> None:
    with_swap(machine, limit=100 * MIB, swap_limit=130 * MIB, usage=50 * MIB, swap_usage=110 * MIB)
    reader = memory(machine)
    assert reader.read(DECISIVE)
    assert reader.headroom == 20 * MIB


@pytest.mark.parametrize(("above", "headroom"), [(V1_UNLIMITED, 46), (40 * MIB, 2)])
def test_a_limit_above_every_visible_level_is_told_by_any_of_them(machine: Machine, above: int, headroom: int) -> None:
    """The top's memory.stat is read where it has something to say."""
    least = min(above, 50 * MIB)
    machine.v1("/leaf")
    machine.v1_level("/sys/fs/cgroup/memory", usage=38 * MIB, stat={"hierarchical_memory_limit": above})
    machine.v1_level(
        "/sys/fs/cgroup/memory/leaf", limit=50 * MIB, usage=4 * MIB, stat={"hierarchical_memory_limit": least}
    )
    reader = memory_limits(root=str(machine))
    assert reader.read(DECISIVE)
    assert reader.headroom == headroom * MIB
    machine.write("/sys/fs/cgroup/memory/memory.stat", "total_dirty ?\n")
    assert reader.read(DECISIVE)
    assert (reader.failure() is None) == (above == V1_UNLIMITED)
    assert reader.read(FULL)
    assert reader.failure() is not None


def test_limits_that_speak_of_the_same_file_share_its_descriptor(machine: Machine) -> None:
    machine.container()
    machine.rlimits(address_space=1 * GIB)
    machine.statm()
    machine.write("/sys/fs/cgroup/memory.high", f"{120 * MIB}\n")
    before = descriptors_to_compare_with()
    reader = memory(machine, declared=1 * GIB)
    opened = [os.readlink(f"/proc/self/fd/{descriptor}") for descriptor in descriptors() - before]
    assert len(kinds(reader)) == 7
    assert sorted(path.removeprefix(str(machine)) for path in opened) == [
        "/proc/meminfo",
        "/proc/self/cgroup",
        "/proc/self/limits",
        "/proc/self/statm",
        "/sys/fs/cgroup/memory.current",
        "/sys/fs/cgroup/memory.high",
        "/sys/fs/cgroup/memory.max",
        "/sys/fs/cgroup/memory.stat",
    ]


@pytest.mark.parametrize(
    ("rlimit", "where", "limits"),
    [
        (resource.RLIMIT_AS, "RLIMIT_AS", memory_limits),
        (resource.RLIMIT_DATA, "RLIMIT_DATA", memory_limits),
        (resource.RLIMIT_NOFILE, "RLIMIT_NOFILE", open_file_limits),
        (resource.RLIMIT_NPROC, "RLIMIT_NPROC", task_limits),
    ],
)
def test_this_process_s_own_limits_are_those_that_its_file_tells(
    rlimit: int, where: str, limits: Callable[..., LimitReader]
) -> None:
    before = resource.getrlimit(rlimit)
    own, by_file = limits(), limits(pid=os.getpid())
    try:
        for soft in (1 << 40 if before[1] == resource.RLIM_INFINITY else before[1] - 1, before[1]):
            resource.setrlimit(rlimit, (soft, before[1]))
            found = []
            for reader in (own, by_file):
                assert reader.read(FULL)
                found.append({limit.where: limit.value for limit in reader.limits()})
            assert found[0] == found[1]
            if where in found[0]:  # which for the root user tasks are not
                assert found[0][where] == (None if soft == resource.RLIM_INFINITY else soft)
    finally:
        resource.setrlimit(rlimit, before)


def test_this_process_s_own_limits_need_no_file() -> None:
    before = descriptors_to_compare_with()
    readers = memory_limits(), open_file_limits()
    opened = [os.readlink(f"/proc/self/fd/{descriptor}") for descriptor in descriptors() - before]
    assert readers
    assert not [path for path in opened if path.endswith("/limits")]


# --- another process ---


def test_another_process_is_read_by_its_pid(machine: Machine) -> None:
    machine.write("/proc/77/cgroup", "0::/seven\n")
    machine.write("/proc/self/mountinfo", "1 0 0:1 / /m rw - cgroup2 none rw\n")
    machine.v2_level("/m/seven", limit=64 * MIB, usage=60 * MIB)
    machine.tasks_level("/m/seven", limit=9, usage=8)
    machine.rlimits("77", open_files=5)
    machine.descriptors(3, "77")
    root = str(machine)
    for reader, headroom in (
        (memory_limits(pid=77, root=root), 4 * MIB),
        (task_limits(pid=77, root=root), 1),
        (open_file_limits(pid=77, root=root), 2),
    ):
        assert reader.read(FULL)
        assert reader.headroom == headroom


def test_a_process_that_is_not_there_is_an_error_that_names_it(machine: Machine) -> None:
    for find in (memory_limits, task_limits, open_file_limits):
        with pytest.raises(ProbeError, match=r"^/proc/78[:/]"):
            find(pid=78, root=str(machine))
