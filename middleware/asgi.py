"""The ASGI adapter: pure ASGI, for Starlette, FastAPI and every other ASGI app.

Owns the answer; ``asgi_waiting`` owns the waiting before it, ``asgi_body`` the receiving of the body, ``asgi_rest``
what becomes of a refused one, ``on_loop`` what belongs to the event loop. A request that starts under a grant, with no
body or none that is long for the room there is, is ``_native/turn``'s, and comes back here only when it fails.
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import Any, Unpack

from resource_monitor._native._turn import Door, Doorway, Turn, through_door
from resource_monitor.admission import Reason
from resource_monitor.middleware.admitted import ADMITTED, Admitted
from resource_monitor.middleware.asgi_body import (
    READ_AHEAD,
    BodyReceive,
    CountedReceive,
    Message,
    Receive,
    body_of,
    counted,
)
from resource_monitor.middleware.asgi_loops import running_loop
from resource_monitor.middleware.asgi_rest import Rest
from resource_monitor.middleware.asgi_waiting import WatchedReceive, wait_by_polling
from resource_monitor.middleware.asking import Ask
from resource_monitor.middleware.bodies import Body, BodyTooLarge, Intake, most_body
from resource_monitor.middleware.environment import settle
from resource_monitor.middleware.gate import Gate
from resource_monitor.middleware.losses import caused_by, let_go, lost_to_memory
from resource_monitor.middleware.on_loop import OnLoop
from resource_monitor.middleware.options import Options
from resource_monitor.middleware.refusing import Shed
from resource_monitor.middleware.responses import Answer
from resource_monitor.middleware.statistics import Statistics
from resource_monitor.middleware.steps import as_app, server_runs
from resource_monitor.middleware.waiting import patience

Scope = Message
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]

# RFC 6455's registry: 1013, "Try Again Later".
_TRY_AGAIN_LATER = 1013
# What frameworks answer for an error while they handle it; FastAPI answers 400 for any that a body being read gives.
_FOR_ERRORS = (500, 400)


class MemoryBackpressureMiddleware(Doorway):
    """Answers 503 before ``app`` runs while there is no memory for one more request, and in place of its answer when
    it ran out of memory before the response started.

    The keyword options are those of :class:`~resource_monitor.middleware.options.Options`. Raises
    :class:`~resource_monitor.ConfigurationError` for a value that cannot be meant, and
    :class:`~resource_monitor.GuardError` when the allocation guard was asked for and cannot be installed.
    """

    def __init__(self, app: ASGIApp, **options: Unpack[Options]) -> None:
        self.app = app
        settled, names = settle(options)
        self._gate = Gate(names, **settled)
        self._here: OnLoop | None = None
        self._refuse_unasked = self._gate.turns.refuse_http

    @through_door
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._refuse_unasked(scope):
            answer = self._gate.refusals.for_memory(_accept(scope))
            await send(answer.asgi_start("http.response.start"))
            await send(_body(answer, scope))
        else:
            await self._ask(scope, receive, send)

    async def _ask(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As :meth:`__call__`, for a request that has to be asked for."""
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        gate, body = self._gate, body_of(scope)
        if body is not None and body.exceeds(gate.max_body) and not gate.dry_run:
            too_large = gate.count_refusal(self._question(scope, body), Reason.TOO_LARGE)
            await self._refuse(too_large, body, scope, receive, send)
            return
        if body is not None and gate.turns.refuse(
            scope["method"], scope["path"], scope.get("root_path", ""), body.rest
        ):
            await _answer(gate.refusals.for_memory(_accept(scope)), body, scope, receive, send)
            return
        ask = self._question(scope, body)

        here = self._where()
        answer: Admitted | Reason | None = here.room.attempt(ask) if here else gate.attempt(ask)
        if isinstance(answer, Reason) and patience(answer, gate.max_wait) and not gate.dry_run:
            # a larger body is not read ahead of the app, so that this client's going away is seen by the app
            watched = None if body is not None and body.rest >= READ_AHEAD else WatchedReceive(receive)
            receive = receive if watched is None else watched.receive
            answer = await (here.room.wait(ask, answer, watched) if here else wait_by_polling(gate, ask, answer))
        if answer is None:
            return
        admitted = gate.refuse(ask, answer) if isinstance(answer, Reason) else answer
        if not isinstance(admitted, Admitted):
            await self._refuse(admitted, body, scope, receive, send)
            return

        try:
            if here:
                here.begins()
            shed = await self._run(ask, admitted, body, scope, receive, send)
        finally:
            admitted.leave()
            if here:
                here.ends()
        if shed is not None:
            await self._refuse(shed, body, scope, receive, send)

    def _question(self, scope: Scope, body: Body | None) -> Ask:
        method = scope["method"] if scope["type"] == "http" else "WEBSOCKET"
        return self._gate.ask(
            scope,
            method,
            scope["path"],
            scope.get("root_path", ""),
            body.rest if body else 0,
            preflight=method == "OPTIONS" and body is None and _is_preflight(scope),
        )

    def statistics(self) -> Statistics:
        """What this middleware did so far."""
        return self._gate.statistics()

    def _where(self) -> OnLoop | None:
        """What lives on the running event loop, ``None`` under trio."""
        loop, here = running_loop(), self._here
        if loop is None:
            return None
        if here is None or here.loop is not loop:
            here = self._here = OnLoop(self._gate, loop)
            gate = self._gate
            self.door = Door(
                gate.turns,
                self._respond,
                _awaited,
                self._after,
                here.room.left,
                here.renew,
                CountedReceive,
                most_body(gate.max_body),
            )
            here.look_at(self.door)
        return here

    def _after(
        self, turn: Turn, error: BaseException | None, send: Send, scope: Scope, receive: Receive
    ) -> Coroutine[Any, Any, None] | None:
        """What refuses a request after all that started unasked, ended in ``error`` or had its answer withheld;
        ``None`` where the error is the server's."""
        response: _Response | None = turn.response
        if response is None:
            if not (lost_to_memory(error) or caused_by(error, BodyTooLarge)):
                return None
            response = self._respond(turn, send, scope, receive)
        shed = response.withheld if error is None else response.shed_for(error)
        if shed is None:
            return None
        # the next admission must find the memory free
        let_go(error)
        return None if response.started else self._refuse_started(shed, scope, receive, send)

    def _respond(self, turn: Turn, send: Send, scope: Scope, receive: Receive) -> _Response:
        """What sends the answer of a request that may have to be refused after all."""
        turn.ask = self._question(scope, None)
        refuse = partial(self._refuse_started, scope=scope, receive=receive)
        return _Response(send, turn, self._gate, refuse, started=turn.started)

    async def _run(
        self, ask: Ask, admitted: Admitted, body: Body | None, scope: Scope, receive: Receive, send: Send
    ) -> Shed | None:
        """Run the app; why to refuse the request after all when it ended early and has not answered."""
        response = _Response(send, admitted, self._gate, partial(self._refuse, body=body, scope=scope, receive=receive))
        try:
            if body is not None and not (admitted.exempt and self._gate.max_body is None):
                receive = BodyReceive(receive, Intake(self._gate, ask, admitted, body)).receive
            scope[ADMITTED] = admitted
            app = self.app(scope, receive, response.send)
            await (as_app(app) if isinstance(app, Coroutine) else app)
        except BaseException as error:
            shed = response.shed_for(error)
            if shed is None:
                raise
            # the next admission must find the memory free
            let_go(error)
            if response.started:
                raise
            return shed
        return None if response.started else response.withheld

    def _refuse_started(self, shed: Shed, scope: Scope, receive: Receive, send: Send) -> Coroutine[Any, Any, None]:
        """What refuses a request that started unasked, whose app got ``receive``."""
        return self._refuse(shed, counted(receive), scope, receive, send)

    async def _refuse(self, shed: Shed, body: Body | None, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "websocket":
            await _answer(self._gate.refusals.answer(shed, _accept(scope)), body, scope, receive, send)
        elif "websocket.http.response" not in (scope.get("extensions") or ()):
            await send({"type": "websocket.close", "code": _TRY_AGAIN_LATER})
        else:
            answer = self._gate.refusals.answer(shed, _accept(scope))
            await send(answer.asgi_start("websocket.http.response.start"))
            await send({"type": "websocket.http.response.body", "body": answer.body})


class _Response:
    """The app's ``send``: knows whether the response started, and withholds a framework's answer for an error that ends
    the request early.

    Frameworks send their error page while they handle the error (Starlette's ``ServerErrorMiddleware`` does), so that
    the error is the one being handled when the message comes. Those that are done with it by then (Quart is) do not end
    before they hear that the answer is out, so that the refusal is sent as soon as theirs would have been.
    """

    __slots__ = ("_admitted", "_gate", "_refuse", "_send", "_waited_for", "started", "withheld")

    def __init__(
        self,
        send: Send,
        admitted: Admitted | Turn,
        gate: Gate,
        refuse: Callable[..., Coroutine[Any, Any, None]],
        *,
        started: bool = False,
    ) -> None:
        self._send = send
        self._admitted = admitted
        self._gate = gate
        self._refuse = refuse
        self._waited_for = False
        self.started = started
        self.withheld: Shed | None = None

    async def send(self, message: Message) -> None:
        if not self.started and self.withheld is None and message.get("status") in _FOR_ERRORS:
            error = sys.exception()
            self.withheld = self.shed_for(error)
            if self.withheld is None and self._admitted.lost:
                self.withheld = self._gate.lost(self._admitted)
                self._waited_for = True
            if self.withheld is not None and error is not None:
                let_go(error)
        if self.withheld is None:
            if not self.started:
                self.started = True
                self._admitted.answered()
            with server_runs():
                await self._send(message)
        elif self._waited_for and not self.started and _ends(message):
            self.started = True
            await self._refuse(self.withheld, send=self._send)

    def shed_for(self, error: BaseException | None) -> Shed | None:
        """Why the request is refused that ended in ``error``; ``None`` for the app's own ones. Notes the loss to
        memory."""
        if lost_to_memory(error):
            return self._gate.lost(self._admitted)
        return self._gate.too_large(self._admitted) if caused_by(error, BodyTooLarge) else None


async def _awaited(app: Awaitable[None]) -> None:
    await (as_app(app) if isinstance(app, Coroutine) else app)


async def _answer(answer: Answer, body: Body | None, scope: Scope, receive: Receive, send: Send) -> None:
    """Send ``answer``, and drop what comes of ``body``."""
    rest = None if body is None or body.ended else Rest(body, receive)
    # who expects a 100 (Continue) must see the answer before anything asks for the body
    if rest is not None and running_loop() is not None and not _expects(scope) and await rest.came():
        rest = None
    start, message = answer.asgi_start("http.response.start"), _body(answer, scope)
    if rest is None:
        await send(start)
        await send(message)
        return
    if rest.closes:
        start["headers"].append((b"connection", b"close"))
    await send(start)
    await send({**message, "more_body": True})
    await rest.drop()
    await send({**message, "body": b""})


def _body(answer: Answer, scope: Scope) -> Message:
    return {
        "type": "http.response.body",
        "body": b"" if scope["method"] == "HEAD" else answer.body,
        "more_body": False,  # the default, which Quart's test client does not know
    }


def _ends(message: Message) -> bool:
    return message["type"] == "http.response.body" and not message.get("more_body", False)


def _is_preflight(scope: Scope) -> bool:
    names = {name for name, _ in scope["headers"]}
    return b"origin" in names and b"access-control-request-method" in names


def _expects(scope: Scope) -> bool:
    return any(name == b"expect" for name, _ in scope["headers"])


def _accept(scope: Scope) -> str | None:
    values = [value for name, value in scope.get("headers", ()) if name == b"accept"]
    return b",".join(values).decode("latin-1") if values else None
