"""The ways in for frameworks that call neither ASGI nor WSGI apps: from a thread, or on an event loop of asyncio.

Owns the waiting for room there, and the way out again, from whichever thread; the adapters own the answers.
"""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import suppress
from typing import Protocol

from resource_monitor.admission import Reason
from resource_monitor.middleware.admitted import Admitted
from resource_monitor.middleware.asgi_loops import running_loop
from resource_monitor.middleware.asking import Ask
from resource_monitor.middleware.gate import Gate
from resource_monitor.middleware.on_loop import OnLoop
from resource_monitor.middleware.refusing import Shed
from resource_monitor.middleware.waiting import patience
from resource_monitor.middleware.wsgi_waiting import WaitingThreads


class _Way(Protocol):
    dropped: deque[Admitted]

    def left(self, admitted: Admitted) -> None: ...


class Stay:
    """A request that was let in, until :meth:`leave`; one that frameworks forget leaves when the next one comes."""

    __slots__ = ("_way", "admitted")

    def __init__(self, admitted: Admitted, way: _Way) -> None:
        self.admitted = admitted
        self._way: _Way | None = way

    def leave(self, *_: object) -> None:
        """The request is over, and what is sent for it is sent; however often this is said, and from any thread."""
        way, self._way = self._way, None
        if way is not None:
            way.left(self.admitted)

    def __del__(self) -> None:
        # the garbage collector may come while this very thread holds the gate's lock
        if self._way is not None:
            self._way.dropped.append(self.admitted)


class ThreadEntrance:
    """For requests that are served by a thread each."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self._threads = WaitingThreads(gate)
        self.dropped: deque[Admitted] = deque()

    def enter(self, ask: Ask) -> Stay | Shed:
        """Let a request in, now or once there is room for it, or refuse it."""
        _leave_dropped(self)
        answer = self._threads.enter(ask)
        final = self._gate.refuse(ask, answer) if isinstance(answer, Reason) else answer
        return final if isinstance(final, Shed) else Stay(final, self)

    def left(self, admitted: Admitted) -> None:
        """As :meth:`Stay.leave`, once."""
        admitted.leave()
        self._threads.serve()


class LoopEntrance:
    """For requests that an event loop serves; what belongs to a loop is made anew when another one runs."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self._here: _Here | None = None

    async def enter(self, ask: Ask) -> Stay | Shed:
        """Let a request in, now or once there is room for it, or refuse it."""
        gate, loop, here = self._gate, asyncio.get_running_loop(), self._here
        if here is None or here.loop is not loop:
            here = self._here = _Here(gate, loop)
        _leave_dropped(here)
        answer: Admitted | Reason | None = here.room.attempt(ask)
        if isinstance(answer, Reason) and patience(answer, gate.max_wait) and not gate.dry_run:
            answer = await here.room.wait(ask, answer, None)
        assert answer is not None  # which it is for a client that was seen to go away
        final = gate.refuse(ask, answer) if isinstance(answer, Reason) else answer
        if isinstance(final, Shed):
            return final
        stay = Stay(final, here)
        here.begins()
        return stay


class _Here(OnLoop):
    """What belongs to one event loop, and who was forgotten on it."""

    __slots__ = ("dropped",)

    def __init__(self, gate: Gate, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(gate, loop)
        self.dropped: deque[Admitted] = deque()

    def left(self, admitted: Admitted) -> None:
        admitted.leave()
        if running_loop() is self.loop:
            self.ends()
        else:
            with suppress(RuntimeError):  # it is closed
                self.loop.call_soon_threadsafe(self.ends)


def _leave_dropped(way: _Way) -> None:
    while way.dropped:
        way.left(way.dropped.popleft())
