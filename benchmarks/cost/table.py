"""What a measurement hands over: the cells that are shown, and the raw figures that are written down and judged."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a table.

    ``cells`` are its texts, the name's column left out; ``figures`` are raw, in seconds, bytes or ratios.
    """

    name: str
    cells: tuple[str, ...]
    figures: dict[str, float]


@dataclass(frozen=True, slots=True)
class Table:
    """What one module measured.

    ``columns`` head the cells, the name's column first. ``notes`` are sentences that stand below the table.
    """

    name: str
    title: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row.cells) != len(self.columns) - 1:
                raise ValueError(
                    f"The row {row.name!r} has {len(row.cells)} cells for the {len(self.columns) - 1} columns after "
                    "its name; give it one for each."
                )
