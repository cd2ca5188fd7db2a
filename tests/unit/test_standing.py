"""Refusals that stand: nobody is asked for again who would be refused, and whoever may be let in is asked for."""

import pytest
from machine import MIB, Service

from resource_monitor import reserve
from resource_monitor.admission import Learned, Priority, Reason
from resource_monitor.middleware.admitted import Admitted
from resource_monitor.middleware.asking import Ask
from resource_monitor.middleware.gate import Gate

ASK = Ask("GET", "/big", need=100 * MIB)


class Asked:
    """A gate with a request in flight, and how often it asked admission."""

    def __init__(self, service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(Gate, "_learned", lambda gate, name: Learned(None, 0.0, None, None))
        self.gate = Gate(monitor=service.monitor)
        self.times = 0
        in_flight = self.gate.attempt(Ask("GET", "/big", need=120 * MIB))
        assert isinstance(in_flight, Admitted)
        self.in_flight = in_flight
        decide = self.gate._admission.decide

        def counted(*args: object, **options: object) -> object:
            self.times += 1
            return decide(*args, **options)  # type: ignore[arg-type]

        monkeypatch.setattr(self.gate._admission, "decide", counted)

    def refuses(self, ask: Ask = ASK) -> int:
        """How often admission was asked until ``ask`` was refused."""
        before = self.times
        answer = self.gate.attempt(ask)
        assert answer is Reason.MEMORY
        self.gate.refuse(ask, answer)
        return self.times - before


@pytest.fixture
def asked(service: Service, monkeypatch: pytest.MonkeyPatch) -> Asked:
    """With a refusal that stands, of a request of 100 MiB beside one of 120 MiB."""
    asked = Asked(service, monkeypatch)
    assert asked.refuses() > 0
    asked.refuses()  # the first of a time of shedding revokes what stood
    assert asked.refuses() == 0
    return asked


def test_those_like_a_refused_one_are_refused_unasked_and_counted(asked: Asked) -> None:
    assert [asked.refuses() for _ in range(20)] == [0] * 20
    assert asked.gate.statistics().shed_by_reason == {Reason.MEMORY: 23}


def test_a_request_that_leaves_opens_the_door_at_once(asked: Asked) -> None:
    asked.in_flight.leave()
    assert isinstance(asked.gate.attempt(ASK), Admitted)


def test_what_a_request_that_leaves_was_to_take_unseen_is_not_waited_for(service: Service, asked: Asked) -> None:
    asked.gate.promise(asked.in_flight, 0)
    asked.gate._routes.find("GET", "/big").unseen = 120.0 * MIB
    assert asked.refuses() > 0
    assert asked.refuses() == 0
    asked.in_flight.promise = None
    asked.in_flight.leave()
    assert isinstance(asked.gate.attempt(ASK), Admitted)


def test_a_promise_that_ends_opens_the_door_at_once(asked: Asked) -> None:
    asked.gate.promise(asked.in_flight, 0)
    assert isinstance(asked.gate.attempt(ASK), Admitted)


def test_a_reservation_that_ends_opens_the_door_at_once(service: Service, asked: Asked) -> None:
    asked.in_flight.leave()
    with reserve(150 * MIB, monitor=service.monitor):
        assert asked.refuses() > 0
        assert asked.refuses() == 0
    assert isinstance(asked.gate.attempt(ASK), Admitted)


def test_memory_that_comes_free_is_seen_with_the_next_reading(service: Service, asked: Asked) -> None:
    service.empty()
    service.clock.pass_(0.06)
    assert asked.refuses() > 0  # what was promised is so still, but it was asked for
    service.use(1 * MIB)
    asked.in_flight.leave()
    assert isinstance(asked.gate.attempt(ASK), Admitted)


def test_relief_that_is_due_is_waited_for_by_nobody(service: Service, asked: Asked) -> None:
    service.clock.pass_(0.3)
    assert asked.refuses() > 0


@pytest.mark.parametrize(
    "other",
    [
        Ask("GET", "/big", need=10 * MIB),
        Ask("GET", "/big", need=85 * MIB, priority=Priority.CRITICAL),
        Ask("GET", "/small", need=10 * MIB),
    ],
)
def test_who_needs_less_or_matters_more_is_asked_for(asked: Asked, other: Ask) -> None:
    assert isinstance(asked.gate.attempt(other), Admitted)


def test_who_needs_more_is_not(asked: Asked) -> None:
    assert asked.refuses(Ask("GET", "/big", need=101 * MIB)) == 0


def test_what_a_class_takes_unseen_is_doubted_in_time(asked: Asked) -> None:
    route = asked.gate._routes.find("GET", "/big")
    admission = asked.gate._admission
    assert admission.stands(route, 7.0) == float("inf")
    route.unseen, route._refused_since = 64.0 * MIB, 3.0
    assert admission.stands(route, 7.0) == 8.0


def test_the_limits_may_change(service: Service, asked: Asked) -> None:
    service.use(32 * MIB, limit=1024 * MIB)
    service.clock.pass_(0.3)
    assert isinstance(asked.gate.attempt(ASK), Admitted)


def test_a_child_begins_anew(asked: Asked) -> None:
    asked.gate._after_fork()
    assert asked.refuses() > 0
