import os
import signal
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from machine import MIB, Machine, descriptors, descriptors_to_compare_with
from worker_process import Worker

from resource_monitor import worker_slots
from resource_monitor.shared_file import SharedFile
from resource_monitor.worker_slots import HEADER, OFFSETS, SIZE, SLOTS, Owner
from resource_monitor.workers import Others, WorkerTable

NOBODY = Others(0, 0, 0)
# Times that are far enough apart for everything to be looked at anew.
NOW = 1000.0
LATER = NOW + 0.25


@pytest.fixture
def shm(machine: Machine) -> Path:
    """Where the tables of a container are."""
    machine.container()
    shm = machine.path("/dev/shm")
    shm.mkdir(parents=True)
    return shm


@pytest.fixture
def open_table(machine: Machine, shm: Path) -> Iterator[Callable[[], WorkerTable]]:
    """Tables of this process, each with a slot of its own as if it were another worker."""
    with ExitStack() as stack:

        def open_one() -> WorkerTable:
            table = WorkerTable.open(root=str(machine))
            assert table is not None
            stack.callback(table.close)
            return table

        yield open_one


@pytest.fixture
def start_worker(machine: Machine, shm: Path) -> Iterator[Callable[[], Worker]]:
    with ExitStack() as stack:

        def start() -> Worker:
            worker = Worker(machine.root)
            stack.callback(worker.kill)
            return worker

        yield start


def the_file(shm: Path) -> Path:
    [file] = shm.iterdir()
    return file


def spoil(shm: Path, content: bytes, at: int = 0) -> None:
    """Write into the file that is mapped, as a program gone astray would."""
    with the_file(shm).open("r+b") as file:
        file.seek(at)
        file.write(content)


Open = Callable[[], WorkerTable]
Start = Callable[[], Worker]


def test_workers_see_the_sum_over_the_others(open_table: Open) -> None:
    one, two, three = open_table(), open_table(), open_table()
    one.publish(100 * MIB, 3)
    two.publish(20 * MIB, 4)
    three.publish(0, 1)
    assert one.others(NOW) == Others(20 * MIB, 5, 2)
    assert two.others(NOW) == Others(100 * MIB, 4, 2)
    assert three.others(NOW) == Others(120 * MIB, 7, 2)


def test_what_is_published_is_seen_a_millisecond_later_or_at_once(open_table: Open) -> None:
    one, two = open_table(), open_table()
    two.publish(100, 1)
    assert one.others(NOW) == Others(100, 1, 1)
    two.publish(50, 1)
    assert one.others(NOW + 0.0001, at_once=True) == Others(50, 1, 1)
    two.publish(7, 2)
    assert one.others(NOW + 0.0005) == Others(50, 1, 1)
    assert one.others(NOW + 0.0012) == Others(7, 2, 1)


def test_a_worker_that_joins_is_seen_a_millisecond_later(open_table: Open) -> None:
    """Its promises must not be given away until the next census."""
    one, two = open_table(), open_table()
    assert one.others(NOW) == NOBODY
    two.publish(100, 1)
    assert one.others(NOW + 0.0011) == Others(100, 1, 1)


def test_one_who_was_found_alone_is_it_until_anybody_comes_or_it_is_time_to_look_again(open_table: Open) -> None:
    one, two = open_table(), open_table()
    assert not one.is_alone(NOW), "nobody looked yet"
    one.others(NOW)
    assert one.is_alone(NOW + 0.2)
    assert not one.is_alone(LATER)
    two.publish(0, 0)
    assert not one.is_alone(NOW + 0.2)
    one.others(NOW + 0.2)
    assert not one.is_alone(NOW + 0.2)
    two.close()
    one.others(NOW + 0.2, at_once=True)
    assert one.is_alone(NOW + 0.2)
    one.close()
    assert not one.is_alone(NOW + 0.2)


def test_a_clock_that_goes_backwards_does_no_harm(open_table: Open) -> None:
    one, two = open_table(), open_table()
    assert one.others(NOW) == NOBODY
    two.publish(100, 1)
    assert one.others(NOW - 500) == Others(100, 1, 1)


def test_figures_out_of_bounds_are_kept_in_them(open_table: Open) -> None:
    one, two = open_table(), open_table()
    one.publish(-5, 1 << 100)
    assert two.others(NOW) == Others(0, 1 << 20, 1)


def test_one_who_leaves_counts_no_more(open_table: Open) -> None:
    one, two = open_table(), open_table()
    one.publish(1, 1)
    two.publish(100, 1)
    assert one.others(NOW) == Others(100, 1, 1)
    two.close()
    assert one.others(NOW + 0.0011) == NOBODY


def test_a_closed_table_does_nothing_more_and_keeps_nothing_open(open_table: Open, shm: Path) -> None:
    before = descriptors_to_compare_with()
    table, other = open_table(), open_table()
    table.publish(1, 1)
    table.close()
    table.close()
    table.publish(5, 5)
    table.publish_routes({"GET /": (1.0, 1.0, 1.0, 1.0)}, NOW)
    assert table.others(LATER) == NOBODY
    assert table.learned("GET /", NOW) is None
    assert other.others(LATER) == NOBODY
    other.close()
    assert descriptors() == before


def test_the_last_one_to_leave_removes_the_table(open_table: Open, shm: Path) -> None:
    one, two = open_table(), open_table()
    one.publish(1, 1)
    two.publish(1, 1)
    one.close()
    assert list(shm.iterdir())
    two.close()
    assert not list(shm.iterdir())


def test_what_was_learned_is_left_for_whoever_comes_next(open_table: Open) -> None:
    one = open_table()
    one.publish_routes({"GET /": (1.0, None, 3.0, 4.0)}, NOW)
    one.close()
    assert open_table().learned("GET /", NOW + 1) == (1.0, None, 3.0, 4.0)


def test_the_latest_to_have_learned_of_a_class_is_believed(open_table: Open) -> None:
    one, two, three = open_table(), open_table(), open_table()
    one.publish_routes({"GET /": (1.0,) * 4, "GET /old": (9.0,) * 4}, NOW)
    two.publish_routes({"GET /": (2.0,) * 4}, NOW + 2)
    three.publish_routes({"GET /": (3.0,) * 4}, NOW + 1)
    assert one.learned("GET /", NOW + 3) == (2.0,) * 4
    assert two.learned("GET /old", NOW + 3) == (9.0,) * 4
    assert two.learned("GET /new", NOW + 3) is None


def test_what_was_learned_long_ago_is_forgotten(open_table: Open) -> None:
    one = open_table()
    one.publish_routes({"GET /": (1.0,) * 4}, NOW)
    assert one.learned("GET /", NOW + 599) is not None
    assert one.learned("GET /", NOW + 600) is None


def test_what_was_learned_in_the_future_is_not_believed(open_table: Open) -> None:
    """A file may outlast a boot, the clock does not."""
    one = open_table()
    one.publish_routes({"GET /": (1.0,) * 4}, NOW)
    assert one.learned("GET /", NOW - 0.5) is not None
    assert one.learned("GET /", NOW - 2) is None


def test_a_process_that_only_opens_the_table_is_no_worker(open_table: Open) -> None:
    """Such as gunicorn's master, which loads the app and forks."""
    open_table()
    assert open_table().others(NOW) == NOBODY


def test_processes_see_each_other(start_worker: Start) -> None:
    one, two = start_worker(), start_worker()
    one.does("table.publish(100, 3)")
    two.does("table.publish(20, 4)")
    assert one.others() == (20, 4, 1)
    assert two.others() == (100, 3, 1)
    one.does("table.publish_routes({'GET /': (1.0, None, 3.0, 4.0)}, time.monotonic())")
    assert two.does("table.learned('GET /', time.monotonic())") == [1.0, None, 3.0, 4.0]


def test_what_a_worker_has_taken_of_what_it_promised_is_not_promised_besides(start_worker: Start) -> None:
    def promised() -> int:
        seen: list[int] = [one.others(after=after)[0] for after in (0.1, 0.2, 0.3, 0.4)]  # what stays
        return round(seen[-1] / MIB)

    one, two = start_worker(), start_worker()
    two.does(f"table.publish({100 * MIB}, 3)")
    assert promised() == 100
    two.does(f"globals().update(taken=bytearray(b'x') * {60 * MIB})")
    assert 36 <= promised() <= 41
    two.does("taken.clear()")
    assert 96 <= promised() <= 100
    two.does(f"globals().update(taken=bytearray(b'x') * {200 * MIB})")
    assert promised() == 0
    two.does(f"table.publish({10 * MIB}, 3)")
    assert promised() == 10
    two.does(f"table.publish({MIB}, 3)")
    two.does(f"globals().update(more=bytearray(b'x') * {60 * MIB})")
    assert promised() == 1, "for so little it is not looked"


def test_a_killed_workers_promises_count_no_more_but_what_it_learned_does(start_worker: Start) -> None:
    one, two = start_worker(), start_worker()
    one.does("table.publish(0, 0)")
    two.does("table.publish(100, 3)")
    two.does("table.publish_routes({'GET /': (1.0, None, 3.0, 4.0)}, time.monotonic())")
    assert one.others() == (100, 3, 1)
    two.process.send_signal(signal.SIGKILL)
    os.waitid(os.P_PID, two.process.pid, os.WEXITED | os.WNOWAIT)  # a zombie, as before the master has looked
    assert one.others(after=0.25) == (0, 0, 0)
    two.process.wait()
    three = start_worker()
    assert three.does("table.learned('GET /', time.monotonic())") == [1.0, None, 3.0, 4.0]
    three.does("table.publish(7, 1)")
    assert one.others() == (7, 1, 1)


def test_a_worker_that_ends_in_order_leaves(start_worker: Start, shm: Path) -> None:
    one, two = start_worker(), start_worker()
    one.does("table.publish(1, 1)")
    two.does("table.publish(100, 3)")
    assert two.leave() == ""
    assert one.others() == (0, 0, 0)
    assert one.leave() == ""
    assert not list(shm.iterdir())


def test_workers_that_start_at_the_same_time_never_take_the_same_slot(start_worker: Start) -> None:
    workers = [start_worker() for _ in range(8)]
    for number, worker in enumerate(workers):
        assert worker.does(str(number)) == number
    for number, worker in enumerate(workers):
        worker.say(f"table.publish({1 << number}, 1)")
    for worker in workers:
        worker.hear()
    for worker in workers:
        worker.others()  # one that would have had to wait for too long is let in now
    for number, worker in enumerate(workers):
        assert worker.others(after=0.25) == (255 - (1 << number), 7, 7)


def test_a_slot_is_taken_under_the_lock_and_what_was_published_meanwhile_is_told_then(
    open_table: Open, shm: Path, caplog: pytest.LogCaptureFixture
) -> None:
    one, two = open_table(), open_table()
    file = SharedFile(str(the_file(shm)), HEADER, SIZE)
    with file.locked():
        one.publish(100, 1)
        one.publish(200, 2)
        assert two.others(NOW) == NOBODY
    file.close()
    assert len([record for record in caplog.records if "locked" in record.message]) == 2
    one.others(NOW)
    assert two.others(LATER) == Others(200, 2, 1)


def test_another_worker_in_the_place_of_one_is_told_from_it(start_worker: Start, open_table: Open) -> None:
    table = open_table()
    generations = []
    for at in range(2):
        worker = start_worker()
        worker.does("table.publish(1, 1)")
        generations += [table.others(NOW + at).generation, table.others(NOW + at + 0.3).generation]
        worker.kill()
    assert generations[0] == generations[1] != generations[2] == generations[3]
    assert table.others(NOW + 2).workers == 0


def test_figures_are_never_mixed_nor_missed_while_they_are_written(start_worker: Start, open_table: Open) -> None:
    reader, writer = open_table(), start_worker()
    writer.does("table.publish(1, 1)")
    writer.say("[table.publish(n, n) for n in range(300_000)] and None")
    seen = {reader.others(NOW + step) for step in range(30_000)}
    writer.hear()
    assert all(others.promised == others.in_flight and others.workers == 1 for others in seen)
    assert len(seen) > 10


def test_a_forked_child_takes_a_slot_of_its_own(open_table: Open) -> None:
    parent, watcher = open_table(), open_table()
    parent.publish(100, 1)
    assert watcher.others(NOW) == Others(100, 1, 1)
    pid = os.fork()
    if pid == 0:
        with suppress(BaseException):
            # the watcher and the parent, whose promises the child has not made
            assert parent.others(NOW) == Others(100, 1, 2)
            assert watcher.others(NOW + 1) == Others(100, 1, 3)
            parent.publish(20, 2)
            parent.publish_routes({"GET /child": (1.0,) * 4}, NOW)
            assert watcher.others(NOW + 2) == Others(120, 3, 3)
            watcher.close()
            os.kill(os.getpid(), signal.SIGSTOP)
        os._exit(1)
    try:
        assert os.WIFSTOPPED(os.waitpid(pid, os.WUNTRACED)[1])
        assert watcher.others(NOW + 1) == Others(120, 3, 2)
        assert parent.others(NOW + 1) == Others(20, 2, 2)
        parent.publish(300, 3)
        assert watcher.others(NOW + 2) == Others(320, 5, 2)
        assert parent.learned("GET /child", NOW) == (1.0,) * 4
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    assert watcher.others(NOW + 3) == Others(300, 3, 1)


def test_a_forked_child_that_ends_does_not_take_its_parent_out(open_table: Open, shm: Path) -> None:
    parent, watcher = open_table(), open_table()
    parent.publish(100, 1)
    pid = os.fork()
    if pid == 0:
        with suppress(BaseException):
            parent.close()
        os._exit(0)
    os.waitpid(pid, 0)
    assert watcher.others(NOW) == Others(100, 1, 1)


def test_a_pid_that_was_given_anew_is_not_taken_for_the_worker(open_table: Open, shm: Path) -> None:
    table = open_table()
    table.publish(1, 1)
    this = worker_slots.owner(os.getpid())
    assert this is not None
    file = SharedFile(str(the_file(shm)), HEADER, SIZE)
    worker_slots.write_state(file.content, OFFSETS[5], Owner(this.pid, this.started - 1), 100, 1, 0, 0)
    worker_slots.write_state(file.content, OFFSETS[6], this, 20, 1, 0, 0)
    file.close()
    assert table.others(NOW) == Others(20, 1, 1)


def test_one_who_finds_the_table_full_works_alone_and_says_so_once_until_there_is_room(
    open_table: Open, shm: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tables = [open_table() for _ in range(SLOTS)]
    for table in tables:
        table.publish(1, 1)
    late = open_table()
    for second in range(3):
        late.publish(100, 1)
        late.publish_routes({"GET /": (1.0,) * 4}, NOW)
        assert late.others(NOW + second) == Others(SLOTS, SLOTS, SLOTS)
    assert tables[0].others(NOW) == Others(SLOTS - 1, SLOTS - 1, SLOTS - 1)
    [record] = caplog.records
    assert str(the_file(shm)) in record.message
    assert "taken by living workers" in record.message
    tables[-1].close()
    late.others(NOW + 3)
    assert tables[0].others(LATER) == Others(SLOTS - 2 + 100, SLOTS - 1, SLOTS - 1)


def test_a_slot_that_was_spoilt_is_written_anew(open_table: Open, shm: Path) -> None:
    one, two = open_table(), open_table()
    one.publish(100, 1)
    two.publish(20, 1)
    spoil(shm, b"\xff" * (SIZE - OFFSETS[0]), OFFSETS[0])
    assert two.others(NOW) == NOBODY
    one.others(NOW)
    assert two.others(LATER) == Others(100, 1, 1)


def test_a_worker_whose_slot_another_one_has_takes_a_new_one(open_table: Open, shm: Path) -> None:
    one, two = open_table(), open_table()
    one.publish(100, 1)
    with Worker(shm.parent.parent).process as process:
        other = worker_slots.owner(process.pid)
        assert other is not None
        file = SharedFile(str(the_file(shm)), HEADER, SIZE)
        worker_slots.write_state(file.content, OFFSETS[0], other, 20, 1, 0, 0)
        file.close()
        one.others(NOW)
        assert two.others(NOW) == Others(120, 2, 2)
        process.kill()


def test_a_table_that_was_removed_is_made_anew_and_found_by_all(open_table: Open, shm: Path) -> None:
    """As by a cleaner of temporary files."""
    one, two = open_table(), open_table()
    one.publish(100, 1)
    two.publish(20, 1)
    the_file(shm).unlink()
    one.others(NOW)
    two.others(NOW)
    assert one.others(LATER) == Others(20, 1, 1)
    assert two.others(LATER) == Others(100, 1, 1)


def test_a_worker_that_starts_while_the_last_one_leaves_is_found_by_the_next(open_table: Open) -> None:
    leaving, starting = open_table(), open_table()
    leaving.publish(1, 1)
    leaving.close()
    starting.publish(100, 1)
    assert open_table().others(NOW) == Others(100, 1, 1)


@given(junk=st.binary(max_size=3 * OFFSETS.step), at=st.integers(0, SIZE), cut=st.integers(0, SIZE))
def test_whatever_is_in_the_file_nothing_is_raised_and_nothing_believed(junk: bytes, at: int, cut: int) -> None:
    """Junk written into the file while it is mapped, and found there by one who starts."""
    with tempfile.TemporaryDirectory() as directory, ExitStack() as stack:
        machine = Machine(Path(directory))
        machine.container()
        shm = machine.path("/dev/shm")
        shm.mkdir(parents=True)
        one = WorkerTable.open(root=str(machine))
        assert one is not None
        stack.callback(one.close)
        one.publish(100, 1)
        path = the_file(shm)
        spoil(shm, junk[: SIZE - at], at)
        assert one.others(NOW) == NOBODY
        one.publish(100, 1)
        two = WorkerTable.open(root=str(machine))
        assert two is not None
        stack.callback(two.close)
        assert two.learned("GET /", NOW) is None
        two.publish(20, 2)
        one.others(LATER)
        assert one.others(LATER + 1) == Others(20, 2, 1)
        assert two.others(LATER + 1) == Others(100, 1, 1)
        one.close()
        two.close()
        path.write_bytes((HEADER + junk)[:cut])
        path.chmod(0o600)
        three = WorkerTable.open(root=str(machine))
        assert three is not None
        stack.callback(three.close)
        assert three.others(NOW) == NOBODY


@pytest.mark.parametrize("obstacle", [Path.mkdir, lambda path: path.symlink_to("/etc/passwd"), os.mkfifo])
def test_without_a_usable_file_there_is_no_table_and_one_line_says_why(
    open_table: Open, machine: Machine, shm: Path, caplog: pytest.LogCaptureFixture, obstacle: Callable[[Path], None]
) -> None:
    open_table().close()
    open_table().publish(1, 1)
    path = the_file(shm)
    path.unlink()
    obstacle(path)
    assert WorkerTable.open(root=str(machine)) is None
    [record] = caplog.records
    assert str(path) in record.message


def test_a_worker_that_loses_its_table_for_good_works_on_alone(
    open_table: Open, shm: Path, caplog: pytest.LogCaptureFixture
) -> None:
    one, two = open_table(), open_table()
    one.publish(100, 1)
    two.publish(20, 1)
    assert one.others(NOW) == Others(20, 1, 1)
    path = the_file(shm)
    path.unlink()
    path.mkdir()
    for second in range(1, 4):
        assert one.others(NOW + second) == NOBODY
        one.publish(100, 1)
        one.publish_routes({"GET /": (1.0,) * 4}, NOW)
        assert one.learned("GET /", NOW) is None
    [record] = caplog.records
    assert str(path) in record.message
    path.rmdir()
    one.others(NOW + 4)
    assert two.others(NOW) == Others(100, 1, 1)


def test_without_a_cgroup_there_is_no_table_and_nothing_to_be_said(
    machine: Machine, caplog: pytest.LogCaptureFixture
) -> None:
    machine.process("0::/\n", "")
    assert WorkerTable.open(root=str(machine)) is None
    assert not caplog.records


def test_where_the_cgroup_is_not_certain_there_is_no_table(machine: Machine, shm: Path) -> None:
    """The workers of other containers may be in the one that stands in for it."""
    machine.v2("/elsewhere", root="/../other")
    assert WorkerTable.open(root=str(machine)) is None


def test_files_that_cannot_be_understood_leave_no_table(
    machine: Machine, shm: Path, caplog: pytest.LogCaptureFixture
) -> None:
    machine.write("/proc/self/cgroup", "nonsense\n")
    assert WorkerTable.open(root=str(machine)) is None
    [record] = caplog.records
    assert "/proc/self/cgroup" in record.message


def test_where_there_is_no_shared_memory_the_file_is_a_temporary_one(
    machine: Machine, shm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shm.rmdir()
    monkeypatch.setattr(tempfile, "tempdir", "/var/temporary")
    machine.path("/var/temporary").mkdir(parents=True)
    table = WorkerTable.open(root=str(machine))
    assert table is not None
    assert the_file(machine.path("/var/temporary")).stat().st_size == SIZE
    table.close()


LEAF, PARENT = "/sys/fs/cgroup/slice/app", "/sys/fs/cgroup/slice"


@pytest.mark.parametrize(
    ("leaf", "parent", "bites"),
    [
        (256 * MIB, None, LEAF),
        (None, 256 * MIB, PARENT),
        (256 * MIB, 512 * MIB, LEAF),
        (512 * MIB, 256 * MIB, PARENT),
        (256 * MIB, 256 * MIB, LEAF),
        (None, None, LEAF),
    ],
)
def test_those_share_a_table_who_share_the_smallest_limit(
    machine: Machine, shm: Path, leaf: int | None, parent: int | None, bites: str
) -> None:
    machine.container(limit=None)
    machine.v2("/slice/app")
    machine.v2_level(LEAF, limit=leaf, usage=MIB)
    machine.v2_level(PARENT, limit=parent, usage=MIB)
    table = WorkerTable.open(root=str(machine))
    assert table is not None
    status = machine.path(bites).stat()
    assert the_file(shm).name.endswith(f"-{status.st_dev}-{status.st_ino}")
    table.close()


def test_a_limit_that_only_throttles_does_not_bite(machine: Machine, shm: Path) -> None:
    machine.v2("/slice/app")
    machine.v2_level(LEAF, limit=256 * MIB, usage=MIB)
    machine.v2_level(PARENT, limit=512 * MIB, usage=MIB)
    machine.write(f"{PARENT}/memory.high", f"{64 * MIB}\n")
    table = WorkerTable.open(root=str(machine))
    assert table is not None
    assert the_file(shm).name.endswith(f"-{machine.path(LEAF).stat().st_ino}")
    table.close()


def test_v1_is_found_too(machine: Machine, shm: Path) -> None:
    directory = "/sys/fs/cgroup/memory/app"
    machine.v1("/app")
    machine.v1_level(directory, limit=256 * MIB, usage=MIB)
    machine.v1_level("/sys/fs/cgroup/memory", usage=MIB)
    table = WorkerTable.open(root=str(machine))
    assert table is not None
    assert the_file(shm).name.endswith(f"-{machine.path(directory).stat().st_ino}")
    table.close()


def test_users_and_pid_namespaces_have_tables_of_their_own(open_table: Open, shm: Path) -> None:
    open_table()
    assert f"-{os.geteuid()}-{os.stat('/proc/self/ns/pid').st_ino}-" in the_file(shm).name


def test_tables_whose_workers_were_all_killed_are_swept_by_the_next_to_make_one(
    machine: Machine, shm: Path, start_worker: Start
) -> None:
    """A service that is killed with its cgroup again and again would fill the shared memory."""
    killed = start_worker()
    killed.does("table.publish(1, 1)")
    dead = the_file(shm)
    machine.v2("/living")
    machine.v2_level("/sys/fs/cgroup/living", limit=MIB, usage=0)
    living = start_worker()
    living.does("table.publish(1, 1)")
    [kept] = set(shm.iterdir()) - {dead}
    killed.kill()
    for name in (f"{kept.name}1", "resource_monitor-of-others"):
        os.mkfifo(shm / name)
    machine.v2("/new")
    machine.v2_level("/sys/fs/cgroup/new", limit=MIB, usage=0)
    table = WorkerTable.open(root=str(machine))
    assert table is not None
    table.publish(1, 1)
    assert dead not in set(shm.iterdir())
    assert len(list(shm.iterdir())) == 4
    table.close()
    assert living.others() == (0, 0, 0)
    assert kept in set(shm.iterdir())
