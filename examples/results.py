"""Says what came of records of load: as a table for the terminal, and as one HTML file with the chart in it."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

from chart import chart
from load import Outcome, Record
from rich.box import SIMPLE_HEAD
from rich.table import Table

HEADINGS = ("", "good", "good/s", "shed", "failed", "kills", "good p50", "good p99", "shed p99")

_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
:root {{ color-scheme:light dark; --ink:#1f2328; --dim:#656d76; --line:#d8dee4; --page:#fff; --kill:#cf222e }}
@media (prefers-color-scheme:dark) {{ :root {{ --ink:#e6edf3; --dim:#8d96a0; --line:#30363d; --page:#0d1117;
  --kill:#ff6b62 }} }}
body {{ margin:2rem auto; padding:0 1rem; max-width:64rem; background:var(--page); color:var(--ink);
  font:1rem/1.5 system-ui,-apple-system,"Segoe UI",sans-serif }}
h1 {{ font-size:1.4rem; margin-bottom:0 }} p {{ color:var(--dim); margin-top:.25rem }}
svg {{ width:100%; height:auto; margin:1rem 0 }} .table {{ overflow-x:auto }}
table {{ border-collapse:collapse; width:100% }} th, td {{ padding:.4rem .6rem; border-bottom:1px solid var(--line) }}
th {{ font-weight:600 }} td, th {{ text-align:right; font-variant-numeric:tabular-nums; white-space:nowrap }}
th:first-child {{ text-align:left }} .killed {{ color:var(--kill); font-weight:600 }}
</style>
<h1>{title}</h1>
<p>{setting}</p>
{chart}
<div class="table"><table>
<thead><tr>{headings}</tr></thead>
<tbody>
{rows}
</tbody>
</table></div>
</html>
"""


def table(records: Sequence[Record]) -> Table:
    """The figures for a terminal."""
    drawn = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for heading in HEADINGS:
        drawn.add_column(heading, justify="right" if heading else "left", no_wrap=True)
    for record in records:
        drawn.add_row(*_row(record), style="" if not record.kills else "red")
    return drawn


def write_html(path: Path, records: Sequence[Record], *, title: str, setting: str) -> None:
    """One file that needs no other; ``setting`` is a sentence on what was run."""
    rows = []
    for record in records:
        label, *figures = _row(record)
        kills = HEADINGS.index("kills") - 1
        cells = "".join(
            f'<td class="killed">{figure}</td>' if index == kills and record.kills else f"<td>{figure}</td>"
            for index, figure in enumerate(figures)
        )
        rows.append(f"<tr><th>{escape(label)}</th>{cells}</tr>")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        _PAGE.format(
            title=escape(title),
            setting=escape(setting),
            chart=chart(records),
            headings="".join(f"<th>{heading}</th>" for heading in HEADINGS),
            rows="\n".join(rows),
        )
    )


def _row(record: Record) -> tuple[str, ...]:
    good = record.count(Outcome.GOOD)
    return (
        record.label,
        str(good),
        f"{good / record.seconds:.0f}",
        str(record.count(Outcome.SHED)),
        str(record.count(Outcome.FAILED)),
        str(len(record.kills)),
        _milliseconds(record.latency(Outcome.GOOD, 0.5)),
        _milliseconds(record.latency(Outcome.GOOD, 0.99)),
        _milliseconds(record.latency(Outcome.SHED, 0.99)),
    )


def _milliseconds(seconds: float | None) -> str:
    return "–" if seconds is None else f"{1000 * seconds:.0f} ms"
