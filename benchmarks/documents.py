"""Tables in Markdown, and pages of the documentation of which a part is printed by a command."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def markdown(lines: Sequence[Sequence[str]]) -> str:
    """A table of ``lines``, the first of which is the head."""
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    text = [
        "| " + " | ".join(f"{cell:<{width}}" for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    ]
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([text[0], rule, *text[1:]])


def replace_between(path: Path, begin: str, end: str, part: str, *, title: str) -> None:
    """Put ``part`` between the lines ``begin`` and ``end`` of ``path``, which is made when it does not exist."""
    text = path.read_text() if path.exists() else f"# {title}\n\n{begin}\n{end}\n"
    before, found, rest = text.partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise ValueError(f"{path} has no {begin} … {end}; add the two lines where the tables belong.")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{before}{begin}\n{part}{end}{after}")
