"""What becomes of the rest of a refused body: its client gets a reset in place of the answer when the server closes on
unread data (RFC 9112, section 9.6; hypercorn does, and uvicorn when the connection ends with the answer).

What is short is read through the server, so that the connection lives on. What is longer is dropped together with the
connection where ``asgi_lingering`` can reach that, and else read as well.
"""

from __future__ import annotations

from collections.abc import Coroutine, Generator
from functools import partial
from types import coroutine
from typing import Any

from resource_monitor.middleware.asgi_body import READ_AHEAD, Receive
from resource_monitor.middleware.asgi_lingering import BYTES, SECONDS, lingering_of
from resource_monitor.middleware.asgi_loops import at_most
from resource_monitor.middleware.bodies import Body

# What is read lest a client has to connect anew, bytes: of a body whose length is known; and of one whose length is
# not, which is given a moment, seconds, to show that it is short, before the answer has to say what becomes of the
# connection.
_SHORT = 2 << 20
_SHORT_UNANNOUNCED, _MOMENT = 1 << 18, 0.02


class Rest:
    """Of ``body``, which comes by ``receive``. First :meth:`came` may be asked; if it did not, the answer is sent but
    for its last message, which has no bytes, and then :meth:`drop` is called."""

    __slots__ = ("_announced", "_drain", "_lingering", "_receive")

    def __init__(self, body: Body, receive: Receive) -> None:
        self._announced = body.announced
        self._receive = receive
        self._drain = Drain(receive, BYTES)
        short = body.announced is not None and body.rest <= _SHORT
        self._lingering = None if short else lingering_of(receive)

    @property
    def closes(self) -> bool:
        """Whether the answer has to say that the connection ends: a next request on it would begin amid this body."""
        return self._lingering is not None

    async def came(self) -> bool:
        """Whether it is short and has come whole; for asyncio alone."""
        if self._announced is not None:
            # a larger one is not there
            return self._announced <= READ_AHEAD and self._drain.there()
        return self.closes and await Drain(self._receive, _SHORT_UNANNOUNCED).rest(_MOMENT)

    async def drop(self) -> None:
        """Drop what comes, within bounds."""
        if self._lingering is not None:
            await self._lingering.until_closed()
        else:
            await self._drain.rest(SECONDS)


class Drain:
    """Reads what comes by ``receive``, ``limit`` bytes at the most, and drops it."""

    __slots__ = ("_awaited", "_begun", "_ended", "_left", "_receive")

    def __init__(self, receive: Receive, limit: int) -> None:
        self._receive = receive
        self._left = limit
        self._ended = False
        self._begun: Coroutine[Any, Any, None] | None = None
        self._awaited: Any = None

    def there(self) -> bool:
        """Whether all was there already, which needs no time; for asyncio alone, and before :meth:`rest`."""
        self._begun = self._read_on()
        try:
            self._awaited = self._begun.send(None)
        except StopIteration:
            return True
        return False

    async def rest(self, seconds: float) -> bool:
        """Wait for the rest, so long; whether that is its end."""
        async with at_most(seconds):
            await (self._read_on() if self._begun is None else self._go_on(self._begun))
        return self._ended

    @coroutine
    def _go_on(self, reading: Coroutine[Any, Any, None]) -> Generator[Any, Any, None]:
        while True:
            try:
                value = yield self._awaited
            except BaseException as error:
                step = partial(reading.throw, error)
            else:
                step = partial(reading.send, value)
            try:
                self._awaited = step()
            except StopIteration:
                return

    async def _read_on(self) -> None:
        while self._left > 0:
            message = await self._receive()
            if message["type"] != "http.request" or not message.get("more_body", False):
                self._ended = True
                return
            self._left -= len(message.get("body", b""))
