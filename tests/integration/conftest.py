from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from programs import MakeCgroup, uvicorn
from services import Service, StartService, running


@pytest.fixture
def start(child_cgroup: MakeCgroup) -> Iterator[StartService]:
    with ExitStack() as stack:
        yield lambda *argv: stack.enter_context(running(child_cgroup, *argv))


@pytest.fixture(params=["h11", "httptools"])
def asgi(start: StartService, request: pytest.FixtureRequest) -> Service:
    """uvicorn, full at first, with either of its HTTP parsers."""
    return start(*uvicorn("apps:asgi"), "--http", request.param)


@pytest.fixture(params=["gthread", "sync"])
def wsgi(start: StartService, request: pytest.FixtureRequest) -> Service:
    """gunicorn, full at first, with threads or without."""
    threads = ("--threads", "8") if request.param == "gthread" else ()
    return start("gunicorn", "apps:wsgi", "-b", "127.0.0.1:0", "-k", request.param, *threads)
