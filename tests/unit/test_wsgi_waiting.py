"""Requests that wait for room on the threads of a WSGI server."""

import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from machine import MIB, Service

from resource_monitor.admission import Priority, Reason
from resource_monitor.middleware import WSGIMemoryBackpressureMiddleware, waiting, wsgi_waiting

LONG = 60.0
"""Seconds that no test lasts, so that what waits for so long is woken or refused for another reason."""

Environ = dict[str, Any]


def hello(environ: Environ, start_response: Any) -> Iterable[bytes]:
    start_response("200 OK", [])
    return [b"hello"]


def wrap(service: Service, **options: Any) -> WSGIMemoryBackpressureMiddleware:
    return WSGIMemoryBackpressureMiddleware(hello, monitor=service.monitor, **{"max_wait": LONG, **options})


def request(middleware: Any, path: str = "/", **more: str) -> tuple[str, Any]:
    """Status and response, which is in flight until it is closed."""
    started: list[str] = []
    environ = {"REQUEST_METHOD": "GET", "PATH_INFO": path, **more}
    response = middleware(environ, lambda status, headers: started.append(status))
    return started[0], response


def finish(response: Any) -> None:
    getattr(response, "close", lambda: None)()


class Client(threading.Thread):
    """A request on a thread of its own, from its beginning to its end."""

    def __init__(self, middleware: Any, path: str = "/", done: list[str] | None = None, **more: str) -> None:
        super().__init__(daemon=True)
        self.status: str | None = None
        self._do = lambda: request(middleware, path, **more)
        self._done = done
        self._name = more.get("name", path)
        self.start()

    def run(self) -> None:
        self.status, response = self._do()
        if self._done is not None:
            self._done.append(self._name)
        finish(response)

    def result(self) -> str | None:
        self.join(LONG / 2)
        return self.status


def wait_for(condition: Callable[[], bool]) -> None:
    for _ in range(3000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("it never came true")


@contextmanager
def waits(middleware: WSGIMemoryBackpressureMiddleware, path: str = "/", **more: Any) -> Iterator[Client]:
    """One more client, which is seen to wait."""
    before = middleware.statistics().waiting
    client = Client(middleware, path, **more)
    wait_for(lambda: middleware.statistics().waiting == before + 1)
    yield client


def test_a_request_waits_until_another_is_over(service: Service) -> None:
    middleware = wrap(service, max_in_flight=1)
    _, first = request(middleware)
    with waits(middleware) as client:
        finish(first)
        assert client.result() == "200 OK"
    statistics = middleware.statistics()
    assert (statistics.waiting, statistics.in_flight, statistics.shed) == (0, 0, 0)


def test_a_request_that_fails_wakes_others_as_well(service: Service) -> None:
    middleware = wrap(service, max_in_flight=1)
    client: list[Client] = []

    def fails(environ: Environ, start_response: Any) -> Iterable[bytes]:
        with waits(middleware) as waiter:
            client.append(waiter)
            middleware.app = hello
        raise KeyError("a bug")

    middleware.app = fails
    with pytest.raises(KeyError):
        request(middleware)
    assert client[0].result() == "200 OK"


def test_memory_that_others_free_is_found(service: Service) -> None:
    middleware = wrap(service)
    service.fill()
    with waits(middleware) as client:
        service.empty()
        assert client.result() == "200 OK"


def test_who_waited_long_enough_is_refused_for_the_reason_of_the_last_look(service: Service) -> None:
    middleware = wrap(service, max_wait=0.05)
    service.fill()
    assert request(middleware)[0].startswith("503")
    statistics = middleware.statistics()
    assert (statistics.waiting, statistics.shed_by_reason) == (0, {Reason.MEMORY: 1})


def test_without_max_wait_nobody_waits(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wsgi_waiting, "_Thread", None)
    service.fill()
    assert request(wrap(service, max_wait=0))[0].startswith("503")


def test_the_first_requests_of_a_class_wait_for_each_other_all_the_same(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting, "_COLD_START_WAIT", LONG)
    middleware = wrap(service, max_wait=0)
    first = [request(middleware) for _ in range(18)]
    with waits(middleware) as client:
        finish(first.pop()[1])
        assert client.result() == "200 OK"
    for _, response in first:
        finish(response)


def test_first_come_first_served(service: Service) -> None:
    middleware = wrap(service, max_in_flight=2)
    done: list[str] = []
    running = [request(middleware)[1] for _ in range(2)]
    with (
        waits(middleware, done=done, name="first") as first,
        waits(middleware, done=done, name="second") as second,
        waits(middleware, done=done, name="third") as third,
    ):
        finish(running.pop())
        assert [client.result() for client in (first, second, third)] == ["200 OK"] * 3
    assert done == ["first", "second", "third"]
    finish(running.pop())


def test_the_urgent_go_first(service: Service) -> None:
    middleware = wrap(service, max_in_flight=1, priority=lambda environ: Priority(environ["name"]))
    done: list[str] = []
    _, running = request(middleware, name="default")
    with (
        waits(middleware, done=done, name="default") as usual,
        waits(middleware, done=done, name="critical") as urgent,
    ):
        finish(running)
        assert (usual.result(), urgent.result()) == ("200 OK", "200 OK")
    assert done == ["critical", "default"]


def test_a_newcomer_does_not_pass_those_who_wait(service: Service) -> None:
    middleware = wrap(service, request_cost=lambda environ: 1000 * MIB if environ["name"] == "heavy" else 0)
    _, running = request(middleware, "/other", name="light")
    with waits(middleware, name="heavy") as first, waits(middleware, name="light") as second:
        service.use(32 * MIB, limit=4096 * MIB)
        assert (first.result(), second.result()) == ("200 OK", "200 OK")
    finish(running)


def test_light_requests_do_not_wait_for_heavy_ones(service: Service) -> None:
    middleware = wrap(service, request_cost=lambda environ: 1000 * MIB if environ["PATH_INFO"] == "/heavy" else 0)
    with waits(middleware, "/heavy") as heavy:
        status, response = request(middleware, "/light")
        assert (status, heavy.status) == ("200 OK", None)
        finish(response)
        service.use(32 * MIB, limit=4096 * MIB)
        assert heavy.result() == "200 OK"


def test_no_more_wait_than_are_at_work_and_one(service: Service) -> None:
    """Or a pool of threads could end with all of them waiting, and none to answer a liveness probe."""
    middleware = wrap(service, max_in_flight=1)
    _, running = request(middleware)
    with waits(middleware) as first, waits(middleware) as second:
        assert request(middleware)[0].startswith("503")
        finish(running)
        assert (first.result(), second.result()) == ("200 OK", "200 OK")


def test_liveness_passes_those_who_wait(service: Service) -> None:
    middleware = wrap(service, max_in_flight=1, exempt=lambda path: path == "/shop/7")
    _, running = request(middleware, "/shop/1")
    with waits(middleware, "/shop/2") as client:
        status, response = request(middleware, "/shop/7")
        assert status == "200 OK"
        finish(response)
        finish(running)
        assert client.result() == "200 OK"


def test_a_dry_run_does_not_wait(service: Service) -> None:
    middleware = wrap(service, dry_run=True)
    service.fill()
    status, response = request(middleware)
    assert (status, middleware.statistics().shed) == ("200 OK", 1)
    finish(response)


@pytest.mark.parametrize("too_late", [False, True])
def test_a_server_that_stops_interrupts_the_wait(
    service: Service, too_late: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As gunicorn does from its signal handlers; also when the request was let in in the same moment."""
    middleware = wrap(service)
    service.fill()

    def wait(event: threading.Event, timeout: float) -> bool:
        assert middleware.statistics().waiting == 1
        if too_late:
            service.empty()
            middleware._threads.serve()
            assert middleware.statistics().in_flight == 1
        raise SystemExit

    monkeypatch.setattr(threading.Event, "wait", wait)
    with pytest.raises(SystemExit):
        request(middleware)
    assert (middleware.statistics().waiting, middleware.statistics().in_flight) == (0, 0)


def test_no_memory_to_look_for_memory_keeps_nobody_waiting(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    middleware = wrap(service, max_wait=0.05)
    service.fill()
    attempt = middleware.gate.attempt
    asked: list[object] = []

    def fails_later(ask: Any) -> Any:
        asked.append(ask)
        if len(asked) > 1:
            raise MemoryError
        return attempt(ask)

    monkeypatch.setattr(middleware.gate, "attempt", fails_later)
    assert request(middleware)[0].startswith("503")


def test_in_a_child_process_nobody_waits(service: Service) -> None:
    middleware = wrap(service, max_in_flight=1)
    _, running = request(middleware)
    with waits(middleware) as client:
        child = os.fork()
        if child == 0:
            status, response = request(middleware)
            finish(response)
            os._exit(middleware.statistics().waiting if status == "200 OK" else 99)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        finish(running)
        assert client.result() == "200 OK"
