"""Requests that run out of memory under the WSGI adapter and Flask: 503 as long as nothing was answered."""

import gc
import logging
import sys
from collections.abc import Iterable, Iterator
from typing import Any
from wsgiref.util import setup_testing_defaults

import pytest
from flask import Flask
from held import held, take
from machine import MIB, Service

from resource_monitor import reserve
from resource_monitor.middleware import MemoryBackpressure, WSGIMemoryBackpressureMiddleware, readings, wsgi

Environ = dict[str, Any]


@pytest.fixture(autouse=True)
def _no_real_guard(monkeypatch: pytest.MonkeyPatch) -> None:
    """The process that runs the tests is spared the guard; the apps raise what it would make CPython raise."""
    monkeypatch.setattr(readings, "ensure_installed", lambda monitor: None)


class Refusals:
    """Counts as the guard does on this thread."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self) -> int:
        return self.count

    def refuse(self) -> Any:
        self.count += 1
        raise MemoryError


@pytest.fixture
def guard(monkeypatch: pytest.MonkeyPatch) -> Refusals:
    refusals = Refusals()
    monkeypatch.setattr(wsgi, "thread_refusals", refusals)
    return refusals


def wrap(app: Any, service: Service) -> WSGIMemoryBackpressureMiddleware:
    return WSGIMemoryBackpressureMiddleware(app, monitor=service.monitor, allocation_guard=True)


class Server:
    """The server's side of PEP 3333: sends the head with the first piece of the body."""

    def __init__(self) -> None:
        self.head: str | None = None
        self.sent: list[bytes] = []

    def start_response(self, status: str, headers: Any, exc_info: Any = None) -> Any:
        assert self.head is None or exc_info, "start_response may be called again to replace an answer alone"
        if exc_info and self.sent:
            raise exc_info[1]
        self.head = status
        return self.sent.append

    def serve(self, app: Any, method: str = "GET") -> "Server":
        environ: Environ = {}
        setup_testing_defaults(environ)
        response = app({**environ, "REQUEST_METHOD": method}, self.start_response)
        try:
            for piece in response:
                assert self.head
                if piece:
                    self.sent.append(piece)
        finally:
            getattr(response, "close", lambda: None)()
        return self


def check_503(app: Any, service: Service) -> None:
    middleware = wrap(app, service)
    server = Server().serve(middleware)
    assert server.head == "503 Service Unavailable"
    assert b"".join(server.sent).startswith(b'{"')
    statistics = middleware.statistics()
    assert (statistics.wasted, statistics.in_flight) == (1, 0)
    assert Server().serve(middleware, "HEAD").sent == []


def test_a_memory_error_before_the_response_is_answered_503(service: Service) -> None:
    def app(environ: Environ, start_response: Any) -> Iterable[bytes]:
        raise MemoryError

    check_503(app, service)


def test_in_a_dry_run_it_is_the_servers_and_counts(service: Service) -> None:
    def app(environ: Environ, start_response: Any) -> Iterable[bytes]:
        raise MemoryError

    middleware = WSGIMemoryBackpressureMiddleware(app, monitor=service.monitor, dry_run=True)
    for _ in range(9):  # of which the last start under a grant
        with pytest.raises(MemoryError):
            Server().serve(middleware)
    statistics = middleware.statistics()
    assert (statistics.admitted, statistics.wasted, statistics.in_flight) == (9, 9, 0)


def test_a_reservation_that_does_not_fit_is_answered_503(service: Service) -> None:
    def app(environ: Environ, start_response: Any) -> Iterable[bytes]:
        with reserve(250 * MIB, monitor=service.monitor):
            raise AssertionError("there was no room")

    check_503(app, service)


@pytest.mark.parametrize("pieces", [[], [b""], [b"", b""]])
def test_a_generator_that_fails_before_its_first_byte_is_answered_503(service: Service, pieces: list[bytes]) -> None:
    def app(environ: Environ, start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [])
        yield from pieces
        raise MemoryError

    check_503(app, service)


def test_an_answer_that_was_begun_but_not_sent_is_replaced(service: Service) -> None:
    def app(environ: Environ, start_response: Any) -> Iterable[bytes]:
        start_response("200 OK", [])
        raise MemoryError

    check_503(app, service)


def test_a_frameworks_500_for_it_is_replaced(service: Service, guard: Refusals) -> None:
    """As Django does: the error is handled by the time that the answer is made."""

    def app(environ: Environ, start_response: Any) -> Iterable[bytes]:
        try:
            return [guard.refuse()]
        except Exception:
            status = "500 Internal Server Error"
        start_response(status, [("content-type", "text/html")])
        return [b"<h1>Server error</h1>"]

    check_503(app, service)


def test_a_500_given_with_the_memory_error_is_replaced(service: Service) -> None:
    def app(environ: Environ, start_response: Any) -> Iterable[bytes]:
        start_response("200 OK", [])
        try:
            raise MemoryError
        except MemoryError:
            start_response("500 Internal Server Error", [], sys.exc_info())(b"sorry")
        return [b"sorry"]

    check_503(app, service)


def test_a_request_is_lost_once_however_often_it_says_so(service: Service, guard: Refusals) -> None:
    def app(environ: Environ, start_response: Any) -> Iterator[bytes]:
        try:
            guard.refuse()
        except MemoryError:
            start_response("500 Internal Server Error", [])
        yield guard.refuse()

    check_503(app, service)


def test_a_500_for_another_reason_stays_a_500(service: Service, guard: Refusals) -> None:
    def app(environ: Environ, start_response: Any) -> Iterable[bytes]:
        start_response("500 Internal Server Error", [])
        return [b"sorry"]

    guard.count = 7  # refused to earlier requests
    middleware = wrap(app, service)
    server = Server().serve(middleware)
    assert (server.head, server.sent) == ("500 Internal Server Error", [b"sorry"])
    assert middleware.statistics().wasted == 0


@pytest.mark.parametrize("way", ["yield", "write"])
def test_once_the_body_began_the_error_goes_on_so_that_the_server_closes(service: Service, way: str) -> None:
    def app(environ: Environ, start_response: Any) -> Iterator[bytes]:
        write = start_response("200 OK", [])
        if way == "write":
            write(b"piece")
        else:
            yield b"piece"
        raise MemoryError

    middleware = wrap(app, service)
    server = Server()
    with pytest.raises(MemoryError):
        server.serve(middleware)
    assert (server.head, server.sent) == ("200 OK", [b"piece"])
    assert (middleware.statistics().wasted, middleware.statistics().in_flight) == (1, 0)


def test_other_errors_go_on_to_the_server(service: Service) -> None:
    def app(environ: Environ, start_response: Any) -> Iterable[bytes]:
        raise KeyError("a bug")

    middleware = wrap(app, service)
    with pytest.raises(KeyError):
        Server().serve(middleware)
    assert (middleware.statistics().wasted, middleware.statistics().in_flight) == (0, 0)


@pytest.fixture
def no_garbage_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_garbage_collector")
@pytest.mark.parametrize("answered", [False, True])
def test_the_next_request_finds_free_what_the_lost_one_held(service: Service, answered: bool) -> None:
    held.clear()

    def app(environ: Environ, start_response: Any) -> Iterable[bytes]:
        try:
            take()
        except MemoryError as error:
            if not answered:
                raise RuntimeError("the framework wraps what goes wrong") from error
            start_response("500 Internal Server Error", [])
        return [b"the framework's page"]

    middleware = wrap(app, service)
    response = middleware({"REQUEST_METHOD": "GET", "PATH_INFO": "/"}, Server().start_response)
    assert held[0]() is None
    response.close()  # type: ignore[attr-defined]


@pytest.mark.usefixtures("no_garbage_collector")
def test_flask_lets_go_of_what_the_lost_request_held(shop: Flask) -> None:
    held.clear()
    shop.add_url_rule("/take", "take", take)
    with shop.test_client() as client:
        assert client.get("/take").status_code == 503
    assert held[0]() is None


# --- Flask ---


@pytest.fixture
def shop(service: Service) -> Flask:
    app = Flask("shop")

    @app.route("/lost")
    def lost() -> str:
        raise MemoryError

    @app.route("/reserved")
    def reserved() -> str:
        with reserve("1GiB", monitor=service.monitor):
            raise AssertionError("there was no room")

    @app.route("/bug")
    def bug() -> str:
        raise KeyError("a bug")

    MemoryBackpressure(app, monitor=service.monitor, allocation_guard=True)
    return app


@pytest.mark.parametrize("path", ["/lost", "/reserved"])
@pytest.mark.parametrize("config", [{}, {"TESTING": True}, {"PROPAGATE_EXCEPTIONS": True}, {"DEBUG": True}])
def test_flask_answers_503_and_logs_no_traceback(
    shop: Flask, path: str, config: dict[str, bool], caplog: pytest.LogCaptureFixture
) -> None:
    shop.config.update(config)
    with caplog.at_level(logging.WARNING), shop.test_client() as client:
        response = client.get(path)
        response.close()
    assert response.status_code == 503
    assert response.mimetype == "application/problem+json"
    assert int(response.headers["retry-after"]) in (1, 2)
    assert caplog.messages == []
    assert MemoryBackpressure.statistics(shop).wasted == 1
    assert MemoryBackpressure.statistics(shop).in_flight == 0


def test_in_a_dry_run_flask_answers_as_it_would(service: Service, caplog: pytest.LogCaptureFixture) -> None:
    app = Flask("shop")
    MemoryBackpressure(app, monitor=service.monitor, dry_run=True)

    @app.route("/lost")
    def lost() -> str:
        raise MemoryError

    with app.test_client() as client:
        response = client.get("/lost")
        response.close()
    assert (response.status_code, response.mimetype) == (500, "text/html")
    assert "Exception on /lost" in caplog.text
    assert MemoryBackpressure.statistics(app).wasted == 1


def test_flasks_500_for_a_bug_is_its_own(shop: Flask) -> None:
    assert shop.test_client().get("/bug").status_code == 500
    assert MemoryBackpressure.statistics(shop).wasted == 0


def test_a_users_own_handler_wins(shop: Flask) -> None:
    shop.register_error_handler(MemoryError, lambda error: ("too large for us", 413))
    response = shop.test_client().get("/lost")
    assert (response.status_code, response.text) == (413, "too large for us")


def test_a_users_own_handler_that_was_there_first_wins_too(service: Service) -> None:
    app = Flask("shop")
    app.add_url_rule("/lost", "lost", lambda: (_ for _ in ()).throw(MemoryError))
    app.register_error_handler(MemoryError, lambda error: ("too large for us", 413))
    MemoryBackpressure(app, monitor=service.monitor, allocation_guard=True)
    assert app.test_client().get("/lost").status_code == 413


def test_what_fails_outside_of_the_view_is_answered_503_as_well(shop: Flask) -> None:
    @shop.teardown_request
    def teardown(error: BaseException | None) -> None:
        raise MemoryError

    assert Server().serve(shop).head == "503 Service Unavailable"
    assert MemoryBackpressure.statistics(shop).in_flight == 0
