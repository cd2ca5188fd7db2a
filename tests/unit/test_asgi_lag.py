"""How late the event loop comes while requests are in flight."""

import asyncio
import socket
import time
from typing import Any

import pytest
from asgi_client import Client, http, record_timers, steps
from machine import Service

from resource_monitor.middleware import MemoryBackpressureMiddleware
from resource_monitor.middleware.gate import Gate
from resource_monitor.middleware.lag import Heartbeat


@pytest.fixture
def queues() -> list[int]:
    """How many connections waited, as gates are told."""
    return []


@pytest.fixture
def lags(monkeypatch: pytest.MonkeyPatch, queues: list[int]) -> list[float]:
    """What gates are told."""
    told: list[float] = []
    original = Gate.lagged

    def lagged(gate: Gate, seconds: float, *, queued: int) -> None:
        told.append(seconds)
        queues.append(queued)
        original(gate, seconds, queued=queued)

    monkeypatch.setattr(Gate, "lagged", lagged)
    return told


def run_for(middleware: Any, requests: int = 1) -> None:
    async def main() -> None:
        await asyncio.gather(*(Client(middleware, http()).task for _ in range(requests)))

    asyncio.run(main())


def test_a_handler_that_blocks_the_loop_is_noticed(service: Service, lags: list[float]) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.sleep(0)
        time.sleep(0.3)
        await asyncio.sleep(0.02)

    run_for(MemoryBackpressureMiddleware(app, monitor=service.monitor))
    assert max(lags) >= 0.2


def test_one_that_only_takes_its_time_is_asked_about_again_and_again(service: Service, lags: list[float]) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        while len(lags) < 3:
            await asyncio.sleep(0.01)

    run_for(MemoryBackpressureMiddleware(app, monitor=service.monitor))
    assert min(lags) >= 0


def test_connections_that_wait_for_the_loop_are_told(service: Service, lags: list[float], queues: list[int]) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        while not lags:
            await asyncio.sleep(0.01)

    with socket.create_server(("localhost", 0)) as server, socket.create_connection(server.getsockname()):
        run_for(MemoryBackpressureMiddleware(app, monitor=service.monitor))
    assert queues[0] == 1


def test_with_nothing_in_flight_the_loop_is_left_alone(service: Service, lags: list[float]) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.sleep(0)

    middleware = MemoryBackpressureMiddleware(app, monitor=service.monitor)

    async def main() -> None:
        timers = record_timers()
        await asyncio.gather(*(Client(middleware, http()).task for _ in range(10)))
        await steps(2)
        assert [timer.cancelled() for timer in timers] == [True]  # one for all

    asyncio.run(main())
    assert lags == []


def test_many_one_after_the_other_share_a_timer_which_is_set_no_more_once_none_came(service: Service) -> None:
    async def main() -> None:
        timers = record_timers()
        heart = Heartbeat(Gate(monitor=service.monitor), asyncio.get_running_loop())
        for _ in range(1000):
            heart.begin()
            heart.end()
        assert len(timers) < 50
        assert not timers[-1].cancelled()
        while not all(timer.cancelled() or timer.when() < asyncio.get_running_loop().time() for timer in timers):
            await asyncio.sleep(0.01)
        heart.begin()
        heart.end()
        assert timers[-1].cancelled()

    asyncio.run(main())


def test_a_beat_that_fails_for_want_of_memory_is_not_the_last(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[float] = []

    def lagged(gate: Gate, seconds: float, *, queued: int) -> None:
        told.append(seconds)
        if len(told) == 1:
            raise MemoryError

    monkeypatch.setattr(Gate, "lagged", lagged)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda *_: None)
        heart = Heartbeat(Gate(monitor=service.monitor), loop)
        async with asyncio.timeout(60):
            for beats in (1, 2):
                heart.begin()
                while len(told) < beats:
                    await asyncio.sleep(0.01)

    asyncio.run(main())


def test_a_loop_that_was_closed_in_the_middle_does_not_matter_to_the_next(service: Service, lags: list[float]) -> None:
    hangs = True

    async def app(scope: Any, receive: Any, send: Any) -> None:
        while hangs or not lags:
            await asyncio.sleep(0.01)

    middleware = MemoryBackpressureMiddleware(app, monitor=service.monitor)
    loop = asyncio.new_event_loop()
    pending = loop.create_task(middleware(http(), None, None))  # type: ignore[arg-type]
    loop.run_until_complete(asyncio.sleep(0))
    hangs = False
    run_for(middleware)
    assert lags
    pending.cancel()
    loop.run_until_complete(asyncio.gather(pending, return_exceptions=True))
    loop.close()
    assert middleware.statistics().in_flight == 0


def test_under_trio_nothing_is_measured(service: Service, lags: list[float]) -> None:
    trio = pytest.importorskip("trio")

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await trio.sleep(0.06)

    trio.run(MemoryBackpressureMiddleware(app, monitor=service.monitor), http(), None, None)
    assert lags == []
