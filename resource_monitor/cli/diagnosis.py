"""What ``check`` finds out about a machine: each function looks at one thing and says how it stands.

Knows nothing of how findings are shown.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum

from resource_monitor import guard
from resource_monitor.allocator import Allocator, allocator_stats_enabled
from resource_monitor.cgroup import Hierarchy, on_disk, resolve
from resource_monitor.cli import preload
from resource_monitor.errors import ProbeError
from resource_monitor.explanation import Explanation, explain
from resource_monitor.limits import Limit
from resource_monitor.sources import Consequence, Flag
from resource_monitor.units import format_size

# Limits of the whole machine: they bind nobody in particular, and what is refused for them helps others more than us.
_OF_THE_MACHINE = ("host memory", "commit limit")
_SERVERS = ("python", "uvicorn", "gunicorn", "hypercorn", "daphne", "granian", "waitress", "uwsgi")
# What cgroup v1 says where nothing limits: the most that fits, in whole pages of up to 64 KiB; as in probe.c.
_V1_UNLIMITED = 2**63 - 2**16
_HUGE_PAGES = "/sys/kernel/mm/transparent_hugepage/enabled"


class Status(StrEnum):
    """How a thing stands: as it should, worth knowing, or so that nothing would be protected."""

    OK = "ok"
    NOTE = "note"
    PROBLEM = "problem"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at; ``remedy`` says what to do and is empty where nothing is to be done."""

    status: Status
    topic: str
    text: str
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class Machine:
    """Where to look: ``root`` stands in for ``/``; ``declared`` is a limit in bytes."""

    root: str
    environment: Mapping[str, str]
    declared: int | None
    allocator: Allocator

    def read(self, path: str) -> str:
        """The content of ``path`` without space around, empty where it cannot be read."""
        with suppress(OSError), open(on_disk(self.root, path), encoding="utf-8", errors="replace") as file:
            return file.read().strip()
        return ""


def diagnose(machine: Machine) -> list[Finding]:
    """Everything that matters for memory backpressure, in the order in which to mend it."""
    try:
        hierarchy = resolve(root=machine.root)
        explanation = explain(declared=machine.declared, root=machine.root)
    except ProbeError as error:
        findings = [Finding(Status.PROBLEM, "memory", f"{error}.", "make that file readable for this user.")]
    else:
        findings = [
            *_cgroup(machine, hierarchy),
            *_limit(explanation),
            *_throttle(explanation),
            *_swap(machine, hierarchy),
        ]
    return [
        *findings,
        *_overcommit(machine),
        *_allocator(machine),
        *_python_malloc(machine),
        *_huge_pages(machine),
        *_guard(),
        *_restart(machine),
    ]


def _cgroup(machine: Machine, hierarchy: Hierarchy | None) -> Iterator[Finding]:
    if hierarchy is None:
        yield Finding(
            Status.NOTE,
            "cgroup",
            "no memory cgroup holds this process.",
            "start it in a container or a systemd unit with a memory limit, or declare one in RESOURCE_MONITOR_LIMIT.",
        )
        return
    levels = len(hierarchy.levels)
    found = f"v{hierarchy.version}, {hierarchy.levels[0]}, {levels} {'level' if levels == 1 else 'levels'} visible"
    if hierarchy.uncertain:
        yield Finding(
            Status.NOTE,
            "cgroup",
            f"{found}; this process's own place cannot be settled, and the root of the mount stands in for it.",
            "mount the cgroup file system of the container's own namespace (docker run --cgroupns=private).",
        )
    else:
        yield Finding(Status.OK, "cgroup", f"{found}.")


def _limit(explanation: Explanation) -> Iterator[Finding]:
    for limit in explanation.limits:
        if Flag.UNREADABLE in limit.flags:
            lethal = limit.consequence is Consequence.KILL
            yield Finding(
                Status.PROBLEM if lethal else Status.NOTE,
                "limit",
                f"{limit.kind} ({limit.where}) cannot be read, so that nothing is known of it.",
                "make its files readable for this user.",
            )
    binding = [limit for limit in _biting(explanation) if limit.kind not in _OF_THE_MACHINE]
    if not binding:
        yield Finding(
            Status.PROBLEM,
            "limit",
            "nothing limits this process below the memory of the whole machine, which other programs use up too.",
            "set a memory limit on the container or unit, or declare one in RESOURCE_MONITOR_LIMIT.",
        )
        return
    first = binding[0]
    yield Finding(
        Status.OK,
        "limit",
        f"{first.kind} of {format_size(first.value or 0)} ({first.where}), {format_size(first.headroom or 0)} left.",
    )
    if Flag.HIDDEN in first.flags:
        yield Finding(
            Status.NOTE,
            "limit",
            "that limit is set on a cgroup that cannot be seen from here; what others use of it is unknown.",
            "set the limit on the container itself.",
        )


def _biting(explanation: Explanation) -> list[Limit]:
    """Those that kill or fail, nearest first."""
    return [
        limit
        for limit in explanation.limits
        if limit.headroom is not None and limit.consequence is not Consequence.THROTTLE
    ]


def _throttle(explanation: Explanation) -> Iterator[Finding]:
    for limit in explanation.limits:
        if limit.consequence is Consequence.THROTTLE and limit.value is not None:
            yield Finding(
                Status.NOTE,
                "memory.high",
                f"allocations are slowed from {format_size(limit.value)} on ({limit.where}): the process may seem "
                "frozen before anything is refused.",
                "set it to max, or declare a limit below it in RESOURCE_MONITOR_LIMIT.",
            )


def _swap(machine: Machine, hierarchy: Hierarchy | None) -> Iterator[Finding]:
    meminfo = dict(line.split(":", 1) for line in machine.read("/proc/meminfo").splitlines() if ":" in line)
    if not meminfo.get("SwapTotal", "0").strip(" kB0"):
        yield Finding(Status.OK, "swap", "the machine has none.")
        return
    if hierarchy is None:
        return
    leaf = hierarchy.levels[0]
    if hierarchy.version == 2:
        off = machine.read(f"{leaf}/memory.swap.max") == "0"
    else:
        both = machine.read(f"{leaf}/memory.memsw.limit_in_bytes")
        limited = both.isdecimal() and int(both) < _V1_UNLIMITED
        off = limited and both == machine.read(f"{leaf}/memory.limit_in_bytes")
    if off:
        yield Finding(Status.OK, "swap", "the cgroup may use none.")
    else:
        yield Finding(
            Status.NOTE,
            "swap",
            "the cgroup may swap: near its limit the process becomes slow; swap counts as no memory here.",
            "set memory.swap.max to 0 (docker run --memory-swap, the same as --memory).",
        )


def _overcommit(machine: Machine) -> Iterator[Finding]:
    mode = machine.read("/proc/sys/vm/overcommit_memory")
    if mode == "2":
        yield Finding(
            Status.NOTE,
            "overcommit",
            "mode 2: at CommitLimit allocations of every process on the machine fail with MemoryError.",
            "raise vm.overcommit_ratio if that comes before the limit of the service.",
        )
    elif mode:
        yield Finding(Status.OK, "overcommit", f"mode {mode}.")


def _allocator(machine: Machine) -> Iterator[Finding]:
    name, place = machine.allocator.name, machine.allocator.object
    if name == "jemalloc" and not allocator_stats_enabled():
        yield Finding(
            Status.NOTE,
            "allocator",
            f"jemalloc ({place}) built without statistics: what it would give back is not known before it does.",
            "use a build with statistics, which distributions ship.",
        )
    elif name in ("jemalloc", "tcmalloc"):
        yield Finding(Status.OK, "allocator", f"{name} ({place}).")
    else:
        yield Finding(
            Status.NOTE, "allocator", f"{name} ({place}): {_drawback(name, place)}", _way_to_jemalloc(machine)
        )


def _drawback(name: str, place: str) -> str:
    if "musl" in place:
        return "musl's malloc gives nothing back on request."
    if name == "glibc":
        return "it gives memory back more slowly after a burst than jemalloc, and cannot tell how much it would."
    return "it cannot tell what it would give back."


def _way_to_jemalloc(machine: Machine) -> str:
    asked = [entry for entry in preload.entries(machine.environment) if "jemalloc" in os.path.basename(entry)]
    if asked:
        return (
            f"LD_PRELOAD names {asked[0]}, but that did not become the allocator: see what the dynamic linker says on "
            "stderr when a program starts (a file that is missing, or built for another machine or C library)."
        )
    if "musl" in machine.allocator.object:
        return "use an image with glibc (python:3-slim) and jemalloc."
    found = preload.find(machine.environment)
    if found is None:
        return "install jemalloc (apt-get install libjemalloc2) and start the service with resource-monitor run."
    return f"{found.library} is installed: start the service with resource-monitor run."


def _python_malloc(machine: Machine) -> Iterator[Finding]:
    value = machine.environment.get("PYTHONMALLOC", "")
    if value in ("", "default", "pymalloc"):
        yield Finding(Status.OK, "PYTHONMALLOC", f"{value or 'not set'}: small objects are in arenas of 1 MiB.")
    elif value == "malloc":
        yield Finding(Status.OK, "PYTHONMALLOC", "malloc: small objects come from the allocator too.")
    else:
        yield Finding(
            Status.NOTE,
            "PYTHONMALLOC",
            f"{value}: every allocation is made larger and slower for debugging.",
            "unset it in production.",
        )


def _huge_pages(machine: Machine) -> Iterator[Finding]:
    modes = machine.read(_HUGE_PAGES)
    if "[always]" in modes and machine.allocator.name == "jemalloc":
        if "thp:never" in machine.environment.get("MALLOC_CONF", "").split(","):
            yield Finding(Status.OK, "huge pages", "always, but not for jemalloc (MALLOC_CONF).")
        else:
            yield Finding(
                Status.NOTE,
                "huge pages",
                "always: memory that jemalloc gives back stays charged as part of huge pages.",
                "set MALLOC_CONF=thp:never, as resource-monitor run does.",
            )
    elif modes:
        yield Finding(Status.OK, "huge pages", f"{modes.partition('[')[2].partition(']')[0]}.")


def _guard() -> Iterator[Finding]:
    reason = guard.unsupported()
    if reason is None:
        yield Finding(Status.OK, "guard", "the allocation guard can be installed in this interpreter.")
    else:
        yield Finding(
            Status.NOTE,
            "guard",
            f"{reason.partition(';')[0].rstrip('.')}: requests are refused, allocations are not.",
            "use an interpreter with the GIL to have a MemoryError in place of a kill.",
        )


def _restart(machine: Machine) -> Iterator[Finding]:
    kubernetes = "KUBERNETES_SERVICE_HOST" in machine.environment
    if kubernetes:
        yield Finding(Status.OK, "restart", "Kubernetes: the kubelet restarts what ends, by the pod's restartPolicy.")
    elif os.path.exists(on_disk(machine.root, "/.dockerenv")):
        first = os.path.basename(machine.read("/proc/1/cmdline").partition("\0")[0])
        if first.startswith(_SERVERS):
            yield Finding(
                Status.NOTE,
                "restart",
                f"process 1 is {first} itself, so that its end is the container's.",
                "give the container a restart policy (docker run --restart always) for the day it is killed anyway.",
            )
        else:
            yield Finding(Status.OK, "restart", f"a container whose process 1 is {first or 'unknown'}.")
    else:
        yield Finding(Status.OK, "restart", "no container; the service manager restarts what ends (Restart=always).")
