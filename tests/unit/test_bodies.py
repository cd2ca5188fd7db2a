"""The rules for bodies, asked step by step."""

import pytest
from machine import MIB, Holder, Service

from resource_monitor import MemoryPressure, reserve
from resource_monitor.admission import Pressure, Reason
from resource_monitor.middleware import bodies as module
from resource_monitor.middleware.bodies import Body, BodyTooLarge, Intake, content_length
from resource_monitor.middleware.gate import Admitted, Gate

KIB = 1 << 10


@pytest.mark.parametrize(
    ("value", "length"),
    [
        (b"0", 0),
        (b"42", 42),
        ("42", 42),
        ("007", 7),
        (b"9" * 5000, 1 << 62),
        (str(1 << 80), 1 << 62),
        (None, None),
        ("", None),
        (b"-1", None),
        (b"+1", None),
        (b"1.5", None),
        (b"5, 5", None),
        ("٤٢", None),
        ("²", None),
        (b" 1", None),
        (b"0x10", None),
    ],
)
def test_what_is_no_length_announces_none(value: bytes | str | None, length: int | None) -> None:
    assert content_length(value) == length


def test_of_an_announced_body_the_rest_is_to_be_kept() -> None:
    body = Body(200)
    assert body.rest == 200
    body.came = 150
    assert body.rest == 50
    body.came = 300  # more than announced, which servers do not let through
    assert body.rest == 0


def test_of_an_unknown_body_as_much_again_as_came_is_to_be_kept_within_bounds() -> None:
    body = Body(None)
    assert body.rest == 64 * KIB
    body.came = 3 * MIB
    assert body.rest == 3 * MIB
    body.came = 100 * MIB
    assert body.rest == 16 * MIB
    body.ended = True
    assert body.rest == 0


class Seconds:
    """The time that the rules go by."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> Seconds:
    seconds = Seconds()
    monkeypatch.setattr(module, "time", seconds)
    return seconds


def begin(gate: Gate, announced: int | None, path: str = "/") -> tuple[Intake, Admitted]:
    body = Body(announced)
    ask = gate.ask({}, "POST", path, body=body.rest)
    admitted = gate.attempt(ask)
    assert isinstance(admitted, Admitted)
    return Intake(gate, ask, admitted, body), admitted


def promised(gate: Gate) -> int:
    return gate.statistics().promised


def test_the_promise_shrinks_as_the_body_comes_and_ends_with_it(service: Service) -> None:
    gate = Gate(monitor=service.monitor)
    intake, admitted = begin(gate, 10 * MIB)
    assert promised(gate) == 10 * MIB
    assert intake.may_read()
    intake.came(4 * MIB, more=True)
    assert promised(gate) == 6 * MIB
    intake.came(6 * MIB, more=False)
    assert promised(gate) == 0
    admitted.leave()
    assert promised(gate) == 0


def test_a_body_that_is_never_read_to_its_end_keeps_nothing_once_the_request_is_over(service: Service) -> None:
    gate = Gate(monitor=service.monitor)
    intake, admitted = begin(gate, 10 * MIB)
    intake.came(4 * MIB, more=True)
    admitted.leave()
    intake.came(1 * MIB, more=True)
    assert promised(gate) == 0


@pytest.mark.parametrize("announced", [50 * MIB, None])
def test_where_there_is_much_room_a_small_part_of_it_comes_unasked(service: Service, announced: int | None) -> None:
    gate = Gate(monitor=service.monitor)
    intake, _ = begin(gate, announced)
    before, came = promised(gate), 0
    assert intake.may_read()
    service.fill()
    while intake.may_read():
        assert promised(gate) == before
        intake.came(64 * KIB, more=True)
        came += 64 * KIB
    assert came == 14 * 64 * KIB  # 1/256 of what is left of 256 MiB, and the rest of a piece
    assert promised(gate) == (announced - came if announced else 0)


def test_no_more_than_so_much_comes_unasked_however_much_room_there_is(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_UNASKED", 128 * KIB)
    intake, _ = begin(Gate(monitor=service.monitor), 50 * MIB)
    assert intake.may_read()
    service.fill()
    intake.came(64 * KIB, more=True)
    assert intake.may_read()
    intake.came(64 * KIB, more=True)
    assert not intake.may_read()


def test_a_body_that_ends_while_it_comes_unasked_is_promised_nothing_more(service: Service) -> None:
    gate = Gate(monitor=service.monitor)
    intake, _ = begin(gate, 200 * KIB)
    assert intake.may_read()
    intake.came(100 * KIB, more=True)
    intake.came(100 * KIB, more=False)
    assert promised(gate) == 0


def test_what_a_request_costs_besides_its_body_stays_promised(service: Service) -> None:
    gate = Gate(monitor=service.monitor, request_cost="1MiB")
    intake, _ = begin(gate, 10 * MIB)
    assert promised(gate) == 11 * MIB
    intake.came(10 * MIB, more=False)
    assert promised(gate) == 1 * MIB


def test_the_promise_of_an_unknown_body_grows_with_it(service: Service) -> None:
    gate = Gate(monitor=service.monitor)
    intake, _ = begin(gate, None)
    assert promised(gate) == 64 * KIB
    intake.came(2 * MIB, more=True)
    assert promised(gate) == 2 * MIB
    intake.came(2 * MIB, more=False)
    assert promised(gate) == 0


def test_an_announced_body_that_does_not_fit_is_not_let_in(service: Service) -> None:
    gate = Gate(monitor=service.monitor)
    assert gate.attempt(gate.ask({}, "POST", "/", body=209 * MIB)) is Reason.MEMORY
    assert gate.attempt(gate.ask({}, "POST", "/", body=1 << 62)) is Reason.MEMORY
    assert isinstance(gate.attempt(gate.ask({}, "POST", "/", body=207 * MIB)), Admitted)


@pytest.mark.parametrize("announced", [50 * MIB, None])
def test_a_body_waits_while_there_is_no_room_and_goes_on_with_room(
    service: Service, announced: int | None, time: Seconds
) -> None:
    gate = Gate(monitor=service.monitor, body_timeout=5)
    intake, _ = begin(gate, announced)
    intake.came(1 * MIB, more=True)
    service.fill()
    assert not intake.may_read()
    time.now = 4.9
    assert not intake.may_read()
    service.empty()
    assert intake.may_read()
    intake.came(1 * MIB, more=True)
    service.fill()
    assert not intake.may_read()  # and has its whole time again
    time.now += 4.9
    assert not intake.may_read()
    assert gate.statistics().shed == 0


def test_a_request_in_flight_may_use_what_new_ones_may_not(service: Service) -> None:
    gate = Gate(monitor=service.monitor)
    intake, _ = begin(gate, 50 * MIB)
    service.use(244 * MIB)
    assert gate.attempt(gate.ask({}, "POST", "/")) is Reason.MEMORY
    assert intake.may_read()
    service.use(249 * MIB)
    assert not intake.may_read()


def test_without_room_for_too_long_the_request_is_lost(
    service: Service, time: Seconds, caplog: pytest.LogCaptureFixture
) -> None:
    gate = Gate(monitor=service.monitor, body_timeout=0.5)
    intake, admitted = begin(gate, 50 * MIB)
    intake.came(20 * MIB, more=True)
    service.fill()
    assert not intake.may_read()
    time.now = 0.5
    with pytest.raises(MemoryPressure) as e:
        intake.may_read()
    assert str(e.value) == (
        "There was no room for the rest of the request's body, of which 20.0 MiB came, for 0.5 s; try again later or "
        "raise body_timeout."
    )
    admitted.leave()
    found = gate.statistics()
    assert (found.wasted, found.shed_by_reason, found.in_flight) == (1, {Reason.BODY: 1}, 0)
    assert found.pressure is Pressure.SHEDDING
    assert [record.getMessage() for record in caplog.records] == [
        "Shedding: no room for the body of POST /; requests are answered 503 until there is room again."
    ]


def test_the_allocator_is_asked_before_a_body_waits(service: Service) -> None:
    gate = Gate(monitor=service.monitor)
    intake, _ = begin(gate, 50 * MIB)
    service.monitor.allocator = Holder(service.machine, 100 * MIB)  # type: ignore[assignment]
    service.fill()
    assert intake.may_read()


def test_an_unknown_body_leaves_what_is_promised_to_others(service: Service) -> None:
    gate = Gate(monitor=service.monitor, min_available="32MiB")
    intake, _ = begin(gate, None)
    announced, _ = begin(gate, 90 * MIB)
    assert intake.may_read()
    intake.came(1 * MIB, more=True)
    with reserve(120 * MIB, monitor=service.monitor):
        assert not intake.may_read()
        assert announced.may_read()
    assert intake.may_read()


def test_what_came_does_not_pass_for_what_is_yet_to_come(service: Service) -> None:
    """Half of each body is there: the other halves still have to fit, of a container of 256 MiB."""
    gate = Gate(monitor=service.monitor)
    begun = [begin(gate, 80 * MIB) for _ in range(2)]
    for intake, _ in begun:
        intake.came(40 * MIB, more=True)
    service.use((32 + 80) * MIB)
    assert fits(service, 256 - 32 - 160 - 8)
    assert not fits(service, 256 - 32 - 160 - 7)
    for _, admitted in begun:
        admitted.leave()
    assert not fits(service, 256 - 32 - 80 - 7)
    service.empty()
    assert fits(service, 256 - 32 - 8)


def test_bodies_that_pass_through_leave_no_trace_beside_a_promise_that_lasts(service: Service) -> None:
    gate = Gate(monitor=service.monitor)
    with reserve(100 * MIB, monitor=service.monitor):
        service.use((32 + 100) * MIB)
        for _ in range(5):
            intake, admitted = begin(gate, 50 * MIB)
            intake.came(50 * MIB, more=False)
            admitted.leave()
        assert fits(service, 256 - 32 - 100 - 8)


def fits(service: Service, mib: int) -> bool:
    try:
        with reserve(mib * MIB, monitor=service.monitor):
            return True
    except MemoryPressure:
        return False


def test_an_upload_that_lasts_does_not_undo_the_promises_that_come_after_it(service: Service) -> None:
    gate = Gate(monitor=service.monitor)
    begin(gate, 1 * MIB)
    service.use(150 * MIB)
    begin(gate, 60 * MIB)
    assert gate.attempt(gate.ask({}, "POST", "/", body=60 * MIB)) is Reason.MEMORY


def test_unknown_bodies_that_wait_do_not_keep_the_room_from_each_other(service: Service) -> None:
    gate = Gate(monitor=service.monitor)
    service.use(216 * MIB)
    intakes = [begin(gate, None)[0] for _ in range(3)]
    for intake in intakes:
        intake.came(16 * MIB, more=True)
    assert promised(gate) == 48 * MIB
    assert [intake.may_read() for intake in intakes] == [False, True, True]
    assert promised(gate) == 32 * MIB


def test_exempt_requests_neither_wait_nor_promise(service: Service) -> None:
    gate = Gate(monitor=service.monitor)
    intake, _ = begin(gate, None, "/livez")
    service.fill()
    assert intake.may_read()
    intake.came(1 * MIB, more=True)
    assert promised(gate) == 0


def test_a_dry_run_counts_a_body_once_and_lets_it_come(service: Service) -> None:
    gate = Gate(monitor=service.monitor, dry_run=True, max_body=1 * MIB)
    intake, admitted = begin(gate, None)
    service.fill()
    for _ in range(3):
        assert intake.may_read()
        intake.came(64 * KIB, more=True)
    assert gate.statistics().shed_by_reason == {Reason.BODY: 1}
    admitted.leave()
    assert gate.statistics().wasted == 0


def test_a_dry_run_counts_too_large_a_body_once_and_lets_it_come(service: Service) -> None:
    gate = Gate(monitor=service.monitor, dry_run=True, max_body=1 * MIB)
    intake, _ = begin(gate, 2 * MIB)
    for _ in range(4):
        assert intake.may_read()
        intake.came(512 * KIB, more=True)
    assert gate.statistics().shed_by_reason == {Reason.TOO_LARGE: 1}


@pytest.mark.parametrize("path", ["/", "/livez"])
def test_a_body_ends_as_soon_as_it_is_known_to_be_too_large(service: Service, path: str) -> None:
    gate = Gate(monitor=service.monitor, max_body="1MiB")
    intake, admitted = begin(gate, None, path)
    intake.came(1 * MIB, more=True)
    with pytest.raises(BodyTooLarge) as e:
        intake.came(1, more=True)
    assert str(e.value) == "A request's body is larger than max_body='1.0 MiB'; send less or raise max_body."
    with pytest.raises(BodyTooLarge):
        intake.may_read()  # however often the app tries
    admitted.leave()
    found = gate.statistics()
    assert (found.shed_by_reason, found.wasted) == ({Reason.TOO_LARGE: 1}, 0)
    assert found.pressure is Pressure.OK


def test_memory_that_cannot_be_read_follows_the_policy(service: Service) -> None:
    lenient, strict = Gate(monitor=service.monitor), Gate(monitor=service.monitor, on_probe_error="refuse")
    intakes = [begin(gate, 1 * MIB)[0] for gate in (lenient, strict)]
    service.break_probe()
    assert [intake.may_read() for intake in intakes] == [True, False]


def test_a_loss_in_the_body_is_a_loss_of_its_class(service: Service, time: Seconds) -> None:
    gate = Gate(monitor=service.monitor, body_timeout=0)
    intake, admitted = begin(gate, 50 * MIB)
    service.fill()
    with pytest.raises(MemoryError):
        intake.may_read()
    admitted.leave()
    assert gate.statistics().routes["POST /"].wasted == 1
