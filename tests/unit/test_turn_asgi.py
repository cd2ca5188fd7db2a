"""ASGI requests that start under a grant: to the app, the server and the guard they are like any other."""

import asyncio
import contextlib
import gc
import inspect
import sys
import threading
import weakref
from collections.abc import Awaitable, Coroutine, Generator
from typing import Any

import pytest
from asgi_client import record_timers
from granted import entered, scope
from machine import MIB, Service

from resource_monitor._native._turn import SHORT_BODY
from resource_monitor.guard import IN_APP, IN_SERVER, place
from resource_monitor.middleware import ADMITTED, MemoryBackpressureMiddleware, gate
from resource_monitor.middleware.asgi_body import counted
from resource_monitor.middleware.lag import Heartbeat

Message = dict[str, Any]
START: Message = {"type": "http.response.start", "status": 200, "headers": []}
BODY: Message = {"type": "http.response.body", "body": b"hello"}
ERROR: Message = {**START, "status": 500}

pytestmark = pytest.mark.usefixtures("every_class_known_and_no_real_guard", "in_the_server")


async def answer(scope: Any, receive: Any, send: Any) -> None:
    await send(START)
    await send(BODY)


class Wrapped:
    """An app behind a middleware that has let one request in, so that the next starts under a grant."""

    method = "GET"

    def __init__(self, service: Service, app: Any, **options: Any) -> None:
        self.sent: list[Message] = []
        self.middleware = MemoryBackpressureMiddleware(answer, monitor=service.monitor, **options)
        self._app = app

    async def send(self, message: Message) -> None:
        self.sent.append(message)

    async def receive(self) -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def begin(self) -> None:
        self.middleware.app = answer
        await self.middleware(scope("/", self.method), self.receive, self.send)
        self.sent.clear()
        self.middleware.app = self._app

    def call(self, request: Message | None = None, send: Any = None) -> Coroutine[Any, Any, None]:
        return self.middleware(request or scope(), self.receive, send or self.send)

    def run(self, send: Any = None) -> BaseException | None:
        """The error that reaches the server."""

        async def main() -> None:
            await self.begin()
            await self.call(send=send)

        error: BaseException | None = None
        try:
            asyncio.run(main())
        except BaseException as raised:
            error = raised
        assert entered(self.middleware) == 1
        assert self.middleware.statistics().in_flight == 0
        assert place()[0] == IN_SERVER
        return error

    @property
    def statuses(self) -> list[int]:
        return [message["status"] for message in self.sent if "status" in message]


# --- the app and the server ---


def test_the_app_answers(service: Service) -> None:
    wrapped = Wrapped(service, answer)
    assert wrapped.run() is None
    assert wrapped.sent == [START, BODY]
    found = wrapped.middleware.statistics()
    assert (found.admitted, found.wasted) == (2, 0)


def test_the_app_gets_the_server_s_own_scope_and_receive(service: Service) -> None:
    got: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        got.extend((scope, receive, await receive()))

    wrapped, request = Wrapped(service, app), scope()

    async def main() -> None:
        await wrapped.begin()
        await wrapped.call(request)

    asyncio.run(main())
    assert got[0] is request
    assert got[1] == wrapped.receive
    assert got[2]["type"] == "http.request"


@pytest.mark.parametrize(
    ("length", "limit", "max_body", "comes"),
    [
        (1, 128 * MIB, None, True),
        (SHORT_BODY, 84 * MIB, None, True),
        (SHORT_BODY + 1, 84 * MIB, None, False),
        (128 << 10, 128 * MIB, None, True),
        (256 << 10, 128 * MIB, None, False),
        (MIB, 1024 * MIB, None, True),
        (MIB + 1, 1024 * MIB, None, False),
        (1000, 128 * MIB, 1000, True),
        (1001, 128 * MIB, 1000, False),
    ],
)
def test_what_announces_no_body_that_is_long_for_the_room_comes_in_unasked(
    service: Service, length: int, limit: int, max_body: int | None, comes: bool
) -> None:
    service.use(32 * MIB, limit=limit)
    wrapped = Wrapped(service, answer, max_body=max_body)

    async def main() -> None:
        await wrapped.begin()
        await wrapped.call(scope("/", "POST"))
        await wrapped.call(scope("/", "POST", (b"content-length", str(length).encode())))

    asyncio.run(main())
    assert entered(wrapped.middleware) == int(comes)


LONG = 5 * SHORT_BODY


class Uploads(Wrapped):
    """Sends a body of ``LONG`` bytes; ``left`` is what was not received of it."""

    method = "POST"
    left = LONG

    async def receive(self) -> Message:
        assert self.left, "nothing comes any more, and whoever waits for it waits for ever"
        self.left -= SHORT_BODY
        return {"type": "http.request", "body": bytes(SHORT_BODY), "more_body": self.left > 0}

    def call(self, request: Message | None = None, send: Any = None) -> Coroutine[Any, Any, None]:
        return super().call(scope("/", "POST", (b"content-length", str(LONG).encode())))


@pytest.mark.parametrize("received", [0, 2, 5])
@pytest.mark.parametrize("handled", [False, True])
def test_the_rest_of_a_body_is_read_where_its_request_is_lost_and_no_more(
    service: Service, received: int, handled: bool
) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        try:
            for _ in range(received):
                assert len((await receive())["body"]) == SHORT_BODY
            body = counted(receive)
            assert body is not None
            assert (body.rest, body.ended) == (wrapped.left, wrapped.left == 0)
            raise MemoryError
        except MemoryError:
            if not handled:
                raise
            await send(ERROR)

    wrapped = Uploads(service, app)
    assert wrapped.run() is None
    assert wrapped.statuses == [503]
    assert wrapped.left == 0


def test_each_step_of_the_app_and_of_the_server_s_send_is_marked(service: Service) -> None:
    places: list[Any] = []

    def here(name: str) -> None:
        places.append((name, place()[0]))

    async def app(scope: Any, receive: Any, send: Any) -> None:
        here("app")
        await asyncio.sleep(0)
        here("app")
        await send(START)
        here("app")
        with contextlib.suppress(ValueError):
            await fails()
        here("app")

    async def fails() -> None:
        await asyncio.sleep(0)
        raise ValueError

    async def send(message: Message) -> None:
        here("server")
        await asyncio.sleep(0)
        here("server")

    async def elsewhere() -> None:
        for _ in range(5):
            here("elsewhere")
            await asyncio.sleep(0)

    wrapped = Wrapped(service, app)

    async def main() -> None:
        await wrapped.begin()
        await asyncio.gather(wrapped.call(send=send), elsewhere())

    asyncio.run(main())
    assert entered(wrapped.middleware) == 1
    marks = {"app": IN_APP, "server": IN_SERVER, "elsewhere": IN_SERVER}
    assert [mark for _, mark in places] == [marks[name] for name, _ in places]
    assert len(places) == 11


@pytest.mark.parametrize("kind", ["a class", "an awaitable", "a generator", "a plain function"])
def test_an_app_may_be_whatever_gives_something_awaitable(service: Service, kind: str) -> None:
    import types

    class Awaits:
        def __init__(self, *call: Any) -> None:
            self._call = call

        def __await__(self) -> Generator[Any, Any, None]:
            return answer(*self._call).__await__()

    @types.coroutine
    def generator(scope: Any, receive: Any, send: Any) -> Generator[Any, Any, None]:
        yield from answer(scope, receive, send).__await__()

    class CallableApp:
        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            await answer(scope, receive, send)

    def plain(scope: Any, receive: Any, send: Any) -> Awaitable[None]:
        return asyncio.ensure_future(answer(scope, receive, send))

    app = {"a class": CallableApp(), "an awaitable": Awaits, "a generator": generator, "a plain function": plain}[kind]
    wrapped = Wrapped(service, app)
    assert wrapped.run() is None
    assert wrapped.sent == [START, BODY]


def test_an_app_that_gives_nothing_awaitable_or_cannot_be_called_so_fails_as_without_us(service: Service) -> None:
    assert isinstance(Wrapped(service, lambda scope, receive, send: 7).run(), TypeError)
    assert isinstance(Wrapped(service, lambda: 7).run(), TypeError)


def test_a_server_s_send_may_give_whatever_is_awaitable(service: Service) -> None:
    sent: list[Message] = []

    class Sends:
        def __init__(self, message: Message) -> None:
            self._message = message

        def __await__(self) -> Generator[Any, Any, None]:
            yield from asyncio.sleep(0).__await__()
            sent.append(self._message)

    assert Wrapped(service, answer).run(send=Sends) is None
    assert sent == [START, BODY]
    assert isinstance(Wrapped(service, answer).run(send=lambda message: 7), TypeError)


def test_what_the_server_s_send_raises_reaches_the_app(service: Service) -> None:
    caught: list[BaseException] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        try:
            await send(START)
        except OSError as error:
            caught.append(error)

    async def send(message: Message) -> None:
        await asyncio.sleep(0)
        raise OSError("gone")

    assert Wrapped(service, app).run(send=send) is None
    assert [str(error) for error in caught] == ["gone"]


def test_messages_may_be_sent_at_once_and_as_tasks(service: Service) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(message=START)
        await asyncio.gather(*(send({**BODY, "number": number}) for number in range(3)))
        assert asyncio.iscoroutine(send(BODY))
        await asyncio.create_task(send(BODY))

    async def slow(message: Message) -> None:
        await asyncio.sleep(0)
        sent.append(message)

    sent: list[Message] = []
    wrapped = Wrapped(service, app)
    assert wrapped.run(send=slow) is None
    assert [message.get("number") for message in sent] == [None, 0, 1, 2, None]


def test_a_message_that_is_not_awaited_is_not_sent(service: Service) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        send({**ERROR})
        waiting = send(START)
        await waiting
        with pytest.raises(RuntimeError):
            await waiting
        waiting = send(BODY)
        waiting.close()
        with pytest.raises(TypeError):
            send()
        with pytest.raises(TypeError):
            send(BODY, BODY)

    wrapped = Wrapped(service, app)
    assert wrapped.run() is None
    assert wrapped.sent == [START]


def test_what_is_sent_once_the_app_has_ended_is_sent(service: Service) -> None:
    later: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        later.append(send)
        await send(START)

    wrapped = Wrapped(service, app)

    async def main() -> None:
        await wrapped.begin()
        await wrapped.call()
        await later[0](BODY)
        await later[0](ERROR)

    asyncio.run(main())
    assert wrapped.sent == [START, BODY, ERROR]


# --- requests that fail ---


@pytest.mark.parametrize("failure", [ValueError("no"), KeyError(), asyncio.CancelledError(), SystemExit(3)])
def test_what_the_app_raises_reaches_the_server(service: Service, failure: BaseException) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.sleep(0)
        raise failure

    wrapped = Wrapped(service, app)
    assert type(wrapped.run()) is type(failure)
    assert wrapped.sent == []
    assert wrapped.middleware.statistics().wasted == 0


def test_a_request_that_runs_out_of_memory_is_refused_and_the_next_is_asked_for(service: Service) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.sleep(0)
        raise MemoryError

    wrapped = Wrapped(service, app)
    assert wrapped.run() is None
    assert wrapped.statuses == [503]
    found = wrapped.middleware.statistics()
    assert (found.wasted, found.routes["GET /"].wasted) == (1, 1)

    async def again() -> None:
        await wrapped.call()

    asyncio.run(again())
    assert entered(wrapped.middleware) == 0


def test_once_the_answer_began_the_error_is_the_server_s(service: Service) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(START)
        raise MemoryError

    wrapped = Wrapped(service, app)
    assert isinstance(wrapped.run(), MemoryError)
    assert wrapped.sent == [START]
    assert wrapped.middleware.statistics().wasted == 1


def test_a_framework_s_answer_for_want_of_memory_is_replaced(service: Service) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        try:
            raise MemoryError
        except MemoryError:
            await send(ERROR)
            await send(BODY)
            raise

    wrapped = Wrapped(service, app)
    assert wrapped.run() is None
    assert wrapped.statuses == [503]
    assert len(wrapped.sent) == 2
    assert wrapped.middleware.statistics().wasted == 1


def test_so_it_is_when_the_framework_is_done_with_the_error(service: Service) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        scope[ADMITTED].lose()
        await send(ERROR)
        await send(BODY)

    wrapped = Wrapped(service, app)
    assert wrapped.run() is None
    assert wrapped.statuses == [503]
    assert wrapped.middleware.statistics().wasted == 1


def test_a_framework_s_answer_for_its_own_error_passes(service: Service) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        try:
            raise ValueError
        except ValueError:
            await send(ERROR)
            await send(BODY)
            raise

    wrapped = Wrapped(service, app)
    assert isinstance(wrapped.run(), ValueError)
    assert wrapped.sent == [ERROR, BODY]


def test_the_refusal_tells_of_the_request(service: Service) -> None:
    told: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise MemoryError

    wrapped = Wrapped(service, app, on_shed=told.append)
    wrapped.run()
    assert [(shed.method, shed.path, shed.started, shed.reason) for shed in told] == [("GET", "/", True, "memory")]


def test_a_request_that_is_cancelled_leaves(service: Service) -> None:
    cleaned: list[int] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cleaned.append(place()[0])

    wrapped = Wrapped(service, app)

    async def main() -> None:
        await wrapped.begin()
        task = asyncio.ensure_future(wrapped.call())
        await asyncio.sleep(0)
        assert wrapped.middleware.statistics().in_flight == 1
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert cleaned == [IN_APP]
    assert wrapped.middleware.statistics().in_flight == 0


def test_one_that_catches_its_cancellation_goes_on(service: Service) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        await asyncio.sleep(0)
        await answer(scope, receive, send)

    wrapped = Wrapped(service, app)

    async def main() -> None:
        await wrapped.begin()
        task = asyncio.ensure_future(wrapped.call())
        await asyncio.sleep(0)
        task.cancel()
        await task

    asyncio.run(main())
    assert wrapped.sent == [START, BODY]


@pytest.mark.parametrize("when", ["before it began", "in the app", "in the server's send", "by its error"])
def test_one_that_nobody_awaits_any_more_leaves(service: Service, when: str) -> None:
    ends: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        try:
            if when == "in the server's send":
                await send(START)
            await asyncio.Event().wait()
        except GeneratorExit:
            ends.append("app")
            if when == "by its error":
                raise MemoryError from None
            raise

    async def send(message: Message) -> None:
        try:
            await asyncio.Event().wait()
        except GeneratorExit:
            ends.append("server")
            raise

    wrapped = Wrapped(service, app)

    async def main() -> None:
        await wrapped.begin()
        coroutine = wrapped.call(send=send)
        if when != "before it began":
            coroutine.send(None)
            assert wrapped.middleware.statistics().in_flight == 1
        if when == "by its error":
            with pytest.raises(MemoryError):
                coroutine.close()
        else:
            coroutine.close()

    asyncio.run(main())
    assert (
        ends
        == {
            "before it began": [],
            "in the app": ["app"],
            "in the server's send": ["server", "app"],
            "by its error": ["app"],
        }[when]
    )
    assert wrapped.middleware.statistics().in_flight == 0
    assert place()[0] == IN_SERVER


@pytest.mark.parametrize("when", ["before it is awaited", "as it begins", "while it runs", "as it is refused"])
def test_one_that_an_app_has_leave_early_is_over_then(service: Service, when: str) -> None:
    def leaves(scope: Any) -> None:
        scope[ADMITTED].leave()
        gc.collect()

    async def runs(scope: Any, receive: Any, send: Any) -> None:
        if when == "while it runs":
            leaves(scope)
        if when == "as it is refused":
            raise MemoryError
        await answer(scope, receive, send)

    def app(scope: Any, receive: Any, send: Any) -> Awaitable[None]:
        if when == "as it begins":
            leaves(scope)
        return runs(scope, receive, send)

    request = scope()
    wrapped = Wrapped(service, app, on_shed=lambda shed: leaves(request))

    async def main() -> None:
        await wrapped.begin()
        call = wrapped.call(request)
        if when == "before it is awaited":
            leaves(request)
            with pytest.raises(RuntimeError):
                await call
        else:
            await call

    asyncio.run(main())
    assert wrapped.middleware.statistics().in_flight == 0
    assert wrapped.statuses == {"before it is awaited": [], "as it is refused": [503]}.get(when, [200])


def test_one_that_is_ended_before_it_began_leaves(service: Service) -> None:
    wrapped = Wrapped(service, answer)

    async def main() -> None:
        await wrapped.begin()
        coroutine = wrapped.call()
        assert wrapped.middleware.statistics().in_flight == 1
        with pytest.raises(KeyError):
            coroutine.throw(KeyError())
        assert wrapped.middleware.statistics().in_flight == 0
        coroutine.close()
        with pytest.raises(RuntimeError):
            coroutine.send(None)

    asyncio.run(main())
    assert wrapped.sent == []


def test_one_that_is_cancelled_while_it_is_refused_ends(service: Service) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise MemoryError

    ends: list[str] = []

    async def send(message: Message) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            ends.append(message["type"])
            raise

    wrapped = Wrapped(service, app)

    async def main() -> None:
        await wrapped.begin()
        task = asyncio.create_task(wrapped.call(send=send))
        await asyncio.sleep(0)
        assert wrapped.middleware.statistics().in_flight == 0  # a refusal is no request in flight
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert ends == ["http.response.start"]


def test_a_refusal_that_cannot_be_sent_fails_as_any_answer_does(service: Service) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise MemoryError

    async def send(message: Message) -> None:
        raise OSError("gone")

    error = Wrapped(service, app).run(send=send)
    assert isinstance(error, OSError)


def test_what_a_lost_request_held_is_free_before_it_is_refused(service: Service) -> None:
    class Held:
        pass

    class Lost(MemoryError):
        pass

    alive: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        held, error = Held(), Lost()
        alive.extend((weakref.ref(held), weakref.ref(error)))
        raise error

    async def send(message: Message) -> None:
        assert [held() for held in alive] == [None, None]

    assert Wrapped(service, app).run(send=send) is None
    assert len(alive) == 2


# --- the coroutine function ---


def test_servers_see_a_coroutine_function_of_three_arguments(service: Service) -> None:
    middleware = MemoryBackpressureMiddleware(answer, monitor=service.monitor)
    assert inspect.iscoroutinefunction(middleware.__call__)
    assert list(inspect.signature(middleware).parameters) == ["scope", "receive", "send"]
    assert MemoryBackpressureMiddleware.__call__.__qualname__ == "MemoryBackpressureMiddleware.__call__"


def test_a_subclass_may_have_its_own_and_call_ours(service: Service) -> None:
    class Counting(MemoryBackpressureMiddleware):
        calls = 0

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            self.calls += 1
            await super().__call__(scope, receive, send)

    wrapped = Wrapped(service, answer)
    wrapped.middleware = Counting(answer, monitor=service.monitor)
    assert wrapped.run() is None
    assert wrapped.sent == [START, BODY]
    assert wrapped.middleware.calls == 2


def test_arguments_may_be_named_and_must_be_there(service: Service) -> None:
    wrapped = Wrapped(service, answer)

    async def main() -> None:
        await wrapped.begin()
        await wrapped.middleware(scope=scope(), receive=wrapped.receive, send=wrapped.send)
        with pytest.raises(TypeError):
            wrapped.middleware(scope(), wrapped.receive)  # type: ignore[call-arg]

    asyncio.run(main())
    assert wrapped.sent == [START, BODY]
    assert entered(wrapped.middleware) == 0


def test_a_middleware_without_an_app_is_an_error_not_a_crash(service: Service) -> None:
    wrapped = Wrapped(service, answer)

    async def main() -> None:
        await wrapped.begin()
        del wrapped.middleware.app
        with pytest.raises(AttributeError):
            await wrapped.call()

    asyncio.run(main())


def test_a_middleware_that_nobody_uses_any_more_is_collected(service: Service) -> None:
    wrapped = Wrapped(service, answer)
    assert wrapped.run() is None
    seen = weakref.ref(wrapped.middleware)
    del wrapped
    gc.collect()
    assert seen() is None


def test_the_turn_itself_is_awaited_once_and_leaves_when_it_is_dropped(service: Service) -> None:
    wrapped = Wrapped(service, answer)

    async def main() -> None:
        await wrapped.begin()
        door = wrapped.middleware.door
        assert door is not None
        turn = door.enter(answer, scope(), wrapped.receive, wrapped.send)
        assert turn is not None
        await turn
        with pytest.raises(RuntimeError):
            await turn
        turn = door.enter(answer, scope(), wrapped.receive, wrapped.send)
        assert wrapped.middleware.statistics().in_flight == 1
        del turn
        gc.collect()
        assert wrapped.middleware.statistics().in_flight == 0

    asyncio.run(main())


# --- event loops ---


def test_the_heart_beats_on_while_requests_keep_coming_and_then_stops(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    beats: list[object] = []
    original = Heartbeat._beat

    def beat(heart: Heartbeat) -> None:
        beats.append(heart)
        original(heart)

    monkeypatch.setattr(Heartbeat, "_beat", beat)
    wrapped = Wrapped(service, answer)

    async def main() -> None:
        timers = record_timers()

        def hearts() -> int:
            return sum("Heartbeat" in repr(timer) or "beat" in repr(timer) for timer in timers)

        await wrapped.begin()
        while len(beats) < 3:
            await wrapped.call()
            await asyncio.sleep(0.001)
        assert hearts() == 4  # one for each beat, however many requests
        while len(beats) < hearts():
            await asyncio.sleep(0.01)
        assert len(beats) <= 6
        before = entered(wrapped.middleware)
        await wrapped.call()
        assert entered(wrapped.middleware) == before  # it is asked for, and the heart beats again
        await wrapped.call()
        assert entered(wrapped.middleware) == before + 1
        assert hearts() == len(beats) + 1

    asyncio.run(main())


def test_it_beats_while_one_of_them_takes_its_time(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[float] = []
    original = gate.Gate.lagged

    def lagged(self: gate.Gate, seconds: float, *, queued: int) -> None:
        told.append(seconds)
        original(self, seconds, queued=queued)

    monkeypatch.setattr(gate.Gate, "lagged", lagged)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        while len(told) < 5:
            await asyncio.sleep(0.01)

    assert Wrapped(service, app).run() is None


def test_each_event_loop_has_a_door_of_its_own(service: Service) -> None:
    wrapped = Wrapped(service, answer)
    for _ in range(2):
        assert wrapped.run() is None
        assert wrapped.sent == [START, BODY]
        service.clock.pass_(1)


def test_on_a_loop_of_another_thread_requests_are_asked_for(service: Service) -> None:
    wrapped = Wrapped(service, answer)
    both, done = threading.Barrier(2), []

    def other() -> None:
        async def main() -> None:
            both.wait()
            door = wrapped.middleware.door
            assert door is not None
            assert door.enter(answer, scope(), wrapped.receive, wrapped.send) is None
            done.append(True)

        asyncio.run(main())

    async def main() -> None:
        await wrapped.begin()
        thread = threading.Thread(target=other)
        thread.start()
        both.wait()
        thread.join()
        await wrapped.call()
        assert entered(wrapped.middleware) == 1

    asyncio.run(main())
    assert done == [True]


def test_under_trio_everyone_is_asked_for(service: Service) -> None:
    trio = pytest.importorskip("trio")
    wrapped = Wrapped(service, answer)

    async def main() -> None:
        for _ in range(3):
            await wrapped.begin()

    trio.run(main)
    assert entered(wrapped.middleware) == 0
    assert wrapped.middleware.statistics().admitted == 3


# --- nothing is left behind ---


def test_a_request_leaves_no_cycle_behind(service: Service) -> None:
    def left() -> int:
        return sum(type(it).__name__ in ("Turn", "Sender") for it in gc.get_objects())

    wrapped = Wrapped(service, answer)

    async def main() -> None:
        await wrapped.begin()
        gc.collect()
        before = left()
        gc.disable()
        try:
            for _ in range(100):
                request = scope()
                await wrapped.call(request)
                request.clear()
            assert left() == before
        finally:
            gc.enable()

    asyncio.run(main())
    assert entered(wrapped.middleware) == 100


def test_a_hundred_thousand_requests_leave_nothing_behind(service: Service) -> None:
    async def fails(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.sleep(0)
        raise ValueError

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.gather(send(START), send(BODY))

    wrapped = Wrapped(service, answer)

    async def sent(message: Message) -> None:
        pass

    async def rounds(count: int) -> None:
        for number in range(count):
            if number % 500 == 0:
                wrapped.middleware.app = (answer, app, fails)[number // 500 % 3]
                await asyncio.sleep(0)
            with contextlib.suppress(ValueError):
                await wrapped.call(send=sent)

    async def main() -> None:
        await wrapped.begin()
        await rounds(3000)
        gc.collect()
        blocks, objects, references = sys.getallocatedblocks(), len(gc.get_objects()), sys.getrefcount(None)
        await rounds(100_000)
        gc.collect()
        assert sys.getallocatedblocks() - blocks < 500
        assert len(gc.get_objects()) - objects < 100
        # from 3.12 on the interpreter counts references to None where it likes: None is immortal (PEP 683)
        assert sys.version_info >= (3, 12) or sys.getrefcount(None) - references < 500

    asyncio.run(main())
    assert entered(wrapped.middleware) > 100_000


@pytest.mark.parametrize("raises", [False, True])
def test_wherever_an_allocation_fails_the_request_leaves(service: Service, raises: bool) -> None:
    testcapi = pytest.importorskip("_testcapi")

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(START)
        await send({**BODY})
        if raises:
            raise MemoryError

    async def sent(message: Message) -> None:
        pass

    wrapped = Wrapped(service, app, limit=None)
    outcomes = set()

    async def main() -> None:
        await wrapped.begin()
        for number in range(150):
            path = f"/{chr(ord('a') + number // 26)}{chr(ord('a') + number % 26)}"  # a class that lost nothing yet
            wrapped.middleware.app = answer
            await wrapped.call(scope(path))  # asked for, so that there is a grant
            wrapped.middleware.app = app
            request = scope(path)
            before = entered(wrapped.middleware)
            coroutine = wrapped.call(request, sent)
            # a tracer that finds no memory raises between any two lines, where nothing of ours does
            tracer = sys.gettrace()
            sys.settrace(None)
            testcapi.set_nomemory(number, number + 1)
            try:
                coroutine.send(None)
                outcome = "waits"
            except StopIteration:
                outcome = "done"
            except MemoryError:
                outcome = "MemoryError"
            finally:
                testcapi.remove_mem_hooks()
                sys.settrace(tracer)
            coroutine.close()
            outcomes.add((outcome, entered(wrapped.middleware) > before))
            assert wrapped.middleware.statistics().in_flight == 0, number
            with wrapped.middleware._gate._lock:  # which nobody is inside of still
                pass
            await asyncio.sleep(0)

    asyncio.run(main())
    assert ("done", True) in outcomes
    assert ("MemoryError", True) in outcomes
