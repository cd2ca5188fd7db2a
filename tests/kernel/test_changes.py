"""What changes while a process runs is followed: limits, its cgroup, its fork."""

import subprocess

import pytest
from machine import MIB
from programs import MakeCgroup, run_python, start_python

# Answers each line, seconds that pass for the monitor, with the headroom, or with what a full reading out of turn says.
# It watches the floor that is given.
FOLLOWER = """
    import sys
    from resource_monitor import MemoryMonitor
    now = 0.0
    monitor = MemoryMonitor(clock=lambda: now)
    monitor.watch(int(*sys.argv[1:]))
    for line in iter(sys.stdin.readline, ""):
        now += float(line)
        print(monitor.headroom() if float(line) else monitor.first().headroom, flush=True)
"""


def ask(process: subprocess.Popen[str], seconds: float = 0.25) -> int:
    assert process.stdin is not None
    assert process.stdout is not None
    print(seconds, file=process.stdin, flush=True)
    return int(process.stdout.readline())


def test_a_limit_raised_or_lowered_is_followed_within_a_quarter_of_a_second(child_cgroup: MakeCgroup) -> None:
    cgroup = child_cgroup(128 * MIB)
    with start_python(cgroup, FOLLOWER) as follower:
        try:
            start = ask(follower)
            assert 64 * MIB < start < 128 * MIB
            cgroup.set_limit(512 * MIB)
            assert abs(ask(follower) - (start + 384 * MIB)) < 8 * MIB
            cgroup.set_limit(96 * MIB)
            assert abs(ask(follower) - (start - 32 * MIB)) < 8 * MIB
        finally:
            follower.kill()


def test_a_limit_set_on_a_parent_is_followed(child_cgroup: MakeCgroup) -> None:
    parent = child_cgroup(512 * MIB, label="parent")
    with start_python(child_cgroup(None, label="leaf", parent=parent), FOLLOWER) as follower:
        try:
            start = ask(follower)
            parent.set_limit(128 * MIB)
            assert abs(ask(follower) - (start - 384 * MIB)) < 8 * MIB
        finally:
            follower.kill()


@pytest.mark.parametrize(
    ("seconds", "floor"), [(0.25, 0), (0, 0), (0.06, 1 << 40)], ids=["in_turn", "out_of_turn", "near_the_floor"]
)
def test_a_process_moved_to_another_cgroup_reads_that_one_though_the_old_one_is_gone(
    child_cgroup: MakeCgroup, seconds: float, floor: int
) -> None:
    """Out of turn the removal is noticed by what the kernel answers, ENODEV."""
    old, new = child_cgroup(128 * MIB, label="old"), child_cgroup(512 * MIB, label="new")
    with start_python(old, FOLLOWER, floor) as follower:
        try:
            assert ask(follower) < 128 * MIB
            (new.path / "cgroup.procs").write_text(str(follower.pid))
            old.close()
            assert 400 * MIB < ask(follower, seconds) < 512 * MIB
        finally:
            follower.kill()


@pytest.mark.parametrize(("policy", "admitted"), [("admit", True), ("refuse", False)])
def test_a_move_that_cannot_be_followed_for_want_of_descriptors_follows_the_policy(
    child_cgroup: MakeCgroup, policy: str, admitted: bool
) -> None:
    old, new = child_cgroup(128 * MIB, label="old"), child_cgroup(512 * MIB, label="new")
    program = """
        import json, os, resource, sys
        from resource_monitor import MemoryMonitor, ProbeError
        from resource_monitor.middleware.gate import Gate

        now = 0.0
        monitor = MemoryMonitor(clock=lambda: now)
        gate = Gate(monitor=monitor, on_probe_error=sys.argv[2], allocation_guard=False)
        with open(sys.argv[1], "w") as file:
            file.write(str(os.getpid()))
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        taken = os.dup(0)
        resource.setrlimit(resource.RLIMIT_NOFILE, (taken + 1, hard))
        now += 0.25
        decided = gate.enter("GET", "/") is not None
        try:
            problem = monitor.read()
        except ProbeError as error:
            problem = str(error)
        errors = gate.statistics().probe_errors
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        now += 0.25
        print(json.dumps([decided, errors, problem, gate.enter("GET", "/") is not None, monitor.headroom()]))
    """
    decided, errors, problem, afterwards, headroom = run_python(old, program, new.path / "cgroup.procs", policy)
    assert (decided, errors, afterwards) == (admitted, 1, True)
    assert problem.endswith(": cannot be read: Too many open files")
    assert 400 * MIB < headroom < 512 * MIB, "as soon as there are descriptors again, the move is followed"


def test_a_forked_child_reads_its_own_figures(child_cgroup: MakeCgroup) -> None:
    """Of the limit declared on resident memory, and of the cgroup that it was moved to."""
    parent, other = child_cgroup(256 * MIB, label="parent"), child_cgroup(128 * MIB, label="other")
    program = """
        import json, os, sys
        from resource_monitor import MemoryMonitor

        monitor = MemoryMonitor(limit="1GiB")
        ballast = bytearray(b"x") * (100 << 20)
        def figures():
            limits = monitor.limits()
            declared = next(limit for limit in limits if limit.kind == "declared limit")
            return [declared.used, [limit.value for limit in limits], monitor.headroom()]
        mine = figures()
        if os.fork() == 0:
            with open(sys.argv[1], "w") as file:
                file.write(str(os.getpid()))
            del ballast
            print(json.dumps([mine, figures()]), flush=True)
            os._exit(0)
        assert os.wait()[1] == 0
    """
    mine, childs = run_python(parent, program, other.path / "cgroup.procs")
    assert mine[0] > 100 * MIB
    assert childs[0] < mine[0] - 80 * MIB
    assert 256 * MIB in mine[1]
    assert 128 * MIB in childs[1]
    assert 256 * MIB not in childs[1]
    assert childs[2] > 100 * MIB
