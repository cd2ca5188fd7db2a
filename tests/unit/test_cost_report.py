"""The arithmetic of what is printed of costs: a wrong figure there would be believed, and a wrong bound kept."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.cost import __main__ as cost
from benchmarks.cost import instructions, judge, report
from benchmarks.cost.instructions import KINDS, MORE, CannotCount, compare, parse
from benchmarks.cost.judge import AT_LEAST, AT_MOST, BOUNDS, Bound
from benchmarks.cost.report import Run
from benchmarks.cost.table import Row, Table


def table(*rows: Row, name: str = "decision") -> Table:
    return Table(name, f"Of {name}", ("", "added"), rows, ("It was measured.",))


def run(*tables: Table) -> Run:
    return replace(report.run_of(tables, "python -m benchmarks.cost", quick=False), date="2026-01-02")


def bounded(monkeypatch: pytest.MonkeyPatch, *bounds: Bound) -> None:
    monkeypatch.setattr(judge, "BOUNDS", bounds)


OURS = Row("ASGI, ours", ("1.25 µs",), {"seconds": 1.25e-6, "of no-op": 5.0})


@pytest.mark.parametrize("cells", [(), ("1", "2")])
def test_a_row_with_a_cell_too_few_or_too_many_is_no_row_of_its_table(cells: tuple[str, ...]):
    with pytest.raises(ValueError, match=rf"'ours' has {len(cells)} cells for the 1 columns"):
        table(Row("ours", cells, {}))


def test_a_run_is_read_back_as_it_was_written():
    written = run(table(OURS), table(name="memory"))
    assert report.load(report.dump(written)) == written


def test_tables_that_are_measured_anew_take_the_place_of_what_was_there():
    before, anew = run(table(OURS), table(name="memory")), table(Row("ASGI, ours", ("1.5 µs",), {"seconds": 1.5e-6}))
    merged = report.merged(
        before, replace(run(anew, table(name="scale")), command="python -m benchmarks.cost decision")
    )
    assert merged.tables == (anew, table(name="memory"), table(name="scale"))
    assert merged.command == "python -m benchmarks.cost && python -m benchmarks.cost decision"


@pytest.mark.parametrize(
    "other", [{"date": "2026-01-01"}, {"machine": "another"}, {"versions": {"uvicorn": "1"}}, {"quick": True}], ids=str
)
def test_tables_of_another_day_machine_or_version_are_not_mixed(other: dict[str, Any]):
    with pytest.raises(ValueError, match=rf"The {next(iter(other))} of what is there is .*; measure all tables anew"):
        report.merged(replace(run(table(OURS)), **other), run(table(name="memory")))


def test_what_cannot_be_resumed_is_told_before_anything_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    spoilt = tmp_path / "cost.json"
    spoilt.write_text("{}")
    for more in ((), ("--json", str(tmp_path / "none.json")), ("--json", str(spoilt))):
        monkeypatch.setattr(sys, "argv", ["benchmarks.cost", "no_such_module", "--resume", *more])
        monkeypatch.setattr(cost, "TABLES", ("no_such_module",))
        with pytest.raises(SystemExit, match="2"):
            cost.main()
    said = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    assert "--resume takes tables from the file of --json; name that." in said[0]
    assert "none.json cannot be resumed: [Errno 2]" in said[1]
    assert "cost.json cannot be resumed: This is no run" in said[2]


@pytest.mark.parametrize("text", ["{}", "[]", '{"tables": [{}]}', '{"tables": []}', "nonsense"])
def test_what_is_no_run_is_not_read(text: str):
    with pytest.raises(ValueError):  # noqa: PT011 - json's own among them
        report.load(text)


def test_a_figure_is_found_by_its_table_row_and_name():
    measured = run(table(OURS), table(Row("ASGI, ours", ("",), {"seconds": 2.0}), name="other"))
    assert measured.figure("decision", "ASGI, ours", "seconds") == 1.25e-6
    assert measured.figure("other", "ASGI, ours", "seconds") == 2.0
    assert measured.figure("decision", "ASGI, ours", "bytes") is None
    assert measured.figure("decision", "bare", "seconds") is None


def test_a_table_is_shown_with_its_title_and_notes():
    assert report.show(table(OURS)).splitlines() == [
        "## Of decision",
        "",
        "|            | added   |",
        "|------------|---------|",
        "| ASGI, ours | 1.25 µs |",
        "",
        "It was measured.",
    ]


def test_the_page_keeps_what_stands_around_the_tables_and_says_what_printed_them(tmp_path: Path):
    page = tmp_path / "cost.md"
    page.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    report.write_docs(page, run(table(OURS)))
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith(f"{report.END}\nafter\n")
    assert "old" not in text
    assert "| ASGI, ours | 1.25 µs |" in text
    assert "2026-01-02" in text
    assert "Command: `python -m benchmarks.cost`." in text


@pytest.mark.parametrize(
    ("relation", "value", "kept"),
    [(AT_MOST, 5.0, True), (AT_MOST, 4.9, False), (AT_LEAST, 5.0, True), (AT_LEAST, 5.1, False)],
)
def test_a_bound_is_kept_up_to_its_value(monkeypatch: pytest.MonkeyPatch, relation: str, value: float, kept: bool):
    bounded(monkeypatch, Bound("decision", "ASGI, ours", "of no-op", relation, value))
    [verdict] = judge.judge(run(table(OURS)))
    assert verdict.kept is kept
    assert str(verdict) == f"{'PASS' if kept else 'FAIL'}  decision: of no-op of ASGI, ours {relation} {value:g}: 5"


def test_what_was_not_measured_keeps_no_bound(monkeypatch: pytest.MonkeyPatch):
    bounded(monkeypatch, Bound("decision", "WSGI, ours", "of no-op", AT_MOST, 5))
    [verdict] = judge.judge(run(table(OURS)))
    assert not verdict.kept
    assert verdict.text.endswith("not measured")


def test_seconds_and_bytes_are_told_in_their_units(monkeypatch: pytest.MonkeyPatch):
    bounded(
        monkeypatch,
        Bound("decision", "ASGI, ours", "seconds", AT_MOST, 150e-9),
        Bound("memory", "import", "bytes", AT_MOST, 3e6),
    )
    imported = table(Row("import", ("",), {"bytes": 2.5e6}), name="memory")
    texts = [verdict.text for verdict in judge.judge(run(table(OURS), imported))]
    assert texts == [
        "decision: seconds of ASGI, ours ≤ 0.15 µs: 1.25 µs",
        "memory: bytes of import ≤ 3 MB: 2.5 MB",
    ]


def test_no_bound_is_named_twice():
    assert len({(bound.table, bound.row, bound.figure) for bound in BOUNDS}) == len(BOUNDS)


def judged(monkeypatch: pytest.MonkeyPatch, path: Path) -> int:
    monkeypatch.setattr(sys, "argv", ["judge", str(path)])
    return judge.main()


def test_the_judge_fails_unless_all_bounds_are_kept(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    path = tmp_path / "cost.json"
    path.write_text(report.dump(run(table(OURS))))
    good = Bound("decision", "ASGI, ours", "of no-op", AT_MOST, 5)
    bounded(monkeypatch, good)
    assert judged(monkeypatch, path) == 0
    bounded(monkeypatch, good, replace(good, value=4))
    assert judged(monkeypatch, path) == 1
    assert capsys.readouterr().out.endswith("1 of 2 bounds are kept.\n")


def test_the_judge_says_what_to_do_without_a_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    with pytest.raises(SystemExit):
        judged(monkeypatch, tmp_path / "missing.json")
    assert f"python -m benchmarks.cost --json {tmp_path / 'missing.json'}" in capsys.readouterr().err


def dump(part: int, total: int) -> str:
    """The lines around the costs, as callgrind 3.19 writes them."""
    head = f"# callgrind format\nversion: 1\npid: 7\npart: {part}\n"
    return f"{head}\nevents: Ir\nsummary: {total}\n\nfn=(1) main\n12 {total}\n\ntotals: {total}\n"


def test_dumps_are_put_in_the_order_in_which_they_were_counted():
    assert parse(iter([dump(10, 3), dump(2, 2), dump(1, 1)])) == [1, 2, 3]


def test_a_dump_without_a_total_is_none():
    with pytest.raises(CannotCount, match="no total"):
        parse(iter(["# callgrind format\npart: 1\n"]))


ACCEPTED = dict.fromkeys(KINDS, 1000.0) | {"asgi bare": 100.0, "wsgi bare": 50.0}


def test_a_tenth_more_is_accepted_and_what_is_above_is_told():
    assert compare(ACCEPTED, ACCEPTED) == []
    assert compare(ACCEPTED | {"asgi refused": 1000 * (1 + MORE)}, ACCEPTED) == []
    [problem] = compare(ACCEPTED | {"asgi refused": 1111.0}, ACCEPTED)
    assert problem.startswith("asgi refused: 1,111 instructions a request, +11.1% on the 1,000 that were accepted")


def test_a_kind_for_which_nothing_was_accepted_is_told():
    [problem] = compare(ACCEPTED | {"asgi new": 1.0}, ACCEPTED)
    assert problem == "asgi new: nothing was accepted for it yet; do so with --accept."


def test_what_the_bare_app_takes_more_is_not_the_middlewares():
    slower = {kind: 1.2 * count for kind, count in ACCEPTED.items() if kind.startswith("wsgi")}
    assert compare(ACCEPTED | slower, ACCEPTED) == []
    problems = compare(ACCEPTED | slower | {"wsgi bare": 50.0, "wsgi refused": 1000.0}, ACCEPTED)
    assert [problem.partition(":")[0] for problem in problems] == ["wsgi admitted", "wsgi with a body"]


def test_figures_are_kept_by_version_of_python(tmp_path: Path):
    path = tmp_path / "instructions.json"
    assert instructions.load(path, "3.11") is None
    instructions.accept(path, "3.12", {"asgi bare": 2.4})
    instructions.accept(path, "3.11", {"asgi bare": 1.6})
    assert json.loads(path.read_text()) == {"3.11": {"asgi bare": 2}, "3.12": {"asgi bare": 2}}
    instructions.accept(path, "3.11", {"asgi bare": 3.0})
    assert instructions.load(path, "3.11") == {"asgi bare": 3}
    assert instructions.load(path, "3.13") is None


def test_without_valgrind_it_says_so_in_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(sys, "argv", ["instructions"])
    assert instructions.main() == 1
    assert capsys.readouterr().err == (
        "There is no valgrind here to count instructions with; install it (Debian: valgrind).\n"
    )
