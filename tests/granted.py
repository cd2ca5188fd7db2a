"""Requests that start under a grant, whose classes another worker is made to know so well that they get one at once."""

from collections.abc import Callable
from typing import Any

import pytest
from machine import Service

from resource_monitor._native._turn import Door, Lane, Turn
from resource_monitor.admission import Learned
from resource_monitor.middleware import MemoryBackpressureMiddleware
from resource_monitor.middleware.asgi_body import CountedReceive
from resource_monitor.middleware.asking import Ask
from resource_monitor.middleware.gate import Admitted, Gate
from resource_monitor.sampling import Sampler
from resource_monitor.workers import Others


def know_all_classes(patch: pytest.MonkeyPatch) -> None:
    """From now on there is no class that is new."""
    patch.setattr(Gate, "_learned", lambda gate, name: Learned(None, 0.0, None, None))


def scope(path: str = "/", method: str = "GET", *headers: tuple[bytes, bytes], **more: Any) -> dict[str, Any]:
    return {"type": "http", "method": method, "path": path, "headers": list(headers), **more}


MOST_BODY = 1000
"""Bytes that a request may announce where it comes through :func:`door`."""


def door(
    gate: Gate,
    renew: Callable[[Lane], object] | None = None,
    *,
    take_in: Callable[[Any, int], Any] = CountedReceive,
    most_body: int = MOST_BODY,
) -> Door:
    """One on the running thread, without an event loop; it renews grants as the gate does unless told otherwise."""
    made = Door(
        gate.turns,
        respond=lambda *_: None,
        awaited=lambda awaitable: awaitable,
        after=lambda *_: None,
        left=lambda: None,
        renew=gate.renew if renew is None else renew,
        take_in=take_in,
        most_body=most_body,
    )
    made.open()
    return made


def asked(gate: Gate, path: str = "/", method: str = "GET") -> Admitted:
    """A request that is asked for, and let in."""
    answer = gate.attempt(Ask(method, path))
    assert isinstance(answer, Admitted), answer
    return answer


def unasked(door: Door, *what: Any, **more: Any) -> Turn | None:
    """One that is not, if it may start so."""
    return door.enter(None, scope(*what, **more), None, None)


def entered(middleware: MemoryBackpressureMiddleware) -> int:
    """How many came in unasked on the last event loop."""
    return 0 if middleware.door is None else middleware.door.entered


LASTS_ON = 0.25
"""Seconds after which what was done under grants is told with the next reading, whatever that finds."""


def outlive(reading: Sampler, service: Service) -> None:
    """Wait until ``reading`` is just too old."""
    service.clock.pass_(reading.fresh_until - service.clock() + 1e-6)


class Beside:
    """So many other workers, which promised so many bytes, and what they were told to be in flight here."""

    def __init__(self, *, workers: int = 1) -> None:
        self.workers, self.promised = workers, 0
        self.told: list[int] = []

    def tell(self, to_take: int, in_flight: int, now: float, *, exactly: bool) -> int:
        self.told.append(in_flight)
        return in_flight

    def teach(self, routes: Any, now: float) -> None: ...

    def learned(self, name: str, now: float) -> Learned:
        return Learned(None, 0.0, None, None)

    def is_alone(self, now: float) -> bool:
        return not self.workers

    def others(self, now: float, *, at_once: bool = False) -> Any:
        return Others(promised=self.promised, in_flight=7 * self.workers, workers=self.workers)
