"""How many connections wait in the kernel for this process, or for one that shares its sockets, to accept them.

Where a server accepts one connection each time around its event loop (uvloop does, for libuv does), clients can wait
for seconds while the loop is never late. Owns finding the sockets and asking them; what the answer means is for
admission to say.
"""

from __future__ import annotations

import os

from resource_monitor._native._turn import queued


class AcceptQueue:
    """Of all listening TCP sockets that are open when it is made; whose they are does not matter."""

    __slots__ = ("_sockets",)

    def __init__(self) -> None:
        self._sockets = [number for number in _open_descriptors() if queued(number) is not None]

    def length(self) -> int:
        """How many connections wait, at those of the sockets that are still open."""
        waiting = 0
        for number in tuple(self._sockets):
            count = queued(number)
            if count is None:
                self._sockets.remove(number)
            else:
                waiting += count
        return waiting


def _open_descriptors() -> list[int]:
    try:
        return [int(name) for name in os.listdir("/proc/self/fd")]
    except OSError:
        return []
