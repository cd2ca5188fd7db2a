"""Every memory limit that can bite a process: opens their files, reads them, says which one bites first.

Owns the descriptors and the meaning of each limit. When to read is the monitor's business; the arithmetic is in
``_native/probe.c``.
"""

from __future__ import annotations

import errno
import os
import weakref
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from resource_monitor import cgroup
from resource_monitor._native import ffi, lib
from resource_monitor.errors import ProbeError

USAGE: int = lib.RM_USAGE
FULL: int = lib.RM_FULL

_CGROUP_FILES = {
    1: ("memory.usage_in_bytes", "memory.limit_in_bytes", "memory.stat"),
    2: ("memory.current", "memory.max", "memory.stat"),
}
_OUT_OF_DESCRIPTORS = (errno.EMFILE, errno.ENFILE)


class Consequence(StrEnum):
    """What happens to the process that reaches a limit."""

    KILL = "kill"


class Flag(StrEnum):
    """What is special about a limit as it was read."""

    UNCERTAIN = "uncertain"
    """The cgroup could not be settled; the root of its mount stands in for it."""
    UNREADABLE = "unreadable"
    """The files are there but cannot be read, so that nothing is known about this limit."""


@dataclass(frozen=True, slots=True)
class Limit:
    """One limit as it stood at one moment; bytes.

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


@dataclass(frozen=True, slots=True)
class _Source:
    """How one limit is read: the C side's kind, and the files for usage, limit and statistics as far as it has them."""

    kind: int
    name: str
    where: str
    paths: tuple[str, ...]
    declared: int = 0
    flags: frozenset[Flag] = frozenset()


class LimitReader:
    """Kept descriptors for every limit of a process; not thread-safe, and good for the process that made it alone.

    ``declared`` is a limit in bytes on this process's own resident memory. Raises :class:`ProbeError` when there are
    files but they cannot be understood, or no descriptors are left to open them.
    """

    def __init__(self, *, declared: int | None = None, pid: int | None = None, root: str = "/") -> None:
        self.hierarchy = cgroup.resolve("memory", pid=pid, root=root)
        process = "self" if pid is None else str(pid)
        self._owner = os.getpid()
        self._outcome = ffi.new("rm_outcome *")
        self._membership_path = f"/proc/{process}/cgroup"
        descriptors: list[int] = []
        weakref.finalize(self, _close, descriptors)
        self._membership_fd = _open(self._membership_path, root, descriptors)
        self._membership = _content(self._membership_fd, self._membership_path)
        self._sources = _sources(self.hierarchy, declared, process)
        self._entries: Any = ffi.new("rm_limit[]", len(self._sources))
        for entry, source in zip(self._entries, self._sources, strict=True):
            _open_entry(entry, source, root, descriptors)
        self.headroom = 0
        self.free = 0
        self.tightest = 0

    def read(self, tier: int) -> bool:
        """Read ``USAGE`` or ``FULL``; False when this process is not the one that opened the files.

        Sets ``headroom`` (the least over all limits), ``free`` (the same without reclaiming anything) and ``tightest``
        (the smallest limit); all in bytes, ``2**64 - 1`` where nothing limits. Raises :class:`ProbeError` when no limit
        could be read and at least one should have been.
        """
        outcome = self._outcome
        if lib.rm_read(self._entries, len(self._sources), tier, self._owner, outcome) != 0:
            return False
        self.headroom = outcome.headroom
        self.free = outcome.free
        self.tightest = outcome.tightest
        if outcome.least == lib.RM_NONE and outcome.failed != lib.RM_NONE:
            raise self.failure()  # type: ignore[misc]  # there is one: outcome.failed says so
        return True

    def moved(self) -> bool:
        """Whether the process has been moved to other cgroups since the files were opened."""
        return (
            self._membership_fd >= 0
            and lib.rm_same_content(self._membership_fd, self._membership, len(self._membership)) != 1
        )

    def vanished(self) -> bool:
        """Whether the last reading found a cgroup removed under its open files (ENODEV: kernel/cgroup, kernfs)."""
        failed = self._outcome.failed
        return bool(failed != lib.RM_NONE and self._entries[failed].error == errno.ENODEV)

    def failure(self) -> ProbeError | None:
        """Why the first limit that could not be read at the last reading could not be, or ``None``."""
        failed = self._outcome.failed
        if failed == lib.RM_NONE:
            return None
        entry, source = self._entries[failed], self._sources[failed]
        path = source.paths[entry.failed_file]
        if entry.error == errno.EBADMSG:
            return ProbeError(path, "does not hold what the kernel documents for it")
        return ProbeError.from_errno(path, entry.error)

    def first(self) -> Limit | None:
        """The limit that bites first by the last reading, ``None`` when nothing limits."""
        least = self._outcome.least
        return None if least == lib.RM_NONE else self._limit(least)

    def limits(self) -> tuple[Limit, ...]:
        """Every limit by the last reading, those that limit nothing included."""
        return tuple(self._limit(index) for index in range(len(self._sources)))

    def _limit(self, index: int) -> Limit:
        entry, source = self._entries[index], self._sources[index]
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
            consequence=Consequence.KILL,
            flags=flags,
        )


def _sources(hierarchy: cgroup.Hierarchy | None, declared: int | None, process: str) -> list[_Source]:
    """The host first: the C side measures the others' values against it."""
    sources = [_Source(lib.RM_HOST, "host memory", "/proc/meminfo", ("/proc/meminfo",))]
    if declared is not None:
        statm = f"/proc/{process}/statm"
        sources.append(_Source(lib.RM_DECLARED, "declared limit", "resident memory", (statm,), declared))
    if hierarchy is not None:
        kind = lib.RM_CGROUP_V2 if hierarchy.version == 2 else lib.RM_CGROUP_V1
        flags = frozenset({Flag.UNCERTAIN}) if hierarchy.uncertain else frozenset()
        for level in hierarchy.levels:
            paths = tuple(f"{level.rstrip('/')}/{name}" for name in _CGROUP_FILES[hierarchy.version])
            sources.append(_Source(kind, f"cgroup v{hierarchy.version}", paths[1], paths, flags=flags))
    return sources


def _open_entry(entry: Any, source: _Source, root: str, descriptors: list[int]) -> None:
    opened = [_open(path, root, descriptors) for path in source.paths]
    entry.kind = source.kind
    entry.value = source.declared
    entry.usage_fd, entry.limit_fd, entry.stat_fd = opened + [-errno.ENOENT] * (3 - len(opened))


def _open(path: str, root: str, descriptors: list[int]) -> int:
    """A descriptor, or -errno; a missing file gives -ENOENT and means that there is no limit here."""
    try:
        descriptor = os.open(cgroup.on_disk(root, path), os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in _OUT_OF_DESCRIPTORS:
            raise ProbeError.from_errno(path, error.errno) from error
        return -(error.errno or errno.EIO)
    descriptors.append(descriptor)
    return descriptor


def _content(descriptor: int, path: str) -> bytes:
    chunks: list[bytes] = []
    try:
        while descriptor >= 0 and (chunk := os.pread(descriptor, 65536, sum(map(len, chunks)))):
            chunks.append(chunk)
    except OSError as error:
        raise ProbeError.from_errno(path, error.errno or errno.EIO) from error
    return b"".join(chunks)


def _close(descriptors: list[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)
