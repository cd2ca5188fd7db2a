"""Reads every limit that can bite a process from kept descriptors, and says which one bites first.

Owns the descriptors. Which limits there are is ``sources``' business, when to read the monitors'; the arithmetic is in
``_native/probe.c``.
"""

from __future__ import annotations

import errno
import os
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from resource_monitor import cgroup, sources
from resource_monitor._native import ffi, lib
from resource_monitor.errors import ProbeError
from resource_monitor.sources import Consequence, Flag, Source

USAGE: int = lib.RM_USAGE
RECLAIMABLE: int = lib.RM_RECLAIMABLE
DECISIVE: int = lib.RM_DECISIVE
FULL: int = lib.RM_FULL

UNBOUNDED = 2**64 - 1
"""The headroom where nothing limits."""

# attributes of lib are looked up by name each time
_NONE: int = lib.RM_NONE
_read = lib.rm_read

_OUT_OF_DESCRIPTORS = (errno.EMFILE, errno.ENFILE)


@dataclass(frozen=True, slots=True)
class Limit:
    """One limit as it stood at one moment; bytes, or a number of descriptors or tasks.

    ``value`` is ``None`` where there is no limit or it could not be read, ``used`` and the headrooms then too.
    ``headroom`` is what may still be used, counting on the kernel to reclaim ``reclaimable`` bytes first;
    ``headroom_low`` is its pessimistic bound, which counts on clean inactive page cache alone.
    """

    kind: str
    where: str
    value: int | None
    used: int | None
    reclaimable: int
    headroom: int | None
    headroom_low: int | None
    consequence: Consequence
    flags: frozenset[Flag]


class LimitReader:
    """Kept descriptors for some limits of a process; not thread-safe, and good for the process that made it alone.

    ``find`` gives the sources. Raises :class:`ProbeError` when there are files but they cannot be understood, or no
    descriptors are left to open them.
    """

    def __init__(self, find: Callable[[], list[Source]], *, process: str = "self", root: str = "/") -> None:
        self.owner = os.getpid()
        self._outcome = ffi.new("rm_outcome *")
        self._files = _Files(root)
        weakref.finalize(self, self._files.close)
        # before the sources are found, so that a move in between is noticed afterwards
        membership_path = f"/proc/{process}/cgroup"
        self.membership_fd = self._files.open(membership_path)
        self.membership = _content(self.membership_fd, membership_path)
        self._sources = find()
        self._count = len(self._sources)
        self.entries: Any = ffi.new("rm_limit[]", self._count)
        for entry, source in zip(self.entries, self._sources, strict=True):
            entry.kind = source.kind
            entry.value = source.declared
            entry.uid = source.uid
            entry.usage_fd = self._files.open(source.usage)
            entry.limit_fd = lib.RM_OWN_RLIMIT if source.own else self._files.open(source.limit)
            entry.stat_fd = self._files.open(source.stat)
        self.headroom = 0
        self.free = 0
        self.tightest = 0

    def read(self, tier: int, margin: int = 0) -> bool:
        """Read anew what ``tier`` says; False when this process is not the one that opened the files.

        ``USAGE`` keeps limits and what was read of reclaimable parts. ``RECLAIMABLE`` keeps limits alone, and reads
        those reclaimable parts anew that decide which limit is :meth:`first`. Both skip limits that had more than
        ``margin`` beyond the least. ``DECISIVE`` reads limits too, and ``FULL`` everything, as :meth:`limits` needs it.
        Sets ``headroom`` (the least over all limits that kill or fail) and ``free`` (the same without reclaiming
        anything), and where limits are read ``tightest`` (the smallest one); ``2**64 - 1`` where nothing limits. Raises
        :class:`ProbeError` when no limit could be read and at least one should have been.
        """
        outcome = self._outcome
        if _read(self.entries, self._count, tier, self.owner, margin, outcome) != 0:
            return False
        self.headroom = headroom = outcome.headroom
        self.free = outcome.free
        if tier >= DECISIVE:
            self.tightest = outcome.tightest
        if headroom == UNBOUNDED and outcome.least == _NONE and (failure := self.failure()):
            raise failure
        return True

    @property
    def fixed(self) -> int:
        """The least headroom over the limits on address space by the last reading, ``2**64 - 1`` without one."""
        return int(self._outcome.fixed)

    def moved(self) -> bool:
        """Whether the process has been moved to other cgroups since the files were opened."""
        return (
            self.membership_fd >= 0
            and lib.rm_same_content(self.membership_fd, self.membership, len(self.membership)) != 1
        )

    def vanished(self) -> bool:
        """Whether the last reading found a cgroup removed under its open files (ENODEV: kernel/cgroup, kernfs)."""
        failed = self._outcome.failed
        return bool(failed != _NONE and self.entries[failed].error == errno.ENODEV)

    def failure(self) -> ProbeError | None:
        """Why the first limit that could not be read at the last reading could not be, or ``None``."""
        failed = self._outcome.failed
        if failed == _NONE:
            return None
        entry, source = self.entries[failed], self._sources[failed]
        path = (source.usage, source.limit, source.stat)[entry.failed_file] or source.where
        if entry.error == errno.EBADMSG:
            return ProbeError(path, "does not hold what the kernel documents for it")
        return ProbeError.from_errno(path, entry.error)

    def first(self) -> Limit | None:
        """The limit that kills or fails first by the last reading, ``None`` when nothing does."""
        least = self._outcome.least
        return None if least == _NONE else self._limit(least)

    def limits(self) -> tuple[Limit, ...]:
        """Every limit by the last reading, which was a ``FULL`` one, those that limit nothing included."""
        return tuple(self._limit(index) for index in range(self._count))

    def _limit(self, index: int) -> Limit:
        entry, source = self.entries[index], self._sources[index]
        flags = source.flags | {Flag.UNREADABLE} if entry.state == lib.RM_UNREADABLE else source.flags
        known = entry.state == lib.RM_LIMITED
        return Limit(
            kind=source.name,
            where=source.where,
            value=entry.value if known else None,
            used=entry.used if known else None,
            reclaimable=entry.reclaimable if known else 0,
            headroom=lib.rm_headroom(ffi.addressof(entry)) if known else None,
            headroom_low=lib.rm_headroom_low(ffi.addressof(entry)) if known else None,
            consequence=source.consequence,
            flags=flags,
        )


def memory_limits(*, declared: int | None = None, pid: int | None = None, root: str = "/") -> LimitReader:
    """A reader of every memory limit of process ``pid`` (default: this one), bytes.

    ``declared`` is a limit on the process's own resident memory.
    """
    process = _process(pid)
    return LimitReader(
        lambda: sources.memory(process, pid=pid, declared=declared, root=root), process=process, root=root
    )


def open_file_limits(*, pid: int | None = None, root: str = "/") -> LimitReader:
    """A reader of every limit on open descriptors of process ``pid`` (default: this one), a number."""
    process = _process(pid)
    return LimitReader(lambda: sources.open_files(process, root=root), process=process, root=root)


def task_limits(*, pid: int | None = None, root: str = "/") -> LimitReader:
    """A reader of every limit on tasks for process ``pid`` (default: this one), a number of processes and threads."""
    process = _process(pid)
    return LimitReader(lambda: sources.tasks(process, pid=pid, root=root), process=process, root=root)


def _process(pid: int | None) -> str:
    return "self" if pid is None else str(pid)


class _Files:
    """Descriptors by path, each file opened once."""

    def __init__(self, root: str) -> None:
        self._root = root
        self._descriptors: dict[str, int] = {}

    def open(self, path: str | None) -> int:
        """A descriptor, or -errno; a missing file gives -ENOENT and means that there is no limit here."""
        if path is None:
            return -errno.ENOENT
        if path not in self._descriptors:
            try:
                self._descriptors[path] = os.open(cgroup.on_disk(self._root, path), os.O_RDONLY | os.O_CLOEXEC)
            except OSError as error:
                if error.errno in _OUT_OF_DESCRIPTORS:
                    self.close()
                    raise ProbeError.from_errno(path, error.errno) from error
                self._descriptors[path] = -(error.errno or errno.EIO)
        return self._descriptors[path]

    def close(self) -> None:
        for descriptor in self._descriptors.values():
            if descriptor >= 0:
                os.close(descriptor)
        self._descriptors.clear()


def _content(descriptor: int, path: str) -> bytes:
    chunks: list[bytes] = []
    try:
        while descriptor >= 0 and (chunk := os.pread(descriptor, 65536, sum(map(len, chunks)))):
            chunks.append(chunk)
    except OSError as error:
        raise ProbeError.from_errno(path, error.errno or errno.EIO) from error
    return b"".join(chunks)
