"""Several processes on one limit: the guard of each sees what the others were given."""

import time
from pathlib import Path

import pytest
from machine import MIB
from programs import MakeCgroup, start_python

TAKER = """
    import sys
    from resource_monitor import AllocationGuard

    AllocationGuard().install()
    print("ready", flush=True)
    sys.stdin.readline()
    blocks = []
    try:
        while True:
            blocks.append(bytearray(b"x") * (8 << 20))
    except MemoryError:
        print(len(blocks), flush=True)
    sys.stdin.readline()
"""
WORKERS, FLOOR = 4, 8 * MIB


def test_the_same_room_is_not_given_to_several_processes(child_cgroup: MakeCgroup) -> None:
    cgroup = child_cgroup(256 * MIB)
    workers = [start_python(cgroup, TAKER) for _ in range(WORKERS)]
    try:
        pipes = [(worker.stdin, worker.stdout) for worker in workers]
        for _, out in pipes:
            assert out is not None
            assert out.readline() == "ready\n"
        for into, _ in pipes:
            assert into is not None
            into.write("go\n")
            into.flush()
        taken = [int(out.readline()) for _, out in pipes if out is not None]
        assert sum(taken) > 10
        # a worker's small steps may go below the floor, blocks like these may not, whoever asks for them; page cache
        # of the workers' own start may lie in what is left, since the kernel takes it back
        stat = dict(line.split() for line in (cgroup.path / "memory.stat").read_text().splitlines())
        assert int(stat["anon" if cgroup.version == 2 else "total_rss"]) < 256 * MIB - FLOOR // 2
        assert cgroup.oom_kills() == 0
    finally:
        for worker in workers:
            worker.kill()
            worker.communicate()


ALLOCATOR = """
    import sys, threading
    from resource_monitor import AllocationGuard

    AllocationGuard().install()
    ended = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.readline(), ended.set())).start()
    while not ended.is_set():
        b"x" * (40 << 20)
"""


def test_of_a_cgroup_with_two_limits_all_lock_the_same_one_for_their_turn(child_cgroup: MakeCgroup) -> None:
    """Which of the two is the nearer one changes with what was read of them."""
    cgroup = child_cgroup(256 * MIB)
    with_swap = cgroup.path / "memory.memsw.limit_in_bytes"
    if not with_swap.exists():
        pytest.skip("this kernel does not limit memory and swap together")
    with_swap.write_text(str(256 * MIB))
    with start_python(cgroup, ALLOCATOR) as worker:
        try:
            locked: list[int] = []
            deadline = time.monotonic() + 30
            while len(locked) < 50 and time.monotonic() < deadline:
                for line in Path("/proc/locks").read_text().splitlines():
                    _, kind, *_, pid, inode, _, _ = line.split()
                    if (kind, pid) == ("FLOCK", str(worker.pid)):
                        locked.append(int(inode.rpartition(":")[2]))
            assert len(locked) == 50
            assert set(locked) == {(cgroup.path / "memory.usage_in_bytes").stat().st_ino}
        finally:
            worker.communicate("\n")
