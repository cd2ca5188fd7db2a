"""The allocation guard's Python face: installs it, keeps what it watches, and tells the log what it did.

The guard itself is ``_native/guard.c``. It is one for the whole process, since CPython's allocators are.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import sysconfig
import threading
from dataclasses import dataclass
from typing import Any, NamedTuple

from resource_monitor._native import _turn, ffi, lib
from resource_monitor.errors import ConfigurationError, GuardError, ProbeError
from resource_monitor.limits import LimitReader
from resource_monitor.monitor import MemoryMonitor, default_monitor
from resource_monitor.units import format_size, parse_amount

logger = logging.getLogger("resource_monitor")

DEFAULT_FLOOR = "clamp(8MiB, 1%, 256MiB)"
"""Room that large allocations leave for the event loop, the server and small steps: 8 MiB of 256 MiB, 256 MiB of
64 GiB. The app's small steps may use half of it, as may the server's buffers of less than 2 MiB, and the server's small
steps all but an eighth, which is left for what C libraries, sockets and page tables take unseen."""

IN_APP: int = lib.RM_IN_APP
IN_SERVER: int = lib.RM_IN_SERVER

_NO_MOST = 2**64 - 1


@dataclass(frozen=True, slots=True)
class GuardStatistics:
    """What the guard did since the process began; numbers, and bytes where it says so.

    ``checks`` are readings of usage, ``full_checks`` those of limits and reclaimable parts too. ``refusals`` became
    ``MemoryError``; ``small_refusals`` are those of small steps, below half of ``floor`` bytes. ``reliefs`` asked the
    allocator to give memory back and brought ``relieved`` bytes.
    """

    checks: int
    full_checks: int
    refusals: int
    small_refusals: int
    reliefs: int
    relieved: int
    floor: int


class _Watched(NamedTuple):
    """What the C side watches, and what must live as long as it does."""

    watch: Any
    reader: LimitReader
    membership: Any


class AllocationGuard:
    """Makes Python allocations that would cross ``floor`` fail with ``MemoryError``, before the kernel kills.

    ``floor`` is the headroom that allocations of 288 KiB and more must leave: bytes, a size (``"8MiB"``), a share of
    the smallest limit (``"1%"``) or a share between bounds (``"clamp(8MiB, 1%, 256MiB)"``, the default); growth by
    smaller steps may use half of it, as may a server's buffers of less than 2 MiB, small steps of threads that run no
    request three quarters, and the server's own all but an eighth. ``monitor`` says which limits are watched (default:
    the process's shared one).

    What it cannot see: memory that C extensions take from ``malloc`` themselves, such as NumPy's arrays, and other
    processes; it sees them in the usage, but cannot refuse them. Use :func:`~resource_monitor.reserve` for those.

    Raises :class:`ConfigurationError` for a floor that is no size or leaves nothing.
    """

    def __init__(self, monitor: MemoryMonitor | None = None, *, floor: int | str = DEFAULT_FLOOR) -> None:
        self._monitor = default_monitor() if monitor is None else monitor
        try:
            self._floor = parse_amount(floor)
        except ConfigurationError as error:
            raise ConfigurationError(f"floor: {error}") from None
        tightest = self._monitor.tightest()
        if self._floor.of(tightest) >= tightest:
            raise ConfigurationError(
                f"floor={floor!r} is not below the memory limit of {format_size(tightest)}, so every large allocation "
                "would be refused; give less, or a share such as '1%'."
            )
        self._watched: _Watched | None = None

    @property
    def installed(self) -> bool:
        """Whether this guard is the one at work."""
        return _installed is self

    def install(self) -> None:
        """Begin to guard this process. Of a guard that is at work already it makes sure that allocations reach it: a
        hook that was there first takes it away with itself. After tracemalloc's it comes back with the next reading, or
        without a middleware once pymalloc needs an arena.

        Raises :class:`GuardError` when another guard is installed, or this interpreter cannot be guarded: a
        free-threaded build has allocators of its own.
        """
        global _installed
        with _lock:
            if _installed is self:
                lib.rm_guard_link()
                return
            if _installed is not None:
                raise GuardError("Another allocation guard is installed; uninstall it first, there is one a process.")
            reason = unsupported()
            if reason is not None:
                raise GuardError(reason)
            self._watched = self._watch()
            if lib.rm_guard_install(self._watched.watch, lib.rm_guard_event) != 0:
                raise GuardError(
                    "This interpreter does not offer PyMem_SetAllocator, which the allocation guard needs; use CPython."
                )
            _installed = self
        atexit.register(self.uninstall)

    def uninstall(self) -> None:
        """Put the allocators back as they were; below another library's hook, let everything pass from now on."""
        global _installed
        atexit.unregister(self.uninstall)
        with _lock:
            if _installed is self:
                lib.rm_guard_uninstall()
                _installed = None

    def statistics(self) -> GuardStatistics:
        """The counts of this moment; they outlive :meth:`uninstall`."""
        out = _read()
        return GuardStatistics(
            out.checks,
            out.full_checks,
            out.refusals,
            out.small_refusals,
            out.reliefs,
            out.relieved,
            out.floor,
        )

    def _watch(self) -> _Watched:
        reader = self._monitor.open_limits()
        membership = ffi.new("char[]", reader.membership)
        watch = ffi.new("rm_guard_watch *")
        watch.limits = reader.entries
        watch.count = len(reader.entries)
        watch.owner = reader.owner
        watch.margin = self._monitor.margin
        watch.speed = int(self._monitor.speed)
        watch.membership_fd = reader.membership_fd
        watch.membership = membership
        watch.membership_length = len(reader.membership)
        watch.floor_least = self._floor.at_least
        watch.floor_most = _NO_MOST if self._floor.at_most is None else self._floor.at_most
        watch.floor_share = round((self._floor.share or 0) * 1_000_000)
        return _Watched(watch, reader, membership)

    def _follow(self) -> None:
        """Find the limits anew. Without descriptors for that the old ones are kept until the next occasion."""
        with contextlib.suppress(ProbeError):
            watched = self._watch()
            lib.rm_guard_watch_now(watched.watch)
            self._watched = watched


def unsupported() -> str | None:
    """Why this interpreter cannot be guarded, one sentence, or ``None`` when it can."""
    if sysconfig.get_config_var("Py_GIL_DISABLED"):
        return (
            "A free-threaded interpreter has allocators of its own, which cannot be guarded; "
            "use a build with the GIL, or allocation_guard=False."
        )
    return None


def ensure_installed(monitor: MemoryMonitor) -> AllocationGuard:
    """The guard that is at work, installed with the default floor if there was none. Raises :class:`GuardError`."""
    with _lock:
        if _installed is not None:
            return _installed
        guard = AllocationGuard(monitor)
        guard.install()
        return guard


def thread_refusals() -> int:
    """How many allocations were refused on the calling thread."""
    return _turn.thread_refusals()


def refusals() -> int:
    """How many allocations were refused in this process."""
    return int(_read().refusals)


def guarded_floor() -> int:
    """The floor in bytes, as of the guard's last full check."""
    return int(_read().floor)


def passed() -> int:
    """Bytes of allocations that the guard let pass so far; what usage grows beyond that was taken unseen."""
    return _turn.passed()


def publish_passed(cell: memoryview | None) -> None:
    """Have the guard write what :func:`passed` says into ``cell`` at each check, for other processes to read while this
    one has no time to tell them: 8 bytes, then as many with the complement. ``None`` ends that and lets go of the cell;
    a child made by fork is to begin with that.
    """
    global _cell
    before, _cell = _cell, None if cell is None else ffi.from_buffer("unsigned long long[2]", cell)
    lib.rm_guard_publish(ffi.NULL if _cell is None else _cell)
    if before is not None:
        ffi.release(before)


def place() -> Any:
    """The calling thread's place in a request, as an ``int *`` to be set.

    :data:`IN_APP` while the app runs on it, :data:`IN_SERVER` afterwards. Small steps are refused to the app first, and
    then to threads that never say where they are.
    """
    try:
        return _places.here
    except AttributeError:
        _places.here = lib.rm_guard_place()
        return _places.here


def _read() -> Any:
    out = ffi.new("rm_guard_statistics *")
    lib.rm_guard_read(out)
    return out


@ffi.def_extern()  # type: ignore[untyped-decorator]
def rm_guard_event(events: int) -> None:
    """Called by the guard on the main thread, soon after something happened."""
    # there may be no memory to say that there is none
    with contextlib.suppress(MemoryError):
        if events & lib.RM_GUARD_MOVED and _installed is not None:
            _installed._follow()
        if events & lib.RM_GUARD_REFUSED:
            out = _read()
            logger.warning(
                "Allocation of %s refused with %s left of the memory limit; %d refused so far.",
                format_size(out.refused_size),
                format_size(out.refused_headroom),
                out.refusals,
            )


def _after_fork_in_child() -> None:
    global _lock
    _lock = threading.RLock()
    if _installed is not None:
        _installed._follow()


_places = threading.local()
_cell: Any = None
_installed: AllocationGuard | None = None
_lock = threading.RLock()
os.register_at_fork(after_in_child=_after_fork_in_child)
