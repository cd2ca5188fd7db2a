"""Draws records of load as one SVG: what was left of the memory, and how requests ended, over the same time.

The SVG stands alone: no script, no font, no other file, and it follows a light or a dark page.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape
from itertools import groupby

from load import Outcome, Record

_PANEL, _GAP, _LEFT, _RIGHT = 400, 40, 52, 8
_TOP, _MEMORY, _BETWEEN, _REQUESTS, _BOTTOM = 58, 120, 42, 120, 34
_MIB = 2**20
_BARS = 24  # the most bars a panel has room for

STYLE = """
svg { --ink:#1f2328; --dim:#656d76; --grid:#d8dee4; --memory:#4c6fbf; --good:#1a7f64; --shed:#d9a400;
  --failed:#b8bec6; --kill:#cf222e; --page:#fff; font:12px system-ui,-apple-system,"Segoe UI",sans-serif }
@media (prefers-color-scheme:dark) { svg { --ink:#e6edf3; --dim:#8d96a0; --grid:#30363d; --memory:#7d9ee8;
  --good:#2fb08c; --shed:#e3b341; --failed:#5c646e; --kill:#ff6b62; --page:#0d1117 } }
text { fill:var(--ink) } .dim { fill:var(--dim) } .title { font-size:15px; font-weight:600 } .end { text-anchor:end }
.middle { text-anchor:middle } .page { fill:var(--page) } .grid { stroke:var(--grid); fill:none }
.line { stroke:var(--memory); fill:none; stroke-width:1.5; stroke-linejoin:round }
.area { fill:var(--memory); opacity:.16 }
.good { fill:var(--good) } .shed { fill:var(--shed) } .failed { fill:var(--failed) }
.memory { fill:var(--memory) } .kill { stroke:var(--kill); stroke-width:1.5 } .kills { fill:var(--kill) }
"""


def chart(records: Sequence[Record]) -> str:
    """One panel a record, side by side, on the same scales. Raises :class:`ValueError` without a record."""
    if not records:
        raise ValueError("There is no record to draw; run a load first.")
    width = _LEFT + len(records) * _PANEL + (len(records) - 1) * (_GAP + _LEFT - 8) + _RIGHT
    height = _TOP + _MEMORY + _BETWEEN + _REQUESTS + _BOTTOM
    seconds = max(record.seconds for record in records)
    bar = _bar_seconds(seconds)
    bars = [_rates(record, bar) for record in records]
    most_memory = max(_full(record) for record in records) or _MIB
    most_rate = _round_up(max(sum(rates.values()) for panel in bars for rates in panel))
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="{escape(_summary(records), quote=True)}">',
        f'<style>{STYLE}</style><rect class="page" width="{width}" height="{height}" rx="6"/>',
    ]
    for index, (record, rates) in enumerate(zip(records, bars, strict=True)):
        x = _LEFT + index * (_PANEL + _GAP + _LEFT - 8)
        parts += _panel(record, rates, x, seconds=seconds, bar=bar, most_memory=most_memory, most_rate=most_rate)
    parts.append("</svg>\n")
    return "\n".join(parts)


def _panel(
    record: Record,
    rates: list[dict[Outcome, float]],
    x: int,
    *,
    seconds: float,
    bar: float,
    most_memory: float,
    most_rate: float,
) -> Iterable[str]:
    bottom = _TOP + _MEMORY
    floor = bottom + _BETWEEN + _REQUESTS
    kills = len(record.kills)
    yield f'<text class="title" x="{x}" y="20">{escape(record.label)}</text>'
    yield (
        f'<text x="{x + _PANEL}" y="20" class="end {"kills" if kills else "good"}">'
        f"{'never killed' if not kills else f'killed {kills} ×' if kills > 1 else 'killed once'}</text>"
    )
    yield f'<text class="dim" x="{x}" y="46">memory available, MiB</text>'
    yield from _axis(x, _TOP, _MEMORY, most_memory, _MIB)
    yield from _memory(record, x, bottom, _PANEL / seconds, _MEMORY / most_memory)
    yield from (
        f'<path class="kill" d="M{x + at * _PANEL / seconds:.1f} {_TOP}V{bottom}"/>'
        for at in record.kills
        if at <= seconds
    )
    yield (
        f'<text class="dim" x="{x}" y="{bottom + 30}">requests per second: '
        '<tspan class="good">■ good</tspan> <tspan class="shed">■ shed (503)</tspan> '
        '<tspan class="failed">■</tspan> failed <tspan class="kills">│</tspan> killed</text>'
    )
    yield from _axis(x, bottom + _BETWEEN, _REQUESTS, most_rate, 1)
    yield from _bars(rates, x, floor, bar * _PANEL / seconds, _REQUESTS / most_rate)
    for second in range(0, math.floor(seconds) + 1, max(1, math.ceil(seconds / 8))):
        yield (
            f'<text class="dim middle" x="{x + second * _PANEL / seconds:.1f}" y="{floor + 16}">{second}'
            f"{' s' if second == 0 else ''}</text>"
        )


def _axis(x: int, top: int, tall: int, most: float, unit: int) -> Iterable[str]:
    for share in (0, 0.5, 1):
        y = top + tall * (1 - share)
        yield f'<path class="grid" d="M{x} {y:.1f}h{_PANEL}"/>'
        yield f'<text class="dim end" x="{x - 6}" y="{y + 4:.1f}">{most * share / unit:.4g}</text>'


def _memory(record: Record, x: int, bottom: int, per_second: float, per_byte: float) -> Iterable[str]:
    """A line for each life of the server: between two, nobody was there to have memory."""
    ends = sorted(record.kills)
    within = [sample for sample in record.samples if sample.at <= record.seconds]
    for _, life in groupby(within, key=lambda sample: sum(end <= sample.at for end in ends)):
        points = [(x + sample.at * per_second, bottom - sample.available * per_byte) for sample in life]
        line = " ".join(f"{left:.1f},{up:.1f}" for left, up in points)
        yield f'<path class="area" d="M{points[0][0]:.1f},{bottom} L{line} L{points[-1][0]:.1f},{bottom}z"/>'
        yield f'<polyline class="line" points="{line}"/>'


def _bars(rates: list[dict[Outcome, float]], x: int, floor: int, wide: float, per_rate: float) -> Iterable[str]:
    """The outcomes stacked in their order, all bars of one outcome in one path."""
    tops = [float(floor)] * len(rates)
    for outcome in Outcome:
        shapes = []
        for number, stretch in enumerate(rates):
            if tall := stretch[outcome] * per_rate:
                tops[number] -= tall
                shapes.append(f"M{x + number * wide:.1f} {tops[number]:.1f}h{wide - 1:.1f}v{tall:.1f}h{1 - wide:.1f}z")
        if shapes:
            yield f'<path class="{outcome}" d="{"".join(shapes)}"/>'


def _rates(record: Record, bar: float) -> list[dict[Outcome, float]]:
    """Requests a second that ended in each stretch of ``bar`` seconds while requests arrived."""
    stretches = [dict.fromkeys(Outcome, 0.0) for _ in range(math.ceil(record.seconds / bar))]
    for request in record.finished:
        if request.at < record.seconds:
            stretches[min(int(request.at / bar), len(stretches) - 1)][request.outcome] += 1 / bar
    return stretches


def _bar_seconds(seconds: float) -> float:
    """How much time one bar stands for: a round figure as far as it divides the whole."""
    about = next((bar for bar in (0.25, 0.5, 1, 2, 5, 10) if seconds / bar <= _BARS), seconds / _BARS)
    return seconds / math.ceil(seconds / about)


def _full(record: Record) -> int:
    """The top of the memory axis: the limit, or the most that was seen available where there is none to speak of."""
    return max((sample.limit or sample.available for sample in record.samples), default=0)


def _round_up(rate: float) -> float:
    """The next number, of those that make a readable axis together with their half."""
    magnitude = 10.0 ** math.floor(math.log10(max(rate, 1.0)))
    return next(factor * magnitude for factor in (1, 2, 3, 4, 6, 8, 10) if rate <= factor * magnitude)


def _summary(records: Sequence[Record]) -> str:
    return "; ".join(
        f"{record.label}: killed {len(record.kills)} times, {record.count(Outcome.GOOD)} good answers, "
        f"{record.count(Outcome.SHED)} refused with 503, {record.count(Outcome.FAILED)} failed"
        for record in records
    )
