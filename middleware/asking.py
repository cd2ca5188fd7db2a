"""What is asked for one request: its class, what it will need, and how much it matters."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, NamedTuple

from resource_monitor.admission import Priority
from resource_monitor.errors import ConfigurationError
from resource_monitor.units import parse_size

logger = logging.getLogger("resource_monitor")

Carrier = Any
"""What carries a request: an ASGI scope, a WSGI environ, or what the framework of the adapter calls a request."""

MOST = 1 << 50
"""Bytes that a request is taken to need at the most: more than any machine has, and thousands of it can be counted."""

RequestCost = int | str | Callable[[Carrier], int]
PriorityOf = Callable[[Carrier], Priority]


class Ask(NamedTuple):
    """One request. ``path`` is below ``mount``; ``need`` are the bytes that it will take, as far as is known before.
    ``preflight`` tells that it only asks whether another may be sent (the Fetch standard's CORS-preflight request)."""

    method: str
    path: str
    mount: str = ""
    need: int = 0
    priority: Priority = Priority.DEFAULT
    preflight: bool = False


class Asking:
    """The user's own knowledge of requests: ``request_cost`` in bytes, a size or a callable, and ``priority``.

    Raises :class:`ConfigurationError` for what is neither, and calls the cost ``name`` there. A callable that fails, or
    gives what cannot be meant, costs no request: the first time of each is logged, and the request is taken for one
    like any other.
    """

    def __init__(self, request_cost: RequestCost, priority: PriorityOf | None, name: str = "request_cost") -> None:
        self.cost_of: Callable[[Carrier], int] | None = None
        self.cost = 0
        if callable(request_cost):
            self.cost_of = request_cost
        else:
            try:
                self.cost = min(parse_size(request_cost), MOST)
            except ConfigurationError as error:
                raise ConfigurationError(f"{name}: {error}") from None
        if priority is not None and not callable(priority):
            raise ConfigurationError(
                f"priority={priority!r} cannot be called; give a function from the scope or environ to a Priority."
            )
        self.priority_of = priority
        self._complaints: set[str] = set()

    def ask(
        self, carrier: Carrier, method: str, path: str, mount: str = "", body: int = 0, *, preflight: bool = False
    ) -> Ask:
        """What to ask for the request in ``carrier``, of whose body ``body`` bytes are announced."""
        need = min(self._need(carrier) + body, MOST)
        return Ask(method, path, mount, need, self._priority(carrier), preflight)

    def _need(self, carrier: Carrier) -> int:
        if self.cost_of is None:
            return self.cost
        try:
            cost = self.cost_of(carrier)
            if isinstance(cost, int) and cost >= 0:
                return cost
            self._complain("request_cost gave %r for a request, which is no number of bytes; it counts as 0.", cost)
        except Exception as error:
            self._complain("request_cost failed for a request (%r), which counts as 0 bytes.", error)
        return 0

    def _priority(self, carrier: Carrier) -> Priority:
        if self.priority_of is None:
            return Priority.DEFAULT
        try:
            priority = self.priority_of(carrier)
            if priority in list(Priority):
                return Priority(priority)
            self._complain("priority gave %r for a request, which is no Priority; it counts as DEFAULT.", priority)
        except Exception as error:
            self._complain("priority failed for a request (%r), which counts as DEFAULT.", error)
        return Priority.DEFAULT

    def _complain(self, message: str, what: object) -> None:
        if message not in self._complaints:
            self._complaints.add(message)
            logger.error(message, what)
