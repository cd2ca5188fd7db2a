"""Real servers in real cgroups that are refused memory, or given plenty, by changing the cgroup's limit under them."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import plain_http
from child_cgroup import ChildCgroup
from machine import MIB
from programs import MakeCgroup, Server, serve

HERE = Path(__file__).parent
FULL, ROOMY = 128 * MIB, 4096 * MIB


StartService = Callable[..., "Service"]
"""The ``start`` fixture: the server's command line, and the running :class:`Service`."""


class Service:
    """A real server in a real cgroup; ``fill`` and ``empty`` change the cgroup's limit under it."""

    def __init__(self, server: Server, cgroup: ChildCgroup) -> None:
        self.server = server
        self.cgroup = cgroup
        self.url = server.url
        self.port = server.port

    def fill(self) -> None:
        self._set(FULL, 503)

    def empty(self) -> None:
        self._set(ROOMY, 200)

    def _set(self, limit: int, status: int) -> None:
        """Returns when the change has been noticed, which takes a monitor's full interval."""
        self.cgroup.set_limit(limit)
        for _ in range(500):
            if plain_http.get(self.url).status_code == status:
                return
            time.sleep(0.02)
        raise AssertionError(f"never {status}\n{''.join(self.server.log)}")


@contextmanager
def running(make: MakeCgroup, *argv: str) -> Iterator[Service]:
    cgroup = make(FULL)
    with serve(cgroup, *argv, cwd=HERE) as server:
        yield Service(server, cgroup)
        assert server.process.poll() is None
    assert cgroup.oom_kills() == 0
    assert not [line for line in server.log if "Traceback" in line], "".join(server.log)
