"""The command: which strategies meet which scenarios, in what order, and where the rows go.

What a run is, is the business of ``trial``.
"""

from __future__ import annotations

import argparse
import asyncio
import resource
import shlex
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import uvloop

from benchmarks.bytecode import compile_package
from benchmarks.overload import chart, report, results, sweep, trial
from benchmarks.overload.results import Row
from benchmarks.overload.scenarios import SCENARIOS, Scenario
from benchmarks.overload.strategies import STRATEGIES, find
from benchmarks.overload.supervisor import TOP, CannotStart

_QUICK = "none,rust-original,best-limit,ours"
# Seconds that a run takes beyond its load: start, the last answers, and removing the cgroup.
_OVERHEAD = 2.0


def main() -> int:
    parser = _parser()
    options = parser.parse_args()
    if options.list:
        _print_list()
        return 0
    if options.resume and not options.json:
        parser.error("--resume has no file to resume from; give it with --json.")
    try:
        scenarios = _scenarios(options.scenarios)
        strategies = _strategies(options.strategies)
        for name in strategies:
            find(name)
        report.jemalloc_version()
    except (ValueError, RuntimeError) as error:
        parser.error(str(error))
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    compile_package()
    arena = Arena(options, scenarios, strategies)
    try:
        return uvloop.run(arena.sweep() if options.sweep else arena.run())
    except (KeyboardInterrupt, asyncio.CancelledError):
        return 130
    finally:
        arena.files.cleanup()


class Arena:
    """All runs that were asked for, one after the other."""

    def __init__(self, options: argparse.Namespace, scenarios: list[Scenario], strategies: list[str]) -> None:
        self.options = options
        self.scenarios = scenarios
        self.strategies = strategies
        # not in memory: what the server reads from tmpfs would not be charged to it
        self.files = tempfile.TemporaryDirectory(prefix="arena-files-", dir="/var/tmp")

    async def run(self) -> int:
        """Run, print, and write what was asked for; the exit status."""
        _cancel_on_sigterm()
        options = self.options
        rows = self._earlier_rows() if options.resume else []
        done = {row.key for row in rows}
        plan = [
            (scenario, name, seed)
            for scenario in self.scenarios
            for name in self.strategies
            for seed in options.seeds
            if scenario.name not in find(name).skips
            and (name, scenario.name, seed, self._rate(scenario), scenario.length(options.seconds)) not in done
        ]
        minutes = sum(scenario.length(options.seconds) + _OVERHEAD for scenario, _, _ in plan) / 60
        _say(f"{len(plan)} runs, about {minutes:.1f} min; {len(done)} are already there")
        failures = 0
        for number, (scenario, name, seed) in enumerate(plan, 1):
            try:
                row = await self._trial(name, scenario, seed)
            except (CannotStart, ValueError) as error:
                failures += 1
                _say(f"[{number}/{len(plan)}] {scenario.name} {name}: {error}")
                continue
            rows.append(row)
            if options.json:
                results.append(options.json, row)
            _say(f"[{number}/{len(plan)}] {_line(row)}")
        if rows:
            self._show(rows)
        return 1 if failures else 0

    async def sweep(self) -> int:
        """Find the best limits of the scenarios and remember them; the exit status."""
        _cancel_on_sigterm()
        for scenario in self.scenarios:
            if scenario.limit_of:
                _say(f"{scenario.name}: its best limit is that of {scenario.limit_of}")
                continue

            async def measure(limit: int, seed: int, scenario: Scenario = scenario) -> Row:
                row = await self._trial(f"limit-concurrency:{limit}", scenario, seed)
                _say(_line(row))
                return row

            best, rows = await sweep.best(measure, self.options.seeds[0])
            sweep.remember(scenario.name, best, rows)
            _say(f"{scenario.name}: best limit {best.limit_concurrency}, {best.good_per_s:.0f} good/s")
        return 0

    async def _trial(self, name: str, scenario: Scenario, seed: int) -> Row:
        return await trial.run(
            find(name, scenario.limit_of or scenario.name),
            scenario,
            rate=self._rate(scenario),
            seconds=scenario.length(self.options.seconds),
            seed=seed,
            files=Path(self.files.name),
            logs=self.options.logs,
        )

    def _rate(self, scenario: Scenario) -> float:
        return float(scenario.rate or self.options.rate)

    def _earlier_rows(self) -> list[Row]:
        rows, outdated = results.load_rows(self.options.json)
        if outdated:
            _say(f"{self.options.json}: {outdated} rows lack figures that rows have today and are not used.")
        return [row for row in rows if self._wanted(row)]

    def _wanted(self, row: Row) -> bool:
        names = {scenario.name for scenario in self.scenarios}
        options = self.options
        if row.scenario not in names or row.strategy not in self.strategies or row.seed not in options.seeds:
            return False
        scenario = SCENARIOS[row.scenario]
        return (row.seconds, row.rate) == (scenario.length(options.seconds), self._rate(scenario))

    def _show(self, rows: Sequence[Row]) -> None:
        ordered = sorted(rows, key=lambda row: self.strategies.index(row.strategy))
        command = "python -m benchmarks.overload " + shlex.join(sys.argv[1:])
        _say(
            "",
            report.table(ordered),
            "",
            *report.shed_though_cheap(ordered),
            *report.last_waves(ordered),
            report.environment(command),
        )
        if self.options.docs:
            report.write_docs(TOP / "docs" / "overload.md", ordered, command)
            (TOP / "docs" / "overload.svg").write_text(chart.draw(ordered))
            _say("Written: docs/overload.md, docs/overload.svg")


def _line(row: Row) -> str:
    cell = report.cells([row])[row.scenario, row.strategy]
    latency = "" if row.p50_s is None else f", p50 {row.p50_s:.2f} s, p99 {row.p99_s:.2f} s"
    return (
        f"{row.scenario:10} {row.strategy:22} {cell!s:24} of {row.offered / row.seconds:.0f}/s, "
        f"shed {row.shed_per_s:.0f}/s, failed {row.failed}, wasted {row.wasted} "
        f"(late {row.late_wasted} of {row.late_admitted}){latency}, peak {row.peak_bytes / 1e6:.0f} MB"
    )


def _say(*lines: str) -> None:
    print(*lines, sep="\n", flush=True)


def _cancel_on_sigterm() -> None:
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)


def _print_list() -> None:
    _say("Scenarios:", *(f"  {s.name:18} {s.what}" for s in SCENARIOS.values()))
    _say("Strategies:", *(f"  {s.name:18} {s.what}" for s in STRATEGIES.values()))


def _scenarios(text: str) -> list[Scenario]:
    named = {"all": [*SCENARIOS], "steady": [name for name, scenario in SCENARIOS.items() if not scenario.waves]}
    names = named.get(text) or text.split(",")
    if unknown := [name for name in names if name not in SCENARIOS]:
        raise ValueError(f"No scenario is called {unknown[0]!r}; --list shows them.")
    return [SCENARIOS[name] for name in names]


def _strategies(text: str) -> list[str]:
    return [name for name in STRATEGIES if name != "limit-concurrency"] if text == "all" else text.split(",")


def _seeds(text: str) -> list[int]:
    return [int(seed) for seed in text.split(",")]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.overload", description=__doc__)
    parser.add_argument("--strategies", default=_QUICK, help="names with commas between, or all (default: %(default)s)")
    parser.add_argument(
        "--scenarios", default="steady", help="names with commas between, all, or those without waves (%(default)s)"
    )
    parser.add_argument(
        "--seconds",
        type=float,
        default=10.0,
        help="how long the load runs, where no waves say so (default: %(default)s)",
    )
    parser.add_argument(
        "--rate", type=float, default=300.0, help="requests/s, where the scenario has no rate of its own"
    )
    parser.add_argument("--seeds", type=_seeds, default=[1], help="numbers with commas between (default: 1)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="append a line of JSON for each run")
    parser.add_argument("--resume", action="store_true", help="skip the runs that the --json file already has")
    parser.add_argument("--sweep", action="store_true", help="find the best --limit-concurrency for each scenario")
    parser.add_argument("--docs", action="store_true", help="write docs/overload.md and docs/overload.svg")
    parser.add_argument("--logs", type=Path, default=Path("report/overload"), help="where the servers' output goes")
    parser.add_argument("--list", action="store_true", help="show the scenarios and the strategies")
    return parser


if __name__ == "__main__":
    sys.exit(main())
