"""The ASGI adapter: pure ASGI, for Starlette, FastAPI and every other ASGI app."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Unpack

from resource_monitor.middleware.gate import Gate, Statistics
from resource_monitor.middleware.options import Options

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]

# RFC 6455's registry: 1013, "Try Again Later".
_TRY_AGAIN_LATER = 1013


class MemoryBackpressureMiddleware:
    """Answers 503 before ``app`` runs while there is no memory for one more request.

    The keyword options are those of :class:`~resource_monitor.middleware.options.Options`. Raises
    :class:`~resource_monitor.ConfigurationError` for a value that cannot be meant.
    """

    def __init__(self, app: ASGIApp, **options: Unpack[Options]) -> None:
        self.app = app
        self._gate = Gate(**options)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
        elif self._gate.enter(scope["path"], scope.get("root_path", "")):
            try:
                await self.app(scope, receive, send)
            finally:
                self._gate.leave()
        else:
            await self._refuse(scope, send)

    def statistics(self) -> Statistics:
        """What this middleware did so far."""
        return self._gate.statistics()

    async def _refuse(self, scope: Scope, send: Send) -> None:
        refusal = self._gate.refusal
        if scope["type"] == "http":
            await send(refusal.asgi_start("http.response.start"))
            await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else refusal.body})
        elif "websocket.http.response" in (scope.get("extensions") or ()):
            await send(refusal.asgi_start("websocket.http.response.start"))
            await send({"type": "websocket.http.response.body", "body": refusal.body})
        else:
            await send({"type": "websocket.close", "code": _TRY_AGAIN_LATER})
