import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import pytest
from child_cgroup import ChildCgroup
from machine import MIB
from programs import Server, serve, uvicorn

HERE = Path(__file__).parent
FULL, ROOMY = 128 * MIB, 4096 * MIB


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
            if httpx.get(self.url).status_code == status:
                return
            time.sleep(0.02)
        raise AssertionError(f"never {status}\n{''.join(self.server.log)}")


@contextmanager
def running(make: Callable[..., ChildCgroup], *argv: str) -> Iterator[Service]:
    cgroup = make(FULL)
    with serve(cgroup, *argv, cwd=HERE) as server:
        yield Service(server, cgroup)
        assert server.process.poll() is None
    assert cgroup.oom_kills() == 0
    assert not [line for line in server.log if "Traceback" in line], "".join(server.log)


@pytest.fixture
def start(child_cgroup: Callable[..., ChildCgroup]) -> Iterator[Callable[..., Service]]:
    with ExitStack() as stack:
        yield lambda *argv: stack.enter_context(running(child_cgroup, *argv))


@pytest.fixture(params=["h11", "httptools"])
def asgi(start: Callable[..., Service], request: pytest.FixtureRequest) -> Service:
    """uvicorn, full at first, with either of its HTTP parsers."""
    return start(*uvicorn("apps:asgi"), "--http", request.param)


@pytest.fixture(params=["gthread", "sync"])
def wsgi(start: Callable[..., Service], request: pytest.FixtureRequest) -> Service:
    """gunicorn, full at first, with threads or without."""
    threads = ("--threads", "8") if request.param == "gthread" else ()
    return start("gunicorn", "apps:wsgi", "-b", "127.0.0.1:0", "-k", request.param, *threads)
