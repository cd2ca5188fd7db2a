"""The chart: a panel a scenario, a bar a strategy, as one self-contained SVG for light and dark pages."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from benchmarks.overload.report import Cell, cells, order
from benchmarks.overload.results import Row
from benchmarks.overload.strategies import find

_COLUMNS = 3
_PANEL, _GAP, _MARGIN = 360, 16, 20
_NAME, _LABEL = 134, 84
_BAR, _STEP, _TITLE = 12, 18, 26
_TOP = 62

_STYLE = """
svg { background: #fff; font: 12px system-ui, -apple-system, "Segoe UI", sans-serif; }
text { fill: #1f2328; } .quiet { fill: #656d76; } .title { font-weight: 600; font-size: 13px; }
.head { font-weight: 600; font-size: 16px; } .bar { fill: #afb8c1; } .ours { fill: #1a7f37; } .axis { stroke: #d0d7de; }
.dead { fill: #cf222e; }
@media (prefers-color-scheme: dark) {
  svg { background: #0d1117; } text { fill: #e6edf3; } .quiet { fill: #8d96a0; } .bar { fill: #484f58; }
  .ours { fill: #3fb950; } .axis { stroke: #30363d; } .dead { fill: #ff7b72; }
}
"""


def draw(rows: Sequence[Row]) -> str:
    """The SVG's text; what was killed, crashed or froze is marked in words and red."""
    scenarios, strategies = order(rows)
    known = cells(rows)
    height = _TITLE + _STEP * len(strategies) + _GAP
    width = 2 * _MARGIN + _COLUMNS * _PANEL + (_COLUMNS - 1) * _GAP
    total = _TOP + height * -(-len(scenarios) // _COLUMNS)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {total}" width="{width}" role="img">',
        "<title>Good answers per second under overload, by scenario and strategy</title>",
        f"<style>{_STYLE}</style>",
        f'<text class="head" x="{_MARGIN}" y="26">Good answers per second under overload, in 256 MB</text>',
        f'<text class="quiet" x="{_MARGIN}" y="45">Green: this project. A bar to the grey line is every request. Red: '
        "the server was killed, crashed, or answered nobody for two seconds.</text>",
    ]
    for number, scenario in enumerate(scenarios):
        x = _MARGIN + (number % _COLUMNS) * (_PANEL + _GAP)
        y = _TOP + (number // _COLUMNS) * height
        parts += _panel(x, y, scenario, strategies, known)
    return "\n".join([*parts, "</svg>", ""])


def _panel(x: int, y: int, scenario: str, strategies: Sequence[str], known: dict[tuple[str, str], Cell]) -> list[str]:
    asked = max(known[scenario, name].offered_per_s for name in strategies if (scenario, name) in known)
    axis = x + _NAME
    whole = _PANEL - _NAME - _LABEL
    bottom = y + _TITLE + _STEP * len(strategies) - (_STEP - _BAR)
    parts = [
        f'<text class="title" x="{axis}" y="{y + 14}">{escape(scenario)} '
        f'<tspan class="quiet">of {asked:.0f}/s</tspan></text>',
        *(
            f'<line class="axis" x1="{edge}" y1="{y + _TITLE - 4}" x2="{edge}" y2="{bottom + 4}"/>'
            for edge in (axis, axis + whole)
        ),
    ]
    for number, name in enumerate(strategies):
        top = y + _TITLE + number * _STEP
        parts.append(f'<text class="quiet" x="{axis - 6}" y="{top + 10}" text-anchor="end">{escape(name)}</text>')
        cell = known.get((scenario, name))
        if cell is None:
            parts.append(f'<text class="quiet" x="{axis + 5}" y="{top + 10}">–</text>')
            continue
        length = round(whole * min(1.0, cell.good_per_s / max(asked, 1e-9)), 1)
        colour = "bar ours" if find(name).ours else "bar"
        parts.append(f'<rect class="{colour}" x="{axis}" y="{top}" width="{length}" height="{_BAR}"/>')
        marks = f' <tspan class="dead">{escape(", ".join(cell.marks))}</tspan>' if cell.marks else ""
        parts.append(f'<text x="{axis + length + 5}" y="{top + 10}">{cell.good_per_s:.0f}{marks}</text>')
    return parts
