"""The work that both sample apps offer: a job that takes memory as a query says, and what its query may say.

Knows no web framework: a job is a generator of pauses, so an async and a threaded handler run the same code.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

MODES = ("burst", "grow", "objects")
_STEPS = 20
# One {"number": …, "text": …} with its own int and str is about 250 bytes in CPython 3.11 to 3.13.
_DICTS_PER_MB = 4000
# Bounds that keep one request from being a denial of service of its own: MB, seconds, seconds.
_MOST = {"mb": 1024.0, "hold": 60.0, "delay": 60.0}
_DEFAULTS = {"mb": 8.0, "hold": 0.2, "delay": 0.0}


class BadQuery(ValueError):
    """The query asks for something that cannot be meant; the text is one sentence for the client."""


@dataclass(frozen=True, slots=True)
class Job:
    """Wait ``delay`` seconds, take ``mb`` megabytes (10**6 bytes) and hold them for ``hold`` seconds.

    ``burst`` takes them at once, ``grow`` in 20 steps while holding, ``objects`` as many small dicts.
    """

    mb: float
    hold: float
    delay: float
    mode: str

    @classmethod
    def from_query(cls, query: Mapping[str, str]) -> Job:
        """Raises :class:`BadQuery` for what is no number, a number out of bounds, or no mode."""
        mode = query.get("mode", MODES[0])
        if mode not in MODES:
            raise BadQuery(f"mode={mode!r} is unknown; give one of {', '.join(MODES)}.")
        return cls(_number(query, "mb"), _number(query, "hold"), _number(query, "delay"), mode)

    def run(self) -> Iterator[float]:
        """Do the job, yielding the seconds to wait before going on; its memory is free when the iterator is done."""
        if self.delay:
            yield self.delay
        if self.mode == "burst":
            held = touched(self.mb)
            yield self.hold
            del held
        elif self.mode == "grow":
            parts = []
            for _ in range(_STEPS):
                parts.append(touched(self.mb / _STEPS))
                yield self.hold / _STEPS
        else:
            objects = [{"number": number, "text": str(number)} for number in range(int(self.mb * _DICTS_PER_MB))]
            yield self.hold
            del objects


def touched(mb: float) -> bytes:
    """A block whose every page was written: memory that is only reserved is not charged to any limit."""
    return b"x" * int(mb * 1_000_000)


def _number(query: Mapping[str, str], name: str) -> float:
    text = query.get(name)
    if text is None:
        return _DEFAULTS[name]
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= _MOST[name]:  # also false for nan
        raise BadQuery(
            f"{name}={text!r} is no number from 0 to {_MOST[name]:g}; give one, such as {_DEFAULTS[name]:g}."
        )
    return value
