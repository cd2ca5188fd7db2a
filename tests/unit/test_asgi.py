import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest
from machine import Service

from resource_monitor.errors import ConfigurationError
from resource_monitor.middleware import MemoryBackpressureMiddleware

Message = dict[str, Any]


class App:
    """Remembers what it was called with, answers 200, or raises."""

    def __init__(self, failure: BaseException | None = None) -> None:
        self.calls: list[tuple[Any, Any, Any]] = []
        self.failure = failure

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.calls.append((scope, receive, send))
        if self.failure:
            raise self.failure
        if scope["type"] == "http":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"hello"})


def http(method: str = "GET", path: str = "/", **more: Any) -> Message:
    return {"type": "http", "method": method, "path": path, "headers": [], **more}


def call(middleware: MemoryBackpressureMiddleware, scope: Message) -> list[Message]:
    """What was sent; receiving is never needed by what is tested here."""
    sent: list[Message] = []

    async def receive() -> Message:
        raise AssertionError("nothing should be received")

    async def send(message: Message) -> None:
        sent.append(message)

    asyncio.run(middleware(scope, receive, send))  # type: ignore[arg-type]
    return sent


@pytest.fixture
def app() -> App:
    return App()


@pytest.fixture
def middleware(app: App, service: Service) -> MemoryBackpressureMiddleware:
    return MemoryBackpressureMiddleware(app, monitor=service.monitor)


def test_with_room_the_app_answers(middleware: MemoryBackpressureMiddleware, app: App) -> None:
    sent = call(middleware, http())
    assert [message.get("status", message.get("body")) for message in sent] == [200, b"hello"]
    assert middleware.statistics().admitted == 1
    assert middleware.statistics().in_flight == 0


def test_without_room_503_is_answered_before_the_app_runs(
    middleware: MemoryBackpressureMiddleware, app: App, service: Service
) -> None:
    service.fill()
    start, body = call(middleware, http("POST"))
    assert app.calls == []
    assert (start["type"], start["status"]) == ("http.response.start", 503)
    headers = dict(start["headers"])
    assert int(headers.pop(b"retry-after")) in (1, 2)
    assert headers == {
        b"content-type": b"application/problem+json",
        b"content-length": str(len(body["body"])).encode(),
        b"cache-control": b"no-store",
        b"vary": b"accept",
    }
    assert body["type"] == "http.response.body"
    assert json.loads(body["body"])["status"] == 503
    assert not body.get("more_body", False)


def test_head_is_refused_without_a_body(middleware: MemoryBackpressureMiddleware, service: Service) -> None:
    service.fill()
    start, body = call(middleware, http("HEAD"))
    assert start["status"] == 503
    assert int(dict(start["headers"])[b"content-length"]) > 0
    assert body["body"] == b""


def test_a_websocket_is_refused_with_a_response_where_the_server_can(
    middleware: MemoryBackpressureMiddleware, app: App, service: Service
) -> None:
    service.fill()
    scope = {"type": "websocket", "path": "/", "extensions": {"websocket.http.response": {}}}
    start, body = call(middleware, scope)
    assert (start["type"], start["status"]) == ("websocket.http.response.start", 503)
    assert body["type"] == "websocket.http.response.body"
    assert len(body["body"]) == int(dict(start["headers"])[b"content-length"])
    assert app.calls == []


@pytest.mark.parametrize("extensions", [{}, {"extensions": None}, {"extensions": {"tls": {}}}])
def test_a_websocket_is_closed_before_it_is_accepted_otherwise(
    middleware: MemoryBackpressureMiddleware, app: App, service: Service, extensions: Message
) -> None:
    service.fill()
    assert call(middleware, {"type": "websocket", "path": "/", **extensions}) == [
        {"type": "websocket.close", "code": 1013}
    ]
    assert app.calls == []


def test_a_websocket_is_counted_while_it_is_open(middleware: MemoryBackpressureMiddleware, app: App) -> None:
    call(middleware, {"type": "websocket", "path": "/"})
    assert middleware.statistics().admitted == 1
    assert middleware.statistics().in_flight == 0


@pytest.mark.parametrize("kind", ["lifespan", "something.new"])
def test_other_scopes_pass_straight_through(
    middleware: MemoryBackpressureMiddleware, app: App, service: Service, kind: str
) -> None:
    service.fill()
    call(middleware, {"type": kind})
    assert len(app.calls) == 1
    assert middleware.statistics().admitted == 0


def test_the_app_gets_the_servers_scope_and_receive_and_its_messages_pass_untouched(service: Service) -> None:
    messages = [
        {"type": "http.response.start", "status": 200, "headers": []},
        {"type": "http.response.body", "body": b"x", "more_body": True},
        {"type": "http.response.body", "body": b""},
    ]
    got: list[object] = []
    sent: list[Message] = []

    async def receive() -> Message:
        raise AssertionError

    async def send(message: Message) -> None:
        sent.append(message)

    async def app(*given: Any) -> None:
        got.extend(given)
        for message in messages:
            await given[2](message)

    scope = http()
    asyncio.run(MemoryBackpressureMiddleware(app, monitor=service.monitor)(scope, receive, send))  # type: ignore[arg-type]
    assert got[0] is scope
    assert got[1] is receive
    assert all(passed is made for passed, made in zip(sent, messages, strict=True))


@pytest.mark.parametrize("failure", [RuntimeError("boom"), asyncio.CancelledError()])
def test_a_request_that_fails_is_no_longer_in_flight(service: Service, failure: BaseException) -> None:
    middleware = MemoryBackpressureMiddleware(App(failure), monitor=service.monitor)
    with pytest.raises(type(failure)):
        call(middleware, http())
    assert middleware.statistics().in_flight == 0
    assert middleware.statistics().admitted == 1


def test_a_request_is_in_flight_until_it_is_cancelled(service: Service) -> None:
    async def hang(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.Event().wait()

    async def main() -> None:
        middleware = MemoryBackpressureMiddleware(hang, monitor=service.monitor)
        task = asyncio.ensure_future(middleware(http(), None, None))  # type: ignore[arg-type]
        await asyncio.sleep(0)
        assert middleware.statistics().in_flight == 1
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert middleware.statistics().in_flight == 0

    asyncio.run(main())


def test_liveness_passes_below_any_mount_point(
    middleware: MemoryBackpressureMiddleware, app: App, service: Service
) -> None:
    service.fill()
    call(middleware, http(path="/livez"))
    call(middleware, http(path="/mnt/livez", root_path="/mnt"))
    call(middleware, http(path="/livez", root_path="/mnt"))
    assert len(app.calls) == 3
    assert middleware.statistics().exempt == 3
    assert middleware.statistics().in_flight == 0


def test_options_are_checked_when_the_app_is_wrapped(service: Service) -> None:
    with pytest.raises(ConfigurationError, match="min_available"):
        MemoryBackpressureMiddleware(App(), min_available="x", monitor=service.monitor)


def test_the_constructor_may_be_called_again(service: Service) -> None:
    """Frameworks rebuild their middleware stack; the counts of one are not those of the other."""
    make: Callable[[], MemoryBackpressureMiddleware] = lambda: MemoryBackpressureMiddleware(  # noqa: E731
        App(), monitor=service.monitor
    )
    first, second = make(), make()
    call(first, http())
    assert (first.statistics().admitted, second.statistics().admitted) == (1, 0)


def test_starlette_takes_it_as_it_takes_its_own(service: Service) -> None:
    from starlette.applications import Starlette
    from starlette.middleware import Middleware
    from starlette.responses import PlainTextResponse
    from starlette.routing import Route

    app = Starlette(
        routes=[Route("/", lambda request: PlainTextResponse("hello"))],
        middleware=[Middleware(MemoryBackpressureMiddleware, monitor=service.monitor)],
    )
    assert call(app, http(query_string=b""))[0]["status"] == 200  # type: ignore[arg-type]
    service.fill()
    assert call(app, http(query_string=b""))[0]["status"] == 503  # type: ignore[arg-type]
