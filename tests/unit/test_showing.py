import os
from typing import Any

from machine import MIB

from resource_monitor.showing import SETTLED, Showing, resident

LATER = SETTLED + 0.001


class Process:
    """What it is resident with, and how often it was asked for that."""

    def __init__(self) -> None:
        self.size: int | None = 100
        self.asked = 0

    def __call__(self, pid: int) -> int | None:
        assert pid == 7
        self.asked += 1
        return self.size


def test_what_came_shows_once_every_reading_has_it() -> None:
    process = Process()
    showing = Showing(process)
    process.size = 150
    assert showing.beyond(100, 7, "told", 1.0) == 0
    assert showing.beyond(100, 7, "told", 1.0 + SETTLED / 2) == 0
    assert process.asked == 0, "it is dear"
    assert showing.beyond(100, 7, "told", 1.0 + LATER) == 0
    assert showing.beyond(100, 7, "told", 1.0 + LATER + SETTLED / 2) == 0
    assert process.asked == 1
    assert showing.beyond(100, 7, "told", 1.0 + 2 * LATER) == 50


def test_what_went_again_meanwhile_does_not() -> None:
    process = Process()
    showing = Showing(process)
    found = []
    for number, size in enumerate((100, 150, 120, 170, 180, 90, 90)):
        process.size = size
        found.append(showing.beyond(100, 7, "told", 1.0 + number * LATER))
    assert found == [0, 0, 20, 20, 70, 0, 0]


def test_with_something_new_told_it_begins_anew() -> None:
    process = Process()
    showing = Showing(process)
    process.size = 150
    assert [showing.beyond(100, 7, "told", 1.0 + number * LATER) for number in range(3)] == [0, 0, 50]
    process.size = 160
    assert [showing.beyond(150, 7, "told more", 2.0 + number * LATER) for number in range(3)] == [0, 0, 10]


def test_a_process_that_cannot_be_looked_at_has_grown_by_nothing() -> None:
    process = Process()
    process.size = None
    showing = Showing(process)
    assert [showing.beyond(100, 7, "told", 1.0 + number * LATER) for number in range(3)] == [0, 0, 0]


def test_a_clock_that_is_set_back_is_no_reason_to_wait() -> None:
    process = Process()
    showing = Showing(process)
    process.size = 150
    for at in (1000.0, 999.0):
        assert showing.beyond(100, 7, "told", at) == 0
    assert showing.beyond(100, 7, "told", 998.0) == 50


def test_who_is_not_asked_for_is_forgotten() -> None:
    process = Process()
    showing = Showing(process)
    showing.beyond(100, 7, "told", 1.0)
    process.size = 150
    for at in (300.0, 600.0):
        showing.forget(at)
        showing.beyond(100, 7, "told", at)
    assert showing.beyond(100, 7, "told", 601.0) == 50
    showing.forget(1202.0)
    assert showing.beyond(100, 7, "told", 1202.0) == 0


def test_what_a_process_is_resident_with() -> None:
    def own() -> Any:
        return resident(os.getpid())

    before = own()
    taken = bytearray(b"x") * (32 * MIB)
    assert 31 * MIB < own() - before < 40 * MIB
    assert len(taken)
    assert resident(1 << 22) is None
