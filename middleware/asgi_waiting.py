"""ASGI requests that wait for room: a task each, one pump for all of them, and a look at whether the client is there.

The order and the bounds are those of ``waiting``. A client that goes away while it waits is forgotten: it counts
neither as shed nor as admitted.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from resource_monitor.admission import Reason
from resource_monitor.middleware.admitted import Admitted
from resource_monitor.middleware.asgi_loops import sleep
from resource_monitor.middleware.asking import Ask
from resource_monitor.middleware.gate import Gate
from resource_monitor.middleware.waiting import PLACES, POLL, Queue, Waiter, patience

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]


class WatchedReceive:
    """A server's ``receive`` that is asked whether the client is still there; what it gives is kept for the app."""

    __slots__ = ("_kept", "_receive")

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._kept: deque[Message] = deque()

    async def receive(self) -> Message:
        """The next message, the kept ones first."""
        return self._kept.popleft() if self._kept else await self._receive()

    async def gone(self) -> bool:
        """True as soon as the client is gone; False when that cannot be told without reading ahead of the body."""
        while True:
            message = await self._receive()
            self._kept.append(message)
            if message["type"] in ("http.disconnect", "websocket.disconnect"):
                return True
            if message["type"] not in ("http.request", "websocket.connect") or message.get("more_body", False):
                return False


class _Task(Waiter):
    __slots__ = ("answer",)

    def __init__(self, ask: Ask, reason: Reason, answer: asyncio.Future[Admitted | Reason | None]) -> None:
        super().__init__(ask, reason, time.monotonic())
        self.answer = answer

    def watched(self, watch: asyncio.Task[bool]) -> None:
        """The watch ended; what failed in it fails in the request, as if the app had received."""
        if watch.cancelled():
            return
        error = watch.exception()
        if self.answer.done():
            return
        if error is not None:
            self.answer.set_exception(error)
        elif watch.result():
            self.answer.set_result(None)


class Room:
    """Who waits on ``loop`` for ``gate``. While anybody does, the first of each line are asked for every few
    milliseconds, and whenever a request left."""

    def __init__(self, gate: Gate, loop: asyncio.AbstractEventLoop) -> None:
        self._gate = gate
        self._loop = loop
        self._queue: Queue[_Task] = Queue()
        self._timer: asyncio.Handle | None = None
        self._soon = False

    def attempt(self, ask: Ask) -> Admitted | Reason:
        """As :meth:`Gate.attempt`, but nobody gets in before those who wait in the same line."""
        reason = self._queue.behind(ask)
        if reason is None or self._gate.is_exempt(ask):
            return self._gate.attempt(ask)
        return reason

    async def wait(self, ask: Ask, reason: Reason, watched: WatchedReceive | None) -> Admitted | Reason | None:
        """Wait for room; what came of it, ``None`` when the client went away."""
        waiter = _Task(ask, reason, self._loop.create_future())
        if not self._queue.join(waiter):
            return reason
        self._gate.waits(1)
        watch: asyncio.Task[bool] | None = None
        try:
            if watched is not None:
                watch = self._loop.create_task(watched.gone())
                watch.add_done_callback(waiter.watched)
            self._arm()
            answer = await waiter.answer
            if watch is not None:
                # the app must not receive before the watch has stopped to
                watch.cancel()
                await asyncio.wait([watch])
            return answer
        except BaseException:
            self._give_back(waiter.answer)
            raise
        finally:
            if watch is not None:
                watch.cancel()
            self._queue.leave(waiter)
            self._gate.waits(-1)
            if not len(self._queue) and self._timer is not None:
                self._disarm()

    def left(self) -> None:
        """A request is over, and its memory may be free for the next one."""
        if len(self._queue) and not self._soon:
            self._disarm()
            self._soon = True
            self._timer = self._loop.call_soon(self._pump)

    def _pump(self) -> None:
        self._timer, self._soon = None, False
        try:
            for waiter, answer in self._queue.served(self._ask_for, time.monotonic(), self._gate.max_wait):
                waiter.answer.set_result(answer)
        finally:
            self._arm()

    def _ask_for(self, waiter: _Task) -> Admitted | Reason | None:
        if waiter.answer.done():
            return None
        try:
            return self._gate.attempt(waiter.ask)
        except MemoryError:  # there is not even room for the question
            return Reason.MEMORY

    def _arm(self) -> None:
        if self._timer is None and len(self._queue):
            self._timer = self._loop.call_later(POLL, self._pump)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self._soon = None, False

    def _give_back(self, answer: asyncio.Future[Admitted | Reason | None]) -> None:
        """A request that was let in just before it was cancelled leaves again."""
        if answer.done() and not answer.cancelled() and answer.exception() is None:
            admitted = answer.result()
            if isinstance(admitted, Admitted):
                admitted.leave()
                self.left()


async def wait_by_polling(gate: Gate, ask: Ask, reason: Reason) -> Admitted | Reason:
    """Wait for room where there is no asyncio: everyone asks for itself, in no order, for as many as have a place."""
    answer: Admitted | Reason = reason
    if gate.waiting >= PLACES:
        return answer
    since = time.monotonic()
    gate.waits(1)
    try:
        while isinstance(answer, Reason) and time.monotonic() < since + patience(answer, gate.max_wait):
            await sleep(POLL)
            answer = gate.attempt(ask)
        return answer
    finally:
        gate.waits(-1)
