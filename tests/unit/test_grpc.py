"""The gRPC interceptors between two others, with real servers and channels; messages are plain bytes."""

import asyncio
import gc
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc
import grpc.aio
import pytest
from asgi_client import until
from held import held, take
from machine import MIB, Service

from resource_monitor import ConfigurationError, reserve
from resource_monitor.middleware import readings
from resource_monitor.middleware.grpc import (
    PUSHBACK,
    AioMemoryBackpressureInterceptor,
    MemoryBackpressureInterceptor,
)

KINDS = ["unary_unary", "unary_stream", "stream_unary", "stream_stream"]
HEALTH = "/grpc.health.v1.Health/Check"


@pytest.fixture(autouse=True)
def _no_real_guard(monkeypatch: pytest.MonkeyPatch) -> None:
    """The process that runs the tests is spared the guard; the handlers raise what it would make CPython raise."""
    monkeypatch.setattr(readings, "ensure_installed", lambda monitor: None)


def act(request: bytes, service: Service) -> bytes:
    """What all handlers do with a message."""
    if request == b"exhaust":
        take()
    if request == b"reserve":
        with reserve(250 * MIB, monitor=service.monitor):
            raise AssertionError("there was no room")
    if request == b"crash":
        raise RuntimeError("a defect of the handler")
    return request.upper()


class Handlers:
    """Handlers in threads; a request ``hold`` is answered after :attr:`release`. :attr:`holding` is set once one is in
    the handler, and :attr:`ended` when its call ended, after the interceptor was told."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.release = threading.Event()
        self.holding = threading.Event()
        self.ended = threading.Event()

    def act(self, request: bytes, context: Any) -> bytes:
        if request == b"hold":
            context.add_callback(self.ended.set)
            self.holding.set()
            assert self.release.wait(30)
        return act(request, self.service)

    def unary_unary(self, request: bytes, context: Any) -> bytes:
        context.set_trailing_metadata((("from", "the handler"),))
        return self.act(request, context)

    def unary_stream(self, request: bytes, context: Any) -> Iterator[bytes]:
        yield b"first"
        yield self.act(request, context)

    def stream_unary(self, requests: Iterator[bytes], context: Any) -> bytes:
        return b",".join(self.act(request, context) for request in requests)

    def stream_stream(self, requests: Iterator[bytes], context: Any) -> Iterator[bytes]:
        for request in requests:
            yield self.act(request, context)


class AioHandlers:
    """The same as coroutines and asynchronous generators."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.release = asyncio.Event()
        self.holding = threading.Event()

    async def act(self, request: bytes) -> bytes:
        if request == b"hold":
            self.holding.set()
            await self.release.wait()
        return act(request, self.service)

    async def unary_unary(self, request: bytes, context: Any) -> bytes:
        context.set_trailing_metadata((("from", "the handler"),))
        return await self.act(request)

    async def unary_stream(self, request: bytes, context: Any) -> AsyncIterator[bytes]:
        yield b"first"
        yield await self.act(request)

    async def stream_unary(self, requests: AsyncIterator[bytes], context: Any) -> bytes:
        return b",".join([await self.act(request) async for request in requests])

    async def stream_stream(self, requests: AsyncIterator[bytes], context: Any) -> None:
        """The other way to stream."""
        async for request in requests:
            await context.write(await self.act(request))


def handler_of(handlers: Any) -> grpc.GenericRpcHandler:
    made = {kind: getattr(grpc, f"{kind}_rpc_method_handler")(getattr(handlers, kind)) for kind in KINDS}

    class Generic(grpc.GenericRpcHandler):
        def service(self, details: grpc.HandlerCallDetails) -> Any:
            return made["unary_unary"] if details.method == HEALTH else made.get(details.method.rpartition("/")[2])

    return Generic()


class Noting(grpc.ServerInterceptor):
    """Another interceptor."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def intercept_service(self, continuation: Any, details: Any) -> Any:
        self.seen.append(details.method)
        return continuation(details)


class AioNoting(grpc.aio.ServerInterceptor):
    """Another interceptor."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    async def intercept_service(self, continuation: Any, details: Any) -> Any:
        self.seen.append(details.method)
        return await continuation(details)


class Running:
    """A server of either kind in this process: calls to it, and what its interceptor did."""

    def __init__(self, interceptor: Any, handlers: Any, channel: grpc.Channel, release: Callable[[], object]) -> None:
        self.interceptor = interceptor
        self.handlers = handlers
        self.channel = channel
        self.release = release

    def start(self, kind: str, *requests: bytes, path: str | None = None) -> Any:
        """A call that was begun; the responses come from ``result()``, or from iterating where it streams."""
        method = getattr(self.channel, kind)(path or f"/shop.Shop/{kind}")
        argument = iter(requests) if kind.startswith("stream") else requests[0]
        return method(argument, timeout=60) if kind.endswith("stream") else method.future(argument, timeout=60)

    def call(self, kind: str, *requests: bytes, path: str | None = None) -> list[bytes]:
        call = self.start(kind, *requests, path=path)
        return list(call) if kind.endswith("stream") else [call.result()]

    def settled(self) -> None:
        """A call is over on the server soon after its client has the status."""

        async def wait() -> None:
            await until(lambda: not self.interceptor.statistics().in_flight)

        asyncio.run(wait())


Start = Callable[..., Running]


@contextmanager
def in_threads(service: Service, **options: Any) -> Iterator[Running]:
    above, below = Noting(), Noting()
    interceptor = MemoryBackpressureInterceptor(monitor=service.monitor, **options)
    handlers = Handlers(service)
    with ThreadPoolExecutor(8) as pool:
        server = grpc.server(pool, interceptors=[above, interceptor, below])
        server.add_generic_rpc_handlers([handler_of(handlers)])
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield Running(interceptor, handlers, channel, handlers.release.set)
        handlers.release.set()
        server.stop(None).wait()
    assert above.seen


@contextmanager
def on_loop(service: Service, handlers_of: Callable[[Service], Any] = AioHandlers, **options: Any) -> Iterator[Running]:
    above, below = AioNoting(), AioNoting()
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    def do(coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, loop).result(60)

    async def begin() -> tuple[Any, Any, Any, int]:
        interceptor = AioMemoryBackpressureInterceptor(monitor=service.monitor, **options)
        handlers = handlers_of(service)
        server = grpc.aio.server(interceptors=[above, interceptor, below])
        server.add_generic_rpc_handlers([handler_of(handlers)])
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        return server, interceptor, handlers, port

    server, interceptor, handlers, port = do(begin())
    try:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield Running(interceptor, handlers, channel, lambda: loop.call_soon_threadsafe(handlers.release.set))
    finally:
        loop.call_soon_threadsafe(handlers.release.set)
        do(server.stop(None))
        do(loop.shutdown_default_executor())
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
    assert above.seen


def functions_on_loop(service: Service, **options: Any) -> Any:
    """An ``aio`` server with ordinary functions, which it runs in threads."""
    return on_loop(service, Handlers, **options)


@pytest.fixture(params=[in_threads, on_loop, functions_on_loop])
def serving(request: pytest.FixtureRequest) -> Any:
    return request.param


def expect_unavailable(running: Running, kind: str, *requests: bytes) -> grpc.RpcError:
    with pytest.raises(grpc.RpcError) as caught:
        running.call(kind, *requests)
    error: Any = caught.value
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert error.details() == "The service is short of memory; please try again later."
    assert 1000 <= int(dict(error.trailing_metadata())[PUSHBACK]) < 3000
    return error  # type: ignore[no-any-return]


@pytest.mark.parametrize("kind", KINDS)
def test_a_call_is_answered_with_room_and_refused_without(service: Service, serving: Any, kind: str) -> None:
    requests = (b"a", b"b") if kind.startswith("stream") else (b"a",)
    expected = {
        "unary_unary": [b"A"],
        "unary_stream": [b"first", b"A"],
        "stream_unary": [b"A,B"],
        "stream_stream": [b"A", b"B"],
    }[kind]
    with serving(service) as running:
        assert running.call(kind, *requests) == expected
        service.fill()
        expect_unavailable(running, kind, *requests)
        service.empty()
        assert running.call(kind, *requests) == expected
        running.settled()
        found = running.interceptor.statistics()
        assert (found.admitted, found.shed, found.wasted) == (2, 1, 0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("request_", [b"exhaust", b"reserve"])
def test_a_handler_that_runs_out_of_memory_ends_the_call_and_lets_go(
    service: Service, serving: Any, kind: str, request_: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    held.clear()
    with serving(service) as running:
        gc.disable()
        try:
            expect_unavailable(running, kind, request_)
            running.settled()
            assert [reference() for reference in held] == [None] * len(held)
        finally:
            gc.enable()
        assert running.interceptor.statistics().wasted == 1
    assert not [record for record in caplog.records if record.name.startswith("grpc")]


@pytest.mark.parametrize("kind", KINDS)
def test_in_a_dry_run_it_stays_grpcs_and_counts(service: Service, serving: Any, kind: str) -> None:
    with serving(service, dry_run=True) as running:
        with pytest.raises(grpc.RpcError) as caught:
            running.call(kind, b"exhaust")
        assert caught.value.code() is grpc.StatusCode.UNKNOWN  # type: ignore[attr-defined]
        running.settled()
        assert running.interceptor.statistics().wasted == 1


@pytest.mark.parametrize("kind", KINDS)
def test_what_else_a_handler_raises_stays_grpcs(service: Service, serving: Any, kind: str) -> None:
    with serving(service) as running:
        with pytest.raises(grpc.RpcError) as caught:
            running.call(kind, b"crash")
        assert caught.value.code() is grpc.StatusCode.UNKNOWN  # type: ignore[attr-defined]
        running.settled()
        assert running.interceptor.statistics().wasted == 0


@pytest.mark.parametrize("kind", KINDS)
def test_a_call_counts_until_its_end(service: Service, serving: Any, kind: str) -> None:
    with serving(service) as running:
        call = running.start(kind, b"hold")
        in_flight(running, 1)
        running.release()
        assert (list(call) if kind.endswith("stream") else [call.result()])[-1] == b"HOLD"
        running.settled()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("serving", [in_threads, on_loop])
def test_a_cancelled_call_counts_until_its_handler_ends(service: Service, serving: Any, kind: str) -> None:
    with serving(service) as running:
        call = running.start(kind, b"hold")
        assert running.handlers.holding.wait(30)
        assert running.interceptor.statistics().in_flight == 1
        call.cancel()
        if serving is in_threads:  # which nobody can stop
            assert running.handlers.ended.wait(30)
            assert running.interceptor.statistics().in_flight == 1
            running.release()
        running.settled()


def in_flight(running: Running, count: int) -> None:
    async def wait() -> None:
        await until(lambda: running.interceptor.statistics().in_flight == count)

    asyncio.run(wait())


def test_a_call_waits_for_room(service: Service, serving: Any) -> None:
    with serving(service, max_in_flight=1, max_wait=30) as running:
        first = running.start("unary_unary", b"hold")
        in_flight(running, 1)
        second = running.start("unary_unary", b"a")

        async def wait() -> None:
            await until(lambda: running.interceptor.statistics().waiting)

        asyncio.run(wait())
        running.release()
        assert (first.result(), second.result()) == (b"HOLD", b"A")


def test_the_health_service_is_exempt(service: Service, serving: Any) -> None:
    with serving(service) as running:
        service.fill()
        assert running.call("unary_unary", b"a", path=HEALTH) == [b"A"]
        assert running.interceptor.statistics().exempt == 1


def test_a_method_that_nobody_serves_stays_unimplemented(service: Service, serving: Any) -> None:
    with serving(service) as running:
        with pytest.raises(grpc.RpcError) as caught:
            running.call("unary_unary", b"a", path="/shop.Shop/Unknown")
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED  # type: ignore[attr-defined]
        running.settled()


def test_methods_are_told_apart_however_long_their_names(service: Service, serving: Any) -> None:
    with serving(service) as running:
        path = "/shop.of.a.very.long.name.and.version.2.OrdersOfCustomersOfEuropeV2/unary_unary"
        call = running.start("unary_unary", b"hold", path=path)
        in_flight(running, 1)
        assert list(running.interceptor.statistics().routes) == [f"RPC {path}"]
        running.release()
        call.result()


def test_what_a_handler_says_in_the_trailing_metadata_is_kept(service: Service, serving: Any) -> None:
    with serving(service) as running:
        error: Any = expect_unavailable(running, "unary_unary", b"exhaust")
        if serving is not functions_on_loop:  # whose contexts do not tell what was set
            assert dict(error.trailing_metadata())["from"] == "the handler"


def test_callables_get_the_details_of_the_call(service: Service, serving: Any) -> None:
    def cost(details: grpc.HandlerCallDetails) -> int:
        return 250 * MIB if details.method.endswith("unary_stream") else 0

    with serving(service, request_cost=cost) as running:
        assert running.call("unary_unary", b"a") == [b"A"]
        expect_unavailable(running, "unary_stream", b"a")


def test_the_environment_may_say_which_calls_are_exempt(
    service: Service, serving: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RESOURCE_MONITOR_EXEMPT", "/*")
    with serving(service) as running:
        service.fill()
        assert running.call("unary_unary", b"a") == [b"A"]


@pytest.mark.parametrize("kind", [MemoryBackpressureInterceptor, AioMemoryBackpressureInterceptor])
def test_options_of_http_are_refused(kind: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"^max_body='1MiB' says nothing in gRPC, .* use the channel argument"):
        kind(max_body="1MiB")
    with pytest.raises(ConfigurationError, match=r"^response=b'' says nothing in gRPC"):
        kind(response=b"")
    with pytest.raises(ConfigurationError, match=r"^status=429 says nothing in gRPC"):
        kind(status=429)
