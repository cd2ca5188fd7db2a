"""A client of an ASGI app without a server between them: the app receives what it sends; what it answers is kept."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

Message = dict[str, Any]


def http(method: str = "GET", path: str = "/", **headers: str) -> Message:
    """The scope of a request; header names with ``_`` for ``-``."""
    raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return {"type": "http", "http_version": "1.1", "method": method, "path": path, "headers": raw, "query_string": b""}


def piece(body: bytes = b"", *, more: bool = False) -> Message:
    return {"type": "http.request", "body": body, "more_body": more}


GONE: Message = {"type": "http.disconnect"}


class Client:
    """One request, in a task of its own."""

    def __init__(self, app: Any, scope: Message, *messages: Message) -> None:
        self.messages: asyncio.Queue[Message | Exception] = asyncio.Queue()
        for message in messages:
            self.messages.put_nowait(message)
        self.received: list[Message] = []
        self.sent: list[Message] = []
        self._receiving = False
        self.task = asyncio.ensure_future(app(scope, self._receive, self._send))

    async def _receive(self) -> Message:
        assert not self._receiving, "servers are asked for one message at a time"
        self._receiving = True
        try:
            message = await self.messages.get()
        finally:
            self._receiving = False
        if isinstance(message, Exception):
            raise message
        self.received.append(message)
        return message

    async def _send(self, message: Message) -> None:
        self.sent.append(message)

    async def status(self) -> int | None:
        """The answer's, once the request is over; ``None`` without an answer."""
        await self.task
        return next((message["status"] for message in self.sent if "status" in message), None)


async def until(condition: Callable[[], object]) -> None:
    """Waits for what must come; the time only ends what hangs."""
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.001)


async def steps(count: int) -> None:
    """Let the event loop turn so often."""
    for _ in range(count):
        await asyncio.sleep(0)


def record_timers() -> list[asyncio.TimerHandle]:
    """Every timer that is set on the running loop from now on."""
    timers: list[asyncio.TimerHandle] = []
    loop = asyncio.get_running_loop()
    original = loop.call_later

    def call_later(*args: Any, **options: Any) -> asyncio.TimerHandle:
        timers.append(original(*args, **options))
        return timers[-1]

    loop.call_later = call_later  # type: ignore[method-assign]
    return timers
