"""WSGI requests that start under a grant: to the app, the server and the guard they are like any other."""

import gc
import io
import sys
import threading
import weakref
from collections.abc import Iterable, Iterator
from typing import Any
from wsgiref.validate import validator

import pytest
from machine import MIB, Service

from resource_monitor._native._turn import Response, SizedResponse
from resource_monitor.guard import IN_APP, IN_SERVER, place
from resource_monitor.middleware import ADMITTED, WSGIMemoryBackpressureMiddleware, wsgi
from resource_monitor.middleware.bodies import most_body

Environ = dict[str, Any]
Responses = (Response, SizedResponse)
INPUT = {"wsgi.input": io.BytesIO()}
LONG = most_body(None)

pytestmark = pytest.mark.usefixtures("every_class_known_and_no_real_guard", "in_the_server")


def environ(path: str = "/", method: str = "GET", **more: Any) -> Environ:
    return {"REQUEST_METHOD": method, "PATH_INFO": path, "SCRIPT_NAME": "", **more}


def answer(environ: Environ, start_response: Any) -> list[bytes]:
    start_response("200 OK", [("content-type", "text/plain")])
    return [b"hello, ", b"world"]


class Server:
    """What a server makes of one response."""

    def __init__(self) -> None:
        self.heads: list[tuple[Any, ...]] = []
        self.body = b""

    def start_response(self, *head: Any) -> Any:
        self.heads.append(head)
        return self.write

    def write(self, data: bytes) -> None:
        self.body += data

    def serve(self, app: Any, request: Environ | None = None) -> Any:
        self.response = app(environ() if request is None else request, self.start_response)
        try:
            for piece in self.response:
                self.body += piece
        finally:
            close = getattr(self.response, "close", None)
            if close is not None:
                close()
                close()
        return self.response

    @property
    def status(self) -> str:
        return str(self.heads[-1][0])


def wrap(service: Service, app: Any, **options: Any) -> WSGIMemoryBackpressureMiddleware:
    """One that has let a request in, so that the next starts under a grant."""
    middleware = WSGIMemoryBackpressureMiddleware(answer, monitor=service.monitor, **options)
    Server().serve(middleware)
    assert middleware.statistics().admitted == 1
    middleware.app = app
    return middleware


def serve(service: Service, app: Any, request: Environ | None = None) -> tuple[Server, Any]:
    middleware, server = wrap(service, app), Server()
    request = environ() if request is None else request
    server.serve(middleware, request)
    assert isinstance(request[ADMITTED], Responses)
    assert middleware.statistics().in_flight == 0
    assert place()[0] == IN_SERVER
    return server, middleware


# --- the app and the server ---


def test_the_app_answers(service: Service) -> None:
    server, middleware = serve(service, answer)
    assert server.heads == [("200 OK", [("content-type", "text/plain")])]
    assert server.body == b"hello, world"
    found = middleware.statistics()
    assert (found.admitted, found.wasted) == (2, 0)


def test_what_was_promised_while_its_body_was_prepared_for_is_not_promised_again(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    others: list[Any] = []

    def take_in(unread: Any, size: int) -> Any:
        others.append(middleware(environ(cost=500 * MIB), Server().start_response))
        return unread

    monkeypatch.setattr(wsgi, "PromisedInput", take_in)
    service.use(32 * MIB, limit=1 << 30)
    middleware, server = wrap(service, answer, request_cost=lambda environ: environ.get("cost", 0)), Server()
    server.serve(middleware, environ(cost=500 * MIB, CONTENT_LENGTH="7", **{"wsgi.input": io.BytesIO(b"1234567")}))
    assert [type(other) for other in others] == [SizedResponse]
    assert server.status == "503 Service Unavailable"
    assert middleware.statistics().promised == 500 * MIB


@pytest.mark.parametrize(
    "request_",
    [
        environ(CONTENT_LENGTH="1"),  # and nothing to read it from
        environ(CONTENT_LENGTH=str(LONG + 1), **INPUT),
        environ(CONTENT_LENGTH="9" * 40, **INPUT),
        environ(CONTENT_LENGTH="-1", **INPUT),
        environ(CONTENT_LENGTH="1a", **INPUT),
        environ(CONTENT_LENGTH="²", **INPUT),
        environ(HTTP_TRANSFER_ENCODING="chunked", **INPUT),
        environ(method="POST", SERVER_PROTOCOL="HTTP/2", **INPUT, **{"wsgi.input_terminated": True}),
        environ(CONTENT_LENGTH="7", HTTP_TRANSFER_ENCODING="chunked", **INPUT),
        environ(method="OPTIONS"),
        environ("/é".encode().decode("latin-1")),
        environ("/other"),
        environ("/livez"),
        {"REQUEST_METHOD": "GET", "PATH_INFO": 7},
    ],
    ids=str,
)
def test_what_is_no_plain_request_is_asked_for(service: Service, request_: Environ) -> None:
    middleware = wrap(service, answer)
    for path, method in (("/", "OPTIONS"), ("/", "POST"), ("/livez", "GET"), ("/é".encode().decode("latin-1"), "GET")):
        Server().serve(middleware, environ(path, method))
    try:
        Server().serve(middleware, request_)
    except AttributeError:
        assert request_["PATH_INFO"] == 7
    assert not isinstance(request_.get(ADMITTED), Responses)


class Unread(io.BytesIO):
    """What the server reads a request from, which goes on after the body; ``broken`` runs out of memory once."""

    def __init__(self, body: bytes = b"x" * 700, *, broken: bool = False) -> None:
        super().__init__(body + b"GET /next")
        self.places: list[int] = []
        self._broken = broken

    def read(self, size: int | None = -1, /) -> bytes:
        self.places.append(place()[0])
        if self._broken:
            self._broken = False
            raise MemoryError
        return super().read(size)


def upload(unread: Unread, length: int = 700) -> Environ:
    return environ(method="POST", CONTENT_LENGTH=str(length), **{"wsgi.input": unread})


def reads(environ: Environ, start_response: Any) -> list[bytes]:
    body = environ["wsgi.input"].read()
    start_response("200 OK", [])
    return [str(len(body)).encode()]


def knowing_posts(service: Service, app: Any, **options: Any) -> WSGIMemoryBackpressureMiddleware:
    middleware = wrap(service, app, **options)
    middleware.app = answer
    Server().serve(middleware, environ(method="POST"))
    middleware.app = app
    return middleware


@pytest.mark.parametrize("length", [1, LONG])
def test_a_body_is_read_as_the_servers_and_no_further(service: Service, length: int) -> None:
    service.use(32 << 20, limit=1 << 30)
    middleware, unread, server = knowing_posts(service, reads), Unread(b"x" * length), Server()
    request = upload(unread, length)
    server.serve(middleware, request)
    assert isinstance(request[ADMITTED], Responses)
    assert server.body == str(length).encode()
    assert set(unread.places) == {IN_SERVER}
    assert unread.getvalue()[unread.tell() :] == b"GET /next"


def test_a_body_that_is_long_for_the_room_is_asked_for(service: Service) -> None:
    middleware, request = knowing_posts(service, reads), upload(Unread(b"x" * LONG), LONG)
    Server().serve(middleware, request)
    assert not isinstance(request[ADMITTED], Responses)


def test_a_body_is_promised_until_the_answer(service: Service) -> None:
    promised: list[int] = []

    def app(environ: Environ, start_response: Any) -> Iterator[bytes]:
        promised.append(middleware.statistics().promised)
        start_response("200 OK", [])
        yield b"x"
        promised.append(middleware.statistics().promised)

    middleware = knowing_posts(service, app)
    Server().serve(middleware, upload(Unread()))
    assert promised == [700, 0]


def test_what_is_too_long_for_max_body_is_asked_for(service: Service) -> None:
    middleware, server = knowing_posts(service, reads, max_body=699), Server()
    server.serve(middleware, upload(Unread()))
    assert server.status == "413 Content Too Large"


def raises(environ: Environ, start_response: Any) -> list[bytes]:
    raise MemoryError


def answering(status: str) -> Any:
    """An app that answers by itself where it could not read."""

    def app(environ: Environ, start_response: Any) -> Iterable[bytes]:
        try:
            return reads(environ, start_response)
        except MemoryError:
            pass
        start_response(status, [])
        return [b"no"]

    return app


answers_500, answers_by_itself = answering("500 Internal Server Error"), answering("507 Insufficient Storage")


def answers_in_pieces(environ: Environ, start_response: Any) -> Iterator[bytes]:
    yield from answers_by_itself(environ, start_response)


@pytest.mark.parametrize(
    ("app", "broken", "status"),
    [
        (raises, False, "503 Service Unavailable"),
        (reads, True, "503 Service Unavailable"),
        (answers_500, True, "503 Service Unavailable"),
        (answers_by_itself, True, "507 Insufficient Storage"),
        (answers_in_pieces, True, "507 Insufficient Storage"),
    ],
)
def test_the_rest_of_a_body_is_dropped_where_its_request_is_lost(
    service: Service, app: Any, broken: bool, status: str
) -> None:
    middleware, unread, server = knowing_posts(service, app), Unread(broken=broken), Server()
    request = upload(unread)
    server.serve(middleware, request)
    assert isinstance(request[ADMITTED], Responses)
    assert server.status == status
    assert unread.tell() == 700
    assert middleware.statistics().in_flight == 0


def test_one_whose_rest_cannot_be_dropped_for_want_of_memory_is_over_all_the_same(service: Service) -> None:
    class Short(WSGIMemoryBackpressureMiddleware):
        def _adopt(self, begun: Any) -> Any:
            raise MemoryError

    middleware, server = Short(answer, monitor=service.monitor), Server()
    for method in ("GET", "POST"):
        Server().serve(middleware, environ(method=method))
    middleware.app = answers_by_itself
    request = upload(Unread(broken=True))
    server.serve(middleware, request)
    assert isinstance(request[ADMITTED], Responses)
    assert server.status == "507 Insufficient Storage"
    assert middleware.statistics().in_flight == 0


def test_with_the_reading_the_grant_is_renewed(service: Service) -> None:
    middleware = wrap(service, answer)
    service.use(40 << 20)
    request = environ()
    Server().serve(middleware, request)
    assert isinstance(request[ADMITTED], Responses)
    service.fill()
    server, request = Server(), environ()
    server.serve(middleware, request)
    assert server.status.startswith("503")
    assert ADMITTED not in request


def test_a_cost_that_reads_the_body_may_put_it_back(service: Service) -> None:
    def cost(environ: Environ) -> int:
        if "CONTENT_LENGTH" in environ:
            environ["wsgi.input"] = io.BytesIO(environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"])))
        return 0

    middleware, server, request = knowing_posts(service, reads, request_cost=cost), Server(), upload(Unread())
    server.serve(middleware, request)
    assert isinstance(request[ADMITTED], Responses)
    assert server.body == b"700"


@pytest.mark.parametrize("length", ["", "0"])
def test_an_empty_body_is_none(service: Service, length: str) -> None:
    serve(service, answer, environ(CONTENT_LENGTH=length))


def test_it_is_what_pep_3333_asks_for(service: Service) -> None:
    request = environ(
        QUERY_STRING="",
        SERVER_NAME="test",
        SERVER_PORT="80",
        SERVER_PROTOCOL="HTTP/1.1",
        **{
            "wsgi.version": (1, 0),
            "wsgi.url_scheme": "http",
            "wsgi.input": io.BytesIO(),
            "wsgi.errors": sys.stderr,
            "wsgi.multithread": True,
            "wsgi.multiprocess": False,
            "wsgi.run_once": False,
        },
    )
    server, middleware = Server(), wrap(service, answer)
    server.serve(validator(middleware), request)
    assert server.body == b"hello, world"
    assert isinstance(request[ADMITTED], Responses)


@pytest.mark.parametrize("kind", [list, tuple, iter, set, lambda pieces: (piece for piece in pieces)])
def test_a_response_has_a_length_where_that_of_the_app_has_one(service: Service, kind: Any) -> None:
    def app(environ: Environ, start_response: Any) -> Iterable[bytes]:
        start_response("200 OK", [])
        pieces: Iterable[bytes] = kind([b"one"])
        lengths.append(hasattr(pieces, "__len__"))
        return pieces

    lengths: list[bool] = []
    server, _ = serve(service, app)
    assert server.body == b"one"
    assert hasattr(server.response, "__len__") is lengths[0]


def test_the_length_is_that_of_the_app_s(service: Service) -> None:
    middleware = wrap(service, answer)
    response: Any = middleware(environ(), Server().start_response)
    assert len(response) == 2
    response.close()


def test_each_step_of_the_app_is_marked(service: Service) -> None:
    places: list[tuple[str, int]] = []

    def here(name: str) -> None:
        places.append((name, place()[0]))

    class Pieces:
        def __init__(self) -> None:
            self.left = 2

        def __iter__(self) -> "Pieces":
            return self

        def __next__(self) -> bytes:
            here("app")
            self.left -= 1
            if self.left < 0:
                raise StopIteration
            return b"piece"

    def app(environ: Environ, start_response: Any) -> Iterable[bytes]:
        here("app")
        start_response("200 OK", [])
        return Pieces()

    server, middleware = Server(), wrap(service, app)
    response = middleware(environ(), server.start_response)
    here("server")
    for _ in response:
        here("server")
    response.close()
    assert {name for name, _ in places} == {"app", "server"}
    assert [mark for _, mark in places] == [{"app": IN_APP, "server": IN_SERVER}[name] for name, _ in places]


@pytest.mark.parametrize("first", [b"", b"x"])
@pytest.mark.parametrize("writes", [False, True])
def test_the_answer_began_with_the_first_piece_or_what_is_written(service: Service, first: bytes, writes: bool) -> None:
    def app(environ: Environ, start_response: Any) -> Iterator[bytes]:
        write = start_response("200 OK", [])
        if writes:
            write(b"written")
        yield first
        yield b"last"

    middleware, server = wrap(service, app), Server()
    response: Any = middleware(environ(), server.start_response)
    next(iter(response))
    middleware.statistics()
    assert middleware.gate._routes.find("GET", "/")._unanswered == (0 if first or writes else 1)
    assert server.body == (b"written" if writes else b"")
    response.close()
    assert middleware.statistics().in_flight == 0


def test_a_second_start_replaces_the_first_and_bad_calls_fail_as_the_server_says(service: Service) -> None:
    def app(environ: Environ, start_response: Any) -> list[bytes]:
        start_response("200 OK", [])
        start_response("404 Not Found", [("a", "b")], None)
        try:
            raise ValueError
        except ValueError:
            start_response("418 Teapot", [], sys.exc_info())
        with pytest.raises(TypeError):
            start_response()
        with pytest.raises(TypeError):
            start_response("200 OK")
        start_response(status="202 Accepted", headers=[])
        return []

    server, _ = serve(service, app)
    assert [len(head) for head in server.heads] == [2, 2, 3, 2]
    assert server.status == "202 Accepted"


def test_the_app_s_own_close_is_called_once_and_its_error_reaches_the_server(service: Service) -> None:
    closed: list[bool] = []

    class Pieces(list[bytes]):
        def close(self) -> None:
            closed.append(True)
            raise ValueError("closing")

    def app(environ: Environ, start_response: Any) -> Iterable[bytes]:
        start_response("200 OK", [])
        return Pieces([b"x"])

    middleware = wrap(service, app)
    with pytest.raises(ValueError, match="closing"):
        Server().serve(middleware)
    assert closed == [True]
    assert middleware.statistics().in_flight == 0


def test_a_file_is_handed_over_to_the_server(service: Service) -> None:
    class Wrapper:
        def __init__(self, name: str) -> None:
            self.name = name
            self.closed = 0

        def __iter__(self) -> Iterator[bytes]:
            yield b"content"

        def close(self) -> None:
            self.closed += 1

    files: list[Wrapper] = []

    def app(environ: Environ, start_response: Any) -> Iterable[bytes]:
        start_response("200 OK", [])
        files.append(environ["wsgi.file_wrapper"]("file"))
        return files[0]

    middleware, server = wrap(service, app), Server()
    response: Any = middleware(environ(**{"wsgi.file_wrapper": Wrapper}), server.start_response)
    assert response is files[0]
    assert middleware.statistics().in_flight == 1
    response.close()
    response.close()
    assert files[0].__class__ is Wrapper
    assert middleware.statistics().in_flight == 0


def test_a_response_that_is_dropped_leaves(service: Service) -> None:
    middleware = wrap(service, answer)
    response = middleware(environ(), Server().start_response)
    assert middleware.statistics().in_flight == 1
    del response
    gc.collect()
    assert middleware.statistics().in_flight == 0


def test_nothing_comes_of_a_response_that_is_closed(service: Service) -> None:
    starts: list[Any] = []

    def app(environ: Environ, start_response: Any) -> Iterable[bytes]:
        starts.append(start_response)
        yield b"x"

    middleware = wrap(service, app)
    response: Any = middleware(environ(), Server().start_response)
    next(iter(response))
    response.close()
    assert list(response) == []
    with pytest.raises(RuntimeError):
        starts[0]("200 OK", [])


def test_nothing_comes_of_what_a_failed_app_was_given(service: Service) -> None:
    starts: list[Any] = []

    def app(environ: Environ, start_response: Any) -> Iterable[bytes]:
        starts.append(start_response)
        raise KeyError

    with pytest.raises(KeyError):
        Server().serve(wrap(service, app))
    with pytest.raises(RuntimeError):
        starts[0]("200 OK", [])


class Held:
    """Something that is seen to go."""


def test_what_was_asked_for_goes_with_the_request_without_a_collection(service: Service) -> None:
    def app(environ: Environ, start_response: Any) -> Iterable[bytes]:
        assert environ[ADMITTED].ask.path == "/"
        return answer(environ, start_response)

    middleware, server = wrap(service, app), Server()
    held = Held()
    request, gone = environ(held=held), weakref.ref(held)
    del held
    gc.disable()
    try:
        response = server.serve(middleware, request)
        assert request[ADMITTED] is response
        with pytest.raises(RuntimeError):
            response.ask  # noqa: B018
        del request, response, server
        assert gone() is None
    finally:
        gc.enable()


def test_so_it_does_where_a_file_was_handed_over(service: Service) -> None:
    class Wrapper:
        def __init__(self, file: Any) -> None:
            pass

        def __iter__(self) -> Iterator[bytes]:
            yield b""

        def close(self) -> None:
            pass

    def app(environ: Environ, start_response: Any) -> Iterable[bytes]:
        start_response("200 OK", [])
        file: Iterable[bytes] = environ["wsgi.file_wrapper"](None)
        return file

    middleware, held = wrap(service, app), Held()
    request, gone = environ(held=held, **{"wsgi.file_wrapper": Wrapper}), weakref.ref(held)
    del held
    gc.disable()
    try:
        response: Any = middleware(request, Server().start_response)
        assert type(response) is Wrapper
        response.close()
        del request, response
        assert gone() is None
    finally:
        gc.enable()


def test_many_at_once_are_each_their_own(service: Service) -> None:
    middleware = wrap(service, answer)
    for _ in range(3):
        requests = [environ(number=number) for number in range(20)]
        responses = [middleware(request, Server().start_response) for request in requests]
        assert len(set(map(id, responses))) == 20
        assert [list(response) for response in responses] == [[b"hello, ", b"world"]] * 20
        assert middleware.statistics().in_flight == 20
        while responses:
            responses.pop().close()
        assert middleware.statistics().in_flight == 0


# --- requests that fail ---


def fails_at_once(environ: Environ, start_response: Any) -> Iterable[bytes]:
    raise MemoryError


def fails_in_the_first_piece(environ: Environ, start_response: Any) -> Iterator[bytes]:
    start_response("200 OK", [])
    raise MemoryError
    yield b""


def answers_for_the_error(environ: Environ, start_response: Any) -> Iterable[bytes]:
    try:
        raise MemoryError
    except MemoryError:
        start_response("500 Internal Server Error", [], sys.exc_info())
    return [b"sorry"]


def answers_later_for_the_error(environ: Environ, start_response: Any) -> Iterator[bytes]:
    try:
        raise MemoryError
    except MemoryError:
        start_response("500 Internal Server Error", [])
    yield b"sorry"


@pytest.mark.parametrize(
    "app", [fails_at_once, fails_in_the_first_piece, answers_for_the_error, answers_later_for_the_error]
)
def test_a_request_that_runs_out_of_memory_is_refused_and_the_next_is_asked_for(service: Service, app: Any) -> None:
    server, middleware = serve(service, app)
    assert server.status.startswith("503")
    assert b"short of memory" in server.body
    assert b"sorry" not in server.body
    found = middleware.statistics()
    assert (found.wasted, found.routes["GET /"].wasted) == (1, 1)
    request = environ()
    Server().serve(middleware, request)
    assert not isinstance(request[ADMITTED], Responses)


def test_what_the_app_gave_is_closed_though_its_answer_is_withheld(service: Service) -> None:
    closed: list[bool] = []

    class Pieces(list[bytes]):
        def close(self) -> None:
            closed.append(True)

    def app(environ: Environ, start_response: Any) -> Iterable[bytes]:
        answers_for_the_error(environ, start_response)
        return Pieces([b"sorry"])

    server, _ = serve(service, app)
    assert server.status.startswith("503")
    assert closed == [True]


def test_once_something_was_given_the_error_is_the_server_s(service: Service) -> None:
    def app(environ: Environ, start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [])
        yield b"some"
        raise MemoryError

    middleware, server = wrap(service, app), Server()
    with pytest.raises(MemoryError):
        server.serve(middleware)
    assert server.body == b"some"
    found = middleware.statistics()
    assert (found.wasted, found.in_flight) == (1, 0)


@pytest.mark.parametrize("when", ["at once", "later"])
def test_what_the_app_raises_reaches_the_server(service: Service, when: str) -> None:
    def at_once(environ: Environ, start_response: Any) -> Iterable[bytes]:
        raise ValueError("mine")

    def later(environ: Environ, start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [])
        raise ValueError("mine")
        yield b""

    middleware = wrap(service, at_once if when == "at once" else later)
    with pytest.raises(ValueError, match="mine") as raised:
        Server().serve(middleware)
    assert any(entry.name in ("at_once", "later") for entry in raised.traceback)
    found = middleware.statistics()
    assert (found.wasted, found.in_flight) == (0, 0)


def test_a_framework_s_500_for_its_own_error_passes(service: Service) -> None:
    def app(environ: Environ, start_response: Any) -> Iterable[bytes]:
        try:
            raise ValueError
        except ValueError:
            start_response("500 Internal Server Error", [], sys.exc_info())(b"written, ")
        return [b"sorry"]

    server, middleware = serve(service, app)
    assert server.status == "500 Internal Server Error"
    assert server.body == b"written, sorry"
    assert middleware.statistics().wasted == 0


def test_a_request_that_says_that_it_was_lost_is(service: Service) -> None:
    def app(environ: Environ, start_response: Any) -> Iterable[bytes]:
        environ[ADMITTED].lose()
        return answer(environ, start_response)

    server, middleware = serve(service, app)
    assert server.body == b"hello, world"
    assert middleware.statistics().wasted == 1


# --- nothing is left behind ---


def test_threads_leave_nothing_behind(service: Service) -> None:
    middleware = wrap(service, answer, max_in_flight=20, request_cost=100)

    def work() -> None:
        for _ in range(1000):
            Server().serve(middleware)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = middleware.statistics()
    assert (found.admitted, found.in_flight, found.promised) == (4001, 0, 0)


def test_a_hundred_thousand_requests_leave_nothing_behind(service: Service) -> None:
    def fails(environ: Environ, start_response: Any) -> Iterable[bytes]:
        raise ValueError

    def generates(environ: Environ, start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [])
        yield b"x"

    middleware = wrap(service, answer)

    def start_response(*head: Any) -> None:
        return None

    def rounds(count: int) -> None:
        for number in range(count):
            middleware.app = (answer, fails, generates)[number % 3]
            try:
                response: Any = middleware(environ(), start_response)
            except ValueError:
                continue
            for _ in response:
                pass
            response.close()

    rounds(3000)
    gc.collect()
    blocks, objects, references = sys.getallocatedblocks(), len(gc.get_objects()), sys.getrefcount(None)
    rounds(100_000)
    gc.collect()
    assert sys.getallocatedblocks() - blocks < 500
    assert len(gc.get_objects()) - objects < 100
    # from 3.12 on the interpreter counts references to None where it likes: None is immortal (PEP 683)
    assert sys.version_info >= (3, 12) or sys.getrefcount(None) - references < 500
    assert middleware.statistics().admitted > 100_000


@pytest.fixture
def little_to_collect() -> Iterator[None]:
    """What other tests left behind the collector need not look through each time."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.usefixtures("little_to_collect")
@pytest.mark.parametrize("raises", [False, True])
def test_wherever_an_allocation_fails_the_request_leaves(service: Service, raises: bool) -> None:
    testcapi = pytest.importorskip("_testcapi")

    def app(environ: Environ, start_response: Any) -> Iterable[bytes]:
        start_response("200 OK", [])
        if raises:
            raise MemoryError
        return [b"hello"]

    def start_response(*head: Any) -> None:
        return None

    middleware = wrap(service, answer)
    outcomes = set()
    for number in range(150):
        path = f"/{chr(ord('a') + number // 26)}{chr(ord('a') + number % 26)}"  # a class that lost nothing yet
        middleware.app = answer
        Server().serve(middleware, environ(path))  # asked for, so that there is a grant
        middleware.app = app
        request, response, outcome = environ(path), None, "done"
        testcapi.set_nomemory(number, number + 1)
        try:
            response = middleware(request, start_response)
            for _ in response:
                pass
        except (MemoryError, SystemError):  # CPython's own, for a frame that it has no memory for
            outcome = "error"
        finally:
            testcapi.remove_mem_hooks()
        getattr(response, "close", lambda: None)()
        outcomes.add((outcome, isinstance(request.get(ADMITTED), Responses)))
        del response
        request.clear()
        gc.collect()
        assert middleware.statistics().in_flight == 0, number
    assert ("done", True) in outcomes
