"""A request that was let in, for whoever runs it: what it says of itself goes to the gate, and each thing once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from resource_monitor.admission import Route
from resource_monitor.middleware.asking import Ask
from resource_monitor.middleware.refusing import Shed
from resource_monitor.reservation import Promise

if TYPE_CHECKING:
    from resource_monitor.middleware.gate import Gate

ADMITTED = "resource_monitor.admitted"
"""The key in a scope or environ of the :class:`Admitted` request, for frameworks that learn of a loss before their
adapter does: who says ``lose()`` to it before an answer of 500 begins has that replaced."""


class Admitted:
    """A request that was let in, as ``ask``; :meth:`leave` is owed once it is over. ``promise`` is what is kept for it,
    ``lost`` whether it ran out of memory, ``shed`` what it is refused for after all."""

    __slots__ = ("_answered", "_began", "_epoch", "_gate", "_route", "ask", "lost", "promise", "shed")

    def __init__(self, gate: Gate, route: Route | None, ask: Ask, began: float, promise: Promise | None = None) -> None:
        self._gate: Gate | None = gate
        self._began = began
        self._epoch = gate.epoch
        self._route = route
        self.ask = ask
        self.shed: Shed | None = None
        self.lost = self._answered = False
        self.promise = promise

    @property
    def exempt(self) -> bool:
        """Whether it was let in without being asked about."""
        return self._route is None

    def lose(self) -> None:
        """The request ran out of memory."""
        self.lost = True

    def answered(self) -> None:
        """The request began its answer; however often this is said."""
        gate = self._gate
        if gate is not None and not self._answered:
            self._answered = True
            if self._epoch == gate.epoch:
                gate.answered(self._route)

    def leave(self) -> None:
        """The request is over; however often this is said."""
        self.answered()
        gate, self._gate = self._gate, None
        if gate is None:
            return
        if self.promise is not None:
            self.promise.end()
        # of a request that was let in before a fork the child counts nothing
        if self._epoch == gate.epoch:
            gate.leave(self._route, self._began, self.lost)
