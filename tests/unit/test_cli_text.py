import pytest

from resource_monitor.cli.text import Span, columns, paragraph, plain, shorten, wrap


def test_a_path_is_cut_in_the_middle_and_keeps_both_ends() -> None:
    path = "/sys/fs/cgroup/kubepods.slice/" + "x" * 200 + "/memory.max"
    short = shorten(path, 40)
    assert len(short) == 40
    assert short.startswith("/sys/fs/")
    assert short.endswith("/memory.max")
    assert "…" in short


def test_what_fits_is_left_alone() -> None:
    assert shorten("/proc/meminfo", 13) == "/proc/meminfo"


@pytest.mark.parametrize("room", [1, 2, 3, 4])
def test_fits_the_narrowest_place(room: int) -> None:
    assert len(shorten("/sys/fs/cgroup", room)) == room


def test_the_name_of_a_cgroup_cannot_move_the_cursor() -> None:
    assert shorten("/a\nb\x1b[2J/\udcff", 80) == "/a\\nb\\x1b[2J/\\udcff"


def test_wraps_at_spaces_alone_and_shortens_what_is_longer_than_a_row() -> None:
    rows = wrap("cgroup v1 (/sys/fs/cgroup/memory/a-b-c/memory.limit_in_bytes) bites first", 30)
    assert all(len(row) <= 30 for row in rows)
    assert [row for row in rows if row.startswith("(/sys") and row.endswith("in_bytes)")]


def test_a_path_does_not_fill_a_line_of_a_paragraph() -> None:
    (line,) = paragraph(f"it is /{'x' * 100}", 40)
    assert len(plain(line)) == len("it is ") + 20


def test_columns_are_as_wide_as_their_widest_cell() -> None:
    rows = [[Span("a"), Span("1")], [Span("long"), Span("1000")]]
    assert [plain(line) for line in columns(rows, "<>")] == ["a        1", "long  1000"]


def test_a_size_is_not_parted_from_its_unit() -> None:
    assert wrap("after 181.5 MiB; then", 12) == ["after", "181.5 MiB;", "then"]
