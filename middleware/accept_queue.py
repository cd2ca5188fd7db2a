"""How many connections wait in the kernel for this process, or for one that shares its sockets, to accept them.

Where a server accepts one connection each time around its event loop (uvloop does, for libuv does), clients can wait
for seconds while the loop is never late. Owns finding the sockets and asking them; what the answer means is for
admission to say.
"""

from __future__ import annotations

import os
import socket
import struct

from resource_monitor.middleware.borrowed_socket import borrowed_socket

# linux/tcp.h, struct tcp_info: the state is the first byte, TCP_LISTEN being 10 (net/tcp_states.h). After eight bytes
# and four numbers of 32 bits comes tcpi_unacked, where the kernel leaves the length of a listening socket's accept
# queue (net/ipv4/tcp.c, tcp_get_info).
_INFO = struct.Struct("=B7x16xI")
_LISTEN = 10


class AcceptQueue:
    """Of all listening TCP sockets that are open when it is made; whose they are does not matter."""

    __slots__ = ("_sockets",)

    def __init__(self) -> None:
        self._sockets = [number for number in _open_descriptors() if _queued(number) is not None]

    def length(self) -> int:
        """How many connections wait, at those of the sockets that are still open."""
        queued = {number: _queued(number) for number in self._sockets}
        self._sockets = [number for number, count in queued.items() if count is not None]
        return sum(filter(None, queued.values()))


def _open_descriptors() -> list[int]:
    try:
        return [int(name) for name in os.listdir("/proc/self/fd")]
    except OSError:
        return []


def _queued(descriptor: int) -> int | None:
    """How many wait at a listening TCP socket; ``None`` for any other descriptor."""
    try:
        with borrowed_socket(descriptor) as borrowed:
            state, queued = _INFO.unpack(borrowed.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _INFO.size))
    except (OSError, struct.error):
        return None
    return queued if state == _LISTEN else None
