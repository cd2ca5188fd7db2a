"""Quart, which answers 500 when it is done with an error: it says that the request ran out of memory."""

import asyncio
from typing import Any

import pytest
from machine import Service
from quart import Quart, request

from resource_monitor.middleware import ADMITTED, MemoryBackpressureMiddleware, readings


def test_an_app_that_says_so_is_answered_for(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readings, "ensure_installed", lambda monitor: None)
    app = Quart("shop")
    backpressure = MemoryBackpressureMiddleware(app.asgi_app, monitor=service.monitor)
    app.asgi_app = backpressure  # type: ignore[method-assign,assignment]

    @app.errorhandler(MemoryError)
    async def out_of_memory(error: MemoryError) -> tuple[str, int]:
        request.scope[ADMITTED].lose()  # type: ignore[typeddict-item]
        return "", 500

    @app.get("/")
    async def exhaust() -> str:
        raise MemoryError

    @app.get("/crash")
    async def crash() -> str:
        raise RuntimeError("a defect of the handler")

    async def talk() -> None:
        answer = await app.test_client().get("/")
        assert answer.status_code == 503
        assert answer.headers["content-type"] == "application/problem+json"
        assert (await app.test_client().get("/crash")).status_code == 500

    asyncio.run(talk())
    assert (backpressure.statistics().wasted, backpressure.statistics().in_flight) == (1, 0)


def test_an_app_that_ends_when_its_answer_is_out_is_not_waited_for(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readings, "ensure_installed", lambda monitor: None)
    sent: list[dict[str, Any]] = []
    out = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        scope[ADMITTED].lose()
        await send({"type": "http.response.start", "status": 500, "headers": []})
        await send({"type": "http.response.body", "body": b"of no use", "more_body": True})
        assert not sent
        await send({"type": "http.response.body"})
        await out.wait()
        await send({"type": "http.response.body"})  # whatever else it says

    async def send(message: Any) -> None:
        sent.append(message)
        if not message.get("more_body", message["type"] == "http.response.start"):
            out.set()

    async def receive() -> Any:
        return {"type": "http.request"}

    backpressure = MemoryBackpressureMiddleware(app, monitor=service.monitor)
    scope = {"type": "http", "method": "GET", "path": "/", "headers": []}
    asyncio.run(asyncio.wait_for(backpressure(scope, receive, send), 30))
    assert [message.get("status") for message in sent] == [503, None]
    assert (backpressure.statistics().wasted, backpressure.statistics().in_flight) == (1, 0)
