"""The gRPC interceptors, for ``grpc.server(…, interceptors=[…])`` and ``grpc.aio.server(interceptors=[…])``: first.

Owns gRPC's ways with handlers; ``entrance`` owns the waiting for room. A call that is refused, or ran out of memory,
ends with UNAVAILABLE, the status that clients may send again after, and with the hint when to (gRFC A6).
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import random
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any, Unpack

import grpc
import grpc.aio

from resource_monitor.middleware.asking import Ask
from resource_monitor.middleware.entrance import LoopEntrance, Stay, ThreadEntrance
from resource_monitor.middleware.environment import settle
from resource_monitor.middleware.gate import Gate
from resource_monitor.middleware.inapplicable import refuse_inapplicable
from resource_monitor.middleware.losses import let_go, lost_to_memory
from resource_monitor.middleware.options import Options
from resource_monitor.middleware.refusing import Shed
from resource_monitor.middleware.routes import RPC
from resource_monitor.middleware.statistics import Statistics
from resource_monitor.middleware.steps import app_runs, as_app

DEFAULT_EXEMPT_CALLS: tuple[str, ...] = ("/grpc.health.v1.Health/*",)
"""The health service: a refused probe gets the process restarted or cut off, which amplifies an overload."""

PUSHBACK = "grpc-retry-pushback-ms"
"""The key in the trailing metadata of the milliseconds after which to call again (gRFC A6)."""

_DETAILS = "The service is short of memory; please try again later."
_INSTEAD = {
    "max_body": 'the channel argument "grpc.max_receive_message_length"',
    "body_timeout": "deadlines",
    "response": "on_shed, which may tell of a refusal",
    "status": "UNAVAILABLE, which every refusal has",
}
_END = object()

_Handler = Any
"""A ``grpc.RpcMethodHandler`` or ``None``: what there is to it differs by kind."""
_Behavior = Callable[[Any, Any], Any]


class _Interceptor:
    """What both have in common."""

    def __init__(self, **options: Unpack[Options]) -> None:
        refuse_inapplicable(options, "gRPC", _INSTEAD)
        settled, names = settle(options)
        settled.setdefault("exempt", DEFAULT_EXEMPT_CALLS)
        self._gate = Gate(names, **settled)

    def statistics(self) -> Statistics:
        """What this interceptor did so far."""
        return self._gate.statistics()

    def _ask(self, details: grpc.HandlerCallDetails) -> Ask:
        return self._gate.ask(details, RPC, details.method)


class MemoryBackpressureInterceptor(_Interceptor, grpc.ServerInterceptor):
    """Refuses calls while there is no memory for one more, each in the thread that would serve it.

    The keyword options are those of :class:`~resource_monitor.middleware.options.Options`; callables get the
    ``grpc.HandlerCallDetails``. Raises :class:`~resource_monitor.ConfigurationError` for a value that cannot be meant,
    and :class:`~resource_monitor.GuardError` when the allocation guard was asked for and cannot be installed.
    """

    def __init__(self, **options: Unpack[Options]) -> None:
        super().__init__(**options)
        self._entrance = ThreadEntrance(self._gate)

    def intercept_service(self, continuation: Callable[[Any], _Handler], details: grpc.HandlerCallDetails) -> _Handler:
        # on the one thread that serves all calls, which must not wait
        handler = continuation(details)
        return None if handler is None else _around(handler, functools.partial(self._in_thread, details))

    def _in_thread(self, details: grpc.HandlerCallDetails, behavior: _Behavior, *, streams: bool) -> _Behavior:
        def begin(context: grpc.ServicerContext) -> _Call:
            stay = self._entrance.enter(self._ask(details))
            if isinstance(stay, Shed):
                raise _abort(context, stay)
            call = _Call(self._gate, stay)
            if not context.add_callback(call.ended):
                call.ended()
            return call

        def unary(request: Any, context: grpc.ServicerContext) -> Any:
            return begin(context).unary(behavior, request, context)

        def stream(request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
            yield from begin(context).stream(behavior, request, context)

        # servers look for the thread pool of a handler in its attributes
        return functools.wraps(behavior)(stream if streams else unary)


class AioMemoryBackpressureInterceptor(_Interceptor, grpc.aio.ServerInterceptor):
    """Refuses calls while there is no memory for one more, before their first message is read.

    Options and errors are those of :class:`MemoryBackpressureInterceptor`.
    """

    def __init__(self, **options: Unpack[Options]) -> None:
        super().__init__(**options)
        self._entrance = LoopEntrance(self._gate)

    async def intercept_service(
        self, continuation: Callable[[Any], Awaitable[_Handler]], details: grpc.HandlerCallDetails
    ) -> _Handler:
        stay = await self._entrance.enter(self._ask(details))
        if isinstance(stay, Shed):
            return _refusing(stay)
        call = _Call(self._gate, stay)
        # each call is served by a task of its own, which is cancelled with it
        task = asyncio.current_task()
        assert task is not None
        task.add_done_callback(call.ended)
        handler = await continuation(details)
        return None if handler is None else _around(handler, call.around)


class _Call:
    """A call that was let in. It is over when it ended and no step of its handler runs any more: a thread goes on when
    its client has cancelled."""

    def __init__(self, gate: Gate, stay: Stay) -> None:
        self._gate = gate
        self._stay = stay
        self._lock = threading.Lock()
        self._running = self._ended = False

    def ended(self, *_: object) -> None:
        """The call ended, however it did."""
        with self._lock:
            self._ended = True
            over = not self._running
        if over:
            self._stay.leave()

    def unary(self, behavior: _Behavior, request: Any, context: Any) -> Any:
        """What a handler in this thread responds with."""
        response = self._step(behavior, request, context)
        return _abort(context, response) if isinstance(response, Shed) else response

    def stream(self, behavior: _Behavior, request: Any, context: Any) -> Iterator[Any]:
        """What a handler in this thread responds with, one after the other."""
        response = responses = self._step(behavior, request, context)
        while not isinstance(response, Shed):
            response = self._step(next, responses, _END)
            if response is _END:
                return
            if not isinstance(response, Shed):
                yield response
        # not abort(), which an aio server sends before what was yielded
        _hint(context, response)
        context.set_code(grpc.StatusCode.UNAVAILABLE)
        context.set_details(_DETAILS)

    def around(self, behavior: _Behavior, *, streams: bool) -> _Behavior:
        """A handler of the same kind around one of an ``aio`` server's, which takes functions and coroutines."""

        async def on_loop(request: Any, context: Any) -> Any:
            try:
                return await as_app(behavior(request, context))
            except BaseException as error:
                shed = self._shed_for(error)
                if shed is None:
                    raise
            return await _abort(context, shed)

        async def streaming_on_loop(request: Any, context: Any) -> AsyncIterator[Any]:
            responses = behavior(request, context)

            async def following() -> Any:
                return await anext(responses, _END)

            shed: Shed | None = None
            try:
                while (response := await as_app(following())) is not _END:
                    self._stay.admitted.answered()
                    yield response
            except BaseException as error:
                shed = self._shed_for(error)
                if shed is None:
                    raise
            finally:
                await responses.aclose()
            if shed is not None:
                await _abort(context, shed)

        if inspect.isasyncgenfunction(behavior):
            return streaming_on_loop
        if inspect.iscoroutinefunction(behavior):
            return on_loop  # which streams with context.write(), if it does
        return functools.partial(self.stream if streams else self.unary, behavior)

    def _step(self, run: Callable[..., Any], *arguments: Any) -> Any:
        """Run a step of a handler in this thread; what it returns, or why the call is refused after all."""
        with self._lock:
            self._running = True
        try:
            with app_runs():
                return run(*arguments)
        except BaseException as error:
            shed = self._shed_for(error)
            if shed is None:
                raise
            return shed
        finally:
            with self._lock:
                self._running = False
                over = self._ended
            self._stay.admitted.answered()
            if over:
                self._stay.leave()

    def _shed_for(self, error: BaseException) -> Shed | None:
        if not lost_to_memory(error):
            return None
        shed = self._gate.lost(self._stay.admitted)
        if shed is not None:
            let_go(error)
        return shed


def _around(handler: _Handler, wrap: Callable[..., _Behavior]) -> _Handler:
    """A handler of the same kind."""
    streams: bool = handler.response_streaming
    if handler.request_streaming:
        behavior = handler.stream_stream if streams else handler.stream_unary
        make = grpc.stream_stream_rpc_method_handler if streams else grpc.stream_unary_rpc_method_handler
    else:
        behavior = handler.unary_stream if streams else handler.unary_unary
        make = grpc.unary_stream_rpc_method_handler if streams else grpc.unary_unary_rpc_method_handler
    return make(wrap(behavior, streams=streams), handler.request_deserializer, handler.response_serializer)


def _refusing(shed: Shed) -> _Handler:
    """A handler that ends the call without a look at its messages, which only one that streams may."""

    async def refuse(requests: Any, context: Any) -> None:
        await _abort(context, shed)

    return grpc.stream_stream_rpc_method_handler(refuse)


def _abort(context: Any, shed: Shed) -> Any:
    """End the call; what is returned by an ``aio`` context is to be awaited."""
    _hint(context, shed)
    return context.abort(grpc.StatusCode.UNAVAILABLE, _DETAILS)


def _hint(context: Any, shed: Shed) -> None:
    """Say when to call again: after the seconds that were drawn, to the millisecond."""
    pushback = (shed.retry_after or 0) * 1000 + random.randrange(1000)
    # contexts of functions on an aio server do not tell what was set
    before = context.trailing_metadata() if hasattr(context, "trailing_metadata") else ()
    context.set_trailing_metadata((*(before or ()), (PUSHBACK, str(pushback))))
