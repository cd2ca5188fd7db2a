"""``resource-monitor check``: whether memory backpressure would work here, and what to change where it would not.

The findings themselves are ``diagnosis``' business.
"""

from __future__ import annotations

import argparse
import os
from dataclasses import asdict

from resource_monitor.allocator import allocator
from resource_monitor.cli.command import FAILED, add_json, add_limit, declared_limit
from resource_monitor.cli.diagnosis import Finding, Machine, Status, diagnose
from resource_monitor.cli.text import Line, Span, width, wrap, write, write_json

_STYLES = {Status.OK: "green", Status.NOTE: "yellow", Status.PROBLEM: "bold red"}


class Check:
    """Prints one finding a line or JSON; exit status 1 when one is a problem. ``root`` stands in for ``/``."""

    help = "whether memory backpressure would work for a process started here, and what to change where not"

    def __init__(self, root: str = "/") -> None:
        self._root = root

    def prepare_parser(self, parser: argparse.ArgumentParser) -> None:
        add_limit(parser)
        add_json(parser)

    def run(self, arguments: argparse.Namespace) -> int:
        findings = diagnose(Machine(self._root, os.environ, declared_limit(arguments), allocator()))
        works = all(finding.status is not Status.PROBLEM for finding in findings)
        if arguments.json:
            write_json({"works": works, "findings": [asdict(finding) for finding in findings]})
        else:
            write(_lines(findings, width()))
        return 0 if works else FAILED


def _lines(findings: list[Finding], room: int) -> list[Line]:
    topics = max(len(finding.topic) for finding in findings)
    indent = len(Status.PROBLEM) + topics + 3
    lines: list[Line] = []
    for finding in findings:
        rows = wrap(finding.text, room - indent)
        lines.append(
            [
                Span(f"{finding.status:{len(Status.PROBLEM) + 1}}", _STYLES[finding.status]),
                Span(f"{finding.topic:{topics + 2}}", "bold"),
                Span(rows[0]),
            ]
        )
        rest = rows[1:] + (wrap(f"→ {finding.remedy}", room - indent) if finding.remedy else [])
        lines += [[Span(" " * indent + row)] for row in rest]
    return lines
