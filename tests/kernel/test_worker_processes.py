"""Workers in real cgroups: those on one limit find each other, and nobody else."""

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from child_cgroup import ChildCgroup
from machine import MIB
from programs import TIMEOUT, MakeCgroup, run_python, start_python
from worker_process import Worker

Start = Callable[[ChildCgroup], Worker]


@pytest.fixture
def start(child_cgroup: MakeCgroup) -> Iterator[Start]:
    """Starts a worker in a cgroup; all leave in order at the end, so that no table stays behind."""
    with ExitStack() as stack:

        def start_one(cgroup: ChildCgroup) -> Worker:
            worker = Worker(cgroup=cgroup)
            stack.callback(worker.kill)
            stack.callback(lambda: worker.process.poll() is None and worker.does("table.close()"))
            worker.does("table.publish(0, 0)")
            return worker

        yield start_one


def tables(cgroup: ChildCgroup) -> list[Path]:
    status = cgroup.path.stat()
    return list(Path("/dev/shm").glob(f"resource_monitor-*-{status.st_dev}-{status.st_ino}"))


def test_workers_of_one_cgroup_share_a_table(child_cgroup: MakeCgroup, start: Start) -> None:
    cgroup = child_cgroup(256 * MIB)
    one, two = start(cgroup), start(cgroup)
    one.does(f"table.publish({100 * MIB}, 3)")
    assert two.others() == (100 * MIB, 3, 1)
    [table] = tables(cgroup)
    assert table.stat().st_mode & 0o777 == 0o600
    one.does("table.close()")
    two.does("table.close()")
    assert not tables(cgroup)


def test_workers_of_different_cgroups_do_not(child_cgroup: MakeCgroup, start: Start) -> None:
    one, two = start(child_cgroup(256 * MIB)), start(child_cgroup(256 * MIB))
    one.does("table.publish(100, 3)")
    assert two.others() == (0, 0, 0)


def test_workers_of_different_cgroups_below_one_limit_share_its_table(child_cgroup: MakeCgroup, start: Start) -> None:
    parent = child_cgroup(512 * MIB, label="parent")
    one = start(child_cgroup(None, label="one", parent=parent))
    two = start(child_cgroup(None, label="two", parent=parent))
    three = start(child_cgroup(128 * MIB, label="three", parent=parent))
    one.does("table.publish(100, 3)")
    assert two.others() == (100, 3, 1)
    assert three.others() == (0, 0, 0)


def test_a_worker_that_the_kernel_kills_for_want_of_memory_counts_no_more(
    child_cgroup: MakeCgroup, start: Start
) -> None:
    cgroup = child_cgroup(128 * MIB)
    one, two = start(cgroup), start(cgroup)
    two.does("table.publish(100, 3)")
    two.does("table.publish_routes({'GET /': (1.0, None, 3.0, 4.0)}, time.monotonic())")
    assert one.others() == (100, 3, 1)
    two.say(f"len(bytearray(b'x') * {256 * MIB})")
    assert two.process.wait() == -signal.SIGKILL
    assert cgroup.oom_kills() == 1
    assert one.others(after=0.25) == (0, 0, 0)
    assert start(cgroup).does("table.learned('GET /', time.monotonic())") == [1.0, None, 3.0, 4.0]
    for table in tables(cgroup):  # kept for what was learned
        table.unlink()


PRELOADED = """
    import json, os, sys, time
    from dataclasses import astuple
    from resource_monitor.workers import WorkerTable

    table = WorkerTable.open()
    pipes = []
    for number in range(3):
        reply, tell = os.pipe()
        wait, go = os.pipe()
        if os.fork() == 0:
            if len(sys.argv) > 1:
                os.setuid(int(sys.argv[1]))
            table.publish(10 ** number, 1)
            os.write(tell, b"x")
            os.read(wait, 1)
            others, patience = None, time.monotonic() + 60
            # who did not get hold of the table's lock in time tries again at the next census
            while (others is None or others.workers < 2) and time.monotonic() < patience:
                others = table.others(time.monotonic())
                time.sleep(0.01)
            os.write(tell, json.dumps(astuple(others)[:3]).encode())
            os.read(wait, 1)
            sys.exit()
        pipes.append((reply, go))
    for reply, go in pipes:
        assert os.read(reply, 1) == b"x"
    for reply, go in pipes:
        os.write(go, b"x")
    seen = [json.loads(os.read(reply, 100)) for reply, go in pipes]
    for reply, go in pipes:
        os.write(go, b"x")
        os.wait()
    table.close()
    print(json.dumps(seen))
"""


def test_what_passes_a_worker_s_guard_shows_while_it_has_no_time_to_tell(
    child_cgroup: MakeCgroup, start: Start
) -> None:
    cgroup = child_cgroup(256 * MIB)
    watcher, worker = start(cgroup), start(cgroup)
    take = f"[bytearray({8 * MIB}) for _ in range(8)], bytearray(100_000_000)"

    def told() -> int:
        return int(watcher.does("table.others(time.monotonic() + 1)")[3])

    worker.does("AllocationGuard().install()")
    before = worker.does("passed()")
    after = worker.does(f"({take}, passed())[-1]")
    seen = told()
    assert before + 64 * MIB < seen <= after
    # what a child takes that has told nobody of itself is not put down to its parent
    worker.does(f"os.waitpid(os.fork() or ({take}, os._exit(0)), 0)")
    assert told() == seen
    worker.does("table.close()")
    worker.does(f"({take}, None)[-1]")
    assert watcher.others(after=1) == (0, 0, 0)


@pytest.mark.parametrize(
    "user", [None, pytest.param(65534, marks=pytest.mark.skipif(os.geteuid() != 0, reason="only root can change user"))]
)
def test_the_workers_of_a_master_that_has_loaded_the_app_see_each_other_and_not_the_master(
    child_cgroup: MakeCgroup, user: int | None
) -> None:
    """As with gunicorn's ``preload_app``, and its ``user``, to whom the master's file is closed."""
    cgroup = child_cgroup(256 * MIB)
    seen = run_python(cgroup, PRELOADED, *([] if user is None else [user]))
    assert seen == [[110, 2, 2], [101, 2, 2], [11, 2, 2]], json.dumps(seen)
    assert not tables(cgroup)


AT_ONCE = """
    import json, sys, time
    from contextlib import contextmanager
    from resource_monitor import MemoryPressure, reserve
    from resource_monitor.middleware.gate import Admitted, Gate

    size, begin, rounds = int(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4])
    gate = Gate(allocation_guard=False, request_cost=size)
    while not isinstance(first := gate.attempt(gate.ask({}, "GET", "/")), Admitted):
        pass  # the other one is at it
    first.leave()

    @contextmanager
    def request():
        admitted = gate.attempt(gate.ask({}, "GET", "/"))
        if not isinstance(admitted, Admitted):
            raise MemoryPressure
        yield
        admitted.leave()

    held = []
    for number in range(rounds):
        at = begin + number * 0.02
        while time.monotonic() < at:
            pass
        try:
            with reserve(size) if sys.argv[1] == "reserve" else request():
                taken = time.monotonic()
                while time.monotonic() < at + 0.01:
                    pass
                held.append((taken, time.monotonic()))
        except MemoryPressure:
            pass
    print(json.dumps(held))
"""


@pytest.mark.parametrize("how", ["reserve", "request_cost"])
def test_of_two_workers_that_want_it_at_the_same_moment_not_both_get_what_is_there_once(
    child_cgroup: MakeCgroup, how: str
) -> None:
    cgroup = child_cgroup(512 * MIB)
    arguments = (how, 300 * MIB, time.monotonic() + 5, 100)
    workers = [start_python(cgroup, AT_ONCE, *arguments) for _ in range(2)]
    replies = [worker.communicate(timeout=TIMEOUT) for worker in workers]
    one, two = (json.loads(out or err) for out, err in replies)
    assert one or two
    assert [(mine, theirs) for mine in one for theirs in two if mine[0] < theirs[1] and theirs[0] < mine[1]] == []


HOLDING = """
    import json, sys, time
    from resource_monitor import MemoryPressure, reserve
    from resource_monitor.middleware.gate import Gate

    gate = Gate(allocation_guard=False)  # which has them know of each other
    if sys.argv[1] == "holds":
        with reserve("300MiB"):
            taken = bytearray(b"x") * (300 << 20)
            print(flush=True)
            sys.stdin.readline()
    else:
        sizes, got, patience = ["100MiB", "200MiB"], [], time.monotonic() + 60
        while sizes and time.monotonic() < patience:
            try:
                with reserve(sizes[0]):
                    got.append(sizes.pop(0))
            except MemoryPressure:
                if got:
                    break
                time.sleep(0.02)  # what it took is not in everybody's reading before
        print(json.dumps(got))
"""


def test_what_a_worker_took_of_its_reservation_is_left_to_nobody_but_counted_once(child_cgroup: MakeCgroup) -> None:
    """Also while it is asked nothing else that would have it read and tell."""
    cgroup = child_cgroup(512 * MIB)
    with start_python(cgroup, HOLDING, "holds") as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "\n"
        assert run_python(cgroup, HOLDING, "wants") == ["100MiB"]
        holder.communicate("\n", timeout=TIMEOUT)
