"""``reserve()``: a handler says what it is about to need, and does not begin when that is not there.

Serves what the allocation guard cannot see (NumPy, ML runtimes, child processes) and work that had better not be begun
than be broken off in the middle.
"""

from __future__ import annotations

import contextlib
import os
import weakref
from types import TracebackType
from typing import Protocol

from resource_monitor._native._turn import DeferringLock, Tab
from resource_monitor.errors import MemoryPressure, ProbeError
from resource_monitor.guard import DEFAULT_FLOOR
from resource_monitor.limits import UNBOUNDED
from resource_monitor.monitor import MemoryMonitor, default_monitor
from resource_monitor.promises import Promises
from resource_monitor.units import format_size, parse_amount, parse_size

_FLOOR = parse_amount(DEFAULT_FLOOR)
# How often those who reserve at the same moment as others give way and try again.
_TRIES = 2


class Neighbours(Protocol):
    """Other processes on the same limit, as whoever shares a ledger with them knows them."""

    def promised(self) -> int:
        """Bytes that they promised by now, and that show in no reading yet."""

    def tell(self) -> None:
        """Have them know what is promised here, without waiting for anybody."""


class Ledger:
    """The promises on one monitor's headroom, for all threads; bytes. ``neighbours`` promise of the same headroom.

    What was promised before a fork is nothing in the child: :meth:`end` of it does nothing.
    """

    neighbours: Neighbours | None = None

    def __init__(self, monitor: MemoryMonitor) -> None:
        self._lock = DeferringLock()
        self._monitor = weakref.ref(monitor)
        self._promises = Promises()
        self._owner = os.getpid()
        self.tab = Tab()
        """The promises to requests that start under a grant."""

    @property
    def returns(self) -> int:
        """Changes with whatever may leave more than before of the same headroom, but for what ``tab`` did not tell."""
        return self.tab.returns

    @property
    def promised(self) -> int:
        """All promises that count."""
        return self._promises.total + self.tab.untold

    @property
    def unshown(self) -> int:
        """How much of it did not show in the last reading that :meth:`left` was given. Read without the lock: whoever
        changes it tells that afterwards."""
        return self._promises.unshown(self.tab.untold)

    def left(self, headroom: int) -> int:
        """What of ``headroom`` is not promised; negative when more is."""
        with self._lock:
            self._settle()
            return self._promises.left(headroom)

    def make(self, size: int) -> Promise:
        """Promise ``size`` of what :meth:`left` said a moment ago."""
        with self._lock:
            promise = Promise(self, size)  # before it is counted: there may be no memory for it
            self._settle()
            self._make(size)
            return promise

    def reserve(self, size: int) -> Promise:
        """Promise ``size`` if more than the guard's floor is left then, by what neighbours promised too. They are told
        before it is looked once more whether it fits beside theirs. Raises :class:`MemoryPressure` if it does not,
        :class:`ProbeError`."""
        monitor = self._monitor()
        assert monitor is not None  # whoever asks holds it
        tightest = monitor.tightest()
        floor = 0 if tightest == UNBOUNDED else _FLOOR.of(tightest)
        wanted, left = size + floor, 0
        for _ in range(_TRIES):
            elsewhere = self._elsewhere()
            with self._lock:
                self._settle()
                left = self._promises.left(monitor.headroom()) - elsewhere
                if left < wanted:
                    left = self._promises.left(monitor.relieve()) - elsewhere
                if left < wanted:
                    raise _pressure(size, left, floor)
                promise = Promise(self, size)
                self._make(size)
            try:
                self._tell()
                # who promised meanwhile did not know of this, and sees it now, as this sees theirs: not all can stay
                left -= self._elsewhere() - elsewhere
            except BaseException:
                self.release(promise)
                raise
            if left >= wanted:
                return promise
            self.release(promise)
        raise _pressure(size, left, floor)

    def release(self, promise: Promise) -> None:
        """End what :meth:`reserve` promised."""
        self._lock.soon(self._release, promise)

    def _release(self, promise: Promise) -> None:
        """The same, with the lock held."""
        promise._end()
        self._tell()

    def _elsewhere(self) -> int:
        return 0 if self.neighbours is None else self.neighbours.promised()

    def _tell(self) -> None:
        if self.neighbours is not None:
            with contextlib.suppress(MemoryError):  # the next request tells it
                self.neighbours.tell()

    def _settle(self) -> None:
        """Bring in what requests were promised under grants; the lock is held."""
        untold = self.tab.take()
        if untold > 0:
            self._promises.make(untold)
        elif untold:
            self._promises.end(-untold)
            self.tab.returns += 1

    def _make(self, size: int) -> None:
        self._promises.make(size)
        self.tab.promise(size)

    def _after_fork(self) -> None:
        self._lock = DeferringLock()
        self._promises.forget()
        self.tab.take()
        self._owner = os.getpid()


def _pressure(size: int, left: int, floor: int) -> MemoryPressure:
    return MemoryPressure(
        f"{format_size(size)} cannot be reserved: {format_size(max(left, 0))} of memory are left and not promised, of "
        f"which {format_size(floor)} are kept free; try again later or reserve less."
    )


class Promise:
    """``size`` bytes of ``ledger`` that are promised until :meth:`end`."""

    __slots__ = ("_owner", "_taken", "ledger", "size")

    def __init__(self, ledger: Ledger, size: int) -> None:
        self.size = size
        self._taken = 0
        self.ledger = ledger
        self._owner = ledger._owner

    def resize(self, size: int) -> None:
        """Promise ``size`` from now on."""
        with self.ledger._lock:
            self._resize(size)

    def _resize(self, size: int) -> None:
        """The same, with the lock held."""
        ledger = self.ledger
        if size != self.size and self._owner == ledger._owner:
            ledger._settle()
            if size < self.size:
                ledger._promises.end(self.size - size)
                ledger.tab.returns += 1
            else:
                ledger._make(size - self.size)
            self.size = size

    def take(self, size: int) -> None:
        """Of what was promised ``size`` was taken; the rest is promised still."""
        ledger = self.ledger
        with ledger._lock:
            if self._owner == ledger._owner:
                size = min(size, self.size)
                ledger._promises.take(size)
                ledger.tab.returns += 1
                self.size -= size
                self._taken += size

    def end(self) -> None:
        """Take it back, however often that is said."""
        self.ledger._lock.soon(self._end)

    def _end(self) -> None:
        """The same, with the lock held."""
        ledger = self.ledger
        self._resize(0)
        if self._owner == ledger._owner:
            ledger._promises.give_back(self._taken)
            ledger.tab.returns += 1
            self._taken = 0


class Reservation:
    """A context manager, sync and async, that holds a promise of ``size`` bytes while its block runs.

    Entering raises :class:`MemoryPressure`, a ``MemoryError``, when there is no room; the middlewares answer 503.
    """

    def __init__(self, size: int, monitor: MemoryMonitor | None) -> None:
        self.size = size
        self._monitor = monitor
        self._held: list[Promise] = []

    def __enter__(self) -> Reservation:
        # without a reading nothing can be said against it, as with requests
        with contextlib.suppress(ProbeError):
            self._held.append(ledger_of(self._monitor or default_monitor()).reserve(self.size))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._held:
            promise = self._held.pop()
            promise.ledger.release(promise)

    async def __aenter__(self) -> Reservation:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.__exit__(kind, error, trace)


def reserve(size: int | str, *, monitor: MemoryMonitor | None = None) -> Reservation:
    """A promise of ``size``, bytes or a text such as ``"200MiB"``, for the length of a ``with`` block::

        with reserve("200MiB"):
            array = numpy.zeros(25_000_000)

    Raises :class:`ConfigurationError` for what is no size.
    """
    return Reservation(parse_size(size), monitor)


def ledger_of(monitor: MemoryMonitor) -> Ledger:
    """The ledger that all share who ask ``monitor``."""
    ledger = _ledgers.get(monitor)
    # one of two that are made at once, as default_monitor()
    return _ledgers.setdefault(monitor, Ledger(monitor)) if ledger is None else ledger


_ledgers: weakref.WeakKeyDictionary[MemoryMonitor, Ledger] = weakref.WeakKeyDictionary()


def _after_fork_in_child() -> None:
    for ledger in _ledgers.values():
        ledger._after_fork()


os.register_at_fork(after_in_child=_after_fork_in_child)
