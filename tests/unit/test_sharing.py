"""What an app tells other workers, and when: what matters at once, and the rest as often as they look."""

import gc
from typing import Any

import pytest
from machine import MIB, Service

from resource_monitor.admission import Learned, Route
from resource_monitor.middleware import sharing
from resource_monitor.middleware.sharing import OtherWorkers, Sharing
from resource_monitor.reservation import Ledger, ledger_of
from resource_monitor.workers import FRESH, Others


class Table:
    """Remembers what was published; beside ``workers`` others, which promised ``promised`` bytes."""

    def __init__(self, workers: int = 0, promised: int = 0) -> None:
        self.published: list[tuple[int, int]] = []
        self.workers = workers
        self.promised = promised

    def publish(self, promised: int, in_flight: int, passed: int = 0) -> None:
        self.published.append((promised, in_flight))

    def publish_routes(self, records: dict[str, Any], now: float) -> None:
        self.records = records

    def is_alone(self, now: float) -> bool:
        return not self.workers

    def others(self, now: float, *, at_once: bool = False) -> Others:
        return Others(promised=self.promised, in_flight=0, workers=self.workers)


@pytest.fixture(autouse=True)
def parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of other tests' gates are not added."""
    monkeypatch.setattr(sharing, "_parts", [])


def part(table: Table, ledger: Any = None) -> Sharing:
    made = Sharing(table, ledger or _Empty)  # type: ignore[arg-type]
    made.others(0.0)
    return made


@pytest.fixture
def ledger(service: Service) -> Ledger:
    return ledger_of(service.monitor)


class _Empty:
    """A ledger in which nothing is promised."""

    unshown = 0


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
    tell(one, 2, 1, 1.251)
    assert table.published == [(0, 1), (MIB + 1, 1), (0, 1), (2, 1)]


def test_without_others_a_number_that_changes_is_told_four_times_a_second() -> None:
    table = Table()
    one = part(table)
    tell(one, 0, 1, 1.0)
    assert tell(one, 0, 2, 1.249) == 1
    assert tell(one, 0, 3, 1.251) == 3
    assert tell(one, 0, 0, 1.252) == 0
    assert table.published == [(0, 1), (0, 3), (0, 0)]


@pytest.mark.parametrize("workers", [0, 1])
def test_whether_there_are_others_the_table_knows(workers: int) -> None:
    assert part(Table(workers)).is_alone(0.0) is not bool(workers)


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


def test_what_is_promised_is_told_once_however_many_apps_have_the_ledger(ledger: Ledger) -> None:
    table = Table(workers=1)
    one, two = part(table, ledger), part(table, ledger)
    ledger.left(300 * MIB)
    promise = ledger.make(100 * MIB)
    tell(one, 5, 1, 1.0)
    tell(two, 7, 1, 1.0)
    promise.end()
    tell(two, 7, 1, 1.1)
    assert table.published == [(100 * MIB + 5, 1), (100 * MIB + 12, 2), (12, 2)]


def test_to_tell_it_is_no_reading(ledger: Ledger) -> None:
    """The last one of an app may be older than what was promised since, and larger."""
    one = part(Table(workers=1), ledger)
    ledger.left(900 * MIB)
    ledger.left(300 * MIB)
    promise = ledger.make(200 * MIB)
    tell(one, 0, 1, 1.0)
    assert ledger.left(300 * MIB) == 100 * MIB
    promise.end()


def test_reserving_asks_and_tells_the_same_table(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    table = Table(workers=1, promised=40 * MIB)
    monkeypatch.setattr(sharing, "_table", table)
    one = part(table, ledger)
    tell(one, 5, 1, 1.0)
    others = OtherWorkers()
    assert others.promised() == 40 * MIB
    ledger.left(300 * MIB)
    promise = ledger.make(100 * MIB)
    others.tell()
    promise.end()
    assert table.published == [(5, 1), (100 * MIB + 5, 1)]


def test_what_is_reserved_before_the_first_request_is_told_too(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    table = Table()
    monkeypatch.setattr(sharing, "_table", table)
    one = Sharing(table, ledger)  # type: ignore[arg-type]
    ledger.left(300 * MIB)
    promise = ledger.make(100 * MIB)
    OtherWorkers().tell()
    promise.end()
    assert table.published == [(100 * MIB, 0)]
    del one


def test_without_a_table_there_are_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharing, "_table", None)
    OtherWorkers().tell()
    assert OtherWorkers().promised() == 0


def test_what_one_app_learned_stays_beside_what_another_did() -> None:
    table = Table()
    one, two = part(table), part(table)
    one.teach(lambda: [("GET /one", Route(Learned(1.0, 2.0, None, None)))], 1.0)
    two.teach(list, 1.1)
    assert table.records == {"GET /one": (1.0, 2.0, None, None)}
