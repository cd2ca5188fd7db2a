"""Whether rows meet what is promised: ``python -m benchmarks.overload.judge FILE.jsonl``.

Prints, scenario by scenario, the medians over the seeds and a line for each criterion; status 1 when one is not met or
was not measured. How the figures come about is the business of ``results``.
"""

from __future__ import annotations

import argparse
import operator
import statistics
import sys
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.overload import results
from benchmarks.overload.report import cells, order
from benchmarks.overload.results import Row
from benchmarks.overload.scenarios import SCENARIOS, Scenario

AT_LEAST, AT_MOST = "≥", "≤"
_RELATIONS = {AT_LEAST: operator.ge, AT_MOST: operator.le}


@dataclass(frozen=True, slots=True)
class Criterion:
    """``figure`` of ``strategy`` is in ``relation`` to ``bound``, or to ``bound`` times that of strategy ``than``, in
    the scenario ``of`` where it is another.

    ``bound`` may depend on the scenario. With ``if_alive`` there is nothing to be met where ``than`` died itself.
    """

    strategy: str
    figure: str
    relation: str
    bound: float | Callable[[Scenario], float]
    than: str = ""
    scenarios: Collection[str] = tuple(SCENARIOS)
    if_alive: bool = False
    of: str = ""


def _but(*names: str) -> tuple[str, ...]:
    return tuple(name for name in SCENARIOS if name not in names)


def _patience(scenario: Scenario) -> float:
    return round(2 * scenario.unloaded + 0.3, 2)


CRITERIA = (
    Criterion("ours", "deaths", AT_MOST, 0),
    Criterion("ours-glibc", "deaths", AT_MOST, 0),
    Criterion("ours-pymalloc-off", "deaths", AT_MOST, 0),
    Criterion("ours", "good/s", AT_LEAST, 2.0, than="best-limit", scenarios=("race", "mixed")),
    Criterion("ours", "good/s", AT_LEAST, 1.5, than="best-limit", scenarios=("pingmix",)),
    Criterion("ours", "good/s", AT_LEAST, 1.4, than="best-limit", scenarios=("grow",)),
    Criterion("ours", "good/s", AT_LEAST, 0.95, "best-limit", _but("race", "mixed", "pingmix", "grow"), if_alive=True),
    Criterion("ours", "good/s", AT_LEAST, 0.95, than="guard", scenarios=_but("mixed")),
    Criterion("ours", "good/s", AT_LEAST, 0.75, than="guard", scenarios=("mixed",)),
    Criterion("ours-glibc", "good/s", AT_LEAST, 0.7, than="ours"),
    Criterion("ours", "late wasted share", AT_MOST, 0.15),
    Criterion("ours", "p99 s", AT_MOST, _patience),
    Criterion("ours", "quick pings share", AT_LEAST, 0.99, scenarios=("pingmix",)),
    Criterion("ours", "good jobs/s", AT_LEAST, 0.8, than="guard", scenarios=("pingmix",)),
    Criterion("ours", "shed", AT_MOST, 0, scenarios=("light", "longlived", "cache")),
    Criterion("ours", "failed", AT_MOST, 0, scenarios=("light", "longlived", "cache")),
    Criterion("ours", "good/s", AT_LEAST, 0.9, than="ours", scenarios=("crew",), of="roomy"),
    Criterion("ours", "peak of limit", AT_MOST, 1.0, scenarios=("workers", "forked", "crew")),
    Criterion("ours", "refusals read share", AT_LEAST, 0.95, scenarios=("upload", "chunked")),
    Criterion("ours-waiting", "shed share", AT_MOST, 0.05, scenarios=("brim",)),
)

Over = Callable[[Iterable[float]], float]
# What a figure is in one run, and what it is over all seeds.
FIGURES: dict[str, tuple[Callable[[Row], float | None], Over]] = {
    "deaths": (lambda row: row.deaths, sum),
    "good/s": (lambda row: row.good_per_s, statistics.median),
    "late wasted share": (lambda row: row.late_wasted / max(1, row.late_admitted), statistics.median),
    "p99 s": (lambda row: row.p99_s, statistics.median),
    "quick pings share": (lambda row: row.kinds["ping"].quick, statistics.median),
    "good jobs/s": (lambda row: row.kinds["job"].good_per_s, statistics.median),
    "shed": (lambda row: row.shed, sum),
    "shed share": (lambda row: row.shed / max(1, row.offered), statistics.median),
    "failed": (lambda row: row.failed, sum),
    "peak of limit": (lambda row: row.peak_bytes / row.limit_bytes, max),
    "refusals read share": (lambda row: row.refusal_read, statistics.median),
}


@dataclass(frozen=True, slots=True)
class Verdict:
    """Of one criterion in one scenario."""

    scenario: str
    passed: bool
    text: str

    def __str__(self) -> str:
        return f"{'PASS' if self.passed else 'FAIL'}  {self.scenario:10} {self.text}"


def judge(rows: Sequence[Row]) -> list[Verdict]:
    """The verdict on each criterion in each of its scenarios. ``ValueError`` when the rows cannot be compared."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.scenario, row.strategy), []).append(row)
    for scenario in SCENARIOS:
        runs = sorted({(row.rate, row.seconds) for row in rows if row.scenario == scenario})
        if len(runs) > 1:
            asked = " and ".join(f"{seconds:g} s at {rate:g}/s" for rate, seconds in runs)
            raise ValueError(f"The runs of {scenario} are not alike: {asked}; judge files with one kind of run each.")
    return [
        _verdict(criterion, SCENARIOS[name], groups)
        for name in SCENARIOS
        for criterion in CRITERIA
        if name in criterion.scenarios
    ]


def _verdict(criterion: Criterion, scenario: Scenario, groups: dict[tuple[str, str], list[Row]]) -> Verdict:
    bound = criterion.bound(scenario) if callable(criterion.bound) else criterion.bound
    asked = f"{criterion.figure} of {criterion.strategy} {criterion.relation} {bound:g}"
    if criterion.than:
        asked += f" × {criterion.than}" + (f" in {criterion.of}" if criterion.of else "")
    value = _figure(criterion.figure, groups.get((scenario.name, criterion.strategy), []))
    if value is None:
        return Verdict(scenario.name, False, f"{asked}: not measured")
    if not criterion.than:
        return Verdict(scenario.name, _RELATIONS[criterion.relation](value, bound), f"{asked}: {value:.3g}")
    others = groups.get((criterion.of or scenario.name, criterion.than), [])
    other = _figure(criterion.figure, others)
    if other is None:
        return Verdict(scenario.name, False, f"{asked}: {criterion.than} is not measured")
    if criterion.if_alive and (deaths := sum(row.deaths for row in others)):
        return Verdict(scenario.name, True, f"{asked}: nothing to compare with, {criterion.than} died {deaths}×")
    ratio = f" = {value / other:.2f} ×" if other else ""
    passed = _RELATIONS[criterion.relation](value, bound * other)
    return Verdict(scenario.name, passed, f"{asked}: {value:.4g} to {other:.4g}{ratio}")


def _figure(name: str, rows: Sequence[Row]) -> float | None:
    """Over all seeds; ``None`` when it was not measured in each."""
    of, over = FIGURES[name]
    values = [of(row) for row in rows]
    known = [value for value in values if value is not None]
    return over(known) if known and len(known) == len(values) else None


def medians(rows: Sequence[Row], scenario: str) -> str:
    """One line: good answers per second of every strategy, what died, and what a last wave gave."""
    known = cells(rows)
    parts = []
    for name in order(rows)[1]:
        if (scenario, name) not in known:
            continue
        last = [row.last_wave_good_per_s for row in rows if (row.scenario, row.strategy) == (scenario, name)]
        waves = [value for value in last if value is not None]
        parts.append(f"{name} {known[scenario, name]}" + (f", last {statistics.median(waves):.0f}" if waves else ""))
    return f"{scenario}, good/s: {'; '.join(parts) or 'no runs'}"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.overload.judge", description=__doc__)
    parser.add_argument("file", type=Path, metavar="FILE.jsonl", help="what python -m benchmarks.overload --json wrote")
    path = parser.parse_args().file
    if not path.is_file():
        parser.error(f"{path} is no file; write one with python -m benchmarks.overload --json {path}.")
    rows, outdated = results.load_rows(path)
    if outdated:
        print(f"{path}: {outdated} rows lack figures that rows have today and are not judged.")
    try:
        verdicts = judge(rows)
    except ValueError as error:
        parser.error(str(error))
    for name in SCENARIOS:
        print("", medians(rows, name), *(verdict for verdict in verdicts if verdict.scenario == name), sep="\n")
    failed = sum(not verdict.passed for verdict in verdicts)
    print(f"\n{len(verdicts) - failed} of {len(verdicts)} criteria are met.")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
