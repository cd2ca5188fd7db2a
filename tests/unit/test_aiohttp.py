"""The aiohttp middleware between two others, under aiohttp's own test server and client."""

import asyncio
import gc
import io
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import WSMsgType, web
from aiohttp.test_utils import TestClient, TestServer
from asgi_client import until
from held import held, take
from machine import MIB, Service

from resource_monitor import ConfigurationError, reserve
from resource_monitor.middleware import readings
from resource_monitor.middleware.aiohttp import Handler, MemoryBackpressure, memory_backpressure

Client = TestClient[web.Request, web.Application]


@pytest.fixture(autouse=True)
def _no_real_guard(monkeypatch: pytest.MonkeyPatch) -> None:
    """The process that runs the tests is spared the guard; the handlers raise what it would make CPython raise."""
    monkeypatch.setattr(readings, "ensure_installed", lambda monitor: None)


async def hello(request: web.Request) -> web.Response:
    return web.Response(text="hello")


async def exhaust(request: web.Request) -> web.Response:
    take()
    return web.Response()


async def crash(request: web.Request) -> web.Response:
    raise RuntimeError("a defect of the handler")


async def upload(request: web.Request) -> web.Response:
    return web.Response(text=str(len(await request.read())))


async def stream(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    await response.write(b"one")
    await request.app[RELEASE].wait()
    if "exhaust" in request.query:
        take()
    await response.write(b"two")
    return response


async def slow_to_read(request: web.Request) -> web.Response:
    """A body that no socket's buffer takes at once."""
    return web.Response(body=io.BytesIO(b"x" * 16 * MIB))


async def echo(request: web.Request) -> web.WebSocketResponse:
    socket = web.WebSocketResponse()
    await socket.prepare(request)
    async for message in socket:
        await socket.send_str(message.data)
    return socket


@web.middleware
async def sign(request: web.Request, handler: Handler) -> web.StreamResponse:
    response = await handler(request)
    if not response.prepared:
        response.headers["x-signed"] = "above"
    return response


@web.middleware
async def as_pages(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answers errors as many apps do."""
    try:
        return await handler(request)
    except web.HTTPException as error:
        return web.Response(status=error.status, text="as a page")


RELEASE = web.AppKey("release", asyncio.Event)


@asynccontextmanager
async def serving(service: Service, **options: Any) -> AsyncIterator[tuple[Client, MemoryBackpressure]]:
    backpressure = memory_backpressure(monitor=service.monitor, **options)
    app = web.Application(middlewares=[sign, backpressure, as_pages], client_max_size=16 * MIB)
    app[RELEASE] = asyncio.Event()
    for path, handler in {
        "/": hello,
        "/healthz": hello,
        "/exhaust": exhaust,
        "/crash": crash,
        "/stream": stream,
        "/slow": slow_to_read,
        "/echo": echo,
    }.items():
        app.router.add_get(path, handler)
    app.router.add_post("/upload", upload)

    async def reserve_too_much(request: web.Request) -> web.Response:
        async with reserve(250 * MIB, monitor=service.monitor):
            raise AssertionError("there was no room")

    app.router.add_get("/reserve", reserve_too_much)
    async with TestClient(TestServer(app)) as client:
        yield client, backpressure


def run(service: Service, talk: Callable[[Client, MemoryBackpressure], Awaitable[None]], **options: Any) -> None:
    async def main() -> None:
        async with asyncio.timeout(60), serving(service, **options) as (client, backpressure):
            await talk(client, backpressure)

    asyncio.run(main())


async def settled(backpressure: MemoryBackpressure) -> None:
    """The task of a request ends soon after its client has the answer."""
    await until(lambda: not backpressure.statistics().in_flight)


def test_a_request_is_answered_with_room_and_refused_without(service: Service) -> None:
    async def talk(client: Client, backpressure: MemoryBackpressure) -> None:
        answer = await client.get("/")
        assert await answer.text() == "hello"
        service.fill()
        answer = await client.get("/")
        assert answer.status == 503
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["retry-after"] in ("1", "2")
        assert answer.headers["x-signed"] == "above"
        assert len(await answer.read()) == int(answer.headers["content-length"])
        service.empty()
        assert (await client.get("/")).status == 200
        await settled(backpressure)
        found = backpressure.statistics()
        assert (found.admitted, found.shed, found.wasted) == (2, 1, 0)

    run(service, talk)


def test_a_refusal_to_a_head_has_no_body(service: Service) -> None:
    async def talk(client: Client, backpressure: MemoryBackpressure) -> None:
        service.fill()
        answer = await client.head("/")
        assert (answer.status, await answer.read()) == (503, b"")
        assert int(answer.headers["content-length"]) > 0
        assert (await client.get("/")).status == 503

    run(service, talk)


def test_liveness_paths_are_exempt(service: Service) -> None:
    async def talk(client: Client, backpressure: MemoryBackpressure) -> None:
        service.fill()
        assert (await client.get("/healthz")).status == 200
        assert backpressure.statistics().exempt == 1

    run(service, talk)


def test_a_preflight_passes_and_one_with_a_body_does_not(service: Service) -> None:
    async def talk(client: Client, backpressure: MemoryBackpressure) -> None:
        service.fill()
        headers = {"origin": "https://shop.example", "access-control-request-method": "PUT"}
        assert (await client.options("/", headers=headers)).status == 405
        assert (await client.options("/", headers=headers, data=b"x")).status == 503

    run(service, talk)


@pytest.mark.parametrize("path", ["/exhaust", "/reserve"])
def test_a_handler_that_runs_out_of_memory_is_answered_503_and_lets_go(
    service: Service, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def talk(client: Client, backpressure: MemoryBackpressure) -> None:
        held.clear()
        gc.disable()
        try:
            answer = await client.get(path)
            assert [reference() for reference in held] == [None] * len(held)
        finally:
            gc.enable()
        assert answer.status == 503
        assert answer.headers["content-type"] == "application/problem+json"
        await settled(backpressure)
        assert backpressure.statistics().wasted == 1

    run(service, talk)
    assert not [record for record in caplog.records if record.name == "aiohttp.server"]


def test_in_a_dry_run_it_stays_aiohttps_and_counts(service: Service) -> None:
    async def talk(client: Client, backpressure: MemoryBackpressure) -> None:
        assert (await client.get("/exhaust")).status == 500
        await settled(backpressure)
        assert backpressure.statistics().wasted == 1

    run(service, talk, dry_run=True)


def test_what_else_a_handler_raises_stays_aiohttps(service: Service) -> None:
    async def talk(client: Client, backpressure: MemoryBackpressure) -> None:
        assert (await client.get("/crash")).status == 500
        answer = await client.get("/nowhere")
        assert (answer.status, await answer.text()) == (404, "as a page")
        await settled(backpressure)
        assert backpressure.statistics().wasted == 0

    run(service, talk)


def test_a_streaming_response_counts_until_its_end(service: Service) -> None:
    async def talk(client: Client, backpressure: MemoryBackpressure) -> None:
        answer = await client.get("/stream")
        assert await answer.content.read(3) == b"one"
        assert backpressure.statistics().in_flight == 1
        client.app[RELEASE].set()  # type: ignore[union-attr]
        assert await answer.read() == b"two"
        await settled(backpressure)

    run(service, talk)


def test_a_stream_that_runs_out_of_memory_breaks_off_and_counts_as_lost(service: Service) -> None:
    async def talk(client: Client, backpressure: MemoryBackpressure) -> None:
        answer = await client.get("/stream?exhaust")
        client.app[RELEASE].set()  # type: ignore[union-attr]
        with pytest.raises(Exception, match="payload"):
            await answer.read()
        await settled(backpressure)
        assert backpressure.statistics().wasted == 1

    run(service, talk)


def test_a_response_counts_until_its_client_has_read_it(service: Service) -> None:
    async def talk(client: Client, backpressure: MemoryBackpressure) -> None:
        answer = await client.get("/slow")
        assert backpressure.statistics().in_flight == 1
        assert len(await answer.read()) == 16 * MIB
        await settled(backpressure)

    run(service, talk)


def test_a_client_that_goes_away_is_no_longer_in_flight(service: Service) -> None:
    async def talk(client: Client, backpressure: MemoryBackpressure) -> None:
        answer = await client.get("/slow")
        assert backpressure.statistics().in_flight == 1
        answer.close()
        await settled(backpressure)

    run(service, talk)


def test_a_websocket_counts_until_it_is_closed_and_is_refused_without_room(service: Service) -> None:
    async def talk(client: Client, backpressure: MemoryBackpressure) -> None:
        socket = await client.ws_connect("/echo")
        await socket.send_str("hello")
        message = await socket.receive()
        assert (message.type, message.data) == (WSMsgType.TEXT, "hello")
        assert list(backpressure.statistics().routes) == ["WEBSOCKET /echo"]
        await socket.close()
        await settled(backpressure)
        service.fill()
        answer = await client.get("/echo", headers={"upgrade": "websocket", "connection": "upgrade"})
        assert answer.status == 503

    run(service, talk)


def test_a_request_waits_for_room(service: Service) -> None:
    async def talk(client: Client, backpressure: MemoryBackpressure) -> None:
        first = await client.get("/stream")
        second = asyncio.ensure_future(client.get("/"))
        await until(lambda: backpressure.statistics().waiting)
        client.app[RELEASE].set()  # type: ignore[union-attr]
        await first.read()
        assert (await second).status == 200

    run(service, talk, max_in_flight=1, max_wait=30)


def test_the_body_that_a_handler_may_read_is_promised(service: Service) -> None:
    async def talk(client: Client, backpressure: MemoryBackpressure) -> None:
        service.use(256 * MIB - 24 * MIB)
        assert await (await client.post("/upload", data=io.BytesIO(bytes(MIB)))).text() == str(MIB)
        assert (await client.post("/upload", data=io.BytesIO(bytes(12 * MIB)))).status == 503

    run(service, talk)


def test_callables_get_the_request(service: Service) -> None:
    def cost(request: web.Request) -> int:
        return int(request.query.get("takes", 0))

    async def talk(client: Client, backpressure: MemoryBackpressure) -> None:
        assert (await client.get("/")).status == 200
        assert (await client.get(f"/?takes={250 * MIB}")).status == 503

    run(service, talk, request_cost=cost)


def test_options_that_aiohttp_has_its_own_for_are_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"^max_body='1MiB' says nothing in aiohttp, .* use client_max_size"):
        memory_backpressure(max_body="1MiB")
