"""Other processes by their number: whether they are there, when they began, what they are called."""

from __future__ import annotations

from contextlib import suppress

from resource_monitor.cgroup import on_disk
from resource_monitor.cli.command import BAD_INPUT, CommandError
from resource_monitor.cli.text import printable


def require_process(pid: int | None, root: str) -> None:
    """Raises :class:`CommandError` when there is no process ``pid``, or it has ended and nobody has asked how."""
    if pid is None:
        return
    if not _read(pid, "stat", root):
        raise CommandError(f"there is no process {pid}; ps lists those there are", BAD_INPUT)
    if start_of(pid, root) is None:
        raise CommandError(f"process {pid} has ended already; ps lists those that run", BAD_INPUT)


def start_of(pid: int, root: str) -> str | None:
    """When it began, as the kernel counts it, ``None`` when it has ended: proc_pid_stat(5), fields 3 and 22."""
    fields = _read(pid, "stat", root).rpartition(")")[2].split()  # the name in parentheses may hold any character
    return None if not fields or fields[0] in "ZX" else fields[19]


def name_of(pid: int, root: str) -> str:
    return printable(_read(pid, "comm", root)) or "unknown"


def _read(pid: int, name: str, root: str) -> str:
    with suppress(OSError), open(on_disk(root, f"/proc/{pid}/{name}"), encoding="utf-8", errors="replace") as file:
        return file.read().strip()
    return ""
