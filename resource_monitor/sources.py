"""Which limits exist for a process and which files tell each of them: memory, open files, tasks.

Knows the names and the meaning; ``limits`` opens and reads, ``_native/probe.c`` does the arithmetic.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from enum import StrEnum

from resource_monitor import cgroup
from resource_monitor._native import lib
from resource_monitor.errors import ProbeError

# Bits of CapEff in /proc/PID/status (linux/capability.h): either exempts from RLIMIT_NPROC (kernel/fork.c).
_CAP_SYS_ADMIN, _CAP_SYS_RESOURCE = 1 << 21, 1 << 24


class Consequence(StrEnum):
    """What happens to the process that reaches a limit."""

    KILL = "kill"
    """The kernel's OOM killer ends it, or another process that shares the limit."""
    THROTTLE = "throttle"
    """Its allocations are made to wait while the kernel reclaims; it may seem frozen, but it lives."""
    MEMORY_ERROR = "MemoryError"
    """An allocation fails, and Python raises."""
    OS_ERROR = "OSError"
    """A system call fails (EMFILE, ENFILE, EAGAIN), and Python raises."""


class Flag(StrEnum):
    """What is special about a limit as it was read."""

    UNCERTAIN = "uncertain"
    """Where the process stands, or all of what is used, cannot be known from here; the figures are an upper bound."""
    HIDDEN = "hidden"
    """A cgroup above every visible one sets it: only its value is known, and others may use it too."""
    UNREADABLE = "unreadable"
    """The files are there but cannot be read, so that nothing is known about this limit."""


@dataclass(frozen=True, slots=True)
class Source:
    """How one limit is read.

    ``kind`` is the C side's; ``name`` and ``where`` are for people. ``usage``, ``limit`` and ``stat`` are paths,
    ``None`` where this kind has no such file. ``declared`` is the value of a limit that no file tells. ``own``: the
    limit is one of this very process, which can ask for it without reading the file. ``uid`` is the user whose tasks
    are counted.
    """

    kind: int
    name: str
    where: str
    consequence: Consequence
    usage: str
    limit: str | None = None
    stat: str | None = None
    declared: int = 0
    own: bool = False
    uid: int = 0
    flags: frozenset[Flag] = field(default=frozenset())


def memory(process: str, *, pid: int | None, declared: int | None, root: str) -> list[Source]:
    """Every limit on memory. The host comes first: the C side measures the others' values against it."""
    proc = f"/proc/{process}"
    statm, limits, meminfo = f"{proc}/statm", f"{proc}/limits", "/proc/meminfo"
    own = _is_own(process, root)
    sources = [Source(lib.RM_HOST, "host memory", meminfo, Consequence.KILL, meminfo)]
    if declared is not None:
        sources.append(
            Source(lib.RM_DECLARED, "declared limit", "resident memory", Consequence.KILL, statm, declared=declared)
        )
    sources += [
        Source(
            lib.RM_COMMIT,
            "commit limit",
            "CommitLimit",
            Consequence.MEMORY_ERROR,
            meminfo,
            "/proc/sys/vm/overcommit_memory",
        ),
        Source(lib.RM_ADDRESS_SPACE, "address space", "RLIMIT_AS", Consequence.MEMORY_ERROR, statm, limits, own=own),
        Source(lib.RM_DATA, "data segment", "RLIMIT_DATA", Consequence.MEMORY_ERROR, statm, limits, own=own),
    ]
    hierarchy = cgroup.resolve("memory", pid=pid, root=root)
    if hierarchy is not None:
        sources += _cgroup_v1(hierarchy) if hierarchy.version == 1 else _cgroup_v2(hierarchy)
    return sources


def open_files(process: str, *, root: str) -> list[Source]:
    """Every limit on open file descriptors."""
    proc, file_nr = f"/proc/{process}", "/proc/sys/fs/file-nr"
    # no cgroup is looked for here, which would have noticed
    if process != "self" and not os.path.isdir(cgroup.on_disk(root, proc)):
        raise ProbeError(proc, "there is no such process")
    return [
        Source(
            lib.RM_OPEN_FILES,
            "open files",
            "RLIMIT_NOFILE",
            Consequence.OS_ERROR,
            f"{proc}/fd",
            f"{proc}/limits",
            own=_is_own(process, root),
        ),
        Source(lib.RM_SYSTEM_FILES, "open files of the system", file_nr, Consequence.OS_ERROR, file_nr),
    ]


def tasks(process: str, *, pid: int | None, root: str) -> list[Source]:
    """Every limit on tasks: processes and their threads."""
    threads_max = "/proc/sys/kernel/threads-max"
    sources = [
        Source(
            lib.RM_SYSTEM_TASKS,
            "tasks of the system",
            threads_max,
            Consequence.OS_ERROR,
            "/proc/loadavg",
            threads_max,
        )
    ]
    uid, exempt = _owner(process, root)
    if not exempt:
        sources.append(
            Source(
                lib.RM_USER_PROCESSES,
                "tasks of the user",
                "RLIMIT_NPROC",
                Consequence.OS_ERROR,
                "/proc",
                f"/proc/{process}/limits",
                own=_is_own(process, root),
                uid=uid,
                # tasks of this user outside this /proc count for the kernel too
                flags=frozenset({Flag.UNCERTAIN}),
            )
        )
    hierarchy = cgroup.resolve("pids", pid=pid, root=root)
    if hierarchy is not None:
        for level in hierarchy.levels:
            limit = _file(level, "pids.max")
            usage = _file(level, "pids.current")
            name = f"cgroup v{hierarchy.version} tasks"
            sources.append(
                Source(lib.RM_PIDS, name, limit, Consequence.OS_ERROR, usage, limit, flags=_uncertain(hierarchy))
            )
    return sources


def _cgroup_v1(hierarchy: cgroup.Hierarchy) -> list[Source]:
    flags = _uncertain(hierarchy)
    sources = []
    for level in hierarchy.levels:
        stat = _file(level, "memory.stat")
        for kind, name, prefix in (
            (lib.RM_CGROUP_V1, "cgroup v1", "memory"),
            (lib.RM_CGROUP_V1_SWAP, "cgroup v1 with swap", "memory.memsw"),
        ):
            limit = _file(level, f"{prefix}.limit_in_bytes")
            usage = _file(level, f"{prefix}.usage_in_bytes")
            sources.append(Source(kind, name, limit, Consequence.KILL, usage, limit, stat, flags=flags))
    top = hierarchy.levels[-1]
    stat = _file(top, "memory.stat")
    sources.append(
        Source(
            lib.RM_CGROUP_V1_HIDDEN,
            "cgroup v1 above",
            f"{stat}: hierarchical_memory_limit",
            Consequence.KILL,
            _file(top, "memory.usage_in_bytes"),
            stat=stat,
            flags=flags | {Flag.HIDDEN, Flag.UNCERTAIN},
        )
    )
    return sources


def _cgroup_v2(hierarchy: cgroup.Hierarchy) -> list[Source]:
    flags = _uncertain(hierarchy)
    sources = []
    for level in hierarchy.levels:
        usage, stat = _file(level, "memory.current"), _file(level, "memory.stat")
        for kind, name, consequence in (
            (lib.RM_CGROUP_V2, "memory.max", Consequence.KILL),
            (lib.RM_CGROUP_V2_HIGH, "memory.high", Consequence.THROTTLE),
        ):
            limit = _file(level, name)
            label = "cgroup v2" if consequence is Consequence.KILL else "cgroup v2 high"
            sources.append(Source(kind, label, limit, consequence, usage, limit, stat, flags=flags))
    return sources


def _is_own(process: str, root: str) -> bool:
    """Whether what is read are the limits of this very process, and no tree of files that stands in for another's."""
    return process == "self" and root == "/"


def _uncertain(hierarchy: cgroup.Hierarchy) -> frozenset[Flag]:
    return frozenset({Flag.UNCERTAIN}) if hierarchy.uncertain else frozenset()


def _file(level: str, name: str) -> str:
    return f"{level.rstrip('/')}/{name}"


def _owner(process: str, root: str) -> tuple[int, bool]:
    """The real uid that RLIMIT_NPROC counts, and whether the kernel exempts the process from it."""
    path = f"/proc/{process}/status"
    try:
        with open(cgroup.on_disk(root, path), encoding="utf-8", errors="surrogateescape") as file:
            fields = dict(line.split(":", 1) for line in file if ":" in line)
        uid = int(fields["Uid"].split()[0])
        if not 0 <= uid < 1 << 32:
            raise ValueError
        capabilities = int(fields["CapEff"], 16)
    except FileNotFoundError:
        return os.getuid(), True
    except OSError as error:
        raise ProbeError.from_errno(path, error.errno or 0) from error
    except (KeyError, ValueError, IndexError):
        raise ProbeError(path, "does not hold what the kernel documents for it") from None
    exempt = uid == 0 or bool(capabilities & (_CAP_SYS_ADMIN | _CAP_SYS_RESOURCE))
    return uid, exempt and _is_in_first_namespace(process, root)


def _is_in_first_namespace(process: str, root: str) -> bool:
    """Whether the users of this process are the machine's own: the root of another namespace has no exemption
    (kernel/fork.c, ``copy_process``)."""
    try:
        with open(cgroup.on_disk(root, f"/proc/{process}/uid_map"), encoding="ascii", errors="replace") as file:
            return file.read().split() == ["0", "0", "4294967295"]
    except OSError:
        return True  # a kernel without such namespaces
