import asyncio
import logging
from collections.abc import Coroutine
from typing import Any

import pytest
from asgi_client import GONE, Client, http, piece, record_timers, steps, until
from machine import MIB, Service

from resource_monitor.admission import Reason
from resource_monitor.middleware import MemoryBackpressureMiddleware
from resource_monitor.middleware import waiting as module
from resource_monitor.middleware.gate import Gate


class App:
    """Answers 200 when told to; remembers in which order requests started and what they received."""

    def __init__(self, *, holds: bool = False) -> None:
        self.started: list[str] = []
        self.received: list[Any] = []
        self.may_end = asyncio.Event()
        if not holds:
            self.may_end.set()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.started.append(scope["path"])
        await self.may_end.wait()
        if scope["method"] == "POST":
            self.received.append(await receive())
            while self.received[-1].get("more_body"):
                self.received.append(await receive())
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})


def run(test: Coroutine[Any, Any, None]) -> None:
    """Runs a test; nothing that it began may be there when it ends, no task and no timer, but the heart may beat on for
    a moment."""

    async def main() -> None:
        timers = record_timers()
        await test
        await steps(3)
        assert asyncio.all_tasks() == {asyncio.current_task()}
        loop = asyncio.get_running_loop()

        def left() -> list[asyncio.TimerHandle]:
            return [timer for timer in timers if timer.when() > loop.time() and not timer.cancelled()]

        assert [timer for timer in left() if "Heartbeat._beat" not in repr(timer)] == []
        while left():
            await asyncio.sleep(0.01)

    asyncio.run(main())


def wrap(app: App, service: Service, **options: Any) -> MemoryBackpressureMiddleware:
    return MemoryBackpressureMiddleware(app, monitor=service.monitor, **options)


def test_a_request_waits_for_room(service: Service) -> None:
    async def test() -> None:
        app = App()
        middleware = wrap(app, service, max_wait=30)
        service.fill()
        client = Client(middleware, http())
        await until(lambda: middleware.statistics().waiting == 1)
        assert app.started == []
        service.empty()
        assert await client.status() == 200
        assert (middleware.statistics().waiting, middleware.statistics().shed) == (0, 0)

    run(test())


def test_without_max_wait_a_request_is_refused_at_once(service: Service) -> None:
    async def test() -> None:
        middleware = wrap(App(), service)
        service.fill()
        client = Client(middleware, http())
        await steps(1)
        assert client.task.done()
        assert await client.status() == 503

    run(test())


def test_a_request_that_waited_in_vain_is_refused_for_its_reason(service: Service) -> None:
    async def test() -> None:
        middleware = wrap(App(), service, max_wait=0.03)
        service.fill()
        assert await Client(middleware, http()).status() == 503
        found = middleware.statistics()
        assert (found.shed_by_reason, found.admitted, found.waiting) == ({Reason.MEMORY: 1}, 0, 0)

    run(test())


def test_first_come_first_served_whenever_a_request_leaves(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("resource_monitor.middleware.asgi_waiting.POLL", 3600)  # none but those who leave tell

    async def test() -> None:
        app = App(holds=True)
        middleware = wrap(app, service, max_wait=30, max_in_flight=1)
        clients = [Client(middleware, http(path=f"/things/{number}")) for number in range(4)]
        await until(lambda: middleware.statistics().waiting == 3)
        app.may_end.set()
        late = Client(middleware, http(path="/things/4"))
        assert [await client.status() for client in [*clients, late]] == [200] * 5
        assert app.started == [f"/things/{number}" for number in range(5)]

    run(test())


def test_a_ping_passes_waiting_jobs(service: Service) -> None:
    async def test() -> None:
        app = App()
        cost = lambda scope: 500 * MIB if scope["path"] == "/job" else 0  # noqa: E731
        middleware = wrap(app, service, max_wait=30, request_cost=cost)
        jobs = [Client(middleware, http(path="/job")) for _ in range(3)]
        await until(lambda: middleware.statistics().waiting == 3)
        assert await Client(middleware, http(path="/ping")).status() == 200
        service.use(32 * MIB, limit=4096 * MIB)
        assert [await job.status() for job in jobs] == [200] * 3

    run(test())


def test_liveness_does_not_wait_behind_its_like(service: Service) -> None:
    async def test() -> None:
        middleware = wrap(App(), service, max_wait=30, exempt=["/live/1"])
        service.fill()
        waits = Client(middleware, http(path="/live/2"))
        await until(lambda: middleware.statistics().waiting == 1)
        assert await Client(middleware, http(path="/live/1")).status() == 200
        service.empty()
        assert await waits.status() == 200

    run(test())


def test_a_client_that_goes_away_waits_no_more_and_counts_for_nothing(service: Service) -> None:
    async def test() -> None:
        app = App()
        middleware = wrap(app, service, max_wait=30)
        service.fill()
        client = Client(middleware, http(), piece(), GONE)
        assert await client.status() is None
        found = middleware.statistics()
        assert (found.waiting, found.shed, found.admitted, found.in_flight) == (0, 0, 0, 0)
        service.empty()
        await asyncio.sleep(0.02)
        assert app.started == []

    run(test())


def test_what_was_received_while_waiting_is_received_by_the_app_in_order(service: Service) -> None:
    async def test() -> None:
        app = App()
        middleware = wrap(app, service, max_wait=30)
        service.fill()
        client = Client(middleware, http("POST", content_length="3"), piece(b"a", more=True))
        client.messages.put_nowait(piece(b"b", more=True))
        await until(lambda: client.received)
        await asyncio.sleep(0.02)
        assert len(client.received) == 1  # no more is read ahead
        client.messages.put_nowait(piece(b"c"))
        service.empty()
        assert await client.status() == 200
        assert [message["body"] for message in app.received] == [b"a", b"b", b"c"]

    run(test())


def test_nothing_of_a_larger_body_is_read_ahead(service: Service) -> None:
    async def test() -> None:
        middleware = wrap(App(), service, max_wait=30)
        service.fill()
        client = Client(middleware, http("POST", content_length="100000"), piece(bytes(100_000)))
        await until(lambda: middleware.statistics().waiting == 1)
        await asyncio.sleep(0.02)
        assert client.received == []
        service.empty()
        assert await client.status() == 200

    run(test())


def test_a_disconnect_that_comes_with_the_admission_reaches_the_app(service: Service) -> None:
    async def test() -> None:
        app = App()
        middleware = wrap(app, service, max_wait=30, max_in_flight=1)
        app.may_end.clear()
        first = Client(middleware, http())
        await until(lambda: app.started)
        second = Client(middleware, http("POST", content_length="3"), piece(b"abc"))
        await until(lambda: middleware.statistics().waiting == 1)
        await steps(5)
        app.may_end.set()
        await first.task
        second.messages.put_nowait(GONE)
        await second.task
        assert not app.received or [message["type"] for message in app.received] == ["http.request"]

    run(test())


def test_the_app_receives_only_once_nobody_else_does(service: Service) -> None:
    async def test() -> None:
        received: list[Any] = []

        async def app(scope: Any, receive: Any, send: Any) -> None:
            while not received or received[-1] != GONE:
                received.append(await receive())

        middleware = MemoryBackpressureMiddleware(app, monitor=service.monitor, max_wait=30)
        service.fill()
        client = Client(middleware, http(), piece())
        await until(lambda: client.received)
        service.empty()
        await until(lambda: received)
        client.messages.put_nowait(GONE)
        await client.task
        assert received == [piece(), GONE]

    run(test())


def test_a_receive_that_fails_while_waiting_fails_the_request(service: Service) -> None:
    async def test() -> None:
        middleware = wrap(App(), service, max_wait=30)
        service.fill()
        client = Client(middleware, http())
        client.messages.put_nowait(ConnectionError("boom"))
        with pytest.raises(ConnectionError, match="boom"):
            await client.task
        assert middleware.statistics().waiting == 0

    run(test())


def test_a_websocket_waits_too(service: Service) -> None:
    async def test() -> None:
        seen: list[Any] = []

        async def app(scope: Any, receive: Any, send: Any) -> None:
            seen.append(await receive())

        middleware = MemoryBackpressureMiddleware(app, monitor=service.monitor, max_wait=30)
        service.fill()
        scope = {"type": "websocket", "path": "/", "headers": []}
        client = Client(middleware, scope, {"type": "websocket.connect"})
        gone = Client(middleware, scope, {"type": "websocket.connect"}, {"type": "websocket.disconnect", "code": 1006})
        await gone.task
        assert gone.sent == []
        service.empty()
        await client.task
        assert seen == [{"type": "websocket.connect"}]

    run(test())


@pytest.mark.parametrize("turns", range(14))
def test_a_request_cancelled_at_any_moment_of_its_admission_leaves_nothing_behind(service: Service, turns: int) -> None:
    async def test() -> None:
        app = App(holds=True)
        middleware = wrap(app, service, max_wait=30, max_in_flight=1)
        first = Client(middleware, http())
        await until(lambda: app.started)
        second = Client(middleware, http(), piece())
        third = Client(middleware, http(), piece())
        await until(lambda: middleware.statistics().waiting == 2)
        app.may_end.set()
        await steps(turns)
        second.task.cancel()
        await asyncio.gather(second.task, return_exceptions=True)
        assert await third.status() == 200
        await first.task
        found = middleware.statistics()
        assert (found.in_flight, found.waiting, found.shed) == (0, 0, 0)

    run(test())


def test_one_that_was_let_in_and_cancelled_at_once_leaves_its_place(service: Service) -> None:
    async def test() -> None:
        app = App(holds=True)
        middleware = wrap(app, service, max_wait=30, max_in_flight=1)
        first = Client(middleware, http())
        await until(lambda: app.started)
        second = Client(middleware, http(), piece())
        await until(lambda: middleware.statistics().waiting == 1)
        assert middleware._here is not None
        room, admitted = middleware._here.room, []
        original = room._pump

        def pump() -> None:
            original()
            if middleware.statistics().in_flight and first.task.done():
                admitted.append(second)
                second.task.cancel()

        room._pump = pump  # type: ignore[method-assign]
        app.may_end.set()
        await asyncio.gather(first.task, second.task, return_exceptions=True)
        assert second.task.cancelled()
        assert admitted == [second]
        assert middleware.statistics().in_flight == 0
        assert len(app.started) == 1

    run(test())


def test_a_burst_of_cheap_requests_after_the_start_is_not_shed(service: Service) -> None:
    async def test() -> None:
        async def app(scope: Any, receive: Any, send: Any) -> None:
            await asyncio.sleep(0.001)
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b""})

        middleware = MemoryBackpressureMiddleware(app, monitor=service.monitor)
        clients = [Client(middleware, http()) for _ in range(100)]
        await steps(2)
        assert middleware.statistics().waiting > 0
        assert {await client.status() for client in clients} == {200}
        assert middleware.statistics().shed == 0

    run(test())


def test_a_burst_that_answers_nothing_is_shed_in_the_end(service: Service) -> None:
    async def test() -> None:
        app = App(holds=True)
        middleware = wrap(app, service)
        clients = [Client(middleware, http()) for _ in range(100)]
        await until(lambda: middleware.statistics().shed and not middleware.statistics().waiting)
        app.may_end.set()
        statuses = [await client.status() for client in clients]
        assert statuses.count(503) == middleware.statistics().shed_by_reason[Reason.COLD_START]
        assert statuses.count(200) == middleware.statistics().admitted

    run(test())


def test_with_no_place_left_the_newest_is_refused_at_once(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PLACES_OF_ONE", 2)

    async def test() -> None:
        middleware = wrap(App(), service, max_wait=30)
        service.fill()
        first, second, third = (Client(middleware, http()) for _ in range(3))
        assert await third.status() == 503
        assert middleware.statistics().waiting == 2
        service.empty()
        assert [await client.status() for client in (first, second)] == [200, 200]

    run(test())


def test_a_dry_run_does_not_wait(service: Service) -> None:
    async def test() -> None:
        middleware = wrap(App(), service, max_wait=30, dry_run=True)
        service.fill()
        client = Client(middleware, http())
        await steps(3)
        assert client.task.done()
        assert await client.status() == 200
        assert middleware.statistics().shed_by_reason == {Reason.MEMORY: 1}

    run(test())


def test_memory_that_is_short_for_the_question_itself_ends_no_pump(
    service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    async def test() -> None:
        middleware = wrap(App(), service, max_wait=30)
        service.fill()
        client = Client(middleware, http())
        await until(lambda: middleware.statistics().waiting == 1)
        original = Gate.attempt
        failures = iter([MemoryError(), MemoryError()])

        def attempt(ask: Any) -> Any:
            for failure in failures:
                raise failure
            return original(middleware._gate, ask)

        middleware._gate.attempt = attempt  # type: ignore[method-assign]
        service.empty()
        assert await client.status() == 200

    run(test())
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


def test_each_event_loop_has_those_who_wait_on_it(service: Service) -> None:
    app = App()
    middleware = wrap(app, service, max_wait=30)
    for _ in range(2):

        async def test() -> None:
            service.fill()
            client = Client(middleware, http())
            await until(lambda: middleware.statistics().waiting == 1)
            service.empty()
            assert await client.status() == 200

        run(test())


def test_a_loop_that_ends_while_requests_wait_leaves_none_waiting(service: Service) -> None:
    middleware = wrap(App(), service, max_wait=30)
    service.fill()

    async def main() -> None:
        Client(middleware, http())
        await until(lambda: middleware.statistics().waiting == 1)

    asyncio.run(main())
    assert middleware.statistics().waiting == 0


def test_under_trio_requests_wait_by_asking_again(service: Service) -> None:
    trio = pytest.importorskip("trio")
    sent: list[Any] = []
    middleware = wrap(App(), service, max_wait=30)

    async def receive() -> Any:
        raise AssertionError("nothing should be received")

    async def send(message: Any) -> None:
        sent.append(message.get("status"))

    async def main() -> None:
        service.fill()
        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(middleware, http(), receive, send)
                while middleware.statistics().waiting == 0:
                    await trio.sleep(0.001)
                service.empty()

    trio.run(main)
    assert sent[0] == 200
    assert (middleware.statistics().waiting, middleware.statistics().in_flight) == (0, 0)


def test_under_trio_a_request_that_waited_in_vain_is_refused(service: Service) -> None:
    trio = pytest.importorskip("trio")
    sent: list[Any] = []
    middleware = wrap(App(), service, max_wait=0.02)
    service.fill()

    async def send(message: Any) -> None:
        sent.append(message.get("status"))

    trio.run(middleware, http(), None, send)
    assert sent[0] == 503


def test_under_trio_no_more_wait_than_have_a_place(service: Service) -> None:
    trio = pytest.importorskip("trio")
    sent: list[Any] = []
    middleware = wrap(App(), service, max_wait=3600)
    service.fill()
    middleware._gate.waiting = module.PLACES

    async def send(message: Any) -> None:
        sent.append(message.get("status"))

    async def main() -> None:
        with trio.fail_after(30):
            await middleware(http(), None, send)

    trio.run(main)
    assert sent[0] == 503
