"""A directory tree that stands in for a machine: real files, read by the real readers through ``root=``."""

import gc
import os
from pathlib import Path

from resource_monitor.monitor import MemoryMonitor

MIB = 1 << 20
GIB = 1 << 30

V1_UNLIMITED = 9223372036854771712


def descriptors() -> set[int]:
    """The open ones, without the one that lists them."""
    return {int(name) for name in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{name}")}


def descriptors_to_compare_with() -> set[int]:
    """The same, once those are closed that only garbage had, such as what another test left."""
    gc.collect()
    return descriptors()


class Clock:
    """Seconds that pass when told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def pass_(self, seconds: float) -> None:
        self.now += seconds


class Machine:
    """Writes below ``root`` what the kernel would show; figures are bytes."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "proc/self").mkdir(parents=True)
        self.memory(total=64 * GIB, available=60 * GIB)

    def __str__(self) -> str:
        return str(self.root)

    def path(self, path: str) -> Path:
        return self.root / path.lstrip("/")

    def write(self, path: str, text: str) -> Path:
        file = self.path(path)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        return file

    def make_unreadable(self, path: str) -> None:
        """A directory in the file's place: reading it fails with EISDIR, whoever asks."""
        self.path(path).unlink(missing_ok=True)
        self.path(path).mkdir(parents=True)

    def memory(self, *, total: int, available: int, commit_limit: int = 0, committed: int = 0) -> None:
        self.write(
            "/proc/meminfo",
            f"MemTotal:       {total // 1024} kB\nMemFree:        1024 kB\nMemAvailable:   {available // 1024} kB\n"
            f"CommitLimit:    {commit_limit // 1024} kB\nCommitted_AS:   {committed // 1024} kB\n"
            "HugePages_Total:       0\n",
        )

    def overcommit(self, mode: int) -> None:
        self.write("/proc/sys/vm/overcommit_memory", f"{mode}\n")

    def resident(self, size: int) -> None:
        self.statm(resident=size)

    def statm(
        self, *, size: int = 4 << 30, resident: int = 8 << 20, data: int = 20 << 20, process: str = "self"
    ) -> None:
        pages = [figure // 4096 for figure in (size, resident, data)]
        self.write(f"/proc/{process}/statm", f"{pages[0]} {pages[1]} 100 700 0 {pages[2]} 0\n")

    def rlimits(self, process: str = "self", **soft: int) -> None:
        """``/proc/PID/limits`` with the soft limits of the given names (``address_space=...``), the rest unlimited."""
        rows = [
            ("Max cpu time", "seconds"),
            ("Max data size", "bytes"),
            ("Max stack size", "bytes"),
            ("Max processes", "processes"),
            ("Max open files", "files"),
            ("Max address space", "bytes"),
            ("Max nice priority", ""),
        ]
        lines = [f"{'Limit':<25} {'Soft Limit':<20} {'Hard Limit':<20} {'Units':<10}"]
        for name, unit in rows:
            value = soft.pop(name.removeprefix("Max ").replace(" ", "_"), None)
            lines.append(f"{name:<25} {'unlimited' if value is None else value:<20} {'unlimited':<20} {unit:<10}")
        assert not soft
        self.write(f"/proc/{process}/limits", "\n".join(lines) + "\n")

    def descriptors(self, count: int, process: str = "self") -> None:
        for number in range(count):
            self.write(f"/proc/{process}/fd/{number}", "")

    def owner(self, uid: int, *, capabilities: int = 0, process: str = "self") -> None:
        self.write(
            f"/proc/{process}/status",
            f"Name:\tpython: x\nUid:\t{uid}\t99\t99\t99\nGid:\t5\t5\t5\t5\nCapEff:\t{capabilities:016x}\n",
        )

    def tasks_level(self, directory: str, *, limit: int | None, usage: int) -> None:
        self.write(f"{directory}/pids.max", f"{'max' if limit is None else limit}\n")
        self.write(f"{directory}/pids.current", f"{usage}\n")

    def process(self, memberships: str, mounts: str) -> None:
        """The lines of ``/proc/self/cgroup`` and ``/proc/self/mountinfo``."""
        self.write("/proc/self/cgroup", memberships)
        self.write("/proc/self/mountinfo", mounts)

    def v1(self, path: str = "/app", *, root: str = "/", mount: str = "/sys/fs/cgroup/memory") -> None:
        self.process(f"4:memory:{path}\n0::/\n", f"30 20 0:26 {root} {mount} rw shared:9 - cgroup cgroup rw,memory\n")

    def v2(self, path: str = "/app", *, root: str = "/", mount: str = "/sys/fs/cgroup") -> None:
        self.process(f"0::{path}\n", f"30 20 0:26 {root} {mount} rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n")

    def v1_level(
        self, directory: str, *, limit: int = V1_UNLIMITED, usage: int, stat: dict[str, int] | None = None
    ) -> None:
        self._level(directory, "memory.limit_in_bytes", str(limit), "memory.usage_in_bytes", usage, stat)

    def v2_level(
        self, directory: str, *, limit: int | None = None, usage: int, stat: dict[str, int] | None = None
    ) -> None:
        self._level(directory, "memory.max", "max" if limit is None else str(limit), "memory.current", usage, stat)

    def container(self, *, limit: int | None = 256 * MIB, usage: int = 32 * MIB, **stat: int) -> None:
        """The usual case: one v2 cgroup, seen as the root of its namespace; ``stat`` holds keys of memory.stat."""
        self.v2("/")
        self.v2_level("/sys/fs/cgroup", limit=limit, usage=usage, stat=stat)

    def _level(
        self, directory: str, limit_file: str, limit: str, usage_file: str, usage: int, stat: dict[str, int] | None
    ) -> None:
        self.write(f"{directory}/{limit_file}", limit + "\n")
        self.write(f"{directory}/{usage_file}", f"{usage}\n")
        self.write(f"{directory}/memory.stat", "".join(f"{key} {value}\n" for key, value in (stat or {}).items()))


class Holder:
    """An allocator that holds ``held`` bytes unused and, asked for them, lets the machine's usage sink by as much.

    ``tells`` is whether it can say how much it holds, as jemalloc can and glibc cannot.
    """

    def __init__(self, machine: Machine, held: int = 0, *, tells: bool = True) -> None:
        self.machine = machine
        self.held = held
        self.tells = tells
        self.asked = 0

    def dirty(self) -> int | None:
        return self.held if self.tells else None

    def relieve(self) -> bool:
        self.asked += 1
        usage = self.machine.path("/sys/fs/cgroup/memory.current")
        usage.write_text(str(int(usage.read_text()) - self.held))
        self.held = 0
        return True


class Service:
    """A container of 256 MiB on a fake machine and the monitor that watches it; every change is seen at once."""

    def __init__(self, machine: Machine, clock: Clock) -> None:
        self.machine = machine
        self.clock = clock
        machine.container(usage=32 * MIB)
        self.monitor = MemoryMonitor(root=str(machine), clock=clock)

    def use(self, size: int, *, limit: int | None = 256 * MIB) -> None:
        self.machine.container(limit=limit, usage=size)
        self.clock.pass_(10)

    def fill(self) -> None:
        self.use(255 * MIB)

    def empty(self) -> None:
        self.use(32 * MIB)

    def break_probe(self) -> None:
        self.machine.write("/proc/meminfo", "")
        self.machine.write("/sys/fs/cgroup/memory.max", "?")
        self.clock.pass_(10)

    def mend_probe(self) -> None:
        self.machine.memory(total=64 << 30, available=60 << 30)
        self.empty()
