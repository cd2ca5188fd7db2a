"""Finds the cgroups that hold a process: v1, v2, hybrid, nested, namespaced. Leaves their files to ``limits``.

Every path is read below ``root``, so that a directory tree can stand in for a machine.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from resource_monitor.errors import ProbeError

# How many cgroup directories are looked into for our pid when names alone do not settle where we are.
_SEARCH_LIMIT = 4096
_ESCAPE = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True, slots=True)
class Membership:
    """One line of ``/proc/PID/cgroup``: man 7 cgroups."""

    hierarchy: int
    controllers: tuple[str, ...]
    path: str


@dataclass(frozen=True, slots=True)
class Mount:
    """One cgroup file system of ``/proc/self/mountinfo``: man 5 proc."""

    root: str
    mount_point: str
    version: int
    super_options: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Hierarchy:
    """Where a process is accounted for one controller.

    ``levels`` are directories, the process's own first, then every visible ancestor up to the mount's root.
    ``uncertain`` says that the place could not be settled and the mount's root stands in for it.
    """

    version: int
    mount_point: str
    levels: tuple[str, ...]
    uncertain: bool


def parse_memberships(text: str, source: str) -> list[Membership]:
    """The lines of a ``/proc/PID/cgroup``; ``source`` is named in the :class:`ProbeError` for a malformed one."""
    memberships = []
    for line in filter(None, text.split("\n")):  # the kernel allows every other line separator in a name
        fields = line.split(":", 2)  # the path may hold colons
        if len(fields) != 3 or not (fields[0].isascii() and fields[0].isdigit()) or not fields[2].startswith("/"):
            raise ProbeError(source, f"has the line {line[:80]!r}, which is not number:controllers:/path")
        controllers = tuple(name for name in fields[1].split(",") if name)
        memberships.append(Membership(int(fields[0]), controllers, fields[2].removesuffix(" (deleted)")))
    return memberships


def parse_mounts(lines: Iterable[str], source: str) -> Iterator[Mount]:
    """The cgroup mounts in a mountinfo; ``source`` is named in the :class:`ProbeError` for a malformed line."""
    for line in lines:
        fields = line.rstrip("\n").split(" ")
        try:
            # Zero or more optional fields stand before the lone dash, which is the seventh field at the earliest.
            dash = fields.index("-", 6)
            root, mount_point, kind = fields[3], fields[4], fields[dash + 1]
            options = " ".join(fields[dash + 3 :])  # they can hold spaces
        except (ValueError, IndexError):
            raise ProbeError(source, f"has the line {line[:80]!r}, which is no mountinfo line") from None
        if kind in ("cgroup", "cgroup2"):
            yield Mount(
                _unescape(root),
                _unescape(mount_point),
                2 if kind == "cgroup2" else 1,
                tuple(options.split(",")),
            )


def resolve(controller: str = "memory", *, pid: int | None = None, root: str = "/") -> Hierarchy | None:
    """The hierarchy that accounts ``controller`` for the process ``pid`` (default: this one), or ``None`` without one.

    Where cgroups are mounted is asked of this process, which opens their files: a process in a container has them at
    the same place and sees there no more than its own. Raises :class:`ProbeError` when ``/proc/PID/cgroup`` or
    ``/proc/self/mountinfo`` is there but cannot be read or understood.
    """
    process = "self" if pid is None else str(pid)
    memberships = _read_memberships(root, process)
    mounts = _read_mounts(root)
    pid = os.getpid() if pid is None else pid

    v1 = [mount for mount in mounts if mount.version == 1 and controller in mount.super_options]
    if v1:
        paths = [line.path for line in memberships if controller in line.controllers]
        # gVisor has the v1 files but no /proc/PID/cgroup; where there is one without our line, v1 does not hold us
        if paths or not memberships:
            return _locate(v1, paths[0] if paths else None, pid, root, 1)
    v2 = [mount for mount in mounts if mount.version == 2]
    paths = [line.path for line in memberships if line.hierarchy == 0]
    if v2 and (paths or not memberships):
        hierarchy = _locate(v2, paths[0] if paths else None, pid, root, 2)
        levels = tuple(level for level in hierarchy.levels if _has_files(controller, level, root))
        if levels:
            return Hierarchy(2, hierarchy.mount_point, levels, hierarchy.uncertain)
    return None


def on_disk(root: str, path: str) -> str:
    """``path``, which is absolute, below ``root``."""
    return path if root == "/" else os.path.join(root, path.lstrip("/"))


def _locate(mounts: list[Mount], path: str | None, pid: int, root: str, version: int) -> Hierarchy:
    """The directory for ``path`` under the mount that shows it most closely, else the one that lists ``pid``."""
    best: tuple[int, Mount, str] | None = None
    for mount in mounts:
        below = None if path is None else _below(mount.root, path)
        if below is None or not os.path.isdir(on_disk(root, _join(mount.mount_point, below))):
            continue
        if best is None or len(mount.root) > best[0]:
            best = (len(mount.root), mount, below)
    if best is not None:
        _, mount, below = best
        return Hierarchy(version, mount.mount_point, _levels(mount.mount_point, below), uncertain=False)
    for mount in mounts:
        found = _search(mount.mount_point, pid, root)
        if found is not None:
            return Hierarchy(version, mount.mount_point, _levels(mount.mount_point, found), uncertain=False)
    return Hierarchy(version, mounts[0].mount_point, (mounts[0].mount_point,), uncertain=True)


def _below(mount_root: str, path: str) -> str | None:
    """``path`` relative to ``mount_root`` if that is a component prefix of it; ``..`` in either settles nothing."""
    if ".." in mount_root.split("/") or ".." in path.split("/"):
        return None
    if mount_root == "/":
        return path.strip("/")
    if path == mount_root or path.startswith(mount_root + "/"):
        return path[len(mount_root) :].strip("/")
    return None


def _search(mount_point: str, pid: int, root: str) -> str | None:
    """The directory below ``mount_point`` whose ``cgroup.procs`` lists ``pid``, breadth first, as a relative path."""
    queue = [""]
    for at in range(_SEARCH_LIMIT):
        if at == len(queue):
            return None
        directory = on_disk(root, _join(mount_point, queue[at]))
        try:
            with open(os.path.join(directory, "cgroup.procs"), "rb") as file:
                if str(pid).encode() in file.read().split():
                    return queue[at]
        except OSError:
            pass  # threaded cgroups and foreign ones refuse; the others may still list us
        try:
            with os.scandir(directory) as entries:
                queue += [os.path.join(queue[at], e.name) for e in entries if e.is_dir(follow_symlinks=False)]
        except OSError:
            continue
    return None


def _levels(mount_point: str, below: str) -> tuple[str, ...]:
    levels = [mount_point]
    for name in filter(None, below.split("/")):
        levels.append(_join(levels[-1], name))
    return tuple(reversed(levels))


def _join(directory: str, below: str) -> str:
    return f"{directory.rstrip('/')}/{below}" if below else directory


def _has_files(controller: str, level: str, root: str) -> bool:
    directory = on_disk(root, level)
    return any(os.path.exists(f"{directory}/{controller}.{name}") for name in ("current", "max"))


def _unescape(field: str) -> str:
    """Undo the kernel's ``\\040 \\011 \\012 \\134`` for space, tab, newline, backslash (fs/seq_file.c, mangle_path)."""
    return _ESCAPE.sub(lambda match: chr(int(match[1], 8)), field)


def _read_memberships(root: str, process: str) -> list[Membership]:
    path = f"/proc/{process}/cgroup"
    try:
        # newline="\n": a carriage return in a name ends no line
        with open(on_disk(root, path), encoding="utf-8", errors="surrogateescape", newline="\n") as file:
            return parse_memberships(file.read(), path)
    except FileNotFoundError:
        if process != "self" and not os.path.isdir(on_disk(root, f"/proc/{process}")):
            raise ProbeError(path, "there is no such process") from None
        return []
    except OSError as error:
        raise ProbeError.from_errno(path, error.errno or 0) from error


def _read_mounts(root: str) -> list[Mount]:
    path = "/proc/self/mountinfo"
    try:
        with open(on_disk(root, path), encoding="utf-8", errors="surrogateescape", newline="\n") as file:
            return list(parse_mounts(file, path))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise ProbeError.from_errno(path, error.errno or 0) from error
