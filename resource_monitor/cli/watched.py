"""The process that ``watch`` watches: samples of its limits, whether it lives, and the kernel's kills around it."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass

from resource_monitor.cgroup import on_disk, resolve
from resource_monitor.cli.process import name_of, start_of
from resource_monitor.errors import ProbeError
from resource_monitor.explanation import Explanation, explain


@dataclass(frozen=True, slots=True)
class Sample:
    """What stood when; ``kills`` is how often the OOM killer struck in the cgroup since the watch began."""

    explanation: Explanation
    kills: int


class Watched:
    """Process ``pid``, or the one that calls, whose cgroup is then what matters; ``declared`` is a limit in bytes.

    Raises :class:`ProbeError` when its limits cannot be found out.
    """

    def __init__(self, pid: int | None, declared: int | None, root: str) -> None:
        self._pid = pid
        self._declared = declared
        self._root = root
        self.name = "this cgroup" if pid is None else f"process {pid} ({name_of(pid, root)})"
        self._started = None if pid is None else start_of(pid, root)
        self._events = self._find_events()
        self._kills_before = self._kills_now = self._count() or 0

    def sample(self) -> Sample | None:
        """The present :class:`Sample`, ``None`` when the process has ended. Raises :class:`ProbeError`."""
        if not self.alive():
            return None
        try:
            explanation = explain(self._pid, declared=self._declared, root=self._root)
        except ProbeError:
            if self.alive():
                raise
            return None
        return Sample(explanation, self.kills())

    def alive(self) -> bool:
        """Whether it runs; a zombie does not, and neither does another process that got its number."""
        if self._pid is None:
            return True
        start = start_of(self._pid, self._root)
        return start is not None and start == self._started

    def kills(self) -> int:
        """How often the OOM killer struck in the cgroup since the watch began, as far as that could be read."""
        self._kills_now = self._count() or self._kills_now
        return self._kills_now - self._kills_before

    def _find_events(self) -> str | None:
        hierarchy = resolve(pid=self._pid, root=self._root)
        if hierarchy is None:
            return None
        name = "memory.events" if hierarchy.version == 2 else "memory.oom_control"
        return on_disk(self._root, os.path.join(hierarchy.levels[0], name))

    def _count(self) -> int | None:
        """``oom_kill`` of the cgroup; ``None`` when it is gone, and for a root cgroup of v2, which has no such file."""
        if self._events is None:
            return None
        with suppress(OSError), open(self._events, encoding="ascii") as file:
            return next((int(line.split()[1]) for line in file if line.startswith("oom_kill ")), None)
        return None
