"""Requests that run out of memory under the ASGI adapter: 503 as long as nothing was answered."""

import asyncio
import contextlib
import gc
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
from fastapi import FastAPI
from held import held, take
from machine import MIB, Service
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from resource_monitor import reserve
from resource_monitor.guard import IN_APP, IN_SERVER, place
from resource_monitor.middleware import MemoryBackpressureMiddleware, readings
from resource_monitor.middleware.on_loop import OnLoop

Message = dict[str, Any]
Send = Callable[[Message], Awaitable[None]]


@pytest.fixture(autouse=True)
def _no_real_guard(monkeypatch: pytest.MonkeyPatch) -> None:
    """The process that runs the tests is spared the guard; the apps raise what it would make CPython raise."""
    monkeypatch.setattr(readings, "ensure_installed", lambda monitor: None)


def wrap(app: Any, service: Service) -> MemoryBackpressureMiddleware:
    return MemoryBackpressureMiddleware(app, monitor=service.monitor, allocation_guard=True)


def http(path: str = "/", method: str = "GET") -> Message:
    return {"type": "http", "method": method, "path": path, "headers": [], "query_string": b"", "root_path": ""}


def run(app: Any, scope: Message) -> tuple[list[Any], BaseException | None]:
    """What the server saw: the status or type of each message, and the error that reached it."""
    sent: list[Any] = []
    error = None
    request = [{"type": "http.request", "body": b"", "more_body": False}]

    async def receive() -> Message:
        if request:
            return request.pop()
        await asyncio.Event().wait()
        raise AssertionError

    async def send(message: Message) -> None:
        sent.append(message.get("status", message["type"]))

    try:
        asyncio.run(app(scope, receive, send))
    except BaseException as raised:
        error = raised
    return sent, error


REFUSED = [503, "http.response.body"]


def answers_503(middleware: MemoryBackpressureMiddleware, app: Any = None, scope: Message | None = None) -> bool:
    before = middleware.statistics()
    sent, error = run(app or middleware, scope or http())
    after = middleware.statistics()
    assert error is None
    assert after.in_flight == 0
    assert after.admitted == before.admitted + 1
    assert after.wasted == before.wasted + 1
    # BaseHTTPMiddleware ends what it passes on with an empty piece of its own
    return sent[:2] == REFUSED


def out_of_memory() -> Response:
    raise MemoryError


def out_of_memory_too() -> None:
    raise MemoryError


# --- apps without a framework ---


def raising(error: BaseException) -> Any:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise error

    return app


@pytest.mark.parametrize("error", [MemoryError(), ExceptionGroup("", [MemoryError()])])
def test_a_memory_error_before_the_response_is_answered_503(service: Service, error: Exception) -> None:
    assert answers_503(wrap(raising(error), service))


def test_in_a_dry_run_it_is_the_servers_and_counts(service: Service) -> None:
    shed: list[Any] = []
    error = MemoryError()
    middleware = MemoryBackpressureMiddleware(
        raising(error), monitor=service.monitor, dry_run=True, on_shed=shed.append
    )
    for _ in range(9):  # of which the last start under a grant
        assert run(middleware, http()) == ([], error)
    statistics = middleware.statistics()
    assert (statistics.admitted, statistics.wasted, statistics.in_flight, len(shed)) == (9, 9, 0, 9)
    error.__traceback__ = None


@pytest.mark.parametrize("error", [RuntimeError(), KeyboardInterrupt(), ExceptionGroup("", [MemoryError(), OSError()])])
def test_other_errors_go_on_to_the_server(service: Service, error: BaseException) -> None:
    middleware = wrap(raising(error), service)
    assert run(middleware, http()) == ([], error)
    assert middleware.statistics().wasted == 0
    assert middleware.statistics().in_flight == 0


def test_one_that_is_lost_before_the_app_runs_leaves(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(here: OnLoop) -> None:
        raise MemoryError

    monkeypatch.setattr(OnLoop, "begins", fail)
    middleware = wrap(raising(AssertionError()), service)
    _, error = run(middleware, http())
    assert isinstance(error, MemoryError)
    assert middleware.statistics().in_flight == 0


def test_a_reservation_that_does_not_fit_is_answered_503(service: Service) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        async with reserve(250 * MIB, monitor=service.monitor):
            raise AssertionError("there was no room")

    assert answers_503(wrap(app, service))


def test_once_the_response_started_the_error_goes_on_so_that_the_server_closes(service: Service) -> None:
    async def app(scope: Any, receive: Any, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise MemoryError

    middleware = wrap(app, service)
    sent, error = run(middleware, http())
    assert sent == [200]
    assert isinstance(error, MemoryError)
    assert middleware.statistics().wasted == 1
    assert middleware.statistics().in_flight == 0


def test_head_is_answered_without_a_body(service: Service) -> None:
    bodies = []

    async def send(message: Message) -> None:
        bodies.append(message.get("body"))

    asyncio.run(wrap(raising(MemoryError()), service)(http(method="HEAD"), None, send))  # type: ignore[arg-type]
    assert bodies == [None, b""]


def test_a_500_of_the_apps_own_stays_a_500(service: Service) -> None:
    async def app(scope: Any, receive: Any, send: Send) -> None:
        with contextlib.suppress(MemoryError):
            raise MemoryError
        await send({"type": "http.response.start", "status": 500, "headers": []})
        await send({"type": "http.response.body"})

    middleware = wrap(app, service)
    assert run(middleware, http()) == ([500, "http.response.body"], None)
    assert middleware.statistics().wasted == 0


def test_an_app_that_handles_its_memory_error_answers_as_it_likes(service: Service) -> None:
    async def app(scope: Any, receive: Any, send: Send) -> None:
        try:
            raise MemoryError
        except MemoryError:
            await send({"type": "http.response.start", "status": 507, "headers": []})
            await send({"type": "http.response.body"})

    assert run(wrap(app, service), http()) == ([507, "http.response.body"], None)


def test_a_websocket_lost_before_it_is_accepted_is_refused(service: Service) -> None:
    assert run(wrap(raising(MemoryError()), service), {"type": "websocket", "path": "/"}) == (["websocket.close"], None)
    scope = {"type": "websocket", "path": "/", "extensions": {"websocket.http.response": {}}}
    assert run(wrap(raising(MemoryError()), service), scope) == ([503, "websocket.http.response.body"], None)


def test_a_websocket_lost_after_it_was_accepted_is_the_servers_to_close(service: Service) -> None:
    async def app(scope: Any, receive: Any, send: Send) -> None:
        await send({"type": "websocket.accept"})
        raise MemoryError

    middleware = wrap(app, service)
    sent, error = run(middleware, {"type": "websocket", "path": "/"})
    assert sent == ["websocket.accept"]
    assert isinstance(error, MemoryError)
    assert (middleware.statistics().wasted, middleware.statistics().in_flight) == (1, 0)


# --- what the failed request held ---


@pytest.fixture
def no_garbage_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_garbage_collector")
@pytest.mark.parametrize("framework", [False, True])
def test_the_next_request_finds_free_what_the_lost_one_held(service: Service, framework: bool) -> None:
    held.clear()
    alive_at_refusal: list[bool] = []

    async def endpoint(request: Any) -> Response:
        try:
            take()
        except MemoryError as error:
            if framework:
                raise RuntimeError("the framework wraps what goes wrong") from error
            raise
        return Response()

    app = Starlette(routes=[Route("/", endpoint)]) if framework else (lambda scope, receive, send: endpoint(None))

    async def send(message: Message) -> None:
        alive_at_refusal.append(held[0]() is not None)

    async def main() -> None:
        await wrap(app, service)(http(), None, send)  # type: ignore[arg-type]

    asyncio.run(main())
    assert alive_at_refusal == [False, False]


@pytest.mark.usefixtures("no_garbage_collector")
def test_an_app_that_answers_500_itself_holds_nothing_when_the_refusal_is_sent(service: Service) -> None:
    held.clear()
    alive_at_refusal: list[bool] = []

    async def app(scope: Any, receive: Any, send: Send) -> None:
        try:
            take()
        except MemoryError:
            await send({"type": "http.response.start", "status": 500, "headers": []})
            await send({"type": "http.response.body", "body": b"an error page"})

    async def send(message: Message) -> None:
        alive_at_refusal.append(held[0]() is not None)

    asyncio.run(wrap(app, service)(http(), None, send))  # type: ignore[arg-type]
    assert alive_at_refusal == [False, False]


# --- frameworks ---


async def lost(request: Request) -> Response:
    return out_of_memory()


def lost_in_thread(request: Request) -> Response:
    return out_of_memory()


def streaming(request: Request) -> Response:
    def pieces() -> Iterator[bytes]:
        yield b"piece"
        raise MemoryError

    return StreamingResponse(pieces())


async def bug(request: Request) -> Response:
    raise KeyError("a bug")


async def fine(request: Request) -> Response:
    return PlainTextResponse("fine")


class PassThrough(BaseHTTPMiddleware):
    async def dispatch(self, request: Request, call_next: Any) -> Response:
        response: Response = await call_next(request)
        return response


def starlette(**options: Any) -> Starlette:
    routes = [Route("/" + endpoint.__name__, endpoint) for endpoint in (lost, lost_in_thread, streaming, bug, fine)]
    return Starlette(routes=routes, **options)


async def on_error(request: Request, error: Exception) -> Response:
    return PlainTextResponse("sorry", status_code=500)


STARLETTES = {
    "plain": {},
    "debug": {"debug": True},
    "BaseHTTPMiddleware": {"middleware": [Middleware(PassThrough), Middleware(PassThrough)]},
    "own error page": {"exception_handlers": {500: on_error}},
    "handler for every error": {"exception_handlers": {Exception: on_error}},
}


@pytest.mark.parametrize("options", STARLETTES.values(), ids=STARLETTES)
@pytest.mark.parametrize("path", ["/lost", "/lost_in_thread"])
def test_starlette_answers_503(service: Service, options: dict[str, Any], path: str) -> None:
    assert answers_503(wrap(starlette(**options), service), scope=http(path))


@pytest.mark.parametrize("options", STARLETTES.values(), ids=STARLETTES)
def test_starlettes_other_answers_are_its_own(service: Service, options: dict[str, Any]) -> None:
    middleware = wrap(starlette(**options), service)
    assert run(middleware, http("/fine"))[0][0] == 200
    sent, error = run(middleware, http("/bug"))
    assert sent[0] == 500
    assert isinstance(error, KeyError)
    assert run(middleware, http("/nowhere"))[0][0] == 404
    assert middleware.statistics().wasted == 0


@pytest.mark.parametrize("options", STARLETTES.values(), ids=STARLETTES)
def test_a_stream_that_breaks_off_is_broken_off(service: Service, options: dict[str, Any]) -> None:
    middleware = wrap(starlette(**options), service)
    sent, error = run(middleware, http("/streaming"))
    assert sent[0] == 200
    assert "http.response.body" in sent
    assert error is not None
    assert (middleware.statistics().wasted, middleware.statistics().in_flight) == (1, 0)


@pytest.mark.parametrize("above", [False, True])
def test_it_may_stand_inside_of_starlettes_stack(service: Service, above: bool) -> None:
    made: list[MemoryBackpressureMiddleware] = []

    def make(app: Any) -> MemoryBackpressureMiddleware:
        made.append(wrap(app, service))
        return made[-1]

    stack = [Middleware(PassThrough), Middleware(make)] if above else [Middleware(make), Middleware(PassThrough)]
    app = starlette(middleware=stack)
    assert run(app, http("/fine"))[0][0] == 200
    assert answers_503(made[0], app, http("/lost"))
    assert answers_503(made[0], app, http("/lost_in_thread"))


def test_fastapi_answers_503(service: Service) -> None:
    app = FastAPI()
    app.get("/lost")(out_of_memory_too)

    @app.get("/lost_async")
    async def lost_async() -> None:
        raise MemoryError

    middleware = wrap(app, service)
    assert answers_503(middleware, scope=http("/lost"))
    assert answers_503(middleware, scope=http("/lost_async"))


def test_an_exempt_request_that_is_lost_is_answered_503_too(service: Service) -> None:
    middleware = wrap(raising(MemoryError()), service)
    assert run(middleware, http("/livez")) == (REFUSED, None)
    assert middleware.statistics().in_flight == 0


def test_what_the_server_sends_for_the_app_is_the_servers_own_work(service: Service) -> None:
    places: list[int] = []

    async def app(scope: Message, receive: Any, send: Send) -> None:
        places.append(place()[0])
        await send({"type": "http.response.start", "status": 200, "headers": []})
        places.append(place()[0])
        await send({"type": "http.response.body", "body": b""})

    async def send(message: Message) -> None:
        places.append(place()[0])

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    asyncio.run(wrap(app, service)(http(), receive, send))
    assert places == [IN_APP, IN_SERVER, IN_APP, IN_SERVER]
