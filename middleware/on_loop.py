"""What belongs to one event loop of asyncio, for every adapter whose requests it serves."""

from __future__ import annotations

import asyncio

from resource_monitor._native._turn import Door, Lane
from resource_monitor.middleware.asgi_loops import running_loop
from resource_monitor.middleware.asgi_waiting import Room
from resource_monitor.middleware.gate import Gate
from resource_monitor.middleware.lag import Heartbeat


class OnLoop:
    """Who waits on ``loop`` for ``gate``, and how late it comes while requests are in flight."""

    __slots__ = ("_gate", "_heartbeat", "loop", "room")

    def __init__(self, gate: Gate, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._gate = gate
        self.room = Room(gate, loop)
        self._heartbeat = Heartbeat(gate, loop)

    def look_at(self, door: Door) -> None:
        """Requests come in through ``door`` too, without :meth:`begins` and :meth:`ends`."""
        self._heartbeat.door = door

    def renew(self, lane: Lane) -> None:
        """Grant again what the requests of ``lane`` may do, unless they have another loop by now."""
        if running_loop() is self.loop:
            self._gate.renew(lane)

    def begins(self) -> None:
        """A request was let in."""
        self._heartbeat.begin()

    def ends(self) -> None:
        """It left, and its memory may be free for one that waits."""
        self._heartbeat.end()
        self.room.left()
