"""Lines of styled text: columns, wrapping, shortening, and writing them.

Colour comes from rich where that is installed and the output is a terminal; NO_COLOR and TERM=dumb are its business.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

GAP = "  "
_WORD = re.compile(r"[\d.]+ [KMGT]?i?B\b\S*|\S+")


class Span(NamedTuple):
    """A piece of text and its style as rich understands it."""

    text: str
    style: str = ""


Line = list[Span]


def width() -> int:
    """Columns of the terminal, 80 where there is none."""
    return shutil.get_terminal_size().columns


def plain(line: Line) -> str:
    return "".join(span.text for span in line).rstrip()


def write(lines: Iterable[Line]) -> None:
    """Write to standard output, in colour where that is wanted."""
    if sys.stdout.isatty():
        try:
            from rich.console import Console
            from rich.text import Text
        except ImportError:
            pass
        else:
            console = Console()
            for line in lines:
                console.print(Text.assemble(*line), soft_wrap=True)
            return
    sys.stdout.writelines(f"{plain(line)}\n" for line in lines)


def write_json(value: Any) -> None:
    sys.stdout.write(json.dumps(value, indent=2) + "\n")


def printable(text: str) -> str:
    """``text`` with what would move the cursor escaped: the name of a cgroup may hold anything but a slash."""
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape", "surrogatepass").decode()
        for character in text
    )


def shorten(text: str, room: int) -> str:
    """``text`` in at most ``room`` columns, cut in the middle: both ends of a path tell more than its inside."""
    text = printable(text)
    if len(text) <= room:
        return text
    tail = max(0, (room - 1) * 2 // 3)
    return f"{text[: max(0, room - 1 - tail)]}…{text[len(text) - tail :]}"


def wrap(text: str, room: int, longest: int | None = None) -> list[str]:
    """Rows of at most ``room`` columns, broken at spaces but not inside of a size; words of more than ``longest``
    columns, such as paths, are shortened, never broken."""
    rows = [""]
    for word in (shorten(word, longest or room) for word in _WORD.findall(text)):
        if rows[-1] and len(rows[-1]) + 1 + len(word) > room:
            rows.append(word)
        else:
            rows[-1] = f"{rows[-1]} {word}".lstrip()
    return rows


def paragraph(text: str, room: int, style: str = "") -> list[Line]:
    """``text`` as lines; a path takes up no more than half of one."""
    return [[Span(row, style)] for row in wrap(text, room, room // 2)]


def columns(rows: Sequence[Sequence[Span]], align: str) -> list[Line]:
    """``rows`` of equal length as lines of aligned columns; ``align`` holds ``<`` or ``>`` for each."""
    widths = [max(len(cell.text) for cell in column) for column in zip(*rows, strict=True)]
    return [
        [
            Span((GAP if at else "") + f"{cell.text:{side}{room}}", cell.style)
            for at, (cell, side, room) in enumerate(zip(row, align, widths, strict=True))
        ]
        for row in rows
    ]
