"""Liveness and readiness as probes find them under real servers, and a stuck worker that is replaced."""

import time
from collections.abc import Callable

import httpx
import plain_http
import pytest
from child_cgroup import ChildCgroup
from machine import MIB
from programs import MakeCgroup, Server, serve, uvicorn
from services import FULL, HERE, ROOMY, Service, StartService


def gunicorn(app: str, *options: str) -> tuple[str, ...]:
    return ("gunicorn", f"health_apps:{app}", "-b", "127.0.0.1:0", *options)


SERVERS = {
    "uvicorn": uvicorn("health_apps:asgi"),
    "gunicorn-sync": gunicorn("wsgi", "-k", "sync"),
    "gunicorn-gthread": gunicorn("wsgi", "-k", "gthread", "--threads", "4"),
    "gunicorn-uvicorn": gunicorn("asgi", "-k", "uvicorn_worker.UvicornWorker"),
}


@pytest.fixture(params=SERVERS)
def probed(start: StartService, request: pytest.FixtureRequest) -> Service:
    """A service with a health endpoint, full at first."""
    return start(*SERVERS[request.param])


def until(condition: Callable[[], bool]) -> None:
    for _ in range(1500):
        if condition():
            return
        time.sleep(0.02)
    raise AssertionError("never")


def status(service: Service, path: str) -> int:
    return plain_http.get(f"{service.url}{path}").status_code


def test_a_service_that_sheds_is_alive_but_not_ready_until_it_has_room_again(probed: Service) -> None:
    assert status(probed, "/") == 503
    assert status(probed, "/health/readyz") == 503
    assert [status(probed, path) for path in ("/health/livez", "/health/")] == [200, 200]
    told = plain_http.get(f"{probed.url}/health/readyz?verbose").json()
    assert (told["status"], told["pressure"], told["shed"]) == ("not ready", "shedding", {"memory": 1})
    assert told["memory"]["limit"] == "128.0 MiB"
    probed.cgroup.set_limit(ROOMY)
    # from here on nobody asks for anything else
    until(lambda: status(probed, "/health/readyz") == 200)
    assert plain_http.get(f"{probed.url}/health/readyz?verbose").json()["pressure"] != "shedding"
    assert status(probed, "/") == 200


@pytest.mark.parametrize(
    "server",
    [
        uvicorn("health_apps:alone"),
        gunicorn("alone"),
        ("hypercorn", "health_apps:alone", "-b", "127.0.0.1:0"),
    ],
    ids=lambda server: server[0],
)
def test_alone_under_a_server_it_follows_memory(start: StartService, server: tuple[str, ...]) -> None:
    service = start(*server)
    assert plain_http.get(f"{service.url}/readyz").text == "not ready\n"
    assert plain_http.get(f"{service.url}/").text == "ok\n"
    assert plain_http.head(f"{service.url}/readyz").status_code == 503
    service.cgroup.set_limit(ROOMY)
    until(lambda: status(service, "/readyz") == 200)
    service.cgroup.set_limit(FULL)
    until(lambda: status(service, "/readyz") == 503)


# --- a worker that is stuck ---

LEAKY = 256 * MIB


def fill_with_leaks(cgroup: ChildCgroup, server: Server) -> None:
    """Leak until one is refused, then take a part of what is left: what the allocator gives back lets nobody in."""
    for _ in range(2000):
        if plain_http.get(f"{server.url}/leak").status_code == 503:
            break
    cgroup.set_limit(LEAKY - 32 * MIB)
    until(lambda: plain_http.get(server.url).status_code == 503)
    assert plain_http.get(server.url).status_code == 503


def answers(server: Server, path: str = "/") -> str | None:
    """The pid of the worker that answers, ``None`` while none does."""
    try:
        answer = plain_http.get(f"{server.url}{path}", timeout=60)
    except httpx.TransportError:
        return None
    return answer.text if answer.status_code == 200 else None


@pytest.fixture
def cgroup(child_cgroup: MakeCgroup) -> ChildCgroup:
    return child_cgroup(LEAKY)


STUCK = "(on_stuck='stop', stuck_after=1)"


@pytest.mark.parametrize(
    "server",
    [
        gunicorn(f"make_leaking{STUCK}", "-k", "sync"),
        gunicorn(f"make_leaking{STUCK}", "-k", "gthread", "--threads", "2"),
        gunicorn(f"make_leaking_asgi{STUCK}", "-k", "uvicorn_worker.UvicornWorker"),
    ],
    ids=["sync", "gthread", "uvicorn"],
)
def test_a_worker_that_leaked_until_nothing_is_let_in_is_replaced_and_serves_again(
    cgroup: ChildCgroup, server: tuple[str, ...]
) -> None:
    with serve(cgroup, *server, cwd=HERE) as running:
        before = answers(running)
        assert before is not None
        fill_with_leaks(cgroup, running)
        until(lambda: answers(running) not in (None, before))
        after = answers(running)
        assert after not in (None, before)
    assert cgroup.oom_kills() == 0
    assert len([line for line in running.log if "Stuck: " in line and "supervisor" in line]) == 1


def test_without_the_option_it_stays_as_it_is(cgroup: ChildCgroup) -> None:
    with serve(cgroup, *gunicorn("make_leaking(stuck_after=1)"), cwd=HERE) as server:
        before = answers(server)
        fill_with_leaks(cgroup, server)
        until_later = time.monotonic() + 3
        while time.monotonic() < until_later:
            assert answers(server) is None
        cgroup.set_limit(ROOMY)
        until(lambda: answers(server) is not None)
        assert answers(server) == before
    assert not [line for line in server.log if "Stuck: " in line]
