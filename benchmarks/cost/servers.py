"""Real servers, each in a cgroup of its own and pinned to one core, for the tables that load them.

Where no cgroup can be made the limit is declared instead. Two that are compared run at the same time, and ``wrk`` loads
them by turns.
"""

from __future__ import annotations

import http.client
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO

from examples.child_cgroup import CannotCreate, ChildCgroup

_ROOT = Path(__file__).parent.parent.parent
_APPS = "benchmarks.cost.web_apps"
_STARTS, _ENDS = 30.0, 10.0  # seconds that a server may take for it

# Roomy for any of the servers, whose processes take some 50 MB.
LIMIT = 1 << 30
# What a refusing server's limit leaves above its usage once it runs: short of the 128 MiB that its app wants to be left
# also where some of its usage is page cache, and beyond the allocation guard's floor.
LEFT = 32 << 20


@dataclass(frozen=True, slots=True)
class Kind:
    """A server: ``argv`` follows ``python -m``, and ``interface`` is ``"asgi"`` or ``"wsgi"``."""

    name: str
    interface: str
    argv: tuple[str, ...]

    def command(self, app: str, port: int) -> list[str]:
        """How it is started for the app that :mod:`web_apps` makes as ``app``."""
        return [sys.executable, "-m", *(part.format(app=f"{_APPS}:{app}", port=port) for part in self.argv)]


KINDS = (
    Kind(
        "uvicorn",
        "asgi",
        (
            *("uvicorn", "--factory", "{app}", "--port", "{port}", "--http", "httptools", "--loop", "uvloop"),
            *("--no-access-log", "--log-level", "warning"),
        ),
    ),
    Kind(
        "granian",
        "asgi",
        (
            *("granian", "--factory", "{app}", "--interface", "asgi", "--port", "{port}", "--loop", "uvloop"),
            *("--runtime-mode", "st", "--no-access-log"),
        ),
    ),
    Kind(
        "gunicorn gthread",
        "wsgi",
        ("gunicorn", "{app}()", "-b", "127.0.0.1:{port}", "-k", "gthread", "--threads", "8", "--log-level", "warning"),
    ),
)


def cores() -> tuple[int, int]:
    """The core for the servers and the one for the load: two where there are two."""
    usable = sorted(os.sched_getaffinity(0))
    return usable[0], usable[-1]


class Running:
    """A server in ``cgroup``, or with a declared limit where there is none; ``log`` is where it writes."""

    def __init__(self, kind: Kind, app: str, cgroup: ChildCgroup | None, log: IO[str]) -> None:
        self.kind = kind
        self.port = _free_port()
        self._log = log
        self._cgroup = cgroup
        env = {name: value for name, value in os.environ.items() if not name.startswith("RESOURCE_MONITOR_")}
        if cgroup is None:
            env["RESOURCE_MONITOR_LIMIT"] = str(LIMIT)
        spawn = subprocess.Popen if cgroup is None else cgroup.spawn
        self.process = spawn(
            kind.command(f"{kind.interface}{app}", self.port),
            cwd=_ROOT,
            env=env,
            stdout=log,
            stderr=log,
            preexec_fn=partial(os.sched_setaffinity, 0, {cores()[0]}),
        )

    def wait(self, *, refuses: bool = False) -> None:
        """Return once it answers or, ``refuses``, once it answers so."""
        deadline = time.monotonic() + _STARTS
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                break
            with suppress(OSError):
                if self.status() >= 400 or not refuses:
                    return
            time.sleep(0.05)
        raise RuntimeError(f"{self.kind.name} did not {'refuse' if refuses else 'start'}: {self._tail()}")

    def shrink(self) -> None:
        """Leave it little memory, and return once it refuses. Raises ``RuntimeError`` where there is no cgroup to do
        that with."""
        if self._cgroup is None:
            raise RuntimeError("Memory can be made short in a cgroup alone; run this as a user who may make one.")
        self._cgroup.set_limit(self._cgroup.usage() + LEFT)
        self.wait(refuses=True)  # what it knows of its memory may be of before

    def status(self) -> int:
        """What a request is answered with."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            connection.request("GET", "/")
            return connection.getresponse().status
        finally:
            connection.close()

    def cpu(self) -> float:
        """Seconds of processor time that it and its workers had so far."""
        return sum(map(cpu_of, _family(self.process.pid)))

    def end(self) -> None:
        """Stop it; what it leaves behind in its cgroup ends with that."""
        self.process.terminate()
        try:
            self.process.wait(_ENDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def _tail(self) -> str:
        self._log.flush()
        return Path(self._log.name).read_text()[-2000:]


def _family(pid: int) -> Iterator[int]:
    """A process and all that came of it."""
    yield pid
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in children.read_text().split():
            yield from _family(int(child))


def cpu_of(pid: int) -> float:
    """Seconds of processor time that the threads of a process had so far, as the scheduler counts them, which is in
    nanoseconds."""
    return sum(int(path.read_text().split()[0]) for path in Path(f"/proc/{pid}/task").glob("*/schedstat")) / 1e9


@contextmanager
def running(kind: Kind, *apps: str) -> Iterator[list[Running]]:
    """``kind`` once for each of the ``apps``, which are what :mod:`web_apps`' names end with, all at the same time."""
    with ExitStack() as stack:
        servers = []
        for app in apps:
            log = stack.enter_context(tempfile.NamedTemporaryFile("w", suffix=".log"))
            try:
                cgroup: ChildCgroup | None = stack.enter_context(ChildCgroup(LIMIT, label="cost"))
            except CannotCreate:
                cgroup = None
            server = Running(kind, app, cgroup, log)
            stack.callback(server.end)
            servers.append(server)
        for server in servers:
            server.wait()
        yield servers


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port
