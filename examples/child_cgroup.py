"""Memory-limited child cgroups, v1 or v2, to run something in: for the demo, the tests and the benchmarks.

Owns: finding a place where this user may create one, setting its limits, starting processes inside, reading what the
kernel did to them, and removing everything again. Names start with ``resource-monitor-`` and carry the creator's pid,
so that leftovers of a killed creator are recognised and swept. Nothing here is part of the installed package.
"""

from __future__ import annotations

import atexit
import contextlib
import itertools
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

PREFIX = "resource-monitor-"
_counter = itertools.count()


class CannotCreate(Exception):
    """No place was found where this user may create a memory-limited cgroup; the text says what was tried."""


class ChildCgroup:
    """A cgroup of our own with a memory limit in bytes; swap is off where the kernel lets us say so.

    Use as a context manager: leaving it kills what still runs inside and removes it.
    """

    path: Path
    version: int

    def __init__(self, limit: int | None, *, label: str = "test", parent: ChildCgroup | None = None) -> None:
        home, self.version = (parent.path, parent.version) if parent else find_home()
        if parent and parent.version == 2:
            (parent.path / "cgroup.subtree_control").write_text("+memory")
        sweep(home)
        self.path = home / f"{PREFIX}{label}-{os.getpid()}-{next(_counter)}"
        self.path.mkdir()
        atexit.register(self.close)
        if limit is not None:
            self.set_limit(limit)

    def set_limit(self, limit: int) -> None:
        """Set the limit in bytes, also while processes run inside."""
        if self.version == 2:
            self._write("memory.max", limit)
            self._write_if_there("memory.swap.max", 0)
            return
        # memsw must never be below the plain limit, so which of the two is written first depends on the direction.
        names = ["memory.limit_in_bytes", "memory.memsw.limit_in_bytes"]
        raising = limit > int(self._read("memory.limit_in_bytes"))
        for name in reversed(names) if raising else names:
            self._write_if_there(name, limit)

    def spawn(self, argv: Sequence[str | os.PathLike[str]], **options: object) -> subprocess.Popen[str]:
        """Start ``argv`` inside; ``options`` go to :class:`subprocess.Popen`. The pid is the program's own."""
        enter = ["/bin/sh", "-c", 'echo $$ > "$0" && exec "$@"', str(self.path / "cgroup.procs")]
        return subprocess.Popen([*enter, *map(str, argv)], **options)  # type: ignore[call-overload,no-any-return]

    def run(self, argv: Sequence[str | os.PathLike[str]], **options: object) -> subprocess.CompletedProcess[str]:
        """Run ``argv`` inside to its end and capture its output as text."""
        timeout = options.pop("timeout", 120)
        with self.spawn(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options) as process:
            try:
                out, err = process.communicate(timeout=timeout)  # type: ignore[arg-type]
            except subprocess.TimeoutExpired:
                process.kill()
                raise
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def oom_kills(self) -> int:
        """How many processes the kernel has killed in here for want of memory."""
        name = "memory.events" if self.version == 2 else "memory.oom_control"
        return int(dict(line.split() for line in self._read(name).splitlines())["oom_kill"])

    def usage(self) -> int:
        """Bytes charged now."""
        return int(self._read("memory.current" if self.version == 2 else "memory.usage_in_bytes"))

    def peak(self) -> int:
        """The most bytes ever charged."""
        return int(self._read("memory.peak" if self.version == 2 else "memory.max_usage_in_bytes"))

    def close(self) -> None:
        """Kill what still runs inside, remove the cgroup and its children; safe to call twice."""
        atexit.unregister(self.close)
        if self.path.is_dir():
            for child in self.path.iterdir():
                if child.is_dir():
                    remove(child)
            remove(self.path)

    def __enter__(self) -> ChildCgroup:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _read(self, name: str) -> str:
        return (self.path / name).read_text()

    def _write(self, name: str, value: int) -> None:
        (self.path / name).write_text(str(value))

    def _write_if_there(self, name: str, value: int) -> None:
        if (self.path / name).exists():
            self._write(name, value)


def find_home() -> tuple[Path, int]:
    """The directory under which child cgroups with a memory limit can be made, and the version (1 or 2).

    Raises :class:`CannotCreate` with what was tried.
    """
    tried = []
    for place, version in _places():
        probe = place / f"{PREFIX}probe-{os.getpid()}-{next(_counter)}"
        try:
            probe.mkdir()
        except OSError as error:
            tried.append(f"{place}: {error.strerror}")
            continue
        try:
            if not (probe / ("memory.max" if version == 2 else "memory.limit_in_bytes")).exists():
                tried.append(f"{place}: the memory controller is not enabled for children")
                continue
            enter = subprocess.run(
                ["/bin/sh", "-c", 'echo $$ > "$0"', str(probe / "cgroup.procs")],
                capture_output=True,
                check=False,
            )
            if enter.returncode == 0:
                return place, version
            tried.append(f"{place}: processes may not be moved there")
        finally:
            remove(probe)
    raise CannotCreate("; ".join(tried) or "no cgroup file system with a memory controller is mounted")


def _places() -> Iterator[tuple[Path, int]]:
    lines = Path("/proc/self/cgroup").read_text().splitlines()
    entries = [line.split(":", 2) for line in lines]
    for _, controllers, path in entries:
        if "memory" in controllers.split(","):
            mount = Path("/sys/fs/cgroup/memory")
            yield mount / path.lstrip("/"), 1
            yield mount, 1
            return
    for number, _, path in entries:
        if number == "0":
            mount = Path("/sys/fs/cgroup")
            own = mount / path.lstrip("/")
            while own != mount:
                yield own, 2
                own = own.parent
            yield mount, 2


def sweep(home: Path) -> None:
    """Remove the cgroups in ``home`` whose creator is gone."""
    for path in home.glob(f"{PREFIX}*"):
        creator = path.name.split("-")[-2]
        if creator.isdigit() and not Path("/proc", creator).exists():
            for child in [p for p in path.iterdir() if p.is_dir()]:
                remove(child)
            remove(path)


def remove(path: Path) -> None:
    """Kill every process in the cgroup ``path`` and remove it, waiting for the kernel to let go."""
    for _ in range(200):
        with contextlib.suppress(OSError):
            for pid in (path / "cgroup.procs").read_text().split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
        try:
            path.rmdir()
        except FileNotFoundError:
            return
        except OSError:
            time.sleep(0.02)
        else:
            return
