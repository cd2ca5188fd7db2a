"""Bodies of ASGI requests: which requests have one, and the app's ``receive`` for it.

The rules are those of ``bodies``. WebSocket messages are not delayed: frameworks read them one by one anyway.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from resource_monitor.middleware.asgi_loops import sleep
from resource_monitor.middleware.bodies import POLL, WITHOUT_BODY, Body, Intake, content_length

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]

# A body of fewer bytes is there as soon as the request is, or comes in one message (uvicorn reads 64 KiB ahead).
READ_AHEAD = 1 << 16


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
    if length is None:  # from HTTP/2 on a body may come without either header
        framed = scope.get("http_version", "1.1").startswith("1")
        return None if framed or scope["method"] in WITHOUT_BODY else Body(None)
    announced = content_length(length)
    return None if announced == 0 else Body(announced)


class CountedReceive:
    """The ``receive`` of an app that gets a body which is kept room for: knows what came of it, for whoever has to
    refuse the request after all."""

    __slots__ = ("_receive", "body")

    def __init__(self, receive: Receive, announced: int) -> None:
        self._receive = receive
        self.body = Body(announced)

    async def __call__(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.request":
            self.body.came += len(message.get("body", b""))
            self.body.ended = not message.get("more_body", False)
        return message


def counted(receive: Receive) -> Body | None:
    """The body that ``receive`` counts; ``None`` for one that does not."""
    return receive.body if isinstance(receive, CountedReceive) else None


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
