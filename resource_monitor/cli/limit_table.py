"""Limits as a table that fits the terminal, and in words those that are no figure."""

from __future__ import annotations

from collections import Counter

from resource_monitor.cli.text import GAP, Line, Span, columns, shorten
from resource_monitor.explanation import Explanation
from resource_monitor.limits import Limit
from resource_monitor.sources import Consequence, Flag
from resource_monitor.units import format_size

# Below this many columns beside the figures a path says nothing, and gets a row of its own.
_LEAST_PATH = 44
_STYLES = {Consequence.KILL: "red", Consequence.THROTTLE: "yellow"}
_FLAGS = {
    Flag.HIDDEN: "is set above every cgroup that can be seen from here, where others may use it up",
    Flag.UNCERTAIN: "may be nearer than shown: not everything that counts towards it can be seen from here",
}


def limit_table(explanation: Explanation, room: int, *, where: bool) -> list[Line]:
    """The limits that bite, nearest first; their places beside the figures or, in a narrow terminal, below each."""
    biting = [limit for limit in explanation.limits if limit.headroom is not None]
    if not biting:
        return []
    heading = [Span(text, "bold") for text in ("", "limit", "value", "used", "headroom", "at worst", "then")]
    lines = columns([heading, *(_cells(limit, limit is explanation.first) for limit in biting)], "<<>>>><")
    if not where:
        return lines
    beside = room - len("".join(span.text for span in lines[0])) - len(GAP)
    if beside >= _LEAST_PATH:
        places = [Span("where", "bold"), *(Span(shorten(limit.where, beside), "dim") for limit in biting)]
        return [[*line, Span(GAP), place] for line, place in zip(lines, places, strict=True)]
    below = [lines[0]]
    for line, limit in zip(lines[1:], biting, strict=True):
        below += [line, [Span("   " + shorten(limit.where, room - 3), "dim")]]
    return below


def others(explanation: Explanation) -> list[str]:
    """One sentence for the limits that limit nothing, and one for each that is special or could not be read."""
    unlimited = Counter(
        limit.kind for limit in explanation.limits if limit.value is None and Flag.UNREADABLE not in limit.flags
    )
    sentences = []
    if unlimited:
        names = ", ".join(kind if count == 1 else f"{kind} ({count} levels)" for kind, count in unlimited.items())
        sentences.append(f"No limit: {names}.")
    for limit in explanation.limits:
        if Flag.UNREADABLE in limit.flags:
            sentences.append(f"Unreadable, so that nothing is known of it: {limit.kind} ({limit.where}).")
        elif limit.value is not None:
            sentences += [f"{limit.kind} ({limit.where}) {_FLAGS[flag]}." for flag in sorted(limit.flags)]
    return sentences


def _cells(limit: Limit, first: bool) -> list[Span]:
    figures = (limit.value, limit.used, limit.headroom, limit.headroom_low)
    style = "bold" if first else ""
    return [
        Span("▶" if first else "", "bold"),
        Span(limit.kind, style),
        *(Span(format_size(figure or 0), style) for figure in figures),
        Span(limit.consequence, _STYLES.get(limit.consequence, "")),
    ]
