"""Decides whether a service is ready for requests. Sans-IO: what is left, what was refused and the time are passed in.

Owns the hysteresis; ``health`` owns where the figures come from, and how the answer is told over HTTP. Nothing has to
happen for the state to change: whoever looks brings it up to date, so that a service that is asked nothing else becomes
ready again.
"""

from __future__ import annotations

import math


class Readiness:
    """Not ready from the first sign of trouble until there was none for ``dwell`` seconds.

    Needs no lock: what threads that look at the same time may overwrite is what each of them would write.
    """

    __slots__ = ("_dwell", "_trouble_at", "ready")

    def __init__(self, dwell: float) -> None:
        self.ready = True
        self._dwell = dwell
        self._trouble_at = -math.inf

    def look(
        self,
        now: float,
        *,
        left: int | None = None,
        enter: int = 0,
        exit: int = 0,
        shedding: bool = False,
        refusal_age: float | None = None,
    ) -> bool:
        """Whether the service is ready at ``now`` seconds.

        It is in trouble while it is ``shedding``, while less than ``enter`` bytes are ``left``, or than ``exit`` once
        it is not ready, and was when a request was refused, ``refusal_age`` seconds ago. ``None`` is not known.
        """
        short = left is not None and left < (enter if self.ready else exit)
        if short:
            self._trouble_at = now
        elif refusal_age is not None:
            self._trouble_at = max(self._trouble_at, now - refusal_age)
        self.ready = not (short or shedding) and now - self._trouble_at >= self._dwell
        return self.ready
