"""The ASGI adapter: pure ASGI, for Starlette, FastAPI and every other ASGI app."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, Coroutine, MutableMapping
from typing import Any, Unpack

from resource_monitor.middleware.gate import Admitted, Gate
from resource_monitor.middleware.losses import let_go, lost_to_memory
from resource_monitor.middleware.options import Options
from resource_monitor.middleware.statistics import Statistics
from resource_monitor.middleware.steps import as_app

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]

# RFC 6455's registry: 1013, "Try Again Later".
_TRY_AGAIN_LATER = 1013


class MemoryBackpressureMiddleware:
    """Answers 503 before ``app`` runs while there is no memory for one more request, and in place of its answer when
    it ran out of memory before the response started.

    The keyword options are those of :class:`~resource_monitor.middleware.options.Options`. Raises
    :class:`~resource_monitor.ConfigurationError` for a value that cannot be meant, and
    :class:`~resource_monitor.GuardError` when the allocation guard was asked for and cannot be installed.
    """

    def __init__(self, app: ASGIApp, **options: Unpack[Options]) -> None:
        self.app = app
        self._gate = Gate(**options)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        method = scope["method"] if scope["type"] == "http" else "WEBSOCKET"
        gate = self._gate
        ask = gate.ask(scope, method, scope["path"], scope.get("root_path", ""))
        answer = gate.attempt(ask)
        admitted = answer if isinstance(answer, Admitted) else gate.refuse(ask, answer)
        if admitted is None:
            await self._refuse(scope, send)
            return
        try:
            lost = await self._lost(admitted, scope, receive, send)
        finally:
            admitted.leave()
        if lost:
            await self._refuse(scope, send)

    def statistics(self) -> Statistics:
        """What this middleware did so far."""
        return self._gate.statistics()

    async def _lost(self, admitted: Admitted, scope: Scope, receive: Receive, send: Send) -> bool:
        """Run the app; whether it ran out of memory and has not answered."""
        response = _Response(send, admitted)
        try:
            app = self.app(scope, receive, response.send)
            await (as_app(app) if isinstance(app, Coroutine) else app)
            if response.withheld:
                admitted.lose()
            return response.withheld
        except BaseException as error:
            if not lost_to_memory(error):
                raise
            # the next admission must find the memory free
            let_go(error)
            admitted.lose()
            if response.started:
                raise
            return True

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


class _Response:
    """The app's ``send``: knows whether the response started, and withholds a framework's 500 for a ``MemoryError``.

    Frameworks send their error page while they handle the error (Starlette's ``ServerErrorMiddleware`` does), so that
    the error is the one being handled when the message comes.
    """

    __slots__ = ("_admitted", "_send", "started", "withheld")

    def __init__(self, send: Send, admitted: Admitted) -> None:
        self._send = send
        self._admitted = admitted
        self.started = False
        self.withheld = False

    async def send(self, message: Message) -> None:
        if not self.started and not self.withheld and message.get("status") == 500:
            error = sys.exception()
            if lost_to_memory(error):
                assert error is not None
                let_go(error)
                self.withheld = True
        if not self.withheld:
            if not self.started:
                self.started = True
                self._admitted.answered()
            await self._send(message)
