"""The C functions by themselves: parsers, the arithmetic of the reclaimable part, and that none of them leaks."""

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from machine import MIB, V1_UNLIMITED

from resource_monitor._native import ffi, lib

NO_LIMIT = 2**64 - 1


def integer(text: bytes) -> int:
    """The value, or -errno."""
    value = ffi.new("unsigned long long *")
    error = lib.rm_parse_integer(text, len(text), value)
    return -error if error else int(value[0])


def keys(text: bytes, *names: bytes, start: int = 7) -> tuple[int, list[int]]:
    wanted = [ffi.new("char[]", name) for name in names]
    values = ffi.new("unsigned long long[]", [start] * len(names))
    found = lib.rm_parse_keys(text, len(text), ffi.new("const char *[]", wanted), len(names), values)
    return found, list(values)


def reclaimable(version: int, **stat: int) -> tuple[int, int]:
    """(low, all) in MiB of figures in MiB, in the order of probe.c's enum."""
    order = ("inactive_file", "active_file", "mapped", "shmem", "dirty", "writeback", "slab")
    assert set(stat) <= set(order)
    low, all_ = reclaimable_bytes(version, [stat.get(name, 0) * MIB for name in order])
    return low // MIB, all_ // MIB


def reclaimable_bytes(version: int, figures: list[int]) -> tuple[int, int]:
    low, all_ = ffi.new("unsigned long long *"), ffi.new("unsigned long long *")
    lib.rm_reclaimable(version, ffi.new("unsigned long long[]", figures), low, all_)
    return low[0], all_[0]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (b"0\n", 0),
        (b"268435456\n", 268435456),
        (b"12", 12),
        (b"max\n", NO_LIMIT),
        (b"-1\n", NO_LIMIT),
        (b"18446744073709551615\n", NO_LIMIT),
        (b"9223372036854771712\n", V1_UNLIMITED),
    ],
)
def test_reads_a_file_with_one_number(text: bytes, value: int) -> None:
    assert integer(text) == value


@pytest.mark.parametrize("text", [b"", b"\n", b"maximum", b"-2", b"+1", b" 1", b"1 2", b"0x10", b"1\x00", b"\xff"])
def test_what_is_no_number_is_a_bad_message(text: bytes) -> None:
    assert integer(text) == -errno.EBADMSG


@pytest.mark.parametrize("text", [b"18446744073709551616", b"99999999999999999999999"])
def test_a_number_that_does_not_fit_is_a_bad_message_and_never_wraps(text: bytes) -> None:
    assert integer(text) == -errno.EBADMSG


@given(st.integers(0, NO_LIMIT))
def test_every_64_bit_number_is_read_exactly(value: int) -> None:
    assert integer(b"%d\n" % value) == value


def test_reads_wanted_keys_wherever_they_stand() -> None:
    assert keys(b"cache 1\ninactive_file 5\nrss 2\nactive_file 6", b"active_file", b"inactive_file") == (2, [6, 5])


def test_a_key_is_matched_whole() -> None:
    """``total_inactive_file`` is another figure than ``inactive_file``, and so is ``inactive``."""
    assert keys(b"total_inactive_file 1\ninactive 2\ninactive_filesystem 3\n", b"inactive_file") == (0, [7])


def test_an_absent_key_keeps_its_value() -> None:
    assert keys(b"a 1\n", b"a", b"b") == (1, [1, 7])


def test_of_two_lines_with_one_key_the_first_counts_and_none_is_looked_at_after_the_last_key() -> None:
    assert keys(b"a 1\na 2\nb 3\na ?\n", b"a", b"b") == (2, [1, 3])


def test_a_unit_of_kb_is_1024_bytes() -> None:
    assert keys(b"MemTotal:       16384 kB\nHugePages_Total:       5\n", b"MemTotal:", b"HugePages_Total:") == (
        2,
        [16384 * 1024, 5],
    )


@pytest.mark.parametrize(
    "text", [b"a \n", b"a x\n", b"a -1\n", b"a 18446744073709551616\n", b"a 18446744073709551615 kB"]
)
def test_a_wanted_key_without_a_number_is_a_bad_message(text: bytes) -> None:
    assert keys(text, b"a")[0] == -errno.EBADMSG


def test_an_unwanted_key_may_hold_anything() -> None:
    assert keys(b"a 1\nb what\nc\n", b"a") == (1, [1])


LIMITS = b"""Limit                     Soft Limit           Hard Limit           Units
Max data size             unlimited            1000                 bytes
Max open files            1024                 4096                 files
Max nice priority         0                    0
"""


def rlimit(name: bytes, text: bytes = LIMITS) -> int:
    """The value, or -errno."""
    value = ffi.new("unsigned long long *")
    error = lib.rm_parse_rlimit(text, len(text), name, value)
    return -error if error else int(value[0])


@pytest.mark.parametrize(
    ("name", "value"), [(b"Max open files", 1024), (b"Max data size", NO_LIMIT), (b"Max nice priority", 0)]
)
def test_reads_the_soft_value_of_a_resource_limit(name: bytes, value: int) -> None:
    assert rlimit(name) == value


@pytest.mark.parametrize("name", [b"Max data", b"Max open", b"Max address space", b"open files"])
def test_a_resource_limit_is_matched_whole_and_must_be_there(name: bytes) -> None:
    assert rlimit(name) == -errno.EBADMSG


@pytest.mark.parametrize(
    "text", [b"", b"Max x", b"Max x ", b"Max x   \n", b"Max x -1", b"Max x unlimite\nd", b"Max x 18446744073709551616"]
)
def test_a_resource_limit_without_a_number_is_a_bad_message(text: bytes) -> None:
    assert rlimit(b"Max x", text) == -errno.EBADMSG


def test_entries_are_counted_beyond_one_buffer(tmp_path: Path, directory: int) -> None:
    assert lib.rm_count_entries(directory) == 2
    for number in range(3000):
        (tmp_path / f"{number:0100}").touch()
    assert lib.rm_count_entries(directory) == 3002
    assert lib.rm_count_entries(directory) == 3002, "from the start each time"


def test_counting_what_is_no_directory_is_an_error(tmp_path: Path) -> None:
    for count in (lib.rm_count_entries, lambda descriptor: lib.rm_count_tasks(descriptor, 0)):
        assert count(-errno.EACCES) == -errno.EACCES
        with (tmp_path / "file").open("wb") as file:
            assert count(file.fileno()) == -errno.ENOTDIR


def test_tasks_are_the_links_of_a_processs_task_directory(tmp_path: Path, directory: int) -> None:
    for name in ("1/task/1", "1/task/2", "23/task/23", "23/task/24", "23/task/25", "x9/task/1", "4/other"):
        (tmp_path / name).mkdir(parents=True, exist_ok=True)
    assert lib.rm_count_tasks(directory, os.getuid()) == 2 + 3
    assert lib.rm_count_tasks(directory, os.getuid() + 1) == 0


@given(st.binary(max_size=300))
def test_any_bytes_are_read_within_their_length(text: bytes) -> None:
    assert integer(text) >= -errno.EBADMSG
    assert keys(text, b"a", b"MemTotal:")[0] >= -errno.EBADMSG
    assert rlimit(b"Max x", text) >= -errno.EBADMSG


# DESIGN.md, section 3:
#   low  = max(0, inactive_file − dirty − writeback);  mapF = max(0, file_mapped − shmem)
#   R    = max(low, inactive_file + active_file − dirty − writeback − mapF) + slab_reclaimable/2 (v2 only)
@pytest.mark.parametrize(
    ("figures", "low", "v1", "v2"),
    [
        ({}, 0, 0, 0),
        ({"inactive_file": 40, "active_file": 20}, 40, 60, 60),
        ({"inactive_file": 40, "active_file": 20, "dirty": 5, "writeback": 3}, 32, 52, 52),
        # program code on the active list stays: evicting it freezes the program
        ({"inactive_file": 10, "active_file": 30, "mapped": 25}, 10, 15, 15),
        # tmpfs is mapped too, and is no file that could be read again
        ({"inactive_file": 10, "active_file": 30, "mapped": 25, "shmem": 20}, 10, 35, 35),
        ({"inactive_file": 10, "active_file": 30, "mapped": 25, "shmem": 90}, 10, 40, 40),
        # what is mapped may stand on the inactive list: never less than the pessimist's figure
        ({"inactive_file": 30, "active_file": 5, "mapped": 25}, 30, 30, 30),
        ({"inactive_file": 10, "dirty": 20, "active_file": 4}, 0, 0, 0),
        ({"shmem": 100}, 0, 0, 0),
        ({"slab": 10}, 0, 0, 5),
        ({"inactive_file": 10, "dirty": 20, "slab": 9}, 0, 0, 4),
    ],
)
def test_what_the_kernel_would_reclaim(figures: dict[str, int], low: int, v1: int, v2: int) -> None:
    assert reclaimable(1, **figures) == (low, v1)
    assert reclaimable(2, **figures) == (low, v2)


@example(2, [NO_LIMIT, NO_LIMIT, 0, 0, 0, 0, NO_LIMIT])
@given(st.sampled_from((1, 2)), st.lists(st.integers(0, NO_LIMIT), min_size=7, max_size=7))
def test_of_any_figures_all_is_no_less_than_the_low_part(version: int, figures: list[int]) -> None:
    low, all_ = reclaimable_bytes(version, figures)
    assert low <= all_


@pytest.mark.parametrize(
    ("figures", "low", "all_"),
    [
        ([5, 5, 0, 0, NO_LIMIT, 1, 0], 0, 0),
        ([5, 5, NO_LIMIT, 0, 1, 0, 0], 4, 4),
        ([5, NO_LIMIT, 0, 0, 0, 0, 0], 5, NO_LIMIT),
    ],
)
def test_sums_of_figures_that_are_too_large_do_not_wrap(figures: list[int], low: int, all_: int) -> None:
    assert reclaimable_bytes(2, figures) == (low, all_)


def limit(**fields: int) -> object:
    return ffi.new("rm_limit *", fields)


def test_headroom_counts_on_the_reclaimable_part() -> None:
    entry = limit(value=100, used=90, reclaimable=60, reclaimable_low=20)
    assert lib.rm_headroom(entry) == 70
    assert lib.rm_headroom_low(entry) == 30


def test_headroom_is_never_negative_nor_more_than_the_limit() -> None:
    assert lib.rm_headroom(limit(value=100, used=150)) == 0
    assert lib.rm_headroom(limit(value=100, used=10, reclaimable=50)) == 100


@pytest.mark.parametrize(
    ("content", "expected", "same"),
    [
        (b"abc", b"abc", 1),
        (b"abc", b"abd", 0),
        (b"abc", b"abcd", 0),
        (b"abcd", b"abc", 0),
        (b"", b"", 1),
        (b"x" * 100_000, b"x" * 100_000, 1),
        (b"x" * 8192, b"x" * 8192, 1),
        (b"x" * 8192, b"x" * 8193, 0),
        (b"x" * 100_000, b"x" * 99_999 + b"y", 0),
    ],
)
def test_tells_whether_a_file_still_holds_the_same(tmp_path: Path, content: bytes, expected: bytes, same: int) -> None:
    file = tmp_path / "file"
    file.write_bytes(content)
    descriptor = os.open(file, os.O_RDONLY)
    try:
        assert lib.rm_same_content(descriptor, expected, len(expected)) == same
    finally:
        os.close(descriptor)


def test_a_file_that_cannot_be_read_is_neither_same_nor_other() -> None:
    assert lib.rm_same_content(-1, b"", 0) == -errno.EBADF


def test_reads_nothing_for_another_process_than_its_owner() -> None:
    entries = ffi.new("rm_limit[1]")
    outcome = ffi.new("rm_outcome *", {"least": 5})
    assert lib.rm_read(entries, 1, lib.RM_FULL, os.getppid(), 0, outcome) == errno.ESTALE
    assert outcome.least == 5


def _read_meminfo(descriptor: int) -> Callable[[], object]:
    entries = ffi.new("rm_limit[2]")
    entries[0].kind, entries[0].usage_fd = lib.RM_HOST, descriptor
    entries[1].kind = lib.RM_CGROUP_V2
    entries[1].usage_fd = entries[1].limit_fd = entries[1].stat_fd = -errno.ENOENT
    outcome = ffi.new("rm_outcome *")

    def call() -> None:
        assert lib.rm_read(entries, 2, lib.RM_FULL, os.getpid(), 0, outcome) == 0
        assert outcome.least == 0

    return call


def _calls(meminfo: int, directory: int, null: int) -> dict[str, Callable[[], object]]:
    number = ffi.new("unsigned long long *")
    numbers = ffi.new("unsigned long long[7]")
    key = ffi.new("char[]", b"a")
    names = ffi.new("const char *[]", [key])
    entry = ffi.new("rm_limit *")
    statistics = ffi.new("rm_heap_statistics *")
    return {
        "rm_read": _read_meminfo(meminfo),
        "rm_headroom": lambda: lib.rm_headroom(entry),
        "rm_headroom_low": lambda: lib.rm_headroom_low(entry),
        "rm_parse_integer": lambda: lib.rm_parse_integer(b"12\n", 3, number),
        "rm_parse_keys": lambda: (key, lib.rm_parse_keys(b"a 1\n", 4, names, 1, number)),
        "rm_reclaimable": lambda: lib.rm_reclaimable(2, numbers, number, number),
        "rm_same_content": lambda: lib.rm_same_content(meminfo, b"x", 1),
        "rm_parse_rlimit": lambda: lib.rm_parse_rlimit(b"Max x 5 6 y\n", 12, b"Max x", number),
        "rm_count_entries": lambda: lib.rm_count_entries(directory),
        "rm_count_tasks": lambda: lib.rm_count_tasks(directory, 0),
        "rm_heap_has_statistics": lib.rm_heap_has_statistics,
        "rm_heap_report": lambda: lib.rm_heap_report(null),
        "rm_heap_detect": lib.rm_heap_detect,
        "rm_heap_object": lib.rm_heap_object,
        "rm_heap_read": lambda: lib.rm_heap_read(statistics),
        "rm_heap_dirty": lambda: lib.rm_heap_dirty(number),
        "rm_heap_prepare": lambda: lib.rm_heap_prepare(64 << 30),
        "rm_heap_remaps": lambda: lib.rm_heap_remaps(number + 1),
        "rm_heap_relieve": lib.rm_heap_relieve,
    }


def allocated() -> int:
    statistics = ffi.new("rm_heap_statistics *")
    assert lib.rm_heap_read(statistics) == 0
    return int(statistics.allocated)


# The guard's functions change the whole process: the guard's own tests see to them.
FUNCTIONS = [name for name in dir(lib) if name.startswith("rm_") and not name.startswith("rm_guard_")]


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[int]:
    """Stands for a /proc in which one process lives."""
    for name in ("1/task", "self"):
        (tmp_path / name).mkdir(parents=True)
    descriptor = os.open(tmp_path, os.O_RDONLY)
    yield descriptor
    os.close(descriptor)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_no_c_function_leaks_memory_or_descriptors(name: str, directory: int) -> None:
    """Every function that the extension offers has to be in the table above."""
    repeats = 200 if name in ("rm_heap_relieve", "rm_heap_report") else 5000
    with open("/proc/meminfo", "rb") as meminfo, open(os.devnull, "wb") as null:
        call = _calls(meminfo.fileno(), directory, null.fileno())[name]
        for _ in range(100):
            call()
        descriptors, before = len(os.listdir("/proc/self/fd")), allocated()
        for _ in range(repeats):
            call()
        # one leaked block a call, 32 bytes at the least with its header, would be more than 6 KB even at 200 calls
        assert allocated() - before < min(repeats * 16, 32768)
        assert len(os.listdir("/proc/self/fd")) == descriptors
