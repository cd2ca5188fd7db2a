"""Whether a run keeps the bounds that are promised: ``python -m benchmarks.cost.judge FILE.json``.

Prints a line for each bound; status 1 when one is not kept or was not measured.
"""

from __future__ import annotations

import argparse
import operator
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.cost import report
from benchmarks.cost.report import Run

AT_LEAST, AT_MOST = "≥", "≤"
_RELATIONS = {AT_LEAST: operator.ge, AT_MOST: operator.le}


@dataclass(frozen=True, slots=True)
class Bound:
    """``figure`` of ``row`` in ``table`` is in ``relation`` to ``value``; times, in seconds, are shown in µs."""

    table: str
    row: str
    figure: str
    relation: str
    value: float

    def __str__(self) -> str:
        return f"{self.table}: {self.figure} of {self.row} {self.relation} {_text(self.figure, self.value)}"


def _reading() -> Iterator[Bound]:
    yield Bound("reading", "cached", "seconds", AT_MOST, 150e-9)
    for depth in (1, 2, 4, 8):
        yield Bound("reading", f"usage only, {depth} deep", "seconds", AT_MOST, 2e-6 + depth * 0.8e-6)
        yield Bound("reading", f"full, {depth} deep", "seconds", AT_MOST, 40e-6)
    for threads in ("1 thread", "4 threads", "16 threads"):
        yield Bound("reading", f"full, 1 deep, jemalloc, {threads}", "seconds", AT_MOST, 40e-6)


# The figures are ratios where they are not called seconds or bytes, and medians of one run.
BOUNDS = (
    Bound("decision", "ASGI, ours", "of no-op", AT_MOST, 5),
    Bound("decision", "ASGI, ours, everything on", "of no-op", AT_MOST, 8),
    Bound("decision", "ASGI, psutil check", "of ours", AT_LEAST, 20),
    Bound("decision", "WSGI, ours", "of no-op", AT_MOST, 5),
    Bound("decision", "WSGI, ours, everything on", "of no-op", AT_MOST, 8),
    Bound("decision", "WSGI, psutil check", "of ours", AT_LEAST, 20),
    *_reading(),
    *(Bound("throughput", server, "of bare", AT_LEAST, 0.98) for server in ("uvicorn", "granian", "gunicorn gthread")),
    *(
        Bound("refusal", f"{server}, {size}", "of bare", AT_LEAST, 1.0)
        for server in ("uvicorn", "granian", "gunicorn gthread")
        for size in ("tiny", "64 KB bodies")
    ),
    Bound("scale", "100,000 in flight", "of least", AT_MOST, 1.2),
    Bound("scale", "10,000 paths, one class", "of least", AT_MOST, 1.2),
    Bound("scale", "10,000 paths, each its own", "of least", AT_MOST, 1.2),
    Bound("memory", "import", "bytes", AT_MOST, 3e6),
    Bound("memory", "requests 100,000 to 1,000,000", "bytes", AT_MOST, 256e3),
)


@dataclass(frozen=True, slots=True)
class Verdict:
    """On one bound; ``kept`` is false as well for what was not measured."""

    bound: Bound
    kept: bool
    text: str

    def __str__(self) -> str:
        return f"{'PASS' if self.kept else 'FAIL'}  {self.text}"


def judge(run: Run) -> list[Verdict]:
    """The verdict on each bound."""
    return [_verdict(bound, run.figure(bound.table, bound.row, bound.figure)) for bound in BOUNDS]


def _verdict(bound: Bound, value: float | None) -> Verdict:
    if value is None:
        return Verdict(bound, False, f"{bound}: not measured")
    kept = _RELATIONS[bound.relation](value, bound.value)
    return Verdict(bound, kept, f"{bound}: {_text(bound.figure, value)}")


def _text(figure: str, value: float) -> str:
    if figure == "seconds":
        return f"{value * 1e6:.3g} µs"
    return f"{value / 1e6:.3g} MB" if figure == "bytes" else f"{value:.3g}"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cost.judge", description=__doc__)
    parser.add_argument("file", type=Path, metavar="FILE.json", help="what python -m benchmarks.cost --json wrote")
    path = parser.parse_args().file
    try:
        run = report.load(path.read_text())
    except OSError as error:
        parser.error(f"{path} cannot be read ({error}); write it with python -m benchmarks.cost --json {path}.")
    except ValueError as error:
        parser.error(f"{path}: {error}")
    verdicts = judge(run)
    print(*verdicts, sep="\n")
    failed = sum(not verdict.kept for verdict in verdicts)
    print(
        f"\n{len(verdicts) - failed} of {len(verdicts)} bounds are kept" + (", in a quick run." if run.quick else ".")
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
