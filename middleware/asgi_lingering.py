"""Closing the connection of a refused request such that its client reads the answer first, while it still sends (RFC
9112, section 9.6): this side is closed, and what comes from the other is dropped until the client has closed it too.

The kernel drops it, where nobody has to copy it. That needs the connection itself, which no ASGI server promises to
hand out; uvicorn's can be reached.
"""

from __future__ import annotations

import mmap
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from resource_monitor.middleware.asgi_body import Receive
from resource_monitor.middleware.asgi_loops import sleep

# What is taken of a client that does not stop, and for how long, in seconds.
BYTES, SECONDS = 64 << 20, 10.0
# Between looks, seconds: by the first, most of those who read the answer while they send have stopped and closed. Bytes
# that are dropped at a look at the most: who sends all before reading goes on at 400 MB/s, and others have their turn.
_LOOK, _AT_ONCE = 0.02, 8 << 20
# Dropped in one call. With MSG_TRUNC the kernel writes nothing there (tcp(7)), so that it takes no memory.
_NOWHERE = memoryview(mmap.mmap(-1, 1 << 20))
_DROPPING = socket.MSG_TRUNC | socket.MSG_DONTWAIT


class Lingering:
    """Of one connection, over ``transport``, which is asyncio's or uvloop's."""

    __slots__ = ("_transport",)

    def __init__(self, transport: Any) -> None:
        self._transport = transport

    async def until_closed(self) -> None:
        """Drop what comes until the client closes, within the bounds for bodies. The answer has been sent but for its
        last message, which is without bytes; with that the server closes the connection, as the answer says."""
        transport = self._transport
        if transport.is_closing():
            return
        transport.pause_reading()
        left, deadline = BYTES, time.monotonic() + SECONDS
        while left > 0 and time.monotonic() < deadline:
            await sleep(_LOOK)
            if transport.is_closing():
                return
            dropped = self._drop(tell=not transport.get_write_buffer_size())
            if dropped is None:
                return
            left -= dropped

    def _drop(self, *, tell: bool) -> int | None:
        """How many bytes were there, ``None`` at their end; ``tell`` the client that no more than the answer comes."""
        dropped = 0
        try:
            with _borrowed(self._transport.get_extra_info("socket").fileno()) as borrowed:
                if tell:
                    borrowed.shutdown(socket.SHUT_WR)
                while dropped < _AT_ONCE:
                    size = borrowed.recv_into(_NOWHERE, len(_NOWHERE), _DROPPING)
                    if not size:
                        return None
                    dropped += size
        except BlockingIOError:
            pass
        except OSError:  # a reset, or both sides are closed: nobody is left to wait for
            return None
        return dropped


@contextmanager
def _borrowed(descriptor: int) -> Iterator[socket.socket]:
    """The socket of a descriptor that someone else owns, which stays open. Raises :class:`OSError` without one."""
    # the family is told, for it would be asked for; it makes no difference to what is connected already
    borrowed = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, fileno=descriptor)
    try:
        yield borrowed
    finally:
        borrowed.detach()


def lingering_of(receive: Receive) -> Lingering | None:
    """For the connection of the request that ``receive`` is of; ``None`` where it cannot be reached, and where it is no
    plain TCP: under TLS the client's goodbye is a message, and a Unix socket copies what it drops."""
    transport: Any = getattr(getattr(receive, "__self__", None), "transport", None)
    if not hasattr(transport, "get_extra_info"):
        return None
    family = getattr(transport.get_extra_info("socket"), "family", None)
    plain = family in (socket.AF_INET, socket.AF_INET6) and transport.get_extra_info("sslcontext") is None
    return Lingering(transport) if plain else None
