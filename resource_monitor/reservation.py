"""``reserve()``: a handler says what it is about to need, and does not begin when that is not there.

Serves what the allocation guard cannot see (NumPy, ML runtimes, child processes) and work that had better not be begun
than be broken off in the middle.
"""

from __future__ import annotations

import contextlib
import threading
import weakref
from types import TracebackType

from resource_monitor.errors import MemoryPressure, ProbeError
from resource_monitor.guard import DEFAULT_FLOOR
from resource_monitor.monitor import MemoryMonitor, default_monitor
from resource_monitor.sampling import UNBOUNDED
from resource_monitor.units import format_size, parse_amount, parse_size

_FLOOR = parse_amount(DEFAULT_FLOOR)


class _Ledger:
    """What is promised on one monitor's headroom; bytes.

    A promise counts until its memory shows in the reading, or it ends. What shows is not told apart by who took it:
    headroom that went since the promises were made is taken as theirs. ``_most`` is what they were made against.
    """

    def __init__(self, monitor: MemoryMonitor) -> None:
        self._lock = threading.Lock()
        self._monitor = weakref.ref(monitor)
        self._promised = 0
        self._most = 0

    def promise(self, size: int) -> None:
        """Raises :class:`MemoryPressure` when that leaves less than the guard's floor, :class:`ProbeError`."""
        monitor = self._monitor()
        assert monitor is not None  # whoever asks holds it
        tightest = monitor.tightest()
        floor = 0 if tightest == UNBOUNDED else _FLOOR.of(tightest)
        with self._lock:
            left = self._left(monitor.headroom())
            if left < size + floor:
                left = self._left(monitor.relieve())
            if left < size + floor:
                raise MemoryPressure(
                    f"{format_size(size)} cannot be reserved: {format_size(max(left, 0))} of memory are left and not "
                    f"promised, of which {format_size(floor)} are kept free; try again later or reserve less."
                )
            self._promised += size

    def release(self, size: int) -> None:
        with self._lock:
            self._promised -= size

    def _left(self, headroom: int) -> int:
        self._most = max(self._most, headroom) if self._promised else headroom
        return min(headroom, self._most - self._promised)


class Reservation:
    """A context manager, sync and async, that holds a promise of ``size`` bytes while its block runs.

    Entering raises :class:`MemoryPressure`, a ``MemoryError``, when there is no room; the middlewares answer 503.
    """

    def __init__(self, size: int, monitor: MemoryMonitor | None) -> None:
        self.size = size
        self._monitor = monitor
        self._held: list[_Ledger] = []

    def __enter__(self) -> Reservation:
        # without a reading nothing can be said against it, as with requests
        with contextlib.suppress(ProbeError):
            ledger = _ledger(self._monitor or default_monitor())
            ledger.promise(self.size)
            self._held.append(ledger)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._held:
            self._held.pop().release(self.size)

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


def _ledger(monitor: MemoryMonitor) -> _Ledger:
    with _ledgers_lock:
        ledger = _ledgers.get(monitor)
        if ledger is None:
            ledger = _ledgers[monitor] = _Ledger(monitor)
        return ledger


_ledgers: weakref.WeakKeyDictionary[MemoryMonitor, _Ledger] = weakref.WeakKeyDictionary()
_ledgers_lock = threading.Lock()
