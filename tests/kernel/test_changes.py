"""What changes while a process runs is followed: limits, its cgroup, its fork."""

import subprocess

from machine import MIB
from programs import MakeCgroup, run_python, start_python

# Answers each line with the headroom, once the kept reading has aged by more than the longest interval.
FOLLOWER = """
    import sys, time
    from resource_monitor import default_monitor
    monitor = default_monitor()
    for _ in iter(sys.stdin.readline, ""):
        time.sleep(0.16)
        print(monitor.headroom(), flush=True)
"""


def ask(process: subprocess.Popen[str]) -> int:
    assert process.stdin is not None
    assert process.stdout is not None
    print(file=process.stdin, flush=True)
    return int(process.stdout.readline())


def test_a_limit_raised_or_lowered_is_followed(child_cgroup: MakeCgroup) -> None:
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


def test_a_process_moved_to_another_cgroup_reads_that_one_though_the_old_one_is_gone(child_cgroup: MakeCgroup) -> None:
    old, new = child_cgroup(128 * MIB, label="old"), child_cgroup(512 * MIB, label="new")
    with start_python(old, FOLLOWER) as follower:
        try:
            assert ask(follower) < 128 * MIB
            (new.path / "cgroup.procs").write_text(str(follower.pid))
            old.close()
            assert 400 * MIB < ask(follower) < 512 * MIB
        finally:
            follower.kill()


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
