"""The overload arena's own arithmetic: a wrong figure there would be believed."""

from __future__ import annotations

import asyncio
import xml.etree.ElementTree as ElementTree
from dataclasses import asdict, replace
from pathlib import Path

import pytest

pytest.importorskip("uvloop")

from benchmarks.overload import chart, report, results, sweep
from benchmarks.overload.load import Load, Outcome
from benchmarks.overload.results import Row, percentile, silences, summarise
from benchmarks.overload.scenarios import SCENARIOS
from benchmarks.overload.strategies import STRATEGIES, find


def answered(started: float, at: float, status: int = 200, *, error: str = "", kind: str = "") -> Outcome:
    return Outcome(kind, started, status, at, at, error)


def lost(started: float, ended: float, error: str = "timeout") -> Outcome:
    return Outcome("", started, 0, None, ended, error)


def row(outcomes: list[Outcome], **changes: object) -> Row:
    facts: dict[str, object] = {
        "strategy": "none",
        "scenario": "race",
        "seed": 1,
        "rate": 2.0,
        "seconds": 10.0,
        "limit_concurrency": None,
        "exits": [],
        "kill_times": [],
        "oom_kills": 0,
        "tally": (0, 0),
        "base_bytes": 1,
        "peak_bytes": 2,
        "limit_bytes": 4,
    }
    return summarise(Load(outcomes, [0.0]), **(facts | changes))  # type: ignore[arg-type]


def test_a_server_that_leaves_requests_waiting_for_two_seconds_is_frozen():
    assert silences([answered(0, 1), lost(1, 11)], []) == [1, 10]
    assert row([answered(0, 1), lost(1, 11)]).frozen == 1


def test_a_quiet_time_in_which_nobody_waits_is_no_silence():
    assert row([answered(0, 1), answered(9, 9.5)]).frozen == 0


def test_answers_to_others_and_deaths_end_a_silence():
    waiting = [lost(0, 4, "reset")]
    assert row(waiting).longest_silence_s == 4
    assert row([*waiting, answered(1.9, 2)]).longest_silence_s == 2
    assert row(waiting, kill_times=[1.0, 2.5]).longest_silence_s == 1.5


def test_answers_that_come_after_the_load_do_not_raise_the_rate():
    late = row([answered(0, 1), answered(9, 12)])
    assert (late.good, late.good_per_s) == (2, 0.1)


def test_every_request_is_good_or_shed_or_failed():
    seen = row(
        [
            answered(0, 1),
            answered(0, 1, 503),
            answered(0, 1, 503, error="reset"),
            answered(0, 1, 413),
            answered(0, 1, 500),
            answered(0, 1, 200, error="reset"),
            lost(0, 1, "refused"),
            lost(0, 10),
        ],
        tally=(5, 2),
    )
    assert (seen.good, seen.shed, seen.failed) == (1, 3, 4)
    assert (seen.errors, seen.resets, seen.refused, seen.timeouts) == (1, 1, 1, 1)
    assert seen.wasted == 4
    assert seen.refusal_read == 0.75


def test_a_kill_counts_once_whichever_way_it_was_noticed():
    assert row([], exits=[(1.0, -9)], oom_kills=1).kills == 1
    assert row([], exits=[], oom_kills=3).kills == 3
    assert row([], exits=[(1.0, 1)]).crashes == 1


def test_percentiles_are_values_that_occurred():
    assert percentile([3, 1, 2], 0.5) == 2
    assert percentile(range(1, 101), 0.99) == 99
    assert percentile([], 0.5) is None


def test_rows_come_back_as_they_were_written(tmp_path: Path):
    first = row([answered(0, 1, kind="ping")])
    results.append(tmp_path / "rows.json", first)
    results.append(tmp_path / "rows.json", replace(first, kills=2))
    (read,) = results.load_rows(tmp_path / "rows.json")
    assert asdict(read) == asdict(replace(first, kills=2))


def test_the_table_says_what_died_and_leaves_out_what_was_not_run():
    rows = [row([answered(0, 1)] * 20), row([], strategy="psutil", oom_kills=9)]
    rows.append(row([], strategy="psutil", scenario="burst"))
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in report.table(rows).splitlines()]
    assert lines[0] == ["scenario", "none", "psutil"]
    assert lines[2:] == [["burst", "–", "0"], ["race", "2", "0 (killed 9×)"]]


def test_seeds_are_summed_up_by_median_and_deaths_added():
    rows = [row([answered(0, 1)] * count, seed=count, oom_kills=1) for count in (10, 50, 20)]
    assert str(report.cells(rows)["race", "none"]) == "2 (killed 3×)"


def test_shedding_where_nothing_had_to_be_shed_is_named():
    refused = [answered(0, 1, 503)]
    assert report.shed_though_cheap([row(refused)]) == []
    assert (
        "cgroup shed 1 of 1 requests in cache"
        in report.shed_though_cheap([row(refused, scenario="cache", strategy="cgroup")])[0]
    )


def test_the_documentation_is_replaced_between_its_markers_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(report, "environment", lambda command: command)
    page = tmp_path / "overload.md"
    page.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    report.write_docs(page, [row([answered(0, 1)])], "the command")
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    assert "old" not in text
    page.write_text("no markers")
    with pytest.raises(ValueError, match="has no"):
        report.write_docs(page, [], "")


def test_the_chart_is_well_formed_and_marks_the_dead():
    text = chart.draw([row([answered(0, 1)]), row([], strategy="ours", oom_kills=2)])
    assert "killed 2×" in "".join(ElementTree.fromstring(text).itertext())


def test_the_sweep_finds_the_largest_limit_that_survives():
    async def measure(limit: int, seed: int) -> Row:
        return (
            row([answered(0, 1)] * limit, limit_concurrency=limit, seed=seed, oom_kills=limit > 27)
            if (limit < 200)
            else pytest.fail("a limit was tried far beyond a deadly one")
        )

    # more is asked for than any limit serves, so that no rung is enough
    async def overloaded(limit: int, seed: int) -> Row:
        seen = await measure(limit, seed)
        return replace(seen, offered=1000)

    best, _ = asyncio.run(sweep.best(overloaded, 1))
    assert best.survived
    assert 24 <= (best.limit_concurrency or 0) <= 27


def test_the_sweep_does_not_trust_one_lucky_run():
    async def measure(limit: int, seed: int) -> Row:
        deadly = limit > (16 if seed == 1 else 8)
        return replace(row([answered(0, 1)] * limit, limit_concurrency=limit, oom_kills=deadly), offered=1000)

    best, _ = asyncio.run(sweep.best(measure, 1))
    assert (best.limit_concurrency or 0) <= 8


def test_names_are_found_with_their_parameters():
    assert find("limit-concurrency:27").limit_concurrency == 27
    for name in ("nothing", "limit-concurrency", "limit-concurrency:x"):
        with pytest.raises(ValueError, match=name):
            find(name)


def test_every_scenario_and_strategy_is_described():
    assert all(entry.what for entry in [*SCENARIOS.values(), *STRATEGIES.values()])
