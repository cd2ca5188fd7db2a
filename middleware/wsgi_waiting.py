"""The threads of a WSGI server that wait for room. Owns their waking; ``waiting`` owns the order and the time.

A thread that waits serves nobody, so no more wait than requests are in flight, and one: when all of a pool are taken,
half of them are at work and will wake the others. Nobody can wait for ever: every wait has its end, and those who wait
look for themselves, for memory may come from elsewhere.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from contextlib import suppress

from resource_monitor.admission import Reason
from resource_monitor.middleware.admitted import Admitted
from resource_monitor.middleware.asking import Ask
from resource_monitor.middleware.gate import Gate
from resource_monitor.middleware.waiting import POLL, Queue, Waiter, patience


class _Thread(Waiter):
    """A thread that waits; ``answer`` is there once it is ``woken``."""

    __slots__ = ("answer", "woken")

    def __init__(self, ask: Ask, reason: Reason, since: float) -> None:
        super().__init__(ask, reason, since)
        self.woken = threading.Event()
        self.answer: Admitted | Reason = reason


class WaitingThreads:
    """Those who wait at ``gate``."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self._begin()
        _all.add(self)

    def enter(self, ask: Ask) -> Admitted | Reason:
        """As :meth:`Gate.attempt`, but a request that may not start yet waits as long as it may."""
        gate, behind = self._gate, None
        if self._queue and not gate.is_exempt(ask):
            with self._lock:
                behind = self._queue.behind(ask)
        answer = behind or gate.attempt(ask)
        if isinstance(answer, Admitted) or gate.dry_run or patience(answer, gate.max_wait) <= 0:
            return answer
        return self._wait(_Thread(ask, answer, time.monotonic()))

    def serve(self) -> None:
        """Let in who may start now; to be called whenever a request is over."""
        # whoever is at it already does it for all, and those who wait look for themselves soon
        if self._queue and self._lock.acquire(blocking=False):
            try:
                with suppress(MemoryError):
                    self._serve()
            finally:
                self._lock.release()

    def _begin(self) -> None:
        self._lock = threading.Lock()
        self._queue: Queue[_Thread] = Queue()
        self._served = 0.0

    def _wait(self, waiter: _Thread) -> Admitted | Reason:
        with self._lock:
            if len(self._queue) > self._gate.in_flight or not self._queue.join(waiter):
                return waiter.reason
            self._count()
        try:
            while not waiter.woken.wait(POLL):
                if time.monotonic() >= self._served + POLL:
                    self.serve()
        except BaseException:
            self._abandon(waiter)
            raise
        return waiter.answer

    def _serve(self) -> None:
        self._served = now = time.monotonic()
        for waiter, answer in self._queue.served(self._attempt, now, self._gate.max_wait):
            waiter.answer = answer
            waiter.woken.set()
        self._count()

    def _attempt(self, waiter: _Thread) -> Admitted | Reason:
        try:
            return self._gate.attempt(waiter.ask)
        except MemoryError:  # not that of the thread that asks for it
            return Reason.MEMORY

    def _abandon(self, waiter: _Thread) -> None:
        """The thread was interrupted, as a server does that stops."""
        with self._lock:
            self._queue.leave(waiter)
            self._count()
        if isinstance(waiter.answer, Admitted):
            waiter.answer.leave()

    def _count(self) -> None:
        self._gate.waiting = len(self._queue)


_all: weakref.WeakSet[WaitingThreads] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for waiting in _all:
        waiting._begin()  # the threads that waited are the parent's


os.register_at_fork(after_in_child=_after_fork_in_child)
