"""The aiohttp middleware, for ``web.Application(middlewares=[memory_backpressure(), …])``: first, around the others.

Owns aiohttp's ways with responses; ``entrance`` owns the waiting for room. aiohttp reads the body of a request when its
handler asks for it, and bounds it itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Unpack

from aiohttp import hdrs, web

from resource_monitor.middleware.asking import Ask
from resource_monitor.middleware.entrance import LoopEntrance
from resource_monitor.middleware.environment import settle
from resource_monitor.middleware.gate import Gate
from resource_monitor.middleware.inapplicable import refuse_inapplicable
from resource_monitor.middleware.losses import let_go, lost_to_memory
from resource_monitor.middleware.options import Options
from resource_monitor.middleware.refusing import Shed
from resource_monitor.middleware.statistics import Statistics
from resource_monitor.middleware.steps import as_app

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_INSTEAD = {
    "max_body": "client_max_size of web.Application",
    "body_timeout": "client_max_size of web.Application, which bounds what is read of one",
}


def memory_backpressure(**options: Unpack[Options]) -> MemoryBackpressure:
    """A middleware that answers 503 before the handler runs while there is no memory for one more request, and in place
    of 500 when it ran out of memory before its response was prepared.

    The options are those of :class:`~resource_monitor.middleware.options.Options`; callables get the ``web.Request``.
    Raises :class:`~resource_monitor.ConfigurationError` for a value that cannot be meant, and
    :class:`~resource_monitor.GuardError` when the allocation guard was asked for and cannot be installed.
    """
    return web.middleware(MemoryBackpressure(**options))


class MemoryBackpressure:
    """What :func:`memory_backpressure` makes."""

    def __init__(self, **options: Unpack[Options]) -> None:
        refuse_inapplicable(options, "aiohttp", _INSTEAD)
        settled, names = settle(options)
        self._gate = Gate(names, **settled)
        self._entrance = LoopEntrance(self._gate)

    async def __call__(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        stay = await self._entrance.enter(self._ask(request))
        if isinstance(stay, Shed):
            return self._refusal(stay, request)
        # aiohttp serves each request in a task of its own, which ends when the response is sent
        task = asyncio.current_task()
        assert task is not None
        task.add_done_callback(stay.leave)
        try:
            app = handler(request)
            response = await (as_app(app) if isinstance(app, Coroutine) else app)
        except BaseException as error:
            if not lost_to_memory(error):
                raise
            shed = self._gate.lost(stay.admitted)
            if shed is None:
                raise
            let_go(error)
            if request.writer.output_size > 0:
                raise
            return self._refusal(shed, request)
        stay.admitted.answered()
        return response

    def statistics(self) -> Statistics:
        """What this middleware did so far."""
        return self._gate.statistics()

    def _ask(self, request: web.Request) -> Ask:
        headers, most = request.headers, request.client_max_size
        # handlers that take more read it in pieces
        length = request.content_length or 0
        upgrades = headers.get(hdrs.UPGRADE, "").lower() == "websocket"
        return self._gate.ask(
            request,
            "WEBSOCKET" if upgrades else request.method,
            request.path,
            body=min(length, most) if most else length,
            preflight=request.method == hdrs.METH_OPTIONS
            and not request.body_exists
            and hdrs.ORIGIN in headers
            and hdrs.ACCESS_CONTROL_REQUEST_METHOD in headers,
        )

    def _refusal(self, shed: Shed, request: web.Request) -> web.Response:
        answer = self._gate.refusals.answer(shed, request.headers.get(hdrs.ACCEPT))
        return web.Response(body=answer.body, status=answer.status, headers=answer.wsgi_headers())
