"""Which class a request belongs to: method and path with identifiers collapsed. Knows nothing of memory.

Requests of a class are taken to need about the same; the number of classes is bounded, whatever paths clients invent.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from resource_monitor.admission import Learned, Route

# Paths whose class is remembered, and classes told apart; what comes after shares one.
_PATHS, _CLASSES = 4096, 256
# Numbers, UUIDs and other long hexadecimal names, and anything too long to be a name that a person gave.
_IDENTIFIER = re.compile(r"\d+|[0-9a-fA-F]{8,}(?:-[0-9a-fA-F]+)*|.{33,}|(?=.*\d)[\w-]{16,}", re.ASCII)

RPC = "RPC"
"""The method of a remote procedure call, whose path is a name that a developer gave it."""


class Routes:
    """The classes seen so far; ``learned`` gives what is known of a new one by its name.

    Not thread-safe: whoever asks holds a lock.
    """

    def __init__(self, learned: Callable[[str], Learned | None]) -> None:
        self._learned = learned
        self._by_path: dict[tuple[str, str], Route] = {}
        self._by_class: dict[str, Route] = {}
        self._others = Route()

    def find(self, method: str, path: str) -> Route:
        """The class of a request; ``method`` is the HTTP method or ``"WEBSOCKET"``."""
        route = self._by_path.get((method, path))
        if route is None:
            route = self._classify(method, path)
            if len(self._by_path) >= _PATHS:
                self._by_path.clear()
            self._by_path[method, path] = route
        return route

    def items(self) -> Iterator[tuple[str, Route]]:
        """The classes by name; those beyond the bound share ``"…"``."""
        yield from self._by_class.items()
        yield "…", self._others

    def _classify(self, method: str, path: str) -> Route:
        name = route_class(method, path)
        route = self._by_class.get(name)
        if route is None:
            if len(self._by_class) >= _CLASSES:
                return self._others
            route = self._by_class[name] = Route(self._learned(name))
        return route


def route_class(method: str, path: str) -> str:
    """``"GET /users/{}/orders"``: what stands for one thing among many is left out; of an :data:`RPC` nothing does."""
    if method == RPC:
        return f"{method} {path}"
    segments = ("{}" if _IDENTIFIER.fullmatch(segment) else segment for segment in path.split("/"))
    return f"{method} {'/'.join(segments)}"
