"""Refusals for want of memory that stand: while nothing changed that they followed from, those who are like the one
that was refused are refused without being asked about. The mirror of what is granted.

Owns what was refused and of which state; the ``gate`` says what the state is, and when memory is asked for anew.
"""

from __future__ import annotations

from resource_monitor.admission import Priority, Route

State = tuple[int, int, int]
"""What a refusal followed from: the headroom in bytes, and how often admission and the ledger of promises changed in a
way that may let somebody in."""


class Standing:
    """The refusals that followed from one state. Not thread-safe: whoever asks holds a lock."""

    __slots__ = ("_noted",)

    def __init__(self) -> None:
        self._noted: tuple[State | None, dict[tuple[Route, Priority], tuple[int, float]]] = None, {}

    def note(self, state: State, route: Route, priority: Priority, need: int, until: float) -> None:
        """One that needs ``need`` bytes was refused, which stands no longer than ``until`` seconds."""
        known, refused = self._noted
        if known != state:
            refused = {}
        least = refused.get((route, priority))
        if least is None or need <= least[0] or least[1] < until:
            refused[route, priority] = need, until
        if known != state:
            self._noted = state, refused

    def least(self, state: State, route: Route, priority: Priority, need: int, now: float) -> tuple[int, float] | None:
        """Of what one that needs ``need`` bytes would be refused for at ``now`` seconds: who needs how many is refused,
        and until when. ``None`` for one that has to be asked for."""
        known, refused = self._noted
        least = refused.get((route, priority)) if known == state else None
        return least if least is not None and need >= least[0] and now < least[1] else None
