import math
import mmap
import os
import resource
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resource_monitor import worker_slots
from resource_monitor.worker_slots import FIELDS, HEADER, OFFSETS, ROUTES, SIZE, Owner

FIRST, SECOND = OFFSETS[:2]
WORKER = Owner(77, 123456)


@pytest.fixture
def content() -> Iterator[mmap.mmap]:
    with mmap.mmap(-1, SIZE) as memory:
        yield memory


def test_a_table_is_small_and_its_parts_do_not_overlap() -> None:
    assert SIZE < 100_000
    assert len(HEADER) <= 48
    assert OFFSETS[-1] + OFFSETS.step == SIZE


def test_an_empty_table_tells_nothing(content: mmap.mmap) -> None:
    assert all(worker_slots.read_state(content, slot) is None for slot in OFFSETS)
    assert all(worker_slots.read_records(content, slot) == (0.0, b"") for slot in OFFSETS)
    assert worker_slots.living(content) == []
    assert worker_slots.free(content) == FIRST


def test_figures_come_back(content: mmap.mmap) -> None:
    worker_slots.write_state(content, SECOND, WORKER, 5 << 30, 17, 9, 0)
    assert worker_slots.read_state(content, SECOND) == (WORKER, 5 << 30, 17, 9, 0)
    assert worker_slots.read_state(content, FIRST) is None
    worker_slots.clear_state(content, SECOND)
    assert worker_slots.read_state(content, SECOND) is None


def test_what_passed_is_what_the_cell_says_once_that_is_more(content: mmap.mmap) -> None:
    worker_slots.write_state(content, SECOND, WORKER, 1, 2, 1000, 0)
    with worker_slots.cell(content, SECOND) as cell:
        for passed, told in [(999, 1000), (1001, 1001), (1 << 60, 1 << 60), ((1 << 60) + 1, 1000)]:
            cell[:] = struct.pack("=QQ", passed, ~passed & (1 << 64) - 1)
            assert worker_slots.read_state(content, SECOND) == (WORKER, 1, 2, told, 0)
        cell[:] = struct.pack("=QQ", 2000, 2000)
        assert worker_slots.read_state(content, SECOND) == (WORKER, 1, 2, 1000, 0)
    worker_slots.clear_state(content, SECOND)
    assert not any(content[SECOND : SECOND + OFFSETS.step])


def test_a_cell_can_be_written_to_eight_bytes_at_a_time() -> None:
    with mmap.mmap(-1, SIZE) as content:
        whole = memoryview(content)
        for slot in OFFSETS:
            with worker_slots.cell(content, slot) as cell:
                cell[0] = 1
                assert whole[: slot + OFFSETS.step].tolist().index(1) % 8 == 0
                cell[0] = 0
        whole.release()


@given(promised=st.integers(), in_flight=st.integers(), passed=st.integers(), resident=st.integers())
def test_figures_are_kept_within_what_can_be(promised: int, in_flight: int, passed: int, resident: int) -> None:
    given, most = (promised, in_flight, passed, resident), (1 << 50, 1 << 20, 1 << 60, 1 << 50)
    with mmap.mmap(-1, SIZE) as content:
        worker_slots.write_state(content, FIRST, WORKER, *given)
        state = worker_slots.read_state(content, FIRST)
        assert state is not None
        assert state[1:] == tuple(min(max(0, figure), bound) for figure, bound in zip(given, most, strict=True))


@pytest.mark.parametrize("torn", [slice(0, 48), slice(48, 96)])
def test_one_torn_copy_of_the_figures_does_no_harm_but_two_are_as_good_as_none(content: mmap.mmap, torn: slice) -> None:
    worker_slots.write_state(content, 0, WORKER, 1000, 1, 9, 0)
    content[torn] = b"\x55" * 48
    assert worker_slots.read_state(content, 0) == (WORKER, 1000, 1, 9, 0)
    content[:96] = b"\x55" * 96
    assert worker_slots.read_state(content, 0) is None


def test_of_two_copies_that_a_writer_is_between_either_is_one_that_was_written(content: mmap.mmap) -> None:
    worker_slots.write_state(content, 0, WORKER, 1000, 1, 9, 0)
    old = content[:96]
    worker_slots.write_state(content, 0, WORKER, 2000, 2, 9, 0)
    new = content[:96]
    for written in range(97):
        content[:96] = new[:written] + old[written:]
        assert worker_slots.read_state(content, 0) in ((WORKER, 1000, 1, 9, 0), (WORKER, 2000, 2, 9, 0))


@pytest.mark.parametrize(
    "figures",
    [
        (0, 5, 1, 1, 1, 1),
        ((1 << 22) + 1, 5, 1, 1, 1, 1),
        (77, 5, (1 << 50) + 1, 1, 1, 1),
        (77, 5, 1, (1 << 20) + 1, 1, 1),
        (77, 5, 1, 2**64 - 1, 1, 1),
        (77, 5, 1, 1, (1 << 60) + 1, 1),
        (77, 5, 1, 1, 1, (1 << 50) + 1),
    ],
)
def test_absurd_figures_are_not_believed_though_their_checksum_is_right(
    content: mmap.mmap, figures: tuple[int, ...]
) -> None:
    state = struct.pack("=IQQQQQ", *figures)
    content[FIRST : FIRST + 96] = 2 * (state + struct.pack("=I", zlib.crc32(state)))
    assert worker_slots.read_state(content, FIRST) is None


@given(position=st.integers(0, 47), bit=st.integers(0, 7))
def test_a_single_wrong_bit_is_noticed(position: int, bit: int) -> None:
    with mmap.mmap(-1, SIZE) as content:
        worker_slots.write_state(content, FIRST, WORKER, 1000, 1, 9, 0)
        for copy in (FIRST, FIRST + 48):
            content[copy + position] ^= 1 << bit
        assert worker_slots.read_state(content, FIRST) is None


@pytest.mark.parametrize("record", [(1.5, 0.0, None, 2.0**40), (None,) * FIELDS])
def test_records_come_back(content: mmap.mmap, record: worker_slots.Record) -> None:
    worker_slots.write_records(content, SECOND, {"GET /a": (1.0,) * FIELDS, "GET /b": record}, 12.5)
    at, records = worker_slots.read_records(content, SECOND)
    assert at == 12.5
    assert worker_slots.find(records, "GET /b") == record
    assert worker_slots.find(records, "GET /c") is None
    assert worker_slots.knowing(content) == [SECOND]


@pytest.mark.parametrize("name", ["", "GET /\udcff", "GET /été", "x" * 100_000])
def test_every_name_can_be_looked_for(content: mmap.mmap, name: str) -> None:
    worker_slots.write_records(content, FIRST, {name: (1.0,) * FIELDS}, 1.0)
    assert worker_slots.find(worker_slots.read_records(content, FIRST)[1], name) == (1.0,) * FIELDS


def test_a_name_means_the_same_to_every_process(content: mmap.mmap) -> None:
    """``hash`` would not."""
    program = f"""
import mmap, sys
from resource_monitor import worker_slots
with mmap.mmap(-1, worker_slots.SIZE) as content:
    worker_slots.write_records(content, {FIRST}, {{"GET /a": (1.0,) * {FIELDS}}}, 1.0)
    sys.stdout.buffer.write(content[:])
"""
    for seed in "12":
        out = subprocess.run(
            [sys.executable, "-c", program], env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, check=True
        ).stdout
        content[:] = out
        assert worker_slots.find(worker_slots.read_records(content, FIRST)[1], "GET /a") == (1.0,) * FIELDS


def test_the_first_records_find_room(content: mmap.mmap) -> None:
    worker_slots.write_records(content, FIRST, {str(number): (float(number),) * FIELDS for number in range(100)}, 1.0)
    records = worker_slots.read_records(content, FIRST)[1]
    assert worker_slots.find(records, str(ROUTES - 1)) == (ROUTES - 1.0,) * FIELDS
    assert worker_slots.find(records, str(ROUTES)) is None
    assert worker_slots.read_records(content, SECOND) == (0.0, b"")


def test_a_full_set_of_records_does_not_touch_the_next_slot(content: mmap.mmap) -> None:
    worker_slots.write_state(content, SECOND, WORKER, 1, 1, 9, 0)
    worker_slots.write_records(content, FIRST, {str(number): (1.0,) * FIELDS for number in range(ROUTES)}, 1.0)
    assert worker_slots.read_state(content, SECOND) == (WORKER, 1, 1, 9, 0)


@pytest.mark.parametrize("number", [-1.0, math.inf, -math.inf, 1e300])
def test_absurd_records_are_not_believed_though_their_checksum_is_right(content: mmap.mmap, number: float) -> None:
    worker_slots.write_records(content, FIRST, {"bad": (1.0, number, 1.0, 1.0), "good": (1.0,) * FIELDS}, 1.0)
    records = worker_slots.read_records(content, FIRST)[1]
    assert worker_slots.find(records, "bad") is None
    assert worker_slots.find(records, "good") is not None


@pytest.mark.parametrize("now", [math.nan, math.inf, -1.0])
def test_records_of_no_time_are_not_believed(content: mmap.mmap, now: float) -> None:
    worker_slots.write_records(content, FIRST, {"a": (1.0,) * FIELDS}, now)
    assert worker_slots.read_records(content, FIRST) == (0.0, b"")


@given(position=st.integers(96, 96 + 16 + 40 - 1), bit=st.integers(0, 7))
def test_a_single_wrong_bit_in_the_records_is_noticed(position: int, bit: int) -> None:
    with mmap.mmap(-1, SIZE) as content:
        worker_slots.write_records(content, FIRST, {"a": (1.0,) * FIELDS}, 1.0)
        content[FIRST + position] ^= 1 << bit
        assert worker_slots.read_records(content, FIRST) == (0.0, b"")


@given(st.binary(min_size=OFFSETS.step, max_size=OFFSETS.step))
def test_any_bytes_can_be_read_and_tell_nothing(junk: bytes) -> None:
    with mmap.mmap(-1, SIZE) as content:
        content[FIRST:SECOND] = junk
        assert worker_slots.read_state(content, FIRST) is None
        assert worker_slots.read_records(content, FIRST) == (0.0, b"")


def test_free_slots_are_taken_without_records_first_then_the_oldest(content: mmap.mmap) -> None:
    this = worker_slots.owner(os.getpid())
    assert this is not None
    worker_slots.write_state(content, OFFSETS[1], this, 0, 0, 9, 0)
    for age, slot in enumerate(OFFSETS):
        if age != 7:
            worker_slots.write_records(content, slot, {"a": (1.0,) * FIELDS}, 1000.0 - age)
    assert worker_slots.free(content) == OFFSETS[7]
    worker_slots.write_state(content, OFFSETS[7], this, 0, 0, 9, 0)
    assert worker_slots.free(content) == OFFSETS[-1]


def test_a_table_full_of_the_living_has_no_free_slot(content: mmap.mmap) -> None:
    this = worker_slots.owner(os.getpid())
    assert this is not None
    for slot in OFFSETS:
        worker_slots.write_state(content, slot, this, 0, 0, 9, 0)
    assert worker_slots.free(content) is None
    assert len(worker_slots.living(content)) == len(OFFSETS)


def test_the_roster_changes(content: mmap.mmap) -> None:
    before = worker_slots.roster(content)
    worker_slots.change_roster(content)
    assert worker_slots.roster(content) != before
    assert worker_slots.read_state(content, FIRST) is None


def test_a_process_lives_until_it_ends_though_nobody_has_waited_for_it() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        worker = worker_slots.owner(process.pid)
        assert worker is not None
        assert worker_slots.lives(worker)
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert not worker_slots.lives(worker)
        assert worker_slots.owner(process.pid) is None
    assert not worker_slots.lives(worker)


def test_a_pid_that_was_given_anew_is_another_process() -> None:
    this = worker_slots.owner(os.getpid())
    assert this is not None
    assert worker_slots.lives(this)
    assert not worker_slots.lives(Owner(this.pid, this.started - 1))


def test_a_name_with_spaces_and_parentheses_misleads_nobody(tmp_path: Path) -> None:
    program = tmp_path / "a) R 1 (b"
    program.symlink_to("/bin/sleep")
    with subprocess.Popen([program, "60"]) as process:
        try:
            while b"a) R" not in (stat := Path(f"/proc/{process.pid}/stat").read_bytes()):
                time.sleep(0.001)
            worker = worker_slots.owner(process.pid)
            assert worker == Owner(process.pid, int(stat.decode().split()[-31]))
        finally:
            process.kill()


def test_a_process_that_cannot_be_looked_at_is_taken_to_live() -> None:
    """Without descriptors left nothing can be found out, and what it promised must not be given away."""
    this = worker_slots.owner(os.getpid())
    assert this is not None
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        alive = worker_slots.lives(Owner(this.pid, this.started - 1))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert alive
