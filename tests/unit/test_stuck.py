"""When a worker is stuck, on a virtual clock, and what is then done, in real processes."""

import logging
import os
import re
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from typing import Any

import pytest
from machine import Clock, Service

from resource_monitor.admission import Reason
from resource_monitor.errors import ConfigurationError
from resource_monitor.middleware import gate as gate_module
from resource_monitor.middleware import stuck as module
from resource_monitor.middleware.asking import Ask
from resource_monitor.middleware.gate import Admitted, Gate
from resource_monitor.middleware.stuck import OnStuck, Stuck


class Worker:
    """A worker that refuses everything, once a second and for want of memory unless said otherwise."""

    def __init__(self, clock: Clock, on_stuck: OnStuck = "log", after: float = 60.0) -> None:
        self.clock = clock
        self.stuck = Stuck(on_stuck, after)
        self.in_flight = self.admitted = 0

    def refused(self, seconds: int, *, every: int = 1, reason: Reason = Reason.MEMORY) -> list[int]:
        """The seconds from now after which it was stuck."""
        found = []
        for second in range(0, seconds + 1, every):
            if self.stuck.refused(reason, self.clock.now, in_flight=self.in_flight, admitted=self.admitted):
                found.append(second)
            self.clock.pass_(every)
        return found


@pytest.fixture
def worker(clock: Clock) -> Worker:
    return Worker(clock)


# --- when it is stuck ---


def test_a_worker_that_refused_everything_for_long_enough_is_stuck_once(worker: Worker) -> None:
    assert worker.refused(600) == [60]


def test_a_shorter_time_is_none(worker: Worker) -> None:
    assert worker.refused(59) == []


def test_a_request_that_was_let_in_begins_the_time_anew(worker: Worker) -> None:
    assert worker.refused(59) == []
    worker.admitted += 1
    assert worker.refused(100) == [60]


def test_while_a_request_is_in_flight_it_may_yet_free_memory(worker: Worker) -> None:
    worker.in_flight = 1
    assert worker.refused(300) == []
    worker.in_flight = 0
    # what was refused while it was in flight last still counts as a beginning
    assert worker.refused(100) == [59]


def test_a_worker_that_was_asked_nothing_in_between_is_not_stuck(worker: Worker) -> None:
    assert worker.refused(50) == []
    worker.clock.pass_(3600)
    assert worker.refused(50) == []


def test_few_requests_are_enough_when_they_come_evenly(worker: Worker) -> None:
    assert worker.refused(120, every=30) == [60]
    worker.stuck.forget()
    worker.clock.pass_(3600)
    assert worker.refused(1000, every=31) == []


def test_descriptors_that_ran_out_make_a_worker_stuck_too(worker: Worker) -> None:
    assert worker.refused(60, reason=Reason.COUNT) == [60]


@pytest.mark.parametrize(
    "reason", [reason for reason in Reason if reason not in (Reason.MEMORY, Reason.COUNT)], ids=str
)
def test_what_a_new_process_would_not_cure_is_not_being_stuck(worker: Worker, reason: Reason) -> None:
    assert worker.refused(300, reason=reason) == []


def test_being_stuck_again_is_told_again(worker: Worker) -> None:
    assert worker.refused(100) == [60]
    worker.admitted += 1
    assert worker.refused(100) == [60]


def test_a_worker_is_told_to_stop_once_whatever_happens_then(clock: Clock) -> None:
    worker = Worker(clock, "stop")
    assert len(worker.refused(100)) == 1
    worker.admitted += 1
    assert worker.refused(1000) == []


def test_workers_that_are_stuck_together_do_not_stop_together(clock: Clock) -> None:
    found = [Worker(clock, "stop", after=1000).refused(1600)[0] for _ in range(20)]
    assert len(set(found)) > 10
    assert all(1000 <= second <= 1500 for second in found)


def test_a_child_process_begins_anew(worker: Worker) -> None:
    assert worker.refused(59) == []
    worker.stuck.forget()
    assert worker.refused(100) == [60]


# --- options ---


@pytest.mark.parametrize("after", [0, 0.5, -1, 86401, True, "60", None, float("nan")])
@pytest.mark.parametrize("on_stuck", [None, "log"])
def test_a_time_that_cannot_be_meant_is_refused_in_one_sentence(
    service: Service, on_stuck: OnStuck | None, after: Any
) -> None:
    with pytest.raises(ConfigurationError) as e:
        Gate(monitor=service.monitor, on_stuck=on_stuck, stuck_after=after)
    assert str(e.value) == f"stuck_after={after!r} is no time to be stuck for; give seconds, from 1 to 86400."


async def asynchronous() -> None:
    """Nobody would await it."""


@pytest.mark.parametrize("on_stuck", ["restart", "", 5, True, asynchronous])
def test_an_action_that_cannot_be_done_is_refused_in_one_sentence(service: Service, on_stuck: Any) -> None:
    with pytest.raises(ConfigurationError) as e:
        Gate(monitor=service.monitor, on_stuck=on_stuck)
    assert str(e.value) == (
        f"on_stuck={on_stuck!r} cannot be done; give 'log', 'stop', a function without arguments, or None."
    )


# --- at the gate ---


@pytest.fixture
def time_stands_still(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate_module.time, "monotonic", service.clock)


MakeGate = Callable[..., Gate]


@pytest.fixture
def make_gate(service: Service, time_stands_still: None) -> MakeGate:
    return lambda **options: Gate(monitor=service.monitor, stuck_after=60, **options)


def shed_for(gate: Gate, service: Service, seconds: int) -> None:
    """Full, with a request a second and a liveness probe besides it."""
    for _ in range(seconds):
        service.fill()
        service.clock.pass_(-9)  # filling takes ten
        assert gate.enter("GET", "/") is None
        probe = gate.enter("GET", "/livez")
        assert probe is not None
        probe.leave()


def test_the_callable_is_called_once_when_everything_was_refused(make_gate: MakeGate, service: Service) -> None:
    called: list[None] = []
    gate = make_gate(on_stuck=lambda: called.append(None))
    shed_for(gate, service, 60)
    assert called == []
    shed_for(gate, service, 200)
    assert called == [None]


def test_a_request_that_is_let_in_is_a_way_out(make_gate: MakeGate, service: Service) -> None:
    called: list[None] = []
    gate = make_gate(on_stuck=lambda: called.append(None))
    for _ in range(3):
        shed_for(gate, service, 50)
        service.empty()
        admitted = gate.enter("GET", "/")
        assert admitted is not None
        admitted.leave()
    assert called == []


def test_a_request_in_flight_is_hope(make_gate: MakeGate, service: Service) -> None:
    called: list[None] = []
    gate = make_gate(on_stuck=lambda: called.append(None))
    admitted = gate.enter("GET", "/")
    assert admitted is not None
    shed_for(gate, service, 200)
    assert called == []
    admitted.leave()


def test_requests_that_are_refused_for_their_size_say_nothing(make_gate: MakeGate, service: Service) -> None:
    called: list[None] = []
    gate = make_gate(on_stuck=lambda: called.append(None))
    for _ in range(100):
        gate.count_refusal(Ask("POST", "/"), Reason.TOO_LARGE)
        service.clock.pass_(1)
    assert called == []


def test_a_dry_run_does_nothing(make_gate: MakeGate, service: Service) -> None:
    called: list[None] = []
    gate = make_gate(on_stuck=lambda: called.append(None), dry_run=True)
    for _ in range(200):
        service.fill()
        service.clock.pass_(-9)
        admitted = gate.enter("GET", "/")
        assert isinstance(admitted, Admitted)
        admitted.leave()
    assert called == []


def test_log_says_it_once(make_gate: MakeGate, service: Service, caplog: pytest.LogCaptureFixture) -> None:
    gate = make_gate(on_stuck="log")
    shed_for(gate, service, 200)
    assert [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR] == [
        "Stuck: for 60 s every request was refused while nothing was in flight."
    ]


def test_a_callable_that_fails_does_not_take_the_place_of_the_refusal(
    make_gate: MakeGate, service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> None:
        raise RuntimeError("no")

    gate = make_gate(on_stuck=fail)
    shed_for(gate, service, 70)
    assert [record.getMessage() for record in caplog.records if record.exc_info] == ["Stuck: on_stuck failed."]


def test_what_it_does_may_ask_the_gate(make_gate: MakeGate, service: Service) -> None:
    """It is called without a lock."""
    found: list[int] = []
    gate = make_gate(on_stuck=lambda: found.append(gate.statistics().shed))
    shed_for(gate, service, 61)
    assert found == [61]


def test_stop_sends_sigterm_to_this_process_alone(
    make_gate: MakeGate, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[tuple[int, int]] = []
    monkeypatch.setattr(module.os, "kill", lambda pid, number: sent.append((pid, number)))
    gate = make_gate(on_stuck="stop")
    shed_for(gate, service, 300)
    assert sent == [(os.getpid(), signal.SIGTERM)]


def test_it_stops_also_where_nothing_can_be_logged(
    make_gate: MakeGate, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    def out_of_memory(*args: object, **how: object) -> None:
        raise MemoryError

    sent: list[int] = []
    monkeypatch.setattr(module.os, "kill", lambda pid, number: sent.append(number))
    monkeypatch.setattr(module.logger, "error", out_of_memory)
    gate = make_gate(on_stuck="stop")
    shed_for(gate, service, 100)
    assert sent == [signal.SIGTERM]


def test_only_the_child_that_is_stuck_stops() -> None:
    """What the parent refused before it forked is not the child's."""
    program = """
        import os, signal, sys
        from resource_monitor.admission import Reason
        from resource_monitor.middleware.stuck import Stuck
        from resource_monitor.middleware.gate import Gate

        now = 1000.0

        def refuse(gate, seconds):
            global now
            for _ in range(seconds):
                now += 1
                if gate._stuck.refused(Reason.MEMORY, now, in_flight=0, admitted=0):
                    gate._stuck.act()

        gate = Gate(limit="64GiB", allocation_guard=False, on_stuck="stop", stuck_after=10)
        refuse(gate, 9)
        children = []
        for seconds in (9, 30):
            child = os.fork()
            if not child:
                refuse(gate, seconds)
                os._exit(0)
            children.append(child)
        print([os.WTERMSIG(status) for status in (os.waitpid(child, 0)[1] for child in children)])
    """
    out = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=60, check=True
    )
    assert out.stdout.strip() == f"[0, {int(signal.SIGTERM)}]"
    assert len(re.findall(r"Stuck: .* stops, for its supervisor to replace it", out.stderr)) == 1
