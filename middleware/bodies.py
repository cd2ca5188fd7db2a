"""The rules for bodies of requests, for ASGI and WSGI alike: what is promised for the rest of one, when its next piece
may be read, and when it ends before its end. Sans-IO: the adapters read, and sleep between two questions.

A body that announces its length is promised that at admission, and the promise shrinks as it comes: what has come shows
in the readings. Of one that does not (chunked), as much again as has come is promised, for nobody knows when it ends.
"""

from __future__ import annotations

import time

from resource_monitor._native._turn import BODY_PART
from resource_monitor.admission import Reason
from resource_monitor.errors import MemoryPressure, ResourceMonitorError
from resource_monitor.middleware.admitted import Admitted
from resource_monitor.middleware.asking import Ask
from resource_monitor.middleware.gate import Gate
from resource_monitor.units import format_size

POLL = 0.015
"""Seconds between two questions for room."""

WITHOUT_BODY = frozenset({"GET", "HEAD", "OPTIONS"})
"""Of requests with these methods nobody expects a body that is not announced (RFC 9110, section 9.3)."""

# What servers read at once, so that the next piece may well be there already: uvicorn and gunicorn read 64 KiB.
_PIECE = 1 << 16
# Where there is room, so many bytes may come without asking again, but no more than BODY_PART of the room: several
# dozen bodies that come together take a tenth of it unasked, for as long as which they are promised what came as well.
_UNASKED = 1 << 20
# A chunked body is never promised more than this many bytes ahead.
_MOST_AHEAD = 16 << 20
_HUGE = 1 << 62


class BodyTooLarge(ResourceMonitorError):
    """A body without announced length turned out larger than ``max_body``; the middlewares answer 413."""


def content_length(value: bytes | str | None) -> int | None:
    """The length that a ``Content-Length`` announces, bytes; ``None`` for what is no length (RFC 9110, section 8.6)."""
    if not value or not value.isascii() or not value.isdigit():
        return None
    return min(int(value), _HUGE) if len(value) < 20 else _HUGE


def most_body(max_body: int | None) -> int:
    """How many bytes of body a request may announce at the most and start unasked: they are kept room for until its
    answer begins, and are read without asking. More than ``SHORT_BODY`` only where they are no more than such a part of
    the room as may come unasked of others."""
    return _UNASKED if max_body is None else min(_UNASKED, max_body)


class Body:
    """How much of one body came, and how much is to come; ``announced`` is ``None`` when that is unknown. Bytes."""

    __slots__ = ("announced", "came", "ended")

    def __init__(self, announced: int | None) -> None:
        self.announced = announced
        self.came = 0
        self.ended = announced == 0

    @property
    def rest(self) -> int:
        """What to promise for the rest."""
        if self.ended:
            return 0
        if self.announced is None:
            return min(max(self.came, _PIECE), _MOST_AHEAD)
        return max(0, self.announced - self.came)

    def exceeds(self, max_body: int | None) -> bool:
        """Whether it is known to be larger than ``max_body``."""
        return max_body is not None and max(self.came, self.announced or 0) > max_body


class Intake:
    """The body of an admitted request as it comes in: ask :meth:`may_read` before every piece and tell :meth:`came`
    after it. Far from the limits, memory is looked at and the promise brought up to date after many pieces. Requests to
    exempt paths obey ``max_body`` alone, which is no matter of memory. A dry run counts, and neither delays nor ends
    anything."""

    __slots__ = ("_admitted", "_ask", "_body", "_cost", "_counted", "_gate", "_unasked", "_untold", "_waits_since")

    def __init__(self, gate: Gate, ask: Ask, admitted: Admitted, body: Body) -> None:
        self._gate = gate
        self._ask = ask
        self._admitted = admitted
        self._body = body
        # what is promised besides the body: the user's request_cost
        self._cost = max(0, ask.need - body.rest)
        self._waits_since: float | None = None
        self._counted = False
        # what may still come without asking, and what came that the promise does not know of
        self._unasked = self._untold = 0

    def may_read(self) -> bool:
        """Whether there is room for the next piece; False: ask again in :data:`POLL` seconds. Raises
        :class:`MemoryPressure` when no room came for ``body_timeout`` seconds, :class:`BodyTooLarge` once it is."""
        if self._unasked > 0:
            return True
        body, gate = self._body, self._gate
        if body.exceeds(gate.max_body):
            self._too_large()
        if body.ended or self._admitted.exempt:
            return True
        size = _PIECE if body.announced is None else min(_PIECE, body.rest)
        room = gate.room(self._admitted, size, promised=body.announced is not None)
        if room >= 0:
            unasked = min(_UNASKED, room // BODY_PART)
            if gate.max_body is not None:
                unasked = min(unasked, gate.max_body - body.came)
            self._unasked = unasked if unasked > size else 0
            if self._waits_since is not None:
                self._waits_since = None
                self._promise(body.rest)
            return True
        if gate.dry_run:
            if not self._counted:
                self._counted = True
                gate.count_refusal(self._ask, Reason.BODY, started=True)
            return True
        now = time.monotonic()
        if self._waits_since is None:
            self._waits_since = now
            if body.announced is None:
                # else several that wait would keep the room from each other that is there
                self._promise(0)
        if now - self._waits_since < gate.body_timeout:
            return False
        self._admitted.lose()
        self._admitted.shed = gate.count_refusal(self._ask, Reason.BODY, started=True)
        raise MemoryPressure(
            f"There was no room for the rest of the request's body, of which {format_size(body.came)} came, for "
            f"{gate.body_timeout:g} s; try again later or raise body_timeout."
        )

    def came(self, size: int, *, more: bool) -> None:
        """Note that ``size`` bytes came, and whether ``more`` may. Raises :class:`BodyTooLarge`."""
        self._unasked -= size
        self._untold += size
        if more and self._unasked > 0:
            return
        body, taken = self._body, self._untold
        self._untold = 0
        body.came += taken
        body.ended = not more
        if body.exceeds(self._gate.max_body):
            self._too_large()
        if not self._admitted.exempt:
            self._promise(body.rest, taken=0 if body.announced is None else taken)

    def _promise(self, rest: int, *, taken: int = 0) -> None:
        self._gate.promise(self._admitted, self._cost + rest, taken=taken)

    def _too_large(self) -> None:
        gate = self._gate
        if not self._counted:
            self._counted = True
            self._admitted.shed = gate.count_refusal(self._ask, Reason.TOO_LARGE, started=True)
        if not gate.dry_run:
            assert gate.max_body is not None
            raise BodyTooLarge(
                f"A request's body is larger than max_body={format_size(gate.max_body)!r}; send less or raise max_body."
            )
