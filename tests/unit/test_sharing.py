"""What an app tells other workers, and when: what matters at once, and the rest as often as they look."""

import gc
from typing import Any

import pytest
from machine import MIB

from resource_monitor.middleware import sharing
from resource_monitor.middleware.sharing import Sharing
from resource_monitor.workers import FRESH, Others


class Table:
    """Remembers what was published; beside ``workers`` others."""

    def __init__(self, workers: int = 0) -> None:
        self.published: list[tuple[int, int]] = []
        self.workers = workers

    def publish(self, promised: int, in_flight: int, passed: int = 0) -> None:
        self.published.append((promised, in_flight))

    def others(self, now: float) -> Others:
        return Others(promised=0, in_flight=0, workers=self.workers)


@pytest.fixture(autouse=True)
def parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of other tests' gates are not added."""
    monkeypatch.setattr(sharing, "_parts", [])


def part(table: Table) -> Sharing:
    made = Sharing(table)  # type: ignore[arg-type]
    made.others(0.0)
    return made


def tell(one: Sharing, to_come: int, in_flight: int, now: float, **how: Any) -> int:
    return one.tell(to_come, in_flight, now, **{"exactly": False, **how})


def test_a_number_that_changes_is_told_as_often_as_others_look() -> None:
    table = Table(workers=1)
    one = part(table)
    assert tell(one, 0, 1, 1.0) == 1
    assert tell(one, 0, 2, 1.0 + FRESH / 2) == 1
    assert table.published == [(0, 1)]
    assert tell(one, 0, 3, 1.0 + 2 * FRESH) == 3
    assert table.published == [(0, 1), (0, 3)]


def test_that_nothing_is_in_flight_is_told_at_once() -> None:
    table = Table(workers=1)
    one = part(table)
    tell(one, 0, 1, 1.0)
    assert tell(one, 0, 0, 1.0) == 0
    assert table.published == [(0, 1), (0, 0)]
    assert tell(one, 0, 1, 1.0) == 0
    assert tell(one, 0, 0, 1.0) == 0
    assert table.published == [(0, 1), (0, 0)]


def test_a_number_that_others_are_to_know_exactly_is_told_at_once() -> None:
    table = Table(workers=1)
    one = part(table)
    for number in (1, 2, 2, 1):
        assert tell(one, 0, number, 1.0, exactly=True) == number
    assert table.published == [(0, 1), (0, 2), (0, 1)]


def test_bytes_to_come_are_told_at_once_where_others_are() -> None:
    table = Table(workers=1)
    one = part(table)
    tell(one, 0, 1, 1.0)
    tell(one, 1, 1, 1.0)
    assert table.published == [(0, 1), (1, 1)]


def test_without_others_few_bytes_to_come_are_told_later() -> None:
    table = Table()
    one = part(table)
    tell(one, 0, 1, 1.0)
    tell(one, MIB, 1, 1.0)
    assert table.published == [(0, 1)]
    tell(one, MIB + 1, 1, 1.0)
    tell(one, 0, 1, 1.0)
    tell(one, 2, 1, 1.051)
    assert table.published == [(0, 1), (MIB + 1, 1), (0, 1), (2, 1)]


def test_without_others_a_number_that_changes_is_told_twenty_times_a_second() -> None:
    table = Table()
    one = part(table)
    tell(one, 0, 1, 1.0)
    assert tell(one, 0, 2, 1.049) == 1
    assert tell(one, 0, 3, 1.051) == 3
    assert tell(one, 0, 0, 1.052) == 0
    assert table.published == [(0, 1), (0, 3), (0, 0)]


def test_whoever_comes_is_told_at_once() -> None:
    table = Table()
    one = part(table)
    tell(one, 0, 1, 1.0)
    table.workers = 1
    one.others(1.002)
    assert tell(one, 0, 2, 1.002) == 2
    assert table.published == [(0, 1), (0, 2)]


def test_apps_of_a_process_tell_as_one_as_long_as_they_are_there() -> None:
    table = Table(workers=1)
    one, two = part(table), part(table)
    tell(one, 10, 1, 1.0)
    tell(two, 20, 2, 1.0)
    del one
    gc.collect()
    tell(two, 30, 2, 1.0)
    assert table.published == [(10, 1), (30, 3), (30, 2)]


def test_a_child_tells_anew() -> None:
    table = Table(workers=1)
    one = part(table)
    tell(one, 0, 1, 1.0)
    one.after_fork()
    tell(one, 0, 1, 1.0)
    assert table.published == [(0, 1), (0, 1)]
