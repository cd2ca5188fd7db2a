"""Grants whose reading is too old: where the next one finds the same they last on, and admission is not bothered."""

from collections.abc import Callable
from typing import Any

import pytest
from granted import LASTS_ON, Beside, asked, door, know_all_classes, unasked
from machine import MIB, Service

from resource_monitor._native._turn import Turn, Turns
from resource_monitor.admission import Admission, Grant, Reason, Route
from resource_monitor.middleware import gate as module
from resource_monitor.middleware.asking import Ask
from resource_monitor.middleware.gate import Gate
from resource_monitor.sampling import FULL_INTERVAL, LONGEST

PLENTY = 200 * MIB


class Watched:
    """A gate of which it is known how often admission was asked for a grant, and that has let in a request of each of
    two classes."""

    def __init__(self, service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
        know_all_classes(monkeypatch)
        monkeypatch.setattr(module.time, "monotonic", service.clock)
        monkeypatch.setattr(Admission, "grant", self._grant)
        self.service = service
        self.gate = Gate(monitor=service.monitor, allocation_guard=False)
        self._way = door(self.gate)
        self.turns: list[Turn] = []
        self._grants: list[Grant | None] = []
        asked(self.gate, "/", "POST")
        asked(self.gate)
        self.asked_for()

    def _grant(self, route: Route, left: int, **more: Any) -> Grant | None:
        self._grants.append(found := _GRANT(self.gate._admission, route, left, **more))
        return found

    def asked_for(self) -> int:
        """How often admission was asked since this was last told."""
        count = len(self._grants)
        self._grants.clear()
        return count

    def outlive(self) -> None:
        """Wait until the reading is too old, however much is left."""
        self.service.clock.pass_(LONGEST + 1e-3)

    def enter(self, method: str = "GET") -> bool:
        """Whether a request starts unasked."""
        turn = unasked(self._way, "/", method)
        if turn is not None:
            self.turns.append(turn)
        return turn is not None


_GRANT = Admission.grant


@pytest.fixture
def watched(service: Service, monkeypatch: pytest.MonkeyPatch) -> Watched:
    return Watched(service, monkeypatch)


def test_where_the_next_reading_finds_the_same_they_last_on(watched: Watched) -> None:
    turns = watched.gate.turns
    for number in range(4):
        watched.outlive()
        assert watched.enter()
        assert turns.grants == 3 + number
        assert watched.enter("POST"), "what nothing binds is granted to all of them"
        assert turns.grants == 3 + number
    assert not watched.asked_for()
    assert watched.gate._admission.in_flight == 2


def test_until_what_was_done_under_them_has_waited_long_enough(watched: Watched) -> None:
    assert watched.enter()
    watched.service.clock.pass_(LASTS_ON - LONGEST)
    assert watched.enter()
    assert not watched.asked_for()
    assert watched.gate._admission.in_flight == 2
    watched.outlive()
    assert watched.enter()
    assert watched.asked_for() == 1
    assert watched.gate._admission.in_flight == 4


def find_less(watched: Watched) -> None:
    used = watched.service.machine.path("/sys/fs/cgroup/memory.current")
    used.write_text(f"{int(used.read_text()) + 4096}")


def find_another_limit(watched: Watched) -> None:
    """With the same headroom; limits are read ten times a second."""
    watched.service.machine.container(limit=512 * MIB, usage=288 * MIB)
    watched.service.clock.pass_(FULL_INTERVAL)


@pytest.mark.parametrize("happens", [find_less, find_another_limit])
def test_admission_decides_where_it_finds_anything_else(watched: Watched, happens: Callable[[Watched], None]) -> None:
    happens(watched)
    watched.outlive()
    assert watched.enter()
    assert watched.asked_for() == 1


def lose_one(watched: Watched) -> None:
    turn = watched.turns.pop()
    turn.lose()
    turn.leave()


def begin_shedding(watched: Watched) -> None:
    watched.gate.refuse(Ask("GET", "/other"), Reason.MEMORY)


def lag(watched: Watched) -> None:
    while watched.gate._admission.latency.cap is None:
        watched.outlive()
        assert watched.enter()
        watched.gate.lagged(0.3)


@pytest.mark.parametrize("happens", [lose_one, begin_shedding, lag])
def test_what_was_revoked_meanwhile_does_not_last_on(watched: Watched, happens: Callable[[Watched], None]) -> None:
    assert watched.enter()
    happens(watched)
    watched.outlive()
    assert not watched.enter()


def test_nor_where_another_class_was_granted_nothing(watched: Watched) -> None:
    route = watched.gate.turns.lane("PUT", "/").route
    route.window = 2.0
    asked(watched.gate, "/", "PUT")
    assert watched.asked_for() == 1
    watched.outlive()
    assert watched.enter()
    assert watched.asked_for() == 1


def test_nor_where_what_all_were_granted_was_revoked_with_another_class(watched: Watched) -> None:
    turns = watched.gate.turns
    turns.revoke(turns.lane("POST", "/"))
    assert watched.enter(), "its own grant stands"
    watched.outlive()
    assert watched.enter()
    assert watched.asked_for() == 1


def test_nor_beside_another_worker(watched: Watched) -> None:
    watched.gate._sharing = others = Beside(workers=0)  # type: ignore[assignment]
    watched.outlive()
    assert watched.enter()
    assert not watched.asked_for()
    others.workers = 1
    watched.outlive()
    assert watched.enter()
    assert watched.asked_for() == 1


def test_what_all_are_granted_is_prolonged_where_it_stands_and_nothing_was_granted_since() -> None:
    turns, era = Turns(lambda name: Route(), Route(), admission=Admission(16 * MIB)), 1
    with turns:
        one, bound = turns.lane("GET", "/a"), turns.lane("GET", "/b")
    turns.grant(bound, era, 1.0, PLENTY, 9, 9)
    assert not turns.prolong(5.0, 1), "there is nothing for all"
    turns.grant(one, era, 1.0, PLENTY, 9, 9, 1)
    assert turns.grants == 2
    assert not turns.prolong(5.0, 1)
    with turns:
        assert not turns.prolong(5.0, 2), "somebody may be about to change it"
    assert turns.prolong(5.0, 2)
    assert turns.grants == 3
    turns.revoke(one)
    assert not turns.prolong(6.0, 3)
    turns.grant(one, era + 1, 1.0, PLENTY, 9, 9, 1)
    assert not turns.prolong(6.0, 4), "it is of another era"
