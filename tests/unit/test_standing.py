"""Refusals that stand: nobody is asked for again who would be refused, and whoever may be let in is asked for."""

import asyncio
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest
from granted import asked as let_in
from granted import door, know_all_classes, scope, unasked
from machine import MIB, Service

from resource_monitor import reserve
from resource_monitor.admission import Learned, Priority, Reason
from resource_monitor.middleware import MemoryBackpressureMiddleware, WSGIMemoryBackpressureMiddleware
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

    def unasked(self, need: int = 100 * MIB, *, method: str = "GET", path: str = "/big", mount: str = "") -> bool:
        """Whether a request is refused by what stands alone."""
        return self.gate.turns.refuse(method, path, mount, need)


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


def test_what_ended_under_a_grant_is_settled_first(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    know_all_classes(monkeypatch)
    gate = Gate(monitor=service.monitor, allocation_guard=False)
    let_in(gate, "/unseen").leave()
    turn = unasked(door(gate), "/unseen")
    assert turn is not None
    gate._routes.find("GET", "/unseen").unseen = 100.0 * MIB
    ask = Ask("GET", "/big", need=120 * MIB)
    for _ in range(3):
        answer = gate.attempt(ask)
        assert answer is Reason.MEMORY
        gate.refuse(ask, answer)
    assert gate.turns.refuse("GET", "/big", "", 120 * MIB)
    turn.leave()
    assert not gate.turns.refuse("GET", "/big", "", 120 * MIB)
    assert isinstance(gate.attempt(ask), Admitted)


# --- without any Python ---


def test_those_like_a_refused_one_are_counted_in_bulk(asked: Asked) -> None:
    before = time.monotonic()
    assert all(asked.unasked(need) for need in (100 * MIB, 101 * MIB, 1 << 62))
    counts = asked.gate.statistics()
    assert counts.shed_by_reason == {Reason.MEMORY: 6}
    assert counts.refusal_age is not None
    assert counts.refusal_age <= time.monotonic() - before + 1
    assert asked.gate.statistics().shed == 6


def test_a_time_of_shedding_goes_on_with_what_is_counted_in_bulk(
    service: Service, asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "monotonic", service.clock)
    admission = asked.gate._admission
    admission._last_refusal = service.clock.now - 0.9
    asked.gate._refused_at = None
    service.clock.pass_(0.001)
    assert asked.unasked()
    asked.gate.statistics()
    assert admission._last_refusal == service.clock.now
    assert asked.gate._refused_at == service.clock.now


def end_of_shedding(asked: Asked) -> None:
    with asked.gate._lock, asked.gate.turns:
        assert asked.gate._admission.admitted(1 << 40, asked.gate._admission._last_refusal + 2)


OPENS: dict[str, Callable[[Service, Asked], object]] = {
    "a request leaves": lambda service, asked: asked.in_flight.leave(),
    "a promise ends": lambda service, asked: asked.gate.promise(asked.in_flight, 0),
    "a reading is too old": lambda service, asked: service.clock.pass_(0.015),
    "one waits": lambda service, asked: asked.gate.waits(1),
    "a child begins": lambda service, asked: asked.gate._after_fork(),
    "shedding ends": lambda service, asked: end_of_shedding(asked),
    "somebody holds the lock": lambda service, asked: asked.gate.turns.__enter__(),
}


@pytest.mark.parametrize("opens", OPENS.values(), ids=OPENS)
def test_what_may_open_the_door_has_the_next_one_asked_for(
    service: Service, asked: Asked, opens: Callable[[Service, Asked], object]
) -> None:
    assert asked.unasked()
    opens(service, asked)
    assert not asked.unasked()


def test_a_promise_of_another_middleware_that_ends_under_a_grant_opens_the_door(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    know_all_classes(monkeypatch)
    other = Gate(monitor=service.monitor, allocation_guard=False, request_cost=100 * MIB)
    let_in(other).leave()
    turn = unasked(door(other))
    assert turn is not None
    gate, ask = Gate(monitor=service.monitor, allocation_guard=False), Ask("GET", "/big", need=150 * MIB)
    refuse(gate, ask, 3)
    assert gate.turns.refuse("GET", "/big", "", 150 * MIB)
    turn.leave()
    assert not gate.turns.refuse("GET", "/big", "", 150 * MIB)
    assert isinstance(gate.attempt(ask), Admitted)


@pytest.mark.parametrize("other", [{"need": 99 * MIB}, {"path": "/small"}, {"method": "POST"}], ids=str)
def test_who_is_not_like_the_refused_one_is_asked_for(asked: Asked, other: dict[str, Any]) -> None:
    asked.gate.turns.lane("GET", "/small")
    asked.gate.turns.lane("POST", "/big")
    assert asked.unasked()
    assert not asked.unasked(**other)


def test_who_may_ask_for_a_browser_is_asked_for(asked: Asked) -> None:
    refuse(asked.gate, ASK._replace(method="OPTIONS"), 3)
    assert not asked.unasked(method="OPTIONS")


def test_exempt_paths_of_a_refused_class_are_asked_for(service: Service) -> None:
    gate = Gate(monitor=service.monitor, exempt=["/items/7"])
    service.fill()
    refuse(gate, Ask("GET", "/items/1"), 3)
    assert gate.turns.refuse("GET", "/items/2", "", 0)
    assert not gate.turns.refuse("GET", "/items/7", "", 0)


def test_in_close_succession_it_stands_longer_than_the_reading(service: Service, asked: Asked) -> None:
    """Which is too old after less than 15 ms, so that one that comes alone is asked for."""
    service.monitor._relief_due = service.clock.now + 1
    assert asked.refuses() == 0
    for _ in range(49):
        service.clock.pass_(0.0004)
        assert asked.unasked()
    service.clock.pass_(0.0004)
    assert not asked.unasked()


def test_one_that_comes_alone_after_the_reading_is_asked_for(service: Service, asked: Asked) -> None:
    service.monitor._relief_due = service.clock.now + 1
    assert asked.refuses() == 0
    service.clock.pass_(0.015)
    assert not asked.unasked()


def test_the_succession_begins_with_the_one_that_was_asked_for(service: Service, asked: Asked) -> None:
    service.monitor._fresh_until = service.clock.now + 0.0002
    assert asked.refuses() == 0
    service.clock.pass_(0.0004)
    assert asked.unasked()


def test_a_pause_does_not_end_a_succession(service: Service, asked: Asked) -> None:
    """In which the process may have had to wait for its turn."""
    service.monitor._fresh_until = service.clock.now + 0.0002
    assert asked.refuses() == 0
    assert all(asked.unasked() for _ in range(5))
    service.clock.pass_(0.0025)
    assert asked.unasked()
    service.clock.pass_(0.0015)
    assert not asked.unasked()


def test_it_stands_no_longer_than_relief_is_not_due(service: Service, asked: Asked) -> None:
    service.monitor._relief_due = service.clock.now + 0.001
    service.clock.pass_(0.0004)
    assert asked.refuses() == 0
    for _ in range(2):
        service.clock.pass_(0.0002)
        assert asked.unasked()
    service.clock.pass_(0.0003)
    assert not asked.unasked()


def test_what_a_class_takes_unseen_is_doubted_in_time_there_too(
    service: Service, asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the clock is not the monitor's."""
    monkeypatch.setattr(time, "monotonic", lambda: 5.0)
    route = asked.gate._routes.find("GET", "/big")
    route.unseen, route._refused_since = 64.0 * MIB, 0.001
    assert asked.refuses(ASK._replace(need=90 * MIB)) > 0
    assert asked.refuses(ASK._replace(need=90 * MIB)) == 0
    service.clock.pass_(0.0004)
    assert asked.unasked(90 * MIB)
    service.clock.pass_(0.0004)
    assert asked.unasked(90 * MIB)
    service.clock.pass_(0.0004)
    assert not asked.unasked(90 * MIB)


@pytest.mark.parametrize(
    "option",
    [
        {"on_shed": lambda shed: None},
        {"response": lambda shed: "no"},
        {"priority": lambda carrier: Priority.DEFAULT},
        {"request_cost": lambda carrier: 0},
        {"max_wait": 1.0},
        {"dry_run": True},
    ],
    ids=str,
)
def test_where_each_is_a_matter_of_its_own_each_is_asked_for(service: Service, option: dict[str, Any]) -> None:
    gate = Gate(monitor=service.monitor, **option)
    service.fill()
    refuse(gate, Ask("GET", "/big"), 3)
    assert not gate.turns.refuse("GET", "/big", "", 0)


def test_what_cannot_be_told_python_is_asked_for(asked: Asked) -> None:
    assert not asked.gate.turns.refuse("GET", "/big", "", 1 << 64)
    assert not asked.gate.turns.refuse(b"GET", "/big", "", 100 * MIB)  # type: ignore[arg-type]
    assert not asked.gate.turns.refuse_http(None)
    asked.gate.turns.set_clock(lambda: 1 / 0)
    assert not asked.unasked()


def test_before_the_first_is_counted_nobody_is_refused_unasked(service: Service) -> None:
    """Who would be counted before it in bulk, so that nothing were logged."""
    gate = Gate(monitor=service.monitor)
    service.fill()
    assert [gate.attempt(Ask("GET", "/big")) for _ in range(3)] == [Reason.MEMORY] * 3
    assert not gate.turns.refuse("GET", "/big", "", 0)


def refuse(gate: Gate, ask: Ask, times: int) -> None:
    """Refuse such requests; the first of a time of shedding revokes what stood, and the next one is asked for."""
    for _ in range(times):
        answer = gate.attempt(ask)
        assert answer is Reason.MEMORY
        gate.refuse(ask, answer)


# --- what clients see ---


def asgi(
    middleware: MemoryBackpressureMiddleware, *what: Any, body: tuple[bytes, ...] = (), **more: Any
) -> list[dict[str, Any]]:
    sent: list[dict[str, Any]] = []
    pieces = [{"type": "http.request", "body": piece, "more_body": True} for piece in body]

    async def receive() -> dict[str, Any]:
        return pieces.pop(0) if pieces else {"type": "http.request"}

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(middleware(scope(*what, **more), receive, send))  # type: ignore[arg-type]
    assert not pieces  # what was sent is read
    return sent


LENGTH = (b"content-length", b"3")
TEXT = (b"accept", b"text/plain")


@pytest.mark.parametrize("own", [None, "full"])
@pytest.mark.parametrize(
    ("what", "body"),
    [
        (("/", "GET"), ()),
        (("/", "HEAD"), ()),
        (("/", "GET", TEXT), ()),
        (("/", "GET", TEXT, (b"accept", b"application/json")), ()),
        (("/", "POST", LENGTH), (b"abc",)),
    ],
    ids=str,
)
def test_asgi_clients_see_no_difference(
    service: Service, monkeypatch: pytest.MonkeyPatch, what: Any, body: tuple[bytes, ...], own: str | None
) -> None:
    middleware = MemoryBackpressureMiddleware(lambda *_: None, monitor=service.monitor, response=own)  # type: ignore[arg-type, return-value]
    monkeypatch.setattr("random.random", lambda: 0.0)
    service.fill()
    refused, *_ = [asgi(middleware, *what, body=body) for _ in range(3)]
    monkeypatch.delattr(Gate, "attempt")
    assert asgi(middleware, *what, body=body) == refused
    assert asgi(middleware, *what, body=body, root_path="/m") == refused
    assert refused[0]["status"] == 503
    assert middleware.statistics().shed == 5


def test_what_is_sent_may_be_changed(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    middleware = MemoryBackpressureMiddleware(lambda *_: None, monitor=service.monitor)  # type: ignore[arg-type, return-value]
    service.fill()
    for _ in range(4):
        start, body = asgi(middleware)
        assert "x" not in {*start, *body}
        assert (b"x", b"y") not in start["headers"]
        start["x"] = body["x"] = 1
        start["headers"].append((b"x", b"y"))
    assert middleware._refuse_unasked(scope())


def test_clients_are_told_to_come_back_at_different_times(service: Service) -> None:
    middleware = MemoryBackpressureMiddleware(lambda *_: None, monitor=service.monitor)  # type: ignore[arg-type, return-value]
    service.fill()
    answers = [asgi(middleware)[0]["headers"] for _ in range(200)]
    assert {dict(headers)[b"retry-after"] for headers in answers[4:]} == {b"1", b"2"}


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_wsgi_clients_see_no_difference(service: Service, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    middleware = WSGIMemoryBackpressureMiddleware(lambda *_: [], monitor=service.monitor)
    monkeypatch.setattr("random.random", lambda: 0.0)
    service.fill()

    def answer(accept: str) -> Any:
        begun: list[Any] = []
        environ = {"REQUEST_METHOD": method, "PATH_INFO": "/\xc3\xa9", "SCRIPT_NAME": "", "HTTP_ACCEPT": accept}
        return list(middleware(environ, lambda *what: begun.append(what))), begun

    refused = [answer(accept) for _ in range(3) for accept in ("*/*", "text/plain")][-2:]
    monkeypatch.delattr(Gate, "attempt")
    assert [answer(accept) for accept in ("*/*", "text/plain")] == refused
    assert refused[0] != refused[1] or method == "HEAD"
    assert middleware.statistics().shed == 8


@pytest.mark.parametrize("refuses", [False, True])
def test_nothing_is_left_behind(asked: Asked, refuses: bool) -> None:
    turns, path = asked.gate.turns, "/big" if refuses else "/other"
    plain = scope(path)

    def ask() -> None:
        for _ in range(200):
            assert turns.refuse("GET", path, "", 100 * MIB) is refuses
            assert not turns.refuse_http(plain)
            assert not turns.refuse(None, path, "", 0)  # type: ignore[arg-type]
        turns.take_refused()

    ask()
    before = sys.getallocatedblocks()
    ask()
    assert sys.getallocatedblocks() <= before + 20
