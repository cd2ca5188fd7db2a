"""The order of those who wait, and for how long."""

import pytest

from resource_monitor.admission import Priority, Reason
from resource_monitor.middleware import waiting as module
from resource_monitor.middleware.asking import Ask
from resource_monitor.middleware.gate import Admitted, Gate
from resource_monitor.middleware.waiting import Queue, Waiter, patience

REFUSED = Reason.MEMORY


def waiter(path: str = "/", since: float = 0.0, priority: Priority = Priority.DEFAULT) -> Waiter:
    return Waiter(Ask("GET", path, priority=priority), REFUSED, since)


def joined(queue: Queue[Waiter], *waiters: Waiter) -> Queue[Waiter]:
    for each in waiters:
        assert queue.join(each)
    return queue


class Room:
    """Lets in so many requests of each path, and remembers for whom it was asked."""

    def __init__(self, gate: Gate, **room: int) -> None:
        self.gate = gate
        self.room = {f"/{name}": number for name, number in room.items()}
        self.asked: list[Waiter] = []

    def attempt(self, waiter: Waiter) -> Admitted | Reason:
        self.asked.append(waiter)
        if self.room.get(waiter.ask.path, 0) == 0:
            return REFUSED
        self.room[waiter.ask.path] -= 1
        return Admitted(self.gate, None, waiter.ask, 0.0)

    def lets_in(self, queue: Queue[Waiter], now: float = 0.0, max_wait: float = 1.0) -> list[Waiter]:
        return [each for each, answer in queue.served(self.attempt, now, max_wait) if isinstance(answer, Admitted)]


@pytest.fixture
def gate() -> Gate:
    return Gate(limit="1GiB", allocation_guard=False)


def test_first_come_first_served(gate: Gate) -> None:
    first, second, third = waiter("/a"), waiter("/a"), waiter("/a")
    queue = joined(Queue(), first, second, third)
    assert Room(gate, a=2).lets_in(queue) == [first, second]
    assert len(queue) == 1
    assert Room(gate, a=2).lets_in(queue) == [third]
    assert len(queue) == 0


def test_only_the_first_of_a_line_that_finds_no_room_is_asked_for(gate: Gate) -> None:
    first, second = waiter("/a"), waiter("/a")
    room = Room(gate)
    assert room.lets_in(joined(Queue(), first, second)) == []
    assert room.asked == [first]


def test_a_ping_behind_jobs_that_find_no_room_passes(gate: Gate) -> None:
    ping = waiter("/ping")
    queue = joined(Queue(), waiter("/jobs/1"), waiter("/jobs/2"), ping)
    assert Room(gate, ping=1).lets_in(queue) == [ping]


def test_what_stands_for_one_thing_among_many_waits_in_one_line(gate: Gate) -> None:
    queue = joined(Queue(), waiter("/jobs/1"))
    assert queue.behind(Ask("GET", "/jobs/2")) is REFUSED
    assert queue.behind(Ask("POST", "/jobs/2")) is None
    assert queue.behind(Ask("GET", "/jobs/2", priority=Priority.CRITICAL)) is None


def test_the_most_urgent_are_asked_for_first_then_those_who_came_first(gate: Gate) -> None:
    sheddable = waiter("/a", priority=Priority.SHEDDABLE)
    late, later = waiter("/b"), waiter("/c")
    critical = waiter("/d", priority=Priority.CRITICAL)
    room = Room(gate)
    room.lets_in(joined(Queue(), sheddable, late, later, critical))
    assert room.asked == [critical, late, later, sheddable]


def test_who_waited_long_enough_comes_out_with_the_reason(gate: Gate) -> None:
    first, second = waiter("/a", since=0.0), waiter("/a", since=0.6)
    queue = joined(Queue(), first, second)
    assert list(queue.served(Room(gate).attempt, 0.99, 1.0)) == []
    assert list(queue.served(Room(gate).attempt, 1.0, 1.0)) == [(first, REFUSED)]
    assert list(queue.served(Room(gate).attempt, 1.6, 1.0)) == [(second, REFUSED)]
    assert len(queue) == 0


def test_who_would_wait_for_another_reason_waits_no_longer_than_for_that(gate: Gate) -> None:
    first = waiter("/a")
    queue = joined(Queue(), first)
    assert list(queue.served(lambda waiter: Reason.PROBE_ERROR, 0.0, 1.0)) == [(first, Reason.PROBE_ERROR)]


def test_who_is_gone_is_passed_over(gate: Gate) -> None:
    gone, there = waiter("/a"), waiter("/a")
    queue = joined(Queue(), gone, there)
    found = list(queue.served(lambda each: None if each is gone else Admitted(gate, None, each.ask, 0.0), 0.0, 1.0))
    assert [each for each, _ in found] == [there]
    assert len(queue) == 0


def test_leaving_twice_is_leaving_once() -> None:
    first, second = waiter("/a"), waiter("/a")
    queue = joined(Queue(), first, second)
    queue.leave(first)
    queue.leave(first)
    assert len(queue) == 1
    queue.leave(second)
    assert queue.behind(Ask("GET", "/a")) is None


def test_when_there_is_no_place_the_newest_is_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PLACES", 3)
    monkeypatch.setattr(module, "_PLACES_OF_ONE", 2)
    first = waiter("/a")
    queue = joined(Queue(), first, waiter("/a"))
    assert not queue.join(waiter("/a"))  # one class cannot have every place
    assert queue.join(waiter("/b"))
    assert not queue.join(waiter("/c"))
    assert queue.behind(Ask("GET", "/c")) is None
    queue.leave(first)
    assert queue.join(waiter("/c"))


@pytest.mark.parametrize("reason", list(Reason))
def test_how_long_each_reason_is_waited_for(reason: Reason) -> None:
    at_once = {Reason.PROBE_ERROR, Reason.BODY, Reason.TOO_LARGE}
    assert patience(reason, 2.0) == (0.0 if reason in at_once else 2.0)
    assert patience(reason, 0.0) == (0.25 if reason is Reason.COLD_START else 0.0)
