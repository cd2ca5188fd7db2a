"""The picture that ``watch`` shows: pure functions from samples to lines of a given size."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from resource_monitor.cli.limit_table import limit_table
from resource_monitor.cli.text import GAP, Line, Span, shorten
from resource_monitor.cli.watched import Sample
from resource_monitor.limits import Limit
from resource_monitor.units import format_size

_LABEL = 11  # "1023.9 MiB" and a space
_EIGHTHS = " ▁▂▃▄▅▆▇█"
_RECLAIMABLE = "░"
_LEAST_HEIGHT = 4
_MOST_LIMITS = 5
# Shares of the limit that are in use from which on it becomes serious.
_STYLES = ((0.9, "red"), (0.7, "yellow"), (0.0, "green"))


def frame(name: str, samples: Sequence[Sample], interval: float, width: int, height: int) -> list[Line]:
    """At most ``height`` lines of at most ``width`` columns: what is left, its history, and the other limits."""
    last = samples[-1]
    first = last.explanation.first
    if first is None:
        return [[Span(shorten(f"{name}: {last.explanation.sentence}", width))]]
    lines = [
        [Span(heading(name, first, width), "bold")],
        [Span(figures(first, last.kills), "bold red" if last.kills else "")],
    ]
    table = limit_table(last.explanation, width, where=False)[: _MOST_LIMITS + 1]
    rows = height - len(lines) - 3 - len(table) - 1
    if rows < _LEAST_HEIGHT:
        table, rows = [], height - len(lines) - 3
    if rows >= _LEAST_HEIGHT:
        history = [_same(sample, first) for sample in samples]
        lines += _chart(history, first, interval, width, rows)
    return [*lines, *([[Span("")], *table] if table else [])][:height]


def heading(name: str, limit: Limit, width: int) -> str:
    """Whose limit it is, which, and where it is set, the last as far as there is room."""
    what = f"{name}: {limit.kind} of {format_size(limit.value or 0)}"
    return shorten(f"{what} ({shorten(limit.where, max(1, width - len(what) - 3))})", width)


def figures(limit: Limit, struck: int) -> str:
    """The figures of a limit that bites, in columns that do not move from one sample to the next."""
    parts = {"available": limit.headroom or 0, "in use": _held(limit), "reclaimable": _reclaimable(limit)}
    cells = [f"{label} {format_size(value):>10}" for label, value in parts.items()]
    return GAP.join([*cells, kills(struck)] if struck else cells)


def kills(number: int) -> str:
    return f"{number} OOM {'kill' if number == 1 else 'kills'}"


def _same(sample: Sample, limit: Limit) -> Limit | None:
    """That limit as it stood at ``sample``."""
    for other in sample.explanation.limits:
        if (other.kind, other.where) == (limit.kind, limit.where) and other.value:
            return other
    return None


def _chart(history: Sequence[Limit | None], limit: Limit, interval: float, width: int, rows: int) -> list[Line]:
    room = max(1, width - _LABEL - 1)
    shown = [None] * (room - len(history)) + list(history[-room:])
    labels = {rows - 1: format_size(limit.value or 0), (rows - 1) // 2: format_size((limit.value or 0) // 2)}
    lines: list[Line] = []
    for row in reversed(range(rows)):
        cells = [_cell(at, row, rows) for at in shown]
        spans = [Span("".join(cell.text for cell in run), style) for style, run in groupby(cells, lambda c: c.style)]
        lines.append([Span(f"{labels.get(row, ''):>{_LABEL - 1}} {'┤' if row in labels else '│'}", "dim"), *spans])
    lines.append([Span(f"{'0':>{_LABEL - 1}} └{'─' * room}", "dim")])
    begin = f"-{(room - 1) * interval:g} s"
    lines.append([Span(f"{'':{_LABEL + 1}}{begin}{'now':>{max(0, room - len(begin))}}"[:width], "dim")])
    legend = f"{'':{_LABEL + 1}}█ in use{GAP}{_RECLAIMABLE} reclaimable, given back by the kernel when needed"
    return [*lines, [Span(legend[:width], "dim")]]


def _cell(limit: Limit | None, row: int, rows: int) -> Span:
    """One character of the column of ``limit``: what is held from the bottom, what is reclaimable on top of it."""
    if limit is None or not limit.value:
        return Span(" ")
    share = _held(limit) / limit.value
    eighths = round((share * rows - row) * 8)
    if eighths > 0:
        return Span(_EIGHTHS[min(eighths, 8)], next(style for least, style in _STYLES if share >= least))
    if ((_held(limit) + _reclaimable(limit)) / limit.value * rows - row) >= 0.5:
        return Span(_RECLAIMABLE, "cyan")
    return Span(" ")


def _reclaimable(limit: Limit) -> int:
    return min(limit.reclaimable, limit.used or 0)


def _held(limit: Limit) -> int:
    return (limit.used or 0) - _reclaimable(limit)
