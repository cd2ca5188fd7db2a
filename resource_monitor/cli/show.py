"""``resource-monitor show``: every resource with its limit, what is used of it and what is available."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass, field

from resource_monitor.cli.command import FAILED, add_json
from resource_monitor.cli.text import Span, columns, paragraph, width, write, write_json
from resource_monitor.errors import NotApplicable, ProbeError
from resource_monitor.limits import UNBOUNDED
from resource_monitor.resource import Resource
from resource_monitor.units import format_size

_COUNTED = (Resource.OPEN_FILES, Resource.TASKS)
_FIGURES = ("limit", "used", "available")


@dataclass(slots=True)
class _Shown:
    """The figures of one resource, ``None`` where there is none, and then why; ``failed`` if one could not be read."""

    figures: dict[str, int | None] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    failed: bool = False


class Show:
    """Prints a table or JSON; exit status 1 when a figure could not be read."""

    help = "the limit, the used and the available amount of every resource, for a process started here"

    def prepare_parser(self, parser: argparse.ArgumentParser) -> None:
        add_json(parser)

    def run(self, arguments: argparse.Namespace) -> int:
        shown = {resource: _read(resource) for resource in Resource}
        if arguments.json:
            write_json(
                {
                    resource.value: {
                        "unit": "number" if resource in _COUNTED else "bytes",
                        **read.figures,
                        "reasons": read.reasons,
                    }
                    for resource, read in shown.items()
                }
            )
        else:
            _write(shown)
        return FAILED if any(read.failed for read in shown.values()) else 0


def _read(resource: Resource) -> _Shown:
    shown = _Shown()
    figures: dict[str, Callable[[], int]] = {name: getattr(resource, name) for name in _FIGURES}
    for name, read in figures.items():
        try:
            value = read()
        except NotApplicable as reason:
            shown.figures[name], shown.reasons[name] = None, str(reason)
        except ProbeError as error:
            shown.figures[name], shown.reasons[name] = None, str(error)
            shown.failed = True
        else:
            shown.figures[name] = None if value == UNBOUNDED else value
            if value == UNBOUNDED:
                shown.reasons[name] = f"Nothing limits {resource.name} for this process."
    return shown


def _write(shown: dict[Resource, _Shown]) -> None:
    rows = [[Span(""), *(Span(name, "bold") for name in _FIGURES)]]
    for resource, read in shown.items():
        cells = [Span(_figure(resource, read.figures[name])) for name in _FIGURES]
        rows.append([Span(resource.name, "bold"), *cells])
    write(columns(rows, "<>>>"))
    reasons: dict[str, list[str]] = {}
    for resource, read in shown.items():
        for name, reason in read.reasons.items():
            reasons.setdefault(reason, []).append(f"{resource.name} {name}")
    for reason, names in reasons.items():
        write([[Span("")], *paragraph(f"- {', '.join(names)}: {reason}", width(), "dim")])


def _figure(resource: Resource, value: int | None) -> str:
    if value is None:
        return "-"
    return f"{value:,}" if resource in _COUNTED else format_size(value)
