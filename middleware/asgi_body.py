"""Bodies of ASGI requests: which requests have one, the app's ``receive`` for it, and the rest of a refused one.

The rules are those of ``bodies``. WebSocket messages are not delayed: frameworks read them one by one anyway.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator, MutableMapping
from functools import partial
from types import coroutine
from typing import Any

from resource_monitor.middleware.asgi_loops import at_most, sleep
from resource_monitor.middleware.bodies import POLL, Body, Intake, content_length

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]

# A client that still sends gets a reset in place of the answer when the server closes on unread data (hypercorn does,
# and uvicorn when the connection ends with the answer), so the rest of a refused body is read and dropped: so many
# bytes of it, for so many seconds.
_DRAIN_LIMIT, _DRAIN_SECONDS = 64 << 20, 10.0
# From HTTP/2 on a body may come without either header.
_UPLOADS = frozenset({"POST", "PUT", "PATCH"})


def body_of(scope: MutableMapping[str, Any]) -> Body | None:
    """The body that a request announces, ``None`` for one without."""
    if scope["type"] != "http":
        return None
    length: bytes | None = None
    for name, value in scope["headers"]:
        if name == b"transfer-encoding":
            return Body(None)
        if name == b"content-length":
            length = value
    if length is None:
        framed = scope.get("http_version", "1.1").startswith("1")
        return None if framed or scope["method"] not in _UPLOADS else Body(None)
    announced = content_length(length)
    return None if announced == 0 else Body(announced)


class BodyReceive:
    """The ``receive`` of an app that gets a body: waits, and with it the client does, while there is no room."""

    __slots__ = ("_intake", "_receive")

    def __init__(self, receive: Receive, intake: Intake) -> None:
        self._receive = receive
        self._intake = intake

    async def receive(self) -> Message:
        """The server's next message. Raises what :class:`Intake` does."""
        while not self._intake.may_read():
            await sleep(POLL)
        message = await self._receive()
        if message["type"] == "http.request":
            self._intake.came(len(message.get("body", b"")), more=message.get("more_body", False))
        return message


class Drain:
    """Reads the rest of a body, within bounds, and drops it."""

    __slots__ = ("_awaited", "_reading")

    def __init__(self, receive: Receive) -> None:
        self._reading = _read_on(receive)
        self._awaited: Any = None

    def there(self) -> bool:
        """Whether the rest was there already, which needs no time; for asyncio alone, and before :meth:`rest`."""
        try:
            self._awaited = self._reading.send(None)
        except StopIteration:
            return True
        return False

    async def rest(self) -> None:
        """Wait for the rest."""
        async with at_most(_DRAIN_SECONDS):
            await (self._reading if self._awaited is None else self._go_on())

    @coroutine
    def _go_on(self) -> Generator[Any, Any, None]:
        while True:
            try:
                value = yield self._awaited
            except BaseException as error:
                step = partial(self._reading.throw, error)
            else:
                step = partial(self._reading.send, value)
            try:
                self._awaited = step()
            except StopIteration:
                return


async def _read_on(receive: Receive) -> None:
    left = _DRAIN_LIMIT
    while left > 0:
        message = await receive()
        if message["type"] != "http.request" or not message.get("more_body", False):
            return
        left -= len(message.get("body", b""))
