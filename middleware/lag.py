"""How late the event loop comes: while requests are in flight it is asked every 50 ms to come at once, and the kernel
how many connections wait for it.

To set a timer and take it back costs more than a request that starts under a grant does, so for these, and where many
others come, it stays set while they keep coming, and is set no more when none came since the last one.
"""

from __future__ import annotations

import asyncio
import time

from resource_monitor._native._turn import Door
from resource_monitor.middleware.accept_queue import AcceptQueue
from resource_monitor.middleware.gate import Gate

_INTERVAL = 0.05
# So many requests that began since the last beat are many.
_MANY = 32


class Heartbeat:
    """Tells ``gate`` how late ``loop`` comes, between the first :meth:`begin` and the last :meth:`end`. Lives on that
    loop; nothing of it is left there once nothing is in flight, or a beat later where many requests came, or any
    through ``door``, which is open while the heart beats."""

    __slots__ = ("_begun", "_came", "_due", "_gate", "_in_flight", "_loop", "_queue", "_timer", "door")

    def __init__(self, gate: Gate, loop: asyncio.AbstractEventLoop) -> None:
        self._gate = gate
        self._loop = loop
        self._in_flight = self._begun = 0
        self._due = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._queue = AcceptQueue()
        self.door: Door | None = None
        self._came = (0, 0)

    def begin(self) -> None:
        """A request is in flight."""
        self._in_flight += 1
        self._begun += 1
        if self._timer is None:
            self._arm()

    def end(self) -> None:
        """It is over."""
        self._in_flight -= 1
        if not self._in_flight and self._timer is not None and self._begun < _MANY and not self._others_come():
            self._timer.cancel()
            self._stop()

    def _others_come(self) -> bool:
        """Whether requests are on their way through the door, or may come that way."""
        return self.door is not None and bool(
            self.door.in_flight or self._came != (self.door.entered, self._gate.turns.grants)
        )

    def _stop(self) -> None:
        self._timer = None
        if self.door is not None:
            self.door.shut()

    def _arm(self) -> None:
        # not the loop's own clock: uvloop's stands still while a step takes long
        self._due = time.monotonic() + _INTERVAL
        self._timer = self._loop.call_later(_INTERVAL, self._beat)
        if self.door is not None:
            self.door.open()

    def _beat(self) -> None:
        late = max(0.0, time.monotonic() - self._due)
        self._stop()  # if what follows fails for want of memory, the next request sets the timer
        self._gate.lagged(late, queued=self._queue.length())
        if self._in_flight or self._begun or self._others_come():
            self._begun = 0
            if self.door is not None:
                self._came = self.door.entered, self._gate.turns.grants
            self._arm()
