"""Decides whether a request may start. Sans-IO: headroom and time are passed in, decisions come out; no clock, no file.

Everything that changes the pressure state lives in this file.
"""

from __future__ import annotations

from enum import StrEnum

# A service is shedding until nothing was refused for this many seconds, so that the state does not flap with every
# megabyte that comes and goes.
_DWELL = 1.0


class Pressure(StrEnum):
    """Whether requests are being refused."""

    OK = "ok"
    SHEDDING = "shedding"


class Admission:
    """The gate: a request is admitted while ``floor`` bytes of headroom are left."""

    def __init__(self, floor: int) -> None:
        self.floor = floor
        self.pressure = Pressure.OK
        self._last_refusal = 0.0

    def admits(self, headroom: int) -> bool:
        """Whether a request may start with ``headroom`` bytes left."""
        return headroom >= self.floor

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
