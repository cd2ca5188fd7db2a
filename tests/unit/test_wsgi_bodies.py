"""Bodies under the WSGI adapter and Flask: kept room for, waited for, and cut when they are too large."""

import io
from collections.abc import Callable, Iterable, Iterator
from typing import Any
from wsgiref.util import setup_testing_defaults

import pytest
from flask import Flask, request
from machine import MIB, Service

from resource_monitor.admission import Pressure, Reason
from resource_monitor.middleware import MemoryBackpressure, WSGIMemoryBackpressureMiddleware, bodies, wsgi_input
from resource_monitor.middleware.wsgi_input import PIECE

Environ = dict[str, Any]


class Server:
    """What the server of one request is told, and what was read of the body by the time that the answer was sent."""

    def __init__(self, app: Any, body: bytes, *, chunked: bool = False, method: str = "POST", path: str = "/") -> None:
        self.head, self.sent, self.read_by_then = "", b"", -1
        self.input = io.BytesIO(body)
        environ: Environ = {"REQUEST_METHOD": method, "PATH_INFO": path, "SCRIPT_NAME": "", "wsgi.input": self.input}
        setup_testing_defaults(environ)
        if chunked:
            environ |= {"HTTP_TRANSFER_ENCODING": "chunked", "wsgi.input_terminated": True}
        elif body:
            environ["CONTENT_LENGTH"] = str(len(body))
        response = app(environ, self.start_response)
        try:
            for piece in response:
                self.read_by_then = self.input.tell() if not self.sent else self.read_by_then
                self.sent += piece
        finally:
            getattr(response, "close", lambda: None)()

    def start_response(self, status: str, headers: Any, exc_info: Any = None) -> Any:
        self.head = status
        return lambda data: None


def count(environ: Environ, start_response: Any) -> Iterable[bytes]:
    body = environ["wsgi.input"].read()
    start_response("200 OK", [])
    return [str(len(body)).encode()]


def wrap(app: Any, service: Service, **options: Any) -> WSGIMemoryBackpressureMiddleware:
    return WSGIMemoryBackpressureMiddleware(app, monitor=service.monitor, **options)


# --- too large ---


def test_an_announced_body_that_is_too_large_is_answered_413_unread(service: Service) -> None:
    def app(environ: Environ, start_response: Any) -> Iterable[bytes]:
        raise AssertionError("the app ran")

    middleware = wrap(app, service, max_body="1KiB")
    server = Server(middleware, b"x" * 1025)
    assert server.head == "413 Content Too Large"
    assert (server.read_by_then, server.input.tell()) == (0, 1025)
    statistics = middleware.statistics()
    assert statistics.shed_by_reason == {Reason.TOO_LARGE: 1}
    assert (statistics.pressure, statistics.in_flight) == (Pressure.OK, 0)


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_of_just_max_body_is_taken(service: Service, chunked: bool) -> None:
    server = Server(wrap(count, service, max_body=200_000), b"x" * 200_000, chunked=chunked)
    assert (server.head, server.sent) == ("200 OK", b"200000")


def as_django_does(environ: Environ, start_response: Any) -> Iterable[bytes]:
    """The error is handled by the time that its answer is made."""
    try:
        return count(environ, start_response)
    except Exception:
        status = "500 Internal Server Error"
    start_response(status, [("content-type", "text/html")])
    return [b"<h1>Server error</h1>"]


def late(environ: Environ, start_response: Any) -> Iterator[bytes]:
    start_response("200 OK", [])
    yield b""
    yield environ["wsgi.input"].read()


@pytest.mark.parametrize("app", [count, as_django_does, late])
def test_a_chunked_body_that_turns_out_too_large_is_answered_413(
    service: Service, app: Callable[..., Iterable[bytes]]
) -> None:
    middleware = wrap(app, service, max_body=100_000)
    server = Server(middleware, b"x" * 300_000, chunked=True)
    assert server.head == "413 Content Too Large"
    assert server.read_by_then == 2 * PIECE
    assert server.input.tell() == 300_000
    statistics = middleware.statistics()
    assert (statistics.shed_by_reason, statistics.wasted) == ({Reason.TOO_LARGE: 1}, 0)
    assert (statistics.in_flight, statistics.promised) == (0, 0)


def test_once_the_answer_began_the_error_goes_on_so_that_the_server_closes(service: Service) -> None:
    def app(environ: Environ, start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [])
        yield b"piece"
        environ["wsgi.input"].read()

    with pytest.raises(bodies.BodyTooLarge):
        Server(wrap(app, service, max_body=1), b"xx", chunked=True)


def test_max_body_holds_for_exempt_paths_too(service: Service) -> None:
    middleware = wrap(count, service, max_body=1000)
    assert Server(middleware, b"x" * 2000, path="/healthz").head.startswith("413")
    assert Server(middleware, b"x" * 2000, path="/healthz", chunked=True).head.startswith("413")


# --- no room for the rest ---


def filling(service: Service, app: Callable[..., Iterable[bytes]] = count) -> Callable[..., Iterable[bytes]]:
    """An app that finds memory full once it reads."""

    def fills(environ: Environ, start_response: Any) -> Iterable[bytes]:
        service.fill()
        return app(environ, start_response)

    return fills


@pytest.fixture
def no_delay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wsgi_input, "POLL", 0)


@pytest.mark.usefixtures("no_delay")
@pytest.mark.parametrize("app", [count, as_django_does, late])
@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_for_which_no_room_comes_is_answered_503(
    service: Service, app: Callable[..., Iterable[bytes]], chunked: bool
) -> None:
    middleware = wrap(filling(service, app), service, body_timeout=0.01)
    server = Server(middleware, b"x" * MIB, chunked=chunked)
    assert server.head == "503 Service Unavailable"
    assert (server.read_by_then, server.input.tell()) == (0, MIB)
    statistics = middleware.statistics()
    assert (statistics.shed_by_reason, statistics.wasted) == ({Reason.BODY: 1}, 1)
    assert (statistics.in_flight, statistics.promised) == (0, 0)


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_waits_unread_until_there_is_room(
    service: Service, chunked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def app(environ: Environ, start_response: Any) -> Iterable[bytes]:
        first = environ["wsgi.input"].read(MIB)
        service.fill()
        rest = environ["wsgi.input"].read()
        start_response("200 OK", [])
        return [str(len(first + rest)).encode()]

    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 3:
            service.empty()

    monkeypatch.setattr(wsgi_input.time, "sleep", sleep)
    server = Server(wrap(app, service), b"x" * (4 * MIB), chunked=chunked)
    assert server.sent == str(4 * MIB).encode()
    assert slept == [bodies.POLL] * 3


@pytest.mark.parametrize("chunked", [False, True])
def test_a_dry_run_neither_delays_nor_cuts(service: Service, chunked: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wsgi_input.time, "sleep", lambda seconds: pytest.fail("it waited"))
    middleware = wrap(filling(service), service, dry_run=True, max_body=1000, body_timeout=0)
    assert Server(middleware, b"x" * MIB, chunked=chunked).sent == str(MIB).encode()
    assert middleware.statistics().shed == 1


# --- what is kept for it ---


@pytest.fixture
def nothing_comes_unasked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "_UNASKED", 0)


@pytest.mark.usefixtures("nothing_comes_unasked")
def test_a_body_is_promised_its_length_and_less_as_it_comes(service: Service) -> None:
    promised: list[int] = []

    def app(environ: Environ, start_response: Any) -> Iterable[bytes]:
        for size in (0, 1, MIB, -1):
            environ["wsgi.input"].read(size)
            promised.append(middleware.statistics().promised)
        start_response("200 OK", [])
        return []

    middleware = wrap(app, service)
    Server(middleware, b"x" * (8 * MIB))
    assert promised == [8 * MIB, 8 * MIB - 1, 7 * MIB - 1, 0]


def test_a_body_for_which_there_is_no_room_is_refused_before_it_is_read(service: Service) -> None:
    middleware = wrap(count, service)
    service.use(200 * MIB)
    assert Server(middleware, b"x").head == "200 OK"
    environ = {"REQUEST_METHOD": "POST", "PATH_INFO": "/", "CONTENT_LENGTH": str(100 * MIB), "wsgi.input": io.BytesIO()}
    started: list[str] = []
    middleware(environ, lambda status, headers: started.append(status))
    assert started == ["503 Service Unavailable"]


@pytest.mark.usefixtures("nothing_comes_unasked")
def test_a_chunked_body_is_promised_more_the_more_of_it_came(service: Service) -> None:
    promised: list[int] = []

    def app(environ: Environ, start_response: Any) -> Iterable[bytes]:
        while environ["wsgi.input"].read(MIB):
            promised.append(middleware.statistics().promised)
        promised.append(middleware.statistics().promised)
        start_response("200 OK", [])
        return []

    middleware = wrap(app, service)
    Server(middleware, b"x" * (3 * MIB), chunked=True)
    assert promised == [MIB, 2 * MIB, 3 * MIB, 0]


def test_a_body_that_nobody_reads_is_promised_nothing_once_its_request_is_over(service: Service) -> None:
    def app(environ: Environ, start_response: Any) -> Iterable[bytes]:
        start_response("200 OK", [])
        return []

    middleware = wrap(app, service)
    assert Server(middleware, b"x" * MIB).input.tell() == 0, "the server knows what to do with it"
    assert middleware.statistics().promised == 0


def test_without_a_body_the_input_is_the_servers_own(service: Service) -> None:
    got: list[object] = []

    def app(environ: Environ, start_response: Any) -> Iterable[bytes]:
        got.append(environ["wsgi.input"])
        start_response("200 OK", [])
        return []

    server = Server(wrap(app, service), b"")
    assert got == [server.input]


# --- Flask ---


@pytest.fixture
def shop() -> Flask:
    app = Flask("shop")
    app.add_url_rule("/", "count", lambda: str(len(request.get_data())), methods=["POST"])
    return app


@pytest.mark.parametrize("config", [{}, {"TESTING": True}, {"DEBUG": True}])
@pytest.mark.parametrize("chunked", [False, True])
def test_flask_answers_413(
    shop: Flask, service: Service, config: dict[str, bool], chunked: bool, caplog: pytest.LogCaptureFixture
) -> None:
    shop.config.update(config)
    MemoryBackpressure(shop, max_body=100_000, monitor=service.monitor)
    server = Server(shop, b"x" * 200_000, chunked=chunked)
    assert server.head.lower() == "413 content too large"
    assert server.input.tell() == 200_000
    assert MemoryBackpressure.statistics(shop).wasted == 0
    assert caplog.messages == []


@pytest.mark.usefixtures("no_delay")
def test_flask_answers_503_when_no_room_comes(shop: Flask, service: Service) -> None:
    shop.before_request(service.fill)
    MemoryBackpressure(shop, body_timeout=0.01, monitor=service.monitor)
    server = Server(shop, b"x" * 200_000)
    assert server.head.lower() == "503 service unavailable"
    assert server.input.tell() == 200_000
    assert MemoryBackpressure.statistics(shop).wasted == 1


@pytest.mark.parametrize("early", [False, True])
def test_a_users_own_handler_wins(shop: Flask, service: Service, early: bool) -> None:
    if early:
        shop.register_error_handler(bodies.BodyTooLarge, lambda error: ("less, please", 418))
    MemoryBackpressure(shop, max_body=100_000, monitor=service.monitor)
    if not early:
        shop.register_error_handler(bodies.BodyTooLarge, lambda error: ("less, please", 418))
    server = Server(shop, b"x" * 200_000, chunked=True)
    assert server.sent == b"less, please"
    assert server.input.tell() == 200_000


def test_the_body_of_a_request_that_flask_lost_to_memory_is_read_to_its_end(shop: Flask, service: Service) -> None:
    """By the allocation guard, in the middle of reading."""

    def loses() -> None:
        request.environ["wsgi.input"].read(10)
        raise MemoryError

    shop.before_request(loses)
    MemoryBackpressure(shop, monitor=service.monitor)
    server = Server(shop, b"x" * 200_000)
    assert server.head.lower() == "503 service unavailable"
    assert (server.read_by_then, server.input.tell()) == (10, 200_000)
