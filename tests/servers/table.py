"""The document that tells which server's clients see what, made of what the tests saw."""

from __future__ import annotations

import platform
from importlib.metadata import version

from cells import CELLS
from kinds import KINDS

Seen = dict[tuple[str, str], str]
"""Outcomes by the server's name and the cell's."""

_HEAD = """# Servers

What clients see of the middleware's refusals on each server: `make servers` starts every one of them, looks, and writes
this document. After each cell nothing was in flight, and the server's processes had no more descriptors than before.

What a refused client still sends is dropped, up to 64 MiB and for 10 seconds (5 where that holds a thread, under
WSGI), so that it comes to read its answer. A client that sends more than that before it looks for an answer sees a
reset.

"""


def document(seen: Seen) -> str:
    """The table, what its columns mean, and why some servers differ."""
    reasons: dict[str, int] = {}
    lines = [_row("server", *CELLS), _row("---", *["---"] * len(CELLS))]
    for kind in KINDS:
        outcomes = []
        for cell in CELLS:
            note = kind.notes.get(cell)
            mark = f" ({reasons.setdefault(note.reason, len(reasons) + 1)})" if note else ""
            outcomes.append(seen[kind.name, cell] + mark)
        lines.append(_row(kind.name, *outcomes))
    columns = [f"- **{name}**: {cell.about}." for name, cell in CELLS.items()]
    notes = [f"{number}. {reason}" for reason, number in reasons.items()]
    distributions = sorted({distribution for kind in KINDS for distribution in kind.distributions})
    versions = ", ".join(f"{distribution} {version(distribution)}" for distribution in distributions)
    seen_with = f"Seen with Python {platform.python_version()}, {versions}."
    return _HEAD + "\n".join([*lines, "", *columns, "", *notes, "", seen_with, ""])


def _row(*fields: str) -> str:
    return f"| {' | '.join(fields)} |"
