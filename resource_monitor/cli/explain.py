"""``resource-monitor explain``: every memory limit, the one that bites first, and what then happens."""

from __future__ import annotations

import argparse
from dataclasses import asdict

from resource_monitor.allocator import allocator
from resource_monitor.cli.command import add_json, add_limit, add_pid, declared_limit
from resource_monitor.cli.limit_table import limit_table, others
from resource_monitor.cli.process import require_process
from resource_monitor.cli.text import Line, Span, paragraph, width, write, write_json
from resource_monitor.explanation import Explanation, explain
from resource_monitor.units import format_size


class Explain:
    """Prints a table or JSON; ``root`` is a directory that stands in for ``/``."""

    help = "every memory limit that can bite, how far each is, which one bites first and what happens then"

    def __init__(self, root: str = "/") -> None:
        self._root = root

    def prepare_parser(self, parser: argparse.ArgumentParser) -> None:
        add_pid(parser)
        add_limit(parser)
        add_json(parser)

    def run(self, arguments: argparse.Namespace) -> int:
        require_process(arguments.pid, self._root)
        explanation = explain(arguments.pid, declared=declared_limit(arguments), root=self._root)
        if arguments.json:
            write_json(_as_json(explanation, arguments.pid))
        else:
            write(_lines(explanation, arguments.pid, width()))
        return 0


def _lines(explanation: Explanation, pid: int | None, room: int) -> list[Line]:
    lines = limit_table(explanation, room, where=True)
    lines += [[Span("")], *paragraph(explanation.sentence, room, "bold")]
    below = [*others(explanation), _allocator(pid)]
    lines += [[Span("")], *(line for text in below for line in paragraph(text, room, "dim"))]
    return lines


def _allocator(pid: int | None) -> str:
    if pid is not None:
        return f"What the allocator of process {pid} would give back cannot be read from outside."
    name, dirty = allocator().name, allocator().dirty()
    if dirty is None:
        return f"Allocator: {name}, which cannot tell what it would give back."
    return f"Allocator: {name}, which would give back {format_size(dirty)}."


def _as_json(explanation: Explanation, pid: int | None) -> dict[str, object]:
    own = pid is None
    return {
        "pid": pid,
        "sentence": explanation.sentence,
        "first": explanation.limits.index(explanation.first) if explanation.first else None,
        "limits": [{**asdict(limit), "flags": sorted(limit.flags)} for limit in explanation.limits],
        "allocator": {"name": allocator().name, "recoverable": allocator().dirty()} if own else None,
    }
