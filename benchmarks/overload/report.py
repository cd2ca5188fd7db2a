"""The rows as tables, for the terminal and for the documentation, and what they were measured on."""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from benchmarks.documents import markdown, replace_between
from benchmarks.overload.results import Row
from benchmarks.overload.scenarios import SCENARIOS
from benchmarks.overload.strategies import JEMALLOC, find
from examples.child_cgroup import find_home

BEGIN, END = "<!-- arena: begin -->", "<!-- arena: end -->"


@dataclass(frozen=True, slots=True)
class Cell:
    """The runs of one strategy in one scenario, over all seeds: medians, and deaths summed up."""

    good_per_s: float
    offered_per_s: float
    kills: int
    crashes: int
    frozen: int

    def __str__(self) -> str:
        return f"{self.good_per_s:.0f}" + (f" ({', '.join(self.marks)})" if self.marks else "")

    @property
    def marks(self) -> list[str]:
        """What went wrong, in words."""
        counts = (self.kills, "killed"), (self.crashes, "crashed"), (self.frozen, "frozen")
        return [f"{word} {count}×" for count, word in counts if count]


def cells(rows: Sequence[Row]) -> dict[tuple[str, str], Cell]:
    """A cell for each (scenario, strategy) that was run."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.scenario, row.strategy), []).append(row)
    return {
        key: Cell(
            statistics.median(row.good_per_s for row in group),
            statistics.median(row.offered / row.seconds for row in group),
            sum(row.kills for row in group),
            sum(row.crashes for row in group),
            sum(row.frozen for row in group),
        )
        for key, group in groups.items()
    }


def order(rows: Sequence[Row]) -> tuple[list[str], list[str]]:
    """Scenarios and strategies in the order in which they were run, the scenarios that are known in their own."""
    scenarios = sorted({row.scenario for row in rows}, key=[*SCENARIOS].index)
    return scenarios, list(dict.fromkeys(row.strategy for row in rows))


def table(rows: Sequence[Row]) -> str:
    """Markdown: a line a scenario, a column a strategy; good answers per second and what died."""
    scenarios, strategies = order(rows)
    known = cells(rows)
    lines = [["scenario", *strategies]]
    for scenario in scenarios:
        lines.append([scenario, *(str(known.get((scenario, name), "–")) for name in strategies)])
    return markdown(lines)


def details(rows: Sequence[Row]) -> str:
    """Markdown: every run with its latencies and what became of the rest."""
    head = "scenario,strategy,seed,offered/s,good/s,shed/s,failed,wasted,late wasted,p50 s,p99 s,kills,frozen"
    lines = [[*head.split(","), "peak of limit"]]
    scenarios, strategies = order(rows)
    for row in sorted(rows, key=lambda r: (scenarios.index(r.scenario), strategies.index(r.strategy), r.seed)):
        limit = f" ({row.limit_concurrency})" if row.strategy == "best-limit" else ""
        shares = [row.offered / row.seconds, row.good_per_s, row.shed_per_s]
        lines.append([row.scenario, row.strategy + limit, str(row.seed), *(f"{value:.0f}" for value in shares)])
        lines[-1] += [str(row.failed), str(row.wasted), f"{row.late_wasted} of {row.late_admitted}"]
        lines[-1] += [_seconds(row.p50_s), _seconds(row.p99_s)]
        lines[-1] += [str(row.kills), str(row.frozen), f"{row.peak_bytes / row.limit_bytes:.0%}"]
    return markdown(lines)


def kinds(rows: Sequence[Row]) -> str:
    """Markdown: the figures by kind of request, of the runs that have several; empty when none has."""
    lines = [["scenario", "strategy", "seed", "kind", "good", "offered", "within 0.1 s", "p50 s", "p99 s"]]
    for row in rows:
        for name, kind in row.kinds.items():
            lines.append([row.scenario, row.strategy, str(row.seed), name, str(kind.good), str(kind.offered)])
            lines[-1] += [f"{kind.quick:.1%}", _seconds(kind.p50_s), _seconds(kind.p99_s)]
    return markdown(lines) if len(lines) > 1 else ""


def shed_though_cheap(rows: Sequence[Row]) -> list[str]:
    """A sentence for each run that turned requests away though there was room for all of them."""
    return [
        f"{row.strategy} shed {row.shed} of {row.offered} requests in {row.scenario}, where nothing had to be."
        for row in rows
        if row.shed and SCENARIOS[row.scenario].cheap
    ]


def last_waves(rows: Sequence[Row]) -> list[str]:
    """A sentence for each run in waves: how much good came once the server had seen a few."""
    return [
        f"{row.strategy} gave {row.last_wave_good_per_s:.0f} good answers/s late in the last {row.scenario}."
        for row in rows
        if row.last_wave_good_per_s is not None
    ]


def environment(command: str) -> str:
    """What it all ran on."""
    packages = ", ".join(f"{name} {version(name)}" for name in ("uvicorn", "starlette", "uvloop", "httptools"))
    return (
        f"Linux {platform.release().partition('-')[0]}, cgroup v{find_home()[1]}, {os.cpu_count()} cores, "
        f"{platform.python_implementation()} {platform.python_version()}, {packages}, "
        f"jemalloc {jemalloc_version()}. Command: `{command}`."
    )


def jemalloc_version() -> str:
    """The version of the jemalloc that the servers are given. Raises ``RuntimeError`` where there is none."""
    program = (
        "import ctypes; version, size = ctypes.c_char_p(), ctypes.c_size_t(8);"
        "ctypes.CDLL(None).mallctl(b'version', ctypes.byref(version), ctypes.byref(size), None, ctypes.c_size_t(0));"
        "print(version.value.decode().partition('-')[0])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"LD_PRELOAD": JEMALLOC},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(f"{JEMALLOC} cannot be preloaded; install jemalloc (Debian: libjemalloc2).")
    return done.stdout.strip()


def write_docs(path: Path, rows: Sequence[Row], command: str) -> None:
    """Put the tables between the markers of ``path``, which is made when it does not exist."""
    replace_between(path, BEGIN, END, _page(rows, command), title="The overload arena")


def _page(rows: Sequence[Row], command: str) -> str:
    scenarios, strategies = order(rows)
    seeds = len({row.seed for row in rows})
    counted = f"the median of {seeds} seeds, deaths summed up" if seeds > 1 else "one run each"
    parts = [
        "![Good answers per second, by scenario and strategy](overload.svg)",
        f"Good answers per second ({counted}), and how often the server was killed or froze.",
        table(rows),
        *shed_though_cheap(rows),
        *last_waves(rows),
        "Scenarios:",
        "\n".join(f"- `{name}`: {SCENARIOS[name].what}{_rate(rows, name)}." for name in scenarios),
        "Strategies:",
        "\n".join(f"- `{name}`: {find(name).what}." for name in strategies),
        environment(command),
        f"<details><summary>Every run</summary>\n\n{details(rows)}\n\n{kinds(rows)}\n\n</details>",
    ]
    return "\n\n".join(parts) + "\n"


def _rate(rows: Sequence[Row], scenario: str) -> str:
    rates = sorted({row.rate for row in rows if row.scenario == scenario})
    return ", " + " or ".join(f"{rate:g}" for rate in rates) + "/s"


def _seconds(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}" if value >= 0.1 else f"{value:.3f}"
