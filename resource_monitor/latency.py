"""How many requests may be in flight where answers come too late: fewer while the event loop lags, or connections wait
to be accepted, for longer than a moment, and more again, in small steps, once neither does.

Sans-IO: beats and time are passed in. Owns that bound and what it follows from; what else a start depends on is
``admission``'s.
"""

from __future__ import annotations

import math

# The event loop lags when it came late by more than this many seconds at every beat for so long; then the work that was
# in flight in the mean is cut to this share, and let grow again by this much. Where connections wait to be accepted,
# for longer than the next number of seconds at every beat, what they wait for is not in flight: it is cut by less, and
# they are refused as they come. Clients that come anew as soon as they were answered keep a queue where nothing is
# wrong, so that it may be longer.
_LAG, _INTERVAL, _CUT, _REGROW = 0.05, 0.5, 0.8, 1.05
_WAIT, _TRIM = 0.15, 0.95


class Latency:
    """``cap`` is how many requests may be in flight, ``None`` where latency bounds nothing."""

    __slots__ = (
        "_at",
        "_beats",
        "_bound",
        "_decided",
        "_in_flight",
        "_least_late",
        "_least_wait",
        "_since",
        "cap",
    )

    def __init__(self) -> None:
        self.cap: float | None = None
        self._bound = False
        self._at, self._decided = -math.inf, 0
        self._since = 0.0
        self._least_late = self._least_wait = math.inf
        self._beats = self._in_flight = 0

    def rests(self, now: float) -> None:
        """Nothing is in flight: what idles does not lag, and nobody looks whether it does."""
        if now - self._at > _INTERVAL:
            self.cap, self._bound = None, False

    def binds(self, in_flight: int) -> bool:
        """Whether one more request than these ``in_flight`` is too many; it is not let in then."""
        bound = self.cap is not None and in_flight >= self.cap
        self._bound |= bound
        return bound

    def beat(self, late: float, now: float, *, in_flight: int, queued: int, decided: int, workers: int) -> bool:
        """Note that the event loop came ``late`` seconds late at ``now``, with so many requests in flight, when
        ``queued`` connections waited for one of ``workers`` processes to accept them, and ``decided`` requests had been
        decided here so far. Whether ``cap`` was cut."""
        due = now - late
        if due - self._at > _INTERVAL / 2:  # the first beat, or the first after idling
            self._begin_interval(due)
            wait = math.inf if queued else 0.0  # for how long will be known at the next
        else:
            # by the law of J. D. C. Little (1961): as many wait as come a second, times the seconds that each waits
            accepted = max(1, decided - self._decided) * workers
            wait = queued * (now - self._at) / accepted
        self._at, self._decided = now, decided
        self._least_late = min(self._least_late, late)
        self._least_wait = min(self._least_wait, wait)
        self._beats += 1
        self._in_flight += in_flight
        if now - self._since < _INTERVAL:
            return False
        lags = self._least_late > _LAG
        cut = lags or self._least_wait > _WAIT
        if cut:
            share = _CUT if lags else _TRIM
            # not of this moment: where connections wait to be accepted, what is in flight comes and goes
            mean = self._in_flight / self._beats
            self.cap = max(1.0, share * min(mean, math.inf if self.cap is None else self.cap))
        elif self.cap is not None:
            self.cap = max(self.cap + 1, self.cap * _REGROW) if self._bound else None
        self._bound = False
        self._begin_interval(now)
        return cut

    def _begin_interval(self, now: float) -> None:
        self._since = now
        self._least_late = self._least_wait = math.inf
        self._beats = self._in_flight = 0
