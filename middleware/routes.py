"""The classes of requests that were seen: method and path with identifiers collapsed. Knows nothing of memory.

Requests of a class are taken to need about the same; the number of classes is bounded (to 256), whatever paths clients
invent. ``_native/turn`` owns the names and the finding, for it has to do so for every request.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from resource_monitor._native._turn import Turns, route_class
from resource_monitor.admission import Learned, Route

__all__ = ["RPC", "Routes", "route_class"]

RPC = "RPC"
"""The method of a remote procedure call, whose path is a name that a developer gave it."""


class Routes:
    """The classes seen so far; ``learned`` gives what is known of a new one by its name, ``options`` are those of the
    :class:`Turns` that keep them.

    Not thread-safe: whoever asks holds a lock.
    """

    def __init__(self, learned: Callable[[str], Learned | None], **options: Any) -> None:
        self._learned = learned
        self.turns = Turns(make=self._make, others=Route(), **options)

    def find(self, method: str, path: str) -> Route:
        """The class of a request; ``method`` is the HTTP method or ``"WEBSOCKET"``."""
        return self.turns.lane(method, path).route

    def items(self) -> Iterator[tuple[str, Route]]:
        """The classes by name; those beyond the bound share ``"…"``."""
        return ((lane.name or "…", lane.route) for lane in self.turns.lanes())

    def _make(self, name: str) -> Route:
        return Route(self._learned(name))
