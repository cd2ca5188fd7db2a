"""Decides whether a request may start. Sans-IO: headroom, time and outcomes are passed in, decisions come out; there is
no clock here, no file and no lock.

Everything that changes the state of admission lives in this file. Two questions are asked of each request:

* The *gate*: is the headroom at least the floor?
* The *pace*: may one more request of this route class start now? A class is not paced until the allocation guard has
  cost it requests. A refused allocation is to memory what a lost packet is to a network: a cheap and exact sign of
  congestion. From then on the class starts at most ``GAIN`` times the requests a second that it completes, evenly
  spread: requests that are let in together allocate together and leave together, and memory stands empty half of the
  time. With this gain about ``1 − 1/GAIN`` of them are lost, which is what probing for more room costs. Where only a
  few are in flight, rates are too coarse, and a small window takes the pace's place: up by steps, down by more, for the
  same share of losses.
"""

from __future__ import annotations

from enum import StrEnum

GAIN = 1.15
_TOLERATED = 1 - 1 / GAIN
# What is delivered is counted over this many good results, but not less nor more than so many seconds. From idling on,
# the first good result begins the count: what comes before says how long a request takes, not how many can be done.
_RESULTS, _SHORTEST, _LONGEST, _PATIENCE = 8, 0.25, 1.0, 5.0
# How much a new count of what is delivered moves the average; one more than this share lost is a time of losses.
_WEIGHT, _LOSSY = 0.3, 0.02
# A paced class that lost nothing for so many counts is let go when the pace did not bind, or may speed up quickly.
_CALM, _CALM_ENOUGH = 8, 2
_FASTER, _SLIGHTLY_FASTER, _SLOWER = 1.25, 1.04, 0.8
# A class is windowed while it has no more than this many in flight, and paced from there on; never less than 1/s.
_FEW = 10
_SLOWEST = 1.0

# A service is shedding until nothing was refused for this many seconds, so that the state does not flap with every
# megabyte that comes and goes.
_DWELL = 1.0


class Pressure(StrEnum):
    """Whether requests are being refused."""

    OK = "ok"
    SHEDDING = "shedding"


class Route:
    """What admission knows of one class of requests; only :class:`Admission` changes it.

    ``rate`` (starts a second) and ``window`` (requests in flight) are ``None`` while they do not bind.
    """

    __slots__ = (
        "_begun",
        "_calm",
        "_delivered",
        "_filled",
        "_good",
        "_held_back",
        "_lost",
        "_most",
        "_since",
        "_tokens",
        "in_flight",
        "rate",
        "window",
    )

    def __init__(self) -> None:
        self.in_flight = 0
        self.rate: float | None = None
        self.window: float | None = None
        self._since = 0.0
        self._begun = False
        self._good = self._lost = self._most = 0
        self._held_back = False
        self._delivered: float | None = None
        self._calm = 0
        self._tokens = self._filled = 0.0


class Admission:
    """The gate and the pace. Not thread-safe: whoever asks holds a lock."""

    def __init__(self, floor: int) -> None:
        self.floor = floor
        self.pressure = Pressure.OK
        self._last_refusal = 0.0

    def admits(self, headroom: int) -> bool:
        """Whether ``headroom`` bytes are room enough for one more request."""
        return headroom >= self.floor

    def starts(self, route: Route, now: float) -> bool:
        """Whether a request of ``route`` may start at ``now`` seconds; True counts it in flight until :meth:`ends`."""
        if route.in_flight == 0:
            if route._good + route._lost == 0:
                route._since, route._begun = now, False
        elif not _in_time(route, now):
            route._held_back = True
            return False
        route.in_flight += 1
        route._most = max(route._most, route.in_flight)
        return True

    def ends(self, route: Route, now: float, *, lost: bool) -> None:
        """Note that a request of ``route`` is over; ``lost`` to memory, or done."""
        route.in_flight -= 1
        if lost:
            route._lost += 1
        else:
            route._good += 1
            if not route._begun:
                route._since, route._begun = now, True
        if route.window is not None:
            _slide(route, lost=lost)
        elapsed = now - route._since
        enough = elapsed >= _SHORTEST if route._good >= _RESULTS else elapsed >= _LONGEST and route._good > 0
        if enough or elapsed >= _PATIENCE:
            _count(route, now, elapsed)

    def admitted(self, now: float) -> bool:
        """Note an admission at ``now`` seconds; True when it ended a time of shedding."""
        if self.pressure is Pressure.OK or now - self._last_refusal < _DWELL:
            return False
        self.pressure = Pressure.OK
        return True

    def refused(self, now: float) -> bool:
        """Note a refusal at ``now`` seconds; True when it began a time of shedding."""
        began = self.pressure is Pressure.OK
        self.pressure = Pressure.SHEDDING
        self._last_refusal = now
        return began


def _in_time(route: Route, now: float) -> bool:
    if route.window is not None:
        return route.in_flight < route.window
    if route.rate is None:
        return True
    # a bucket of two, so that the spread stays even
    route._tokens = min(route._tokens + (now - route._filled) * route.rate, max(2.0, 0.02 * route.rate))
    route._filled = now
    if route._tokens < 1:
        return False
    route._tokens -= 1
    return True


def _slide(route: Route, *, lost: bool) -> None:
    assert route.window is not None
    step = 0.5 + 0.02 * route.window
    if lost:
        route.window = max(1.0, route.window - step * GAIN * (1 - _TOLERATED))
    elif route._held_back:
        route.window += 1.0 if route._calm > 1 else step * _TOLERATED


def _count(route: Route, now: float, elapsed: float) -> None:
    """Take stock of what was delivered, and adjust the pace."""
    delivered = route._good / elapsed
    share = route._lost / (route._good + route._lost)
    if route._delivered is None:
        route._delivered = delivered
    else:
        route._delivered += _WEIGHT * (delivered - route._delivered)
    if share > _LOSSY:
        route._calm = 0
    pace = max(GAIN * route._delivered, _SLOWEST)
    if route.window is not None:
        _adjust_window(route, now, pace)
    elif share > _TOLERATED + 0.05:
        if route.rate is None:
            route._tokens, route._filled = 0.0, now
        route.rate = pace if route.rate is None else max(pace, _SLOWER * route.rate)
        if route._most <= _FEW:
            route.rate, route.window = None, max(1.0, route._most * (1 - share))
    elif route.rate is not None:
        if route._held_back:
            route.rate *= _FASTER if route._calm >= _CALM_ENOUGH else _SLIGHTLY_FASTER if share < _TOLERATED else 1.0
        elif route._calm >= _CALM:
            route.rate = None
    route._calm += 1
    route._since = now
    route._good = route._lost = 0
    route._most = route.in_flight
    route._held_back = False


def _adjust_window(route: Route, now: float, pace: float) -> None:
    assert route.window is not None
    if route._calm >= _CALM and not route._held_back:
        route.window = None
    elif route.window > _FEW:
        route.window, route.rate = None, pace
        route._tokens, route._filled = 0.0, now
