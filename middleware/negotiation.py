"""What a client takes for an answer, by its ``Accept`` (RFC 9110, section 12.5.1). Knows nothing of answers."""

from __future__ import annotations

import re
from functools import lru_cache

# An element of the list ends at a comma outside of quotes, and a quote that nobody closes ends with all: were its end
# looked for again and again, clients could make that take long.
_ELEMENT = re.compile(r'(?:[^,"]|"(?:[^"\\]|\\.?)*+"?)++', re.DOTALL)
_NOTHING = re.compile(r";\s*q=0(?:\.0*)?\s*(?:;|$)", re.IGNORECASE)
# A problem detail is JSON to those who ask for JSON (RFC 9457 has a type of its own for it).
_JSON = frozenset({"application/json", "application/problem+json"})
# Clients of a kind send the same text; longer ones are not worth remembering.
_REMEMBERED, _LONGEST = 128, 256


def accepts_json(accept: str | None) -> bool:
    """Whether JSON may be sent: yes when nothing is said of it at all. Of the ranges that match, the most specific
    tells (``*/*, application/json;q=0`` wants anything but JSON)."""
    if not accept:
        return True
    return _remembered(accept) if len(accept) <= _LONGEST else _accepts_json(accept)


def _accepts_json(accept: str) -> bool:
    taken: dict[str, bool] = {}
    for element in _ELEMENT.findall(accept):
        media_range = element.partition(";")[0].strip().lower()
        if "/" in media_range:
            kind = "json" if media_range in _JSON else media_range
            taken[kind] = taken.get(kind, False) or _NOTHING.search(element) is None
    if not taken:
        return True
    return next((taken[kind] for kind in ("json", "application/*", "*/*") if kind in taken), False)


_remembered = lru_cache(_REMEMBERED)(_accepts_json)
