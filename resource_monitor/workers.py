"""What the workers on one memory limit tell each other: promises, requests in flight, and the paces that they learned.

Owns which table they share, taking and leaving slots, and who of them is counted. ``worker_slots`` knows the bytes,
``shared_file`` keeps the file; what follows from the figures is the callers' business. No request may fail for want of
a table: a worker that cannot use one works alone, and says so once.

Each worker writes its own slot alone, without a lock; the lock is for taking and leaving slots. Figures count while
their worker lives. What it learned outlives it until the slot is needed, so that the one started in its place need not
learn it again.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import math
import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from resource_monitor import cgroup, worker_slots
from resource_monitor.errors import ProbeError
from resource_monitor.limits import FULL, memory_limits
from resource_monitor.shared_file import SharedFile
from resource_monitor.showing import Showing, resident
from resource_monitor.sources import Consequence
from resource_monitor.worker_slots import Owner, Record, State

logger = logging.getLogger("resource_monitor")

FRESH = 0.001
"""How long the sum over the others stands, seconds."""
# Seconds: how often it is looked who lives, how old a record may be.
_CENSUS, _MEMORY = 0.25, 600.0
# Bytes promised for which it is not worth looking whether they show.
_LITTLE = 1 << 20


@dataclass(frozen=True, slots=True)
class Others:
    """What the other living workers on this memory limit have promised (bytes) and in flight (requests), and what their
    allocation guards let pass so far (bytes). ``generation`` changes with who they are."""

    promised: int
    in_flight: int
    workers: int
    passed: int = 0
    generation: int = field(default=0, compare=False)


class WorkerTable:
    """This worker's slot and its view of the others'. Not thread-safe: whoever asks holds a lock.

    Times are :func:`time.monotonic`'s, which is one for all processes of a machine. The first call that needs a slot
    takes it: a child made by fork has its own, and a parent that does nothing but fork has none.

    ``watch`` is called with a slot's cell when it was taken, for what passes to be written there, and with ``None``
    before that cell is gone.
    """

    def __init__(self, file: SharedFile, root: str, watch: Callable[[memoryview | None], None]) -> None:
        self._file: SharedFile | None = file
        self._watch = watch
        self._root = root
        self._closed = False
        self._pid = 0
        self._owner: Owner | None = None
        self._slot: int | None = None
        self._figures = (0, 0, 0, 0)
        self._read_at = self._census_at = -math.inf
        self._others = Others(0, 0, 0)
        self._roster = b""
        self._living: list[int] = []
        self._showing = Showing()
        self._reported = False
        atexit.register(self.close)

    @classmethod
    def open(
        cls, *, root: str = "/", watch: Callable[[memoryview | None], None] = lambda cell: None
    ) -> WorkerTable | None:
        """The table of the memory cgroup that limits this process; ``None`` without one, or where it cannot be used.

        ``root`` is a directory that stands in for ``/``, though not for the processes in its ``/proc``. ``watch`` is as
        for the class, by default nobody's.
        """
        try:
            path = _path(root)
            return None if path is None else cls(_share(path), root, watch)
        except (OSError, ProbeError) as error:
            _report(error)
            return None

    def publish(self, promised: int, in_flight: int, passed: int = 0) -> None:
        """Tell the others how many bytes and requests this worker has taken on, and what its guard let pass."""
        if os.getpid() != self._pid:
            self._enter()
        before = resident(self._pid) if promised > _LITTLE else None  # what is promised comes on top of that
        self._figures = (promised, in_flight, passed, before or 0)
        self._write()

    def publish_routes(self, records: Mapping[str, Record], now: float) -> None:
        """Leave what was learned of route classes, by name, in place of what was left before.

        There is room for :data:`~resource_monitor.worker_slots.ROUTES`; the first ones are taken.
        """
        if os.getpid() != self._pid:
            self._enter()
        if self._file is not None and self._slot is not None:
            worker_slots.write_records(self._file.content, self._slot, records, now)

    def others(self, now: float, *, at_once: bool = False) -> Others:
        """The sum over the other workers, at most a millisecond old, or of this moment; one that dies counts for up to
        0.25 s more."""
        if not at_once and 0 <= now - self._read_at < FRESH:
            return self._others
        if os.getpid() != self._pid:
            self._enter()
        file = self._file
        if not 0 <= now - self._census_at < _CENSUS or (
            file is not None and worker_slots.roster(file.content) != self._roster
        ):
            file = self._take_census(now)
        promised = in_flight = workers = passed = 0
        if file is not None:
            for slot in self._living:
                state = worker_slots.read_state(file.content, slot)
                if state is not None:
                    promised += self._unshown(state, now)
                    in_flight += state.in_flight
                    passed += state.passed
                    workers += 1
        self._read_at = now
        self._others = Others(promised, in_flight, workers, passed, int.from_bytes(self._roster))
        return self._others

    def is_alone(self, now: float) -> bool:
        """Whether the last census, no more than 0.25 s ago, found nobody else, and nobody came or left since."""
        file = self._file
        return (
            file is not None
            and not self._living
            and 0 <= now - self._census_at < _CENSUS
            and worker_slots.roster(file.content) == self._roster
        )

    def learned(self, name: str, now: float) -> Record | None:
        """What a worker, maybe dead by now, has left of the route class in the last ten minutes; the latest."""
        latest, found = now - _MEMORY, None
        if self._file is not None:
            for slot in worker_slots.OFFSETS:
                at, records = worker_slots.read_records(self._file.content, slot)
                # others may have written since the caller looked at its clock
                if latest < at < now + 1 and (record := worker_slots.find(records, name)) is not None:
                    latest, found = at, record
        return found

    def close(self) -> None:
        """Leave the table. The last worker removes it, unless there is something in it for the next to learn."""
        atexit.unregister(self.close)
        file, slot = self._file, self._slot
        self._file = self._slot = None
        self._closed = True
        if file is None:
            return
        self._watch(None)
        with contextlib.suppress(OSError, ProbeError):
            if file.owner == os.getpid():
                if slot is not None:
                    worker_slots.clear_state(file.content, slot)
                with file.locked():
                    worker_slots.change_roster(file.content)
                    if not worker_slots.living(file.content) and not worker_slots.knowing(file.content):
                        file.remove()
        file.close()

    def _unshown(self, state: State, now: float) -> int:
        """What of the bytes that a worker promised shows in no reading yet."""
        if not state.resident:
            return state.promised
        told = state.owner, state.promised, state.resident
        return max(0, state.promised - self._showing.beyond(state.resident, state.owner.pid, told, now))

    def _write(self) -> None:
        if self._file is not None and self._slot is not None and self._owner is not None:
            worker_slots.write_state(self._file.content, self._slot, self._owner, *self._figures)

    def _enter(self) -> None:
        """Take a slot for this process; without one the next census tries again."""
        if self._closed:
            return
        self._slot = None
        self._census_at = -math.inf
        self._watch(None)
        try:
            if os.getpid() != self._pid:
                self._pid = os.getpid()
                self._owner = None
                self._figures = (0, 0, 0, 0)
            if self._owner is None:
                self._owner = worker_slots.owner(self._pid)
            if self._owner is None:
                raise ProbeError("/proc", "does not show this process")
            file = self._attach()
            with file.locked():
                self._slot = worker_slots.free(file.content)
                if self._slot is None:
                    raise ProbeError(file.path, "has all of its slots taken by living workers")
                worker_slots.clear_state(file.content, self._slot)
                self._write()
                worker_slots.change_roster(file.content)
            self._watch(worker_slots.cell(file.content, self._slot))
        except (OSError, ProbeError) as error:
            if not self._reported:
                self._reported = True
                _report(error)

    def _attach(self) -> SharedFile:
        """The file that this process has mapped, or what is now in its place."""
        file = self._file
        if file is not None:
            if file.owner == self._pid and not file.gone():
                return file
            self._file = None
            file.close()
        path = _path(self._root)
        if path is None:
            raise ProbeError("/proc/self/cgroup", "names no memory cgroup any more")
        self._file = _share(path)
        return self._file

    def _take_census(self, now: float) -> SharedFile | None:
        """Look who is alive, and whether this worker still is where the others look."""
        if self._lost():
            self._enter()
        self._census_at = now
        file = self._file
        if file is not None:
            self._roster = worker_slots.roster(file.content)
            self._living = worker_slots.living(file.content, besides=self._slot)
            self._showing.forget(now)
        return file

    def _lost(self) -> bool:
        """Whether this worker has no slot that the others see; what was spoilt in the slot is written anew."""
        if self._file is None or self._slot is None:
            return True
        try:
            if self._file.gone():
                return True
        except OSError:
            return True
        state = worker_slots.read_state(self._file.content, self._slot)
        if state is not None and state.owner != self._owner:
            return True
        self._write()
        return False


def _path(root: str) -> str | None:
    """Where the table is for the cgroup with the smallest memory limit around this process; ``None`` without one.

    Where no cgroup is limited the process's own one is meant. Workers of other pid namespaces have other tables, since
    it cannot be told from here whether they live.
    """
    hierarchy = cgroup.resolve("memory", root=root)
    if hierarchy is None or hierarchy.uncertain:
        return None
    reader = memory_limits(root=root)
    reader.read(FULL)
    tightest = dict.fromkeys(hierarchy.levels, math.inf)
    for limit in reader.limits():
        level = os.path.dirname(limit.where)
        if limit.consequence is Consequence.KILL and limit.value is not None and level in tightest:
            tightest[level] = min(tightest[level], limit.value)
    # the innermost comes first, and wins among equals
    status = os.stat(cgroup.on_disk(root, min(tightest, key=tightest.__getitem__)))
    directory = cgroup.on_disk(root, "/dev/shm")
    if not os.access(directory, os.W_OK | os.X_OK, effective_ids=True):
        directory = cgroup.on_disk(root, tempfile.gettempdir())
    namespace = os.stat("/proc/self/ns/pid").st_ino
    name = f"resource_monitor-{worker_slots.VERSION}-{os.geteuid()}-{namespace}-{status.st_dev}-{status.st_ino}"
    return os.path.join(directory, name)


def _share(path: str) -> SharedFile:
    file = SharedFile(path, worker_slots.HEADER, worker_slots.SIZE)
    if file.created:
        _sweep(path)
    return file


def _sweep(path: str) -> None:
    """Remove the tables beside ``path`` whose workers are all gone: their cgroup may be, too, and nobody else would."""
    directory, name = os.path.split(path)
    prefix = name.rsplit("-", 2)[0] + "-"
    for other in os.listdir(directory):
        if other.startswith(prefix) and other != name:
            with contextlib.suppress(OSError, ProbeError):
                file = SharedFile(os.path.join(directory, other), worker_slots.HEADER, worker_slots.SIZE)
                with contextlib.closing(file), file.locked():
                    if not worker_slots.living(file.content):
                        file.remove()


def _report(error: Exception) -> None:
    logger.warning("This worker goes without what others on its memory limit promise and learn: %s", error)
