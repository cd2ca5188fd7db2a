import io

import pytest

from resource_monitor import allocator as module
from resource_monitor.allocator import allocator, allocator_stats_enabled, print_allocator_stats
from resource_monitor.errors import NotApplicable

MIB = 1 << 20


@pytest.fixture
def unknown_allocator(monkeypatch: pytest.MonkeyPatch) -> None:
    """An allocator that neither tells nor gives back anything: the C side's answer for one that it does not know."""

    class Unknown:
        rm_heap_read = staticmethod(lambda out: 95)
        rm_heap_dirty = staticmethod(lambda out: 95)
        rm_heap_relieve = staticmethod(lambda: 95)
        rm_heap_has_statistics = staticmethod(lambda: 0)
        rm_heap_report = staticmethod(lambda fd: 95)

    monkeypatch.setattr(module, "lib", Unknown)


def test_names_the_object_that_serves_malloc() -> None:
    found = allocator()
    assert found.name in ("glibc", "jemalloc")
    assert found.object
    assert allocator() is found


def test_statistics_follow_an_allocation() -> None:
    before = allocator().statistics().allocated
    block = bytearray(8 * MIB)
    assert allocator().statistics().allocated - before >= len(block)


def test_statistics_tell_what_is_held_unused() -> None:
    blocks = [bytes(1000) for _ in range(20_000)]
    before = allocator().statistics()
    del blocks[:-1]  # the last one keeps the end of the heap where it is
    after = allocator().statistics()
    assert before.allocated - after.allocated > 15 * MIB
    assert after.dirty - before.dirty > 10 * MIB


def test_this_allocator_keeps_statistics() -> None:
    assert allocator_stats_enabled()


def test_the_report_goes_where_it_is_wanted(capfd: pytest.CaptureFixture[str]) -> None:
    report = io.StringIO()
    print_allocator_stats(report)
    assert len(report.getvalue().splitlines()) > 10
    assert capfd.readouterr() == ("", "")


def test_the_report_goes_to_standard_error_by_default(capsys: pytest.CaptureFixture[str]) -> None:
    print_allocator_stats()
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") > 10


def test_relief_is_possible() -> None:
    assert allocator().relieve()


@pytest.mark.usefixtures("unknown_allocator")
def test_an_unknown_allocator_says_that_it_cannot_tell() -> None:
    assert allocator().dirty() is None
    assert not allocator().relieve()
    with pytest.raises(NotApplicable, match="keeps no statistics; preload jemalloc to have them"):
        allocator().statistics()
    assert not allocator_stats_enabled()
    with pytest.raises(
        NotApplicable, match=r"gave no report \(Operation not supported\); preload jemalloc to have one"
    ):
        print_allocator_stats()
