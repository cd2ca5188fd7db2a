"""Middlewares that do nothing: what any at all costs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from benchmarks.overload.asgi import App, Message, Receive, Scope, Send

WSGIApp = Callable[..., Iterable[bytes]]


class NoOp:
    """The least that a pure ASGI middleware does."""

    def __init__(self, app: App) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.app(scope, receive, send)


class SendingNoOp:
    """The least of one that has to see the answer, as those for CORS, compression and request ids have."""

    def __init__(self, app: App) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_on(message: Message) -> None:
            await send(message)

        await self.app(scope, receive, send_on)


class WSGINoOp:
    """The least that a WSGI middleware does."""

    def __init__(self, app: WSGIApp) -> None:
        self.app = app

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        return self.app(environ, start_response)
