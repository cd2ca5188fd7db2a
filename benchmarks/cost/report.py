"""The tables for the terminal, for the documentation and as JSON, and what they were measured on."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from benchmarks.cost.table import Row, Table
from benchmarks.documents import markdown, replace_between

BEGIN, END = "<!-- cost: begin -->", "<!-- cost: end -->"

_PACKAGES = (
    "asgi-correlation-id",
    "granian",
    "gunicorn",
    "httptools",
    "opentelemetry-instrumentation-asgi",
    "proclimits",
    "psutil",
    "pyperf",
    "slowapi",
    "starlette",
    "uvicorn",
    "uvloop",
)


@dataclass(frozen=True, slots=True)
class Run:
    """The tables of one run of ``command``, and the machine, the versions by package and the date they come from;
    ``quick`` ones are too short to be judged by."""

    command: str
    quick: bool
    date: str
    machine: str
    versions: dict[str, str]
    tables: tuple[Table, ...]

    def figure(self, table: str, row: str, name: str) -> float | None:
        """What was measured, ``None`` where it was not."""
        for measured in self.tables:
            for line in measured.rows:
                if (measured.name, line.name) == (table, row):
                    return line.figures.get(name)
        return None

    def measured(self, table: Table) -> Run:
        """The same with ``table``, in place of the one of that name or as the last."""
        tables = {known.name: known for known in self.tables} | {table.name: table}
        return replace(self, tables=tuple(tables.values()))


def run_of(tables: Iterable[Table], command: str, *, quick: bool) -> Run:
    """``tables``, which were measured here and now."""
    now = datetime.now(UTC).strftime("%Y-%m-%d")
    return Run(command, quick, now, _machine(), _versions(), tuple(tables))


def merged(before: Run, run: Run) -> Run:
    """``run``, and of ``before`` the tables that it does not have. Raises ``ValueError`` where they do not belong
    together: they are of one day, machine and set of versions, and both full or both quick."""
    for what in ("date", "machine", "versions", "quick"):
        if getattr(before, what) != getattr(run, what):
            raise ValueError(
                f"The {what} of what is there is {getattr(before, what)!r}, and now it is {getattr(run, what)!r}; "
                "measure all tables anew."
            )
    both = replace(run, command=f"{before.command} && {run.command}", tables=before.tables)
    for table in run.tables:
        both = both.measured(table)
    return both


def dump(run: Run) -> str:
    """``run`` as JSON, for :func:`load`."""
    return json.dumps(asdict(run), indent=1) + "\n"


def load(text: str) -> Run:
    """What :func:`dump` gave. Raises ``ValueError`` for anything else."""
    try:
        known: dict[str, Any] = json.loads(text)
        tables = tuple(
            Table(
                **{
                    **table,
                    "columns": tuple(table["columns"]),
                    "rows": tuple(Row(row["name"], tuple(row["cells"]), row["figures"]) for row in table["rows"]),
                    "notes": tuple(table["notes"]),
                }
            )
            for table in known.pop("tables")
        )
        return Run(**known, tables=tables)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"This is no run of python -m benchmarks.cost ({error!r}); write one with --json.") from None


def show(table: Table) -> str:
    """Markdown: the title, the table and its notes."""
    lines = [table.columns, *((row.name, *row.cells) for row in table.rows)]
    return "\n\n".join([f"## {table.title}", markdown(lines), *table.notes])


def environment(run: Run) -> str:
    """One paragraph: what it all ran on."""
    packages = ", ".join(f"{name} {number}" for name, number in run.versions.items())
    return f"{run.date}, {run.machine}, {packages}. Command: `{run.command}`."


def write_docs(path: Path, run: Run) -> None:
    """Put the tables between the markers of ``path``, which is made when it does not exist."""
    parts = [environment(run), *(show(table) for table in run.tables)]
    replace_between(path, BEGIN, END, "\n\n".join(parts) + "\n", title="What it costs")


def spread(values: Sequence[float], form: str) -> str:
    """The least and the most of ``values``, each as ``form`` writes it."""
    return f"{min(values):{form}}–{max(values):{form}}"


def _machine() -> str:
    return (
        f"Linux {platform.release().partition('-')[0]}, {os.cpu_count()} cores ({_processor()}), "
        f"{platform.python_implementation()} {platform.python_version()}"
    )


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.machine()


def _versions() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
