import io
from collections.abc import Iterable, Iterator
from typing import Any
from wsgiref.util import FileWrapper
from wsgiref.validate import validator

import pytest
from machine import MIB, Service

from resource_monitor.middleware import WSGIMemoryBackpressureMiddleware, wsgi_input

Environ = dict[str, Any]


class Started:
    """The server's side of ``start_response``."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, list[tuple[str, str]]]] = []

    def __call__(self, status: str, headers: list[tuple[str, str]], exc_info: object = None) -> Any:
        self.calls.append((status, headers))
        return lambda data: None


class Input(io.BytesIO):
    """A request body that remembers how much was asked for at a time."""

    def __init__(self, data: bytes = b"") -> None:
        super().__init__(data)
        self.asked: list[int] = []

    def read(self, size: int | None = -1) -> bytes:
        assert size is not None
        assert size > 0, "an unbounded read waits for a client that keeps the connection open"
        self.asked.append(size)
        return super().read(size)


def environ(method: str = "GET", body: bytes = b"", **more: Any) -> Environ:
    return {"REQUEST_METHOD": method, "PATH_INFO": "/", "SCRIPT_NAME": "", "wsgi.input": Input(body), **more}


def hello(environ: Environ, start_response: Any) -> Iterable[bytes]:
    start_response("200 OK", [("content-type", "text/plain")])
    return [b"hello"]


def wrap(app: Any, service: Service) -> WSGIMemoryBackpressureMiddleware:
    return WSGIMemoryBackpressureMiddleware(app, monitor=service.monitor)


@pytest.fixture
def middleware(service: Service) -> WSGIMemoryBackpressureMiddleware:
    return wrap(hello, service)


def close(response: Iterable[bytes]) -> None:
    response.close()  # type: ignore[attr-defined]


# --- admitted ---


def test_with_room_the_app_answers(middleware: WSGIMemoryBackpressureMiddleware) -> None:
    started = Started()
    response = middleware(environ(), started)
    assert started.calls == [("200 OK", [("content-type", "text/plain")])]
    assert list(response) == [b"hello"]
    assert middleware.statistics().in_flight == 1
    close(response)
    assert middleware.statistics().in_flight == 0
    assert middleware.statistics().admitted == 1


def test_the_app_gets_the_servers_environ_and_its_answer_passes_untouched(service: Service) -> None:
    got: list[object] = []
    headers = [("content-type", "text/plain")]

    def app(environ: Environ, start_response: Any) -> list[bytes]:
        got.append(environ)
        start_response("418 I'm a teapot", headers)
        return [b"short", b"", b"stout"]

    def start_response(*arguments: Any) -> None:
        got.extend(arguments)

    given = environ()
    response = wrap(app, service)(given, start_response)
    assert list(response) == [b"short", b"", b"stout"]
    close(response)
    assert got[0] is given
    assert got[1:] == ["418 I'm a teapot", headers]
    assert got[2] is headers


def test_an_app_that_raises_is_no_longer_in_flight(service: Service) -> None:
    def app(environ: Environ, start_response: Any) -> list[bytes]:
        raise SystemExit

    middleware = wrap(app, service)
    with pytest.raises(SystemExit):
        middleware(environ(), Started())
    assert middleware.statistics().in_flight == 0


def test_a_response_closed_without_being_read_is_no_longer_in_flight(
    middleware: WSGIMemoryBackpressureMiddleware,
) -> None:
    close(middleware(environ(), Started()))
    assert middleware.statistics().in_flight == 0


class Closing:
    """A response with a ``close`` of its own."""

    def __init__(self, failure: Exception | None = None) -> None:
        self.closed = 0
        self.failure = failure

    def __iter__(self) -> Iterator[bytes]:
        yield b"piece"

    def close(self) -> None:
        self.closed += 1
        if self.failure:
            raise self.failure


def test_closing_twice_closes_and_lets_go_once(service: Service) -> None:
    body = Closing()
    middleware = wrap(lambda environ, start_response: body, service)
    other = middleware(environ(), Started())
    response = middleware(environ(), Started())
    close(response)
    close(response)
    assert body.closed == 1
    assert middleware.statistics().in_flight == 1
    close(other)
    assert middleware.statistics().in_flight == 0


def test_a_close_that_fails_lets_go_all_the_same(service: Service) -> None:
    body = Closing(OSError("gone"))
    middleware = wrap(lambda environ, start_response: body, service)
    with pytest.raises(OSError, match="gone"):
        close(middleware(environ(), Started()))
    assert middleware.statistics().in_flight == 0


def test_a_generator_is_closed_where_it_stands(service: Service) -> None:
    ended: list[str] = []

    def app(environ: Environ, start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [])
        try:
            yield b"one"
            yield b"two"
        finally:
            ended.append("closed")

    middleware = wrap(app, service)
    response = middleware(environ(), Started())
    assert next(iter(response)) == b"one"
    close(response)
    assert ended == ["closed"]
    assert middleware.statistics().in_flight == 0


def test_a_response_that_fails_while_it_is_read_lets_go_on_close(service: Service) -> None:
    def app(environ: Environ, start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [])
        yield b"one"
        raise RuntimeError("boom")

    middleware = wrap(app, service)
    response = middleware(environ(), Started())
    with pytest.raises(RuntimeError, match="boom"):
        list(response)
    close(response)
    assert middleware.statistics().in_flight == 0


# --- refused ---


def test_without_room_503_is_answered_before_the_app_runs(service: Service) -> None:
    def app(environ: Environ, start_response: Any) -> list[bytes]:
        raise AssertionError("the app ran")

    middleware = wrap(app, service)
    service.fill()
    started = Started()
    body = b"".join(middleware(environ("POST"), started))
    [(status, headers)] = started.calls
    assert status == "503 Service Unavailable"
    found = dict(headers)
    assert found.pop("retry-after") in ("1", "2")
    assert found == {
        "content-type": "application/problem+json",
        "content-length": str(len(body)),
        "cache-control": "no-store",
        "vary": "accept",
    }
    assert middleware.statistics().shed == 1
    assert middleware.statistics().in_flight == 0


def test_head_is_refused_without_a_body(middleware: WSGIMemoryBackpressureMiddleware, service: Service) -> None:
    """But with a piece: hypercorn sends the head with the first one, and without any answers 500."""
    service.fill()
    started = Started()
    assert list(middleware(environ("HEAD"), started)) == [b""]
    assert int(dict(started.calls[0][1])["content-length"]) > 0


def refuse(middleware: WSGIMemoryBackpressureMiddleware, service: Service, given: Environ) -> Input:
    service.fill()
    started = Started()
    response = middleware(given, started)
    list(response)
    getattr(response, "close", lambda: None)()
    assert started.calls[0][0].startswith("503")
    body = given["wsgi.input"]
    assert isinstance(body, Input)
    return body


def test_an_announced_body_is_read_and_dropped(middleware: WSGIMemoryBackpressureMiddleware, service: Service) -> None:
    given = environ("POST", b"x" * 200_000 + b"next request", CONTENT_LENGTH="200000")
    body = refuse(middleware, service, given)
    assert body.tell() == 200_000
    assert max(body.asked) <= 65536


@pytest.mark.parametrize("method", ["POST", "HEAD"])
def test_the_answer_is_sent_before_the_body_is_read(
    middleware: WSGIMemoryBackpressureMiddleware, service: Service, method: str
) -> None:
    """A client that looks for it stops to send."""
    given = environ(method, b"x" * 1000 + b"next request", CONTENT_LENGTH="1000")
    service.fill()
    response = middleware(given, Started())
    pieces = iter(response)
    assert bool(next(pieces)) == (method == "POST")
    assert given["wsgi.input"].asked == []
    assert next(pieces, None) is None
    # a server that was given nothing to send sends the head now
    assert bool(given["wsgi.input"].asked) == (method == "POST")
    close(response)
    assert given["wsgi.input"].tell() == 1000


def test_a_server_that_reads_the_rest_itself_before_it_closes_finds_nothing(
    middleware: WSGIMemoryBackpressureMiddleware, service: Service
) -> None:
    """As Werkzeug's does, 10 MB at once, for which there is no memory."""
    given = environ("POST", b"x" * 1000, CONTENT_LENGTH="1000")
    service.fill()
    list(middleware(given, Started()))
    assert given["wsgi.input"].tell() == 1000


def test_a_client_that_waits_for_a_100_gets_none_behind_the_answer(
    middleware: WSGIMemoryBackpressureMiddleware, service: Service
) -> None:
    """gevent's server sends it when the body is first read."""
    given = environ("POST", b"x" * 1000, CONTENT_LENGTH="1000", HTTP_EXPECT="100-continue")
    service.fill()
    started = Started()

    def start_response(*arguments: Any) -> Any:
        assert given["wsgi.input"].tell() == 1000
        return started(*arguments)

    assert isinstance(middleware(given, start_response), list)
    assert started.calls[0][0].startswith("503")


class Endless(Input):
    """A client that never ends to send."""

    def read(self, size: int | None = -1) -> bytes:
        assert size is not None
        self.asked.append(size)
        return bytes(size)


@pytest.mark.parametrize("headers", [{"CONTENT_LENGTH": "9" * 30}, {"HTTP_TRANSFER_ENCODING": "chunked"}])
def test_no_more_than_so_much_is_read(
    middleware: WSGIMemoryBackpressureMiddleware, service: Service, headers: dict[str, str]
) -> None:
    given = environ("POST", **headers)
    given["wsgi.input"] = Endless()
    assert sum(refuse(middleware, service, given).asked) == 64 * MIB


def test_no_longer_than_so_long_is_read(
    middleware: WSGIMemoryBackpressureMiddleware, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wsgi_input, "_LINGER_SECONDS", 0)
    given = environ("POST", CONTENT_LENGTH="1000000")
    given["wsgi.input"] = Endless()
    assert len(refuse(middleware, service, given).asked) == 1


def test_a_chunked_body_is_read_to_its_end(middleware: WSGIMemoryBackpressureMiddleware, service: Service) -> None:
    given = environ("POST", b"x" * 100_000, HTTP_TRANSFER_ENCODING="Chunked")
    body = refuse(middleware, service, given)
    assert body.tell() == 100_000
    assert len(body.asked) == 3


def test_a_client_that_stops_is_not_waited_for(middleware: WSGIMemoryBackpressureMiddleware, service: Service) -> None:
    given = environ("POST", b"x" * 1000, CONTENT_LENGTH="200000")
    body = refuse(middleware, service, given)
    assert body.tell() == 1000
    assert len(body.asked) == 2


def test_a_client_that_is_gone_is_no_error(middleware: WSGIMemoryBackpressureMiddleware, service: Service) -> None:
    class Broken(Input):
        def read(self, size: int | None = -1) -> bytes:
            raise ConnectionResetError

    given = environ("POST", CONTENT_LENGTH="5")
    given["wsgi.input"] = Broken()
    refuse(middleware, service, given)


@pytest.mark.parametrize("length", ["", "nonsense", "-5", "0", "²", "١٢"])
def test_nothing_is_read_of_a_body_that_was_not_announced(
    middleware: WSGIMemoryBackpressureMiddleware, service: Service, length: str
) -> None:
    assert refuse(middleware, service, environ("POST", b"other data", CONTENT_LENGTH=length)).asked == []


def test_a_server_without_an_input_is_no_error(middleware: WSGIMemoryBackpressureMiddleware, service: Service) -> None:
    service.fill()
    assert list(middleware({"REQUEST_METHOD": "GET"}, Started()))


def test_an_exempt_path_may_be_written_with_its_mount_point(service: Service) -> None:
    middleware = WSGIMemoryBackpressureMiddleware(hello, exempt=["/mnt/live"], monitor=service.monitor)
    service.fill()
    started = Started()
    close(middleware(environ(PATH_INFO="/live", SCRIPT_NAME="/mnt"), started))
    assert started.calls[0][0] == "200 OK"


def test_liveness_passes_below_any_mount_point(middleware: WSGIMemoryBackpressureMiddleware, service: Service) -> None:
    service.fill()
    started = Started()
    close(middleware(environ(PATH_INFO="/livez", SCRIPT_NAME="/mnt"), started))
    assert started.calls[0][0] == "200 OK"
    assert middleware.statistics().exempt == 1
    assert middleware.statistics().in_flight == 0


@pytest.mark.parametrize("path", ["/größe".encode().decode("latin-1"), "/größe", "/grö€e"])
def test_paths_are_texts_to_us_and_what_is_none_is_left_alone(service: Service, path: str) -> None:
    middleware = WSGIMemoryBackpressureMiddleware(hello, exempt=["/größe", "/grö€e"], monitor=service.monitor)
    service.fill()
    started = Started()
    close(middleware(environ(PATH_INFO=path), started))
    assert started.calls[0][0] == "200 OK"


# --- what servers can do with an answer, they still can ---


@pytest.mark.parametrize("pieces", [[], [b"one"], (b"one", b"two")])
def test_servers_see_the_length_of_an_answer_that_has_one(service: Service, pieces: list[bytes]) -> None:
    """Of one piece they know the content-length."""
    middleware = wrap(lambda environ, start_response: pieces, service)
    response = middleware(environ(), Started())
    assert len(response) == len(pieces)  # type: ignore[arg-type]
    assert list(response) == list(pieces)
    close(response)
    assert middleware.statistics().in_flight == 0


def test_an_answer_without_length_has_none(service: Service) -> None:
    response = wrap(lambda environ, start_response: iter([b"one"]), service)(environ(), Started())
    assert not hasattr(response, "__len__")
    close(response)


def send_file(environ: Environ, start_response: Any) -> Iterable[bytes]:
    start_response("200 OK", [])
    wrapped: Iterable[bytes] = environ["wsgi.file_wrapper"](environ["file"])
    return wrapped


def test_a_server_gets_its_own_file_wrapper_back_to_send_the_file_itself(service: Service) -> None:
    middleware = wrap(send_file, service)
    other = middleware(environ(**{"wsgi.file_wrapper": FileWrapper, "file": io.BytesIO()}), Started())
    file = io.BytesIO(b"content")
    response = middleware(environ(**{"wsgi.file_wrapper": FileWrapper, "file": file}), Started())
    assert type(response) is FileWrapper
    assert middleware.statistics().in_flight == 2
    for _ in range(2):
        close(response)
        assert file.closed
        assert middleware.statistics().in_flight == 1
    close(other)


def test_a_file_without_close_is_let_go_of_as_well(service: Service) -> None:
    class File:
        def read(self, size: int) -> bytes:
            return b""

    middleware = wrap(send_file, service)
    close(middleware(environ(**{"wsgi.file_wrapper": FileWrapper, "file": File()}), Started()))
    assert middleware.statistics().in_flight == 0


class Sealed(FileWrapper):
    """As servers written in C have them."""

    def __setattr__(self, name: str, value: object) -> None:
        if name == "close" and hasattr(self, "close"):
            raise AttributeError(name)
        super().__setattr__(name, value)


def test_a_file_wrapper_that_cannot_tell_of_its_end_is_read_like_any_other_answer(service: Service) -> None:
    middleware = wrap(send_file, service)
    file = io.BytesIO(b"content")
    response = middleware(environ(**{"wsgi.file_wrapper": Sealed, "file": file}), Started())
    assert list(response) == [b"content"]
    close(response)
    assert file.closed
    assert middleware.statistics().in_flight == 0


@pytest.mark.parametrize("wrapper", [lambda file: iter([b"content"]), None])
def test_a_file_wrapper_need_be_no_class(service: Service, wrapper: object) -> None:
    middleware = wrap(lambda environ, start_response: iter([b"content"]), service)
    response = middleware(environ(**{"wsgi.file_wrapper": wrapper}), Started())
    assert list(response) == [b"content"]
    close(response)


# --- conformance ---


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("method", ["GET", "POST", "HEAD"])
def test_conforms_to_pep_3333(service: Service, full: bool, method: str) -> None:
    """The standard library's validator stands on both sides: as the server's and as the app's."""

    def app(environ: Environ, start_response: Any) -> list[bytes]:
        start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "0")])
        return [b""]

    checked = validator(wrap(validator(app), service))
    if full:
        service.fill()
    given = {
        "REQUEST_METHOD": method,
        "SCRIPT_NAME": "",
        "PATH_INFO": "/",
        "QUERY_STRING": "",
        "SERVER_NAME": "localhost",
        "SERVER_PORT": "80",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "CONTENT_LENGTH": "3",
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": "http",
        "wsgi.input": io.BytesIO(b"abc"),
        "wsgi.errors": io.StringIO(),
        "wsgi.multithread": True,
        "wsgi.multiprocess": False,
        "wsgi.run_once": False,
    }
    started = Started()
    response = checked(given, started)
    list(response)
    close(response)
    assert started.calls[0][0].startswith("503" if full else "200")
