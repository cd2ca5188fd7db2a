"""The command: which tables are measured, and where they go.

What is measured, and how, is the business of the module that a table is called after.
"""

from __future__ import annotations

import argparse
import importlib
import shlex
import sys
from pathlib import Path

from benchmarks.cost import report
from benchmarks.cost.table import Table

TABLES = ("decision", "reading", "scale", "memory", "refusal", "throughput")
DOCS = Path(__file__).parent.parent.parent / "docs" / "cost.md"


def main() -> int:
    parser = _parser()
    options = parser.parse_args()
    if unknown := [name for name in options.tables if name not in TABLES]:
        parser.error(f"No table is called {unknown[0]!r}; there are {', '.join(TABLES)}.")
    if options.resume and not options.json:
        parser.error("--resume takes tables from the file of --json; name that.")
    run = report.run_of((), shlex.join(["python", "-m", "benchmarks.cost", *sys.argv[1:]]), quick=options.quick)
    if options.resume:
        try:
            run = report.merged(report.load(options.json.read_text()), run)
        except (OSError, ValueError) as error:
            parser.error(f"{options.json} cannot be resumed: {error}")
    try:
        for name in options.tables or TABLES:
            table: Table = importlib.import_module(f"benchmarks.cost.{name}").measure(quick=options.quick)
            print(report.show(table), end="\n\n", flush=True)
            run = run.measured(table)
    except KeyboardInterrupt:
        return 130
    print(report.environment(run))
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(report.dump(run))
    if options.docs and (options.quick or {table.name for table in run.tables} != set(TABLES)):
        print("docs/cost.md is left as it is: it shows full runs of all tables.")
    elif options.docs:
        report.write_docs(DOCS, run)
        print("Written: docs/cost.md")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cost", description=__doc__)
    parser.add_argument(
        "tables", nargs="*", metavar="TABLE", help=f"what to measure (default: all): {', '.join(TABLES)}"
    )
    parser.add_argument("--quick", action="store_true", help="short runs, to see that everything works")
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write all figures to FILE, for benchmarks.cost.judge"
    )
    parser.add_argument(
        "--resume", action="store_true", help="keep the tables in FILE that are not measured now, of the same day"
    )
    parser.add_argument("--docs", action="store_true", help="write docs/cost.md, from a full run of all tables")
    return parser


if __name__ == "__main__":
    sys.exit(main())
