"""Bodies under the ASGI adapter, Starlette and FastAPI: kept room for, waited for, and cut when they are too large."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

import fastapi
import pytest
from asgi_client import GONE, Client, Message, http, piece, steps, until
from machine import MIB, Service
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from resource_monitor.admission import Pressure, Reason
from resource_monitor.middleware import MemoryBackpressureMiddleware
from resource_monitor.middleware.asgi_body import body_of
from resource_monitor.middleware.bodies import BodyTooLarge
from resource_monitor.middleware.losses import caused_by

SIZE = 4 * MIB
# more than comes unasked
PIECE = bytes(1 * MIB)


def upload(size: int = SIZE, path: str = "/") -> Message:
    return http("POST", path, content_length=str(size))


def chunked(path: str = "/") -> Message:
    return http("POST", path, transfer_encoding="chunked")


async def count(request: Request) -> Response:
    return PlainTextResponse(str(len(await request.body())))


async def refuses_by_itself(request: Request) -> Response:
    try:
        await request.body()
    except Exception:
        return PlainTextResponse("no", status_code=507)
    return PlainTextResponse("yes")


async def answers_first(request: Request) -> Response:
    async def stream() -> Any:
        yield b"so far"
        async for more in request.stream():
            yield more

    return StreamingResponse(stream())


starlette = Starlette(
    routes=[
        Route("/", count, methods=["POST"]),
        Route("/livez", count, methods=["POST"]),
        Route("/refuses", refuses_by_itself, methods=["POST"]),
        Route("/first", answers_first, methods=["POST"]),
    ]
)

as_fastapi = fastapi.FastAPI()


@as_fastapi.post("/")
async def of_json(body: dict[str, int]) -> int:
    return len(body)


async def plain(scope: Any, receive: Any, send: Any) -> None:
    while (await receive()).get("more_body"):
        pass
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"", "more_body": False})


APPS = pytest.mark.parametrize("app", [starlette, as_fastapi, plain], ids=["starlette", "fastapi", "plain"])


def wrap(app: Any, service: Service, **options: Any) -> MemoryBackpressureMiddleware:
    return MemoryBackpressureMiddleware(app, monitor=service.monitor, **options)


# --- which requests have a body ---


@pytest.mark.parametrize(
    ("scope", "announced"),
    [
        (http("POST", content_length="7"), 7),
        (http("GET", content_length="7"), 7),
        (http("POST", content_length="7", transfer_encoding="chunked"), None),
        (http("POST", transfer_encoding="chunked"), None),
        (http("POST", content_length="seven"), None),
        (http("POST") | {"http_version": "2"}, None),
        (http("PUT") | {"http_version": "3"}, None),
        (http("DELETE") | {"http_version": "2"}, None),
    ],
)
def test_a_body_is_what_the_headers_announce(scope: Message, announced: int | None) -> None:
    body = body_of(scope)
    assert body is not None
    assert body.announced == announced


@pytest.mark.parametrize(
    "scope",
    [
        http("POST"),
        http("POST", content_length="0"),
        http("GET") | {"http_version": "2"},
        http("POST", content_length="0") | {"http_version": "2"},
        {"type": "websocket", "path": "/", "headers": [(b"content-length", b"7")]},
    ],
)
def test_others_have_none(scope: Message) -> None:
    assert body_of(scope) is None


# --- room ---


def test_the_whole_body_is_kept_room_for_before_it_is_read(service: Service) -> None:
    async def main() -> None:
        middleware = wrap(starlette, service)
        client = Client(middleware, upload(100 * MIB))
        await until(lambda: middleware.statistics().in_flight)
        assert middleware.statistics().promised == 100 * MIB
        refused = Client(middleware, upload(120 * MIB), piece())
        assert await refused.status() == 503
        client.messages.put_nowait(piece(bytes(10 * MIB), more=True))
        await until(lambda: middleware.statistics().promised == 90 * MIB)
        client.messages.put_nowait(GONE)
        with pytest.raises(ClientDisconnect):
            await client.task
        assert middleware.statistics().promised == 0

    asyncio.run(main())


@pytest.mark.parametrize("scope", [upload(), chunked()], ids=["announced", "chunked"])
def test_nothing_more_is_read_while_there_is_no_room(service: Service, scope: Message) -> None:
    async def main() -> None:
        middleware = wrap(starlette, service, body_timeout=30)
        client = Client(middleware, scope, piece(PIECE, more=True))
        await until(lambda: len(client.received) == 1)
        service.fill()
        client.messages.put_nowait(piece(PIECE, more=True))
        client.messages.put_nowait(piece(PIECE))
        await until(lambda: len(client.received) == 2)  # it was being received
        await asyncio.sleep(0.05)
        assert len(client.received) == 2
        service.empty()
        assert await client.status() == 200
        assert client.sent[1]["body"] == str(3 * len(PIECE)).encode()
        assert middleware.statistics().shed == 0

    asyncio.run(main())


@APPS
@pytest.mark.parametrize("scope", [upload(), chunked()], ids=["announced", "chunked"])
def test_without_room_for_too_long_the_request_ends_with_503(service: Service, app: Any, scope: Message) -> None:
    async def main() -> None:
        middleware = wrap(app, service, body_timeout=0.03)
        client = Client(middleware, scope, piece(PIECE, more=True))
        await until(lambda: client.received)
        service.fill()
        client.messages.put_nowait(piece(PIECE, more=True))
        client.messages.put_nowait(piece(PIECE))
        assert await client.status() == 503
        found = middleware.statistics()
        assert (found.wasted, found.shed_by_reason) == (1, {Reason.BODY: 1})
        assert (found.in_flight, found.promised) == (0, 0)

    asyncio.run(main())


def test_an_app_may_answer_by_itself_that_there_was_no_room(service: Service) -> None:
    async def main() -> None:
        middleware = wrap(starlette, service, body_timeout=0.01)
        client = Client(middleware, upload(path="/refuses"))
        await until(lambda: middleware.statistics().in_flight)
        service.fill()
        client.messages.put_nowait(piece(PIECE, more=True))
        assert await client.status() == 507
        assert middleware.statistics().wasted == 1

    asyncio.run(main())


def test_a_dry_run_neither_delays_nor_cuts(service: Service) -> None:
    async def main() -> None:
        middleware = wrap(starlette, service, dry_run=True, body_timeout=30)
        service.fill()
        client = Client(middleware, upload(len(PIECE)), piece(PIECE))
        assert await client.status() == 200
        assert middleware.statistics().shed_by_reason == {Reason.MEMORY: 1, Reason.BODY: 1}
        service.empty()
        middleware = wrap(starlette, service, dry_run=True, max_body=1)
        assert await Client(middleware, chunked(), piece(PIECE)).status() == 200
        assert middleware.statistics().shed_by_reason == {Reason.TOO_LARGE: 1}

    asyncio.run(main())


def test_a_request_without_a_body_and_an_exempt_one_get_the_servers_own_receive(service: Service) -> None:
    async def main() -> None:
        got: list[Any] = []

        async def app(scope: Any, receive: Any, send: Any) -> None:
            got.append(receive)

        async def receive() -> Any:
            raise AssertionError

        middleware = wrap(app, service)
        for scope in (http(), http("POST", content_length="0"), upload(path="/livez")):
            await middleware(scope, receive, None)  # type: ignore[arg-type]
        assert got == [receive] * 3

    asyncio.run(main())


# --- too large ---


def test_an_announced_body_that_is_too_large_is_answered_413_before_it_is_read(service: Service) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise AssertionError("the app ran")

    async def main() -> None:
        middleware = wrap(app, service, max_body="1MiB")
        client = Client(middleware, upload(SIZE + 1))
        await until(lambda: len(client.sent) == 2)
        assert client.received == []
        start, body = client.sent
        assert start["status"] == 413
        assert dict(start["headers"]) == {
            b"content-type": b"application/problem+json",
            b"content-length": str(len(body["body"])).encode(),
            b"cache-control": b"no-store",
            b"vary": b"accept",
        }
        assert json.loads(body["body"])["title"] == "Content Too Large"
        client.messages.put_nowait(piece(bytes(SIZE), more=True))
        client.messages.put_nowait(piece(b"x"))
        await client.task
        found = middleware.statistics()
        assert (found.shed_by_reason, found.admitted, found.in_flight) == ({Reason.TOO_LARGE: 1}, 0, 0)
        assert found.pressure is Pressure.OK

    asyncio.run(main())


@pytest.mark.parametrize("path", ["/", "/livez"])
@pytest.mark.parametrize("scope", [upload, chunked])
def test_a_body_of_just_max_body_is_taken_and_one_byte_more_is_not(
    service: Service, scope: Callable[..., Message], path: str
) -> None:
    async def main() -> None:
        middleware = wrap(starlette, service, max_body=100)
        fits = http("POST", path, content_length="100") if scope is upload else chunked(path)
        exceeds = http("POST", path, content_length="101") if scope is upload else chunked(path)
        assert await Client(middleware, fits, piece(bytes(60), more=True), piece(bytes(40))).status() == 200
        assert await Client(middleware, exceeds, piece(bytes(60), more=True), piece(bytes(41))).status() == 413

    asyncio.run(main())


@APPS
def test_a_chunked_body_is_cut_as_soon_as_more_came(service: Service, app: Any, caplog: Any) -> None:
    async def main() -> None:
        middleware = wrap(app, service, max_body=SIZE)
        client = Client(middleware, chunked(), piece(bytes(SIZE), more=True), piece(b"x", more=True))
        await until(lambda: client.sent)
        assert client.sent[0]["status"] == 413
        client.messages.put_nowait(piece())
        await client.task
        found = middleware.statistics()
        assert (found.shed_by_reason, found.wasted, found.promised) == ({Reason.TOO_LARGE: 1}, 0, 0)

    asyncio.run(main())
    assert not [record for record in caplog.records if "Shedding" in record.getMessage()]


def test_an_answer_that_began_is_broken_off(service: Service) -> None:
    async def main() -> None:
        middleware = wrap(starlette, service, max_body=10)
        client = Client(middleware, chunked("/first"), piece(b"x", more=True), piece(bytes(10), more=True))
        with pytest.raises(Exception) as e:  # noqa: PT011 - a group of its own in newer versions of Starlette
            await client.task
        assert caused_by(e.value, BodyTooLarge)
        assert client.sent[0]["status"] == 200
        assert client.sent[-1].get("more_body")
        assert middleware.statistics().in_flight == 0

    asyncio.run(main())


def test_an_apps_own_400_and_500_are_its_own(service: Service) -> None:
    async def main() -> None:
        assert await Client(wrap(as_fastapi, service, max_body=100), upload(3), piece(b"{x}")).status() == 422

        async def fails(request: Request) -> Response:
            raise ValueError

        app = Starlette(routes=[Route("/", fails, methods=["POST"])])
        client = Client(wrap(app, service, max_body=100), upload(3), piece(b"abc"))
        with pytest.raises(ValueError):  # noqa: PT011
            await client.task
        assert client.sent[0]["status"] == 500

    asyncio.run(main())


# --- the rest of a refused body ---


def test_a_refused_client_that_still_sends_is_answered_and_then_read_to_its_end(service: Service) -> None:
    async def main() -> None:
        middleware = wrap(starlette, service)
        service.fill()
        client = Client(middleware, upload())
        await until(lambda: len(client.sent) == 2)
        assert client.sent[0]["status"] == 503
        assert client.sent[1]["more_body"]
        assert middleware.statistics().in_flight == 0
        for _ in range(3):
            client.messages.put_nowait(piece(PIECE, more=True))
        client.messages.put_nowait(piece(PIECE))
        await client.task
        assert len(client.received) == 4
        assert client.sent[2] == {"type": "http.response.body", "body": b"", "more_body": False}

    asyncio.run(main())


def test_a_refused_body_that_is_there_is_read_before_the_answer_goes_out_whole(service: Service) -> None:
    async def main() -> None:
        middleware = wrap(starlette, service)
        service.fill()
        client = Client(middleware, upload(6), piece(b"abc", more=True), piece(b"def"))
        assert await client.status() == 503
        assert len(client.received) == 2
        assert [message.get("more_body") for message in client.sent] == [None, False]

    asyncio.run(main())


def test_a_client_that_expects_a_100_is_refused_before_its_body_is_asked_for(service: Service) -> None:
    async def main() -> None:
        middleware = wrap(starlette, service)
        service.fill()
        scope = upload(3)
        scope["headers"] = [*scope["headers"], (b"expect", b"100-continue")]
        client = Client(middleware, scope, piece(b"abc"))
        assert await client.status() == 503
        assert [message.get("more_body") for message in client.sent] == [None, True, False]

    asyncio.run(main())


@pytest.mark.parametrize("ending", ["gone", "silent", "endless"])
def test_what_is_read_of_a_refused_body_is_bounded(
    service: Service, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    monkeypatch.setattr("resource_monitor.middleware.asgi_rest.SECONDS", 0.02 if ending == "silent" else 30)

    async def main() -> None:
        middleware = wrap(starlette, service)
        service.fill()
        client = Client(middleware, chunked(), piece(PIECE, more=True))
        if ending == "gone":
            client.messages.put_nowait(GONE)
        if ending == "endless":
            for _ in range(80):
                client.messages.put_nowait(piece(PIECE, more=True))
        assert await client.status() == 503
        assert client.sent[-1] == {"type": "http.response.body", "body": b"", "more_body": False}
        assert len(client.received) == {"gone": 2, "silent": 1, "endless": 64}[ending]

    asyncio.run(main())


def test_a_body_that_was_read_is_not_waited_for_when_its_request_is_lost(service: Service) -> None:
    async def loses(request: Request) -> Response:
        await request.body()
        raise MemoryError

    async def main() -> None:
        app = Starlette(routes=[Route("/", loses, methods=["POST"])])
        client = Client(wrap(app, service), upload(3), piece(b"abc"))
        assert await client.status() == 503
        assert len(client.received) == 1
        assert [message["type"] for message in client.sent] == ["http.response.start", "http.response.body"]

    asyncio.run(main())


def test_a_request_cancelled_while_its_body_waits_keeps_nothing(service: Service) -> None:
    async def main() -> None:
        middleware = wrap(starlette, service, body_timeout=30)
        client = Client(middleware, upload())
        await until(lambda: middleware.statistics().in_flight)
        service.fill()
        client.messages.put_nowait(piece(PIECE, more=True))
        await until(lambda: client.received)
        await steps(5)
        client.task.cancel()
        await asyncio.gather(client.task, return_exceptions=True)
        found = middleware.statistics()
        assert (found.in_flight, found.promised, found.shed) == (0, 0, 0)

    asyncio.run(main())


# --- trio ---


def test_under_trio_bodies_wait_and_refused_ones_are_read(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    trio = pytest.importorskip("trio")
    monkeypatch.setattr("resource_monitor.middleware.asgi_rest.SECONDS", 0.02)
    statuses: list[int] = []
    middleware = wrap(plain, service, body_timeout=0.03)

    async def send(message: Any) -> None:
        if "status" in message:
            statuses.append(message["status"])

    async def request(*messages: Message) -> None:
        left = iter(messages)

        async def receive() -> Message:
            await trio.sleep(0)
            for message in left:
                if message.get("full"):
                    service.fill()
                return message
            return await trio.sleep_forever()  # type: ignore[no-any-return]

        with trio.fail_after(30):
            await middleware(upload(), receive, send)  # type: ignore[arg-type]

    trio.run(request, piece(PIECE, more=True), piece(PIECE))
    trio.run(request, piece(PIECE, more=True), {**piece(PIECE, more=True), "full": True})
    trio.run(request, piece(PIECE, more=True))
    assert statuses == [200, 503, 503]
    found = middleware.statistics()
    assert found.shed_by_reason == {Reason.BODY: 1, Reason.MEMORY: 1}
    assert found.in_flight == 0
