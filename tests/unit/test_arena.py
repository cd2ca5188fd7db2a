"""The overload arena's own arithmetic: a wrong figure there would be believed."""

from __future__ import annotations

import asyncio
import json
import xml.etree.ElementTree as ElementTree
from dataclasses import asdict, replace
from pathlib import Path

import pytest

pytest.importorskip("uvloop")

from benchmarks.overload import chart, judge, report, results, sweep
from benchmarks.overload.judge import Verdict
from benchmarks.overload.load import Load, Outcome, arrivals
from benchmarks.overload.results import Row, percentile, silences, summarise
from benchmarks.overload.scenarios import SCENARIOS, Waves
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
        "waves": None,
        "limit_concurrency": None,
        "exits": [],
        "kill_times": [],
        "oom_kills": 0,
        "tally": (0, 0),
        "late_admitted": 0,
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


def test_what_was_wasted_late_is_what_the_second_half_let_in_and_did_not_answer_well():
    outcomes = [answered(1, 2), answered(4.9, 6), answered(5, 6), answered(8, 11), answered(9, 9, 503), lost(9, 10)]
    assert row(outcomes, late_admitted=3).late_wasted == 1
    assert row(outcomes, late_admitted=3).late_admitted == 3
    assert row([answered(6, 7)], late_admitted=0).late_wasted == 0


def test_only_good_answers_within_a_tenth_of_a_second_are_quick():
    outcomes = [(0, 0.05, 200), (0, 0.1, 200), (0, 0.2, 200), (0, 0.05, 503)]
    pings = [answered(start, end, status, kind="ping") for start, end, status in outcomes]
    assert row(pings).kinds["ping"].quick == 0.5


def test_waves_begin_with_a_rest_and_send_at_the_full_rate_for_the_rest_of_each():
    waves = Waves(idle=10, busy=5, times=4)
    assert waves.length == 60
    assert [waves.due(busy) for busy in (0, 4.5, 5, 12)] == [10, 14.5, 25, 42]
    times = [at for at, _ in arrivals(replace(SCENARIOS["race"], waves=waves), 300, waves.length, seed=1)]
    assert times == sorted(times)
    assert all(at % 15 >= 10 for at in times)
    assert [round(sum(wave * 15 <= at < wave * 15 + 15 for at in times) / 1500, 1) for wave in range(4)] == [1] * 4
    assert max(times) < 60


def test_load_without_waves_is_spread_over_all_of_the_time():
    times = [at for at, _ in arrivals(SCENARIOS["race"], 300, 10, seed=1)]
    assert [round(sum(second <= at < second + 1 for at in times) / 300) for second in range(10)] == [1] * 10


def test_the_last_wave_is_told_by_its_second_half():
    waves = Waves(idle=2, busy=2, times=2)
    outcomes = [answered(6, 6.9), answered(6, 7.1), answered(7, 8), answered(7.5, 8.1), answered(7.5, 7.6, 503)]
    assert row(outcomes, seconds=8.0, waves=waves).last_wave_good_per_s == 2
    assert row(outcomes).last_wave_good_per_s is None
    rows = [row(outcomes, scenario="wave", seconds=8.0, waves=waves)]
    assert judge.medians(rows, "wave") == "wave, good/s: none 0, last 2"
    assert report.last_waves(rows) == ["none gave 2 good answers/s late in the last wave."]


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
    (read,), outdated = results.load_rows(tmp_path / "rows.json")
    assert asdict(read) == asdict(replace(first, kills=2))
    assert outdated == 0


@pytest.mark.parametrize(("kind", "missing"), [("", "late_wasted"), ("", "kinds"), ("ping", "quick")])
def test_rows_that_lack_figures_are_passed_over_and_counted(tmp_path: Path, kind: str, missing: str):
    file = tmp_path / "rows.json"
    results.append(file, row([answered(0, 1, kind="ping")], seed=2))
    fields = asdict(row([answered(0, 1, kind="ping")]))
    del (fields["kinds"][kind] if kind else fields)[missing]
    with file.open("a") as opened:
        opened.write(json.dumps(fields) + "\n")
    rows, outdated = results.load_rows(file)
    assert ([read.seed for read in rows], outdated) == ([2], 1)


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


def test_a_scenario_that_borrows_a_limit_borrows_it_from_one_that_has_its_own():
    assert all(not SCENARIOS[s.limit_of].limit_of for s in SCENARIOS.values() if s.limit_of)


def verdict(rows: list[Row], scenario: str, text: str) -> Verdict:
    """Of the one criterion in ``scenario`` whose line begins with ``text``."""
    (found,) = [v for v in judge.judge(rows) if v.scenario == scenario and v.text.startswith(text)]
    return found


def good(count: int, strategy: str = "ours", **changes: object) -> Row:
    return row([answered(0, 1)] * count, strategy=strategy, **changes)


def test_what_was_not_measured_is_not_met():
    assert not any(v.passed for v in judge.judge([]))
    assert {v.scenario for v in judge.judge([])} == set(SCENARIOS)
    alone = verdict([good(100)], "race", "good/s of ours ≥ 2 × best-limit")
    assert not alone.passed
    assert "best-limit is not measured" in alone.text


@pytest.mark.parametrize(("ours", "passed"), [(199, False), (200, True)])
def test_good_answers_are_judged_against_the_best_fixed_limit(ours: int, passed: bool):
    assert verdict([good(ours), good(100, "best-limit")], "race", "good/s of ours ≥ 2 ×").passed is passed


def test_a_criterion_may_compare_with_another_scenario():
    text = "good/s of ours ≥ 0.9 × ours in roomy"
    assert verdict([good(91, scenario="crew"), good(100, scenario="roomy")], "crew", text).passed
    assert not verdict([good(89, scenario="crew"), good(100, scenario="roomy")], "crew", text).passed
    assert not verdict([good(91, scenario="crew")], "crew", text).passed


def test_a_limit_that_dies_is_nothing_to_be_compared_with_where_that_is_said():
    dead = good(100, "best-limit", scenario="leak", oom_kills=3)
    found = verdict([good(10, scenario="leak"), dead], "leak", "good/s of ours ≥ 0.95 × best-limit")
    assert found.passed
    assert "died 3×" in found.text
    assert not verdict([good(10), replace(dead, scenario="race")], "race", "good/s of ours ≥ 2 × best-limit").passed


def test_seeds_are_judged_by_their_median_but_no_death_is_forgiven():
    seeds = [good(count, seed=seed) for seed, count in enumerate((10, 200, 300))]
    rows = [*seeds[:2], replace(seeds[2], frozen=1), good(100, "best-limit")]
    assert verdict(rows, "race", "good/s of ours ≥ 2 × best-limit").passed
    assert not verdict(rows, "race", "deaths of ours ≤").passed
    assert verdict(seeds, "race", "deaths of ours ≤").passed


def test_a_figure_that_one_seed_lacks_is_not_measured():
    answers = [good(10), row([], strategy="ours", seed=2)]
    assert verdict(answers[:1], "race", "p99 s of ours").passed
    assert "not measured" in verdict(answers, "race", "p99 s of ours").text


def test_patience_with_late_answers_depends_on_the_scenario():
    slow = row([answered(0, 1.3)], strategy="ours")
    assert verdict([slow], "race", "p99 s of ours ≤ 1.32").passed
    assert not verdict([replace(slow, scenario="burst")], "burst", "p99 s of ours ≤ 0.72").passed


def test_runs_that_are_not_alike_are_not_judged_together():
    with pytest.raises(ValueError, match=r"10 s at 2/s and 20 s at 2/s"):
        judge.judge([good(1), good(1, "none", seconds=20.0)])


@pytest.mark.parametrize("criterion", judge.CRITERIA)
def test_every_criterion_speaks_of_what_there_is(criterion: judge.Criterion):
    assert criterion.strategy in STRATEGIES
    assert criterion.than in {"", *STRATEGIES}
    assert criterion.figure in judge.FIGURES
    assert criterion.scenarios
    assert set(criterion.scenarios) <= set(SCENARIOS)


def test_the_judge_prints_a_line_a_criterion_and_fails_when_one_is_not_met(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    results.append(tmp_path / "rows.jsonl", good(100))
    monkeypatch.setattr("sys.argv", ["judge", str(tmp_path / "rows.jsonl")])
    monkeypatch.setattr(judge, "CRITERIA", judge.CRITERIA[:1])
    assert judge.main() == 1
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith(("PASS", "FAIL")) for line in lines) == len(SCENARIOS)
    assert "PASS  race       deaths of ours ≤ 0: 0" in lines
    monkeypatch.setattr(judge, "CRITERIA", (replace(judge.CRITERIA[0], scenarios=("race",)),))
    assert judge.main() == 0
