"""What a page is made of, apart from how it looks: sections of tables, figures and sentences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from slmctl.report.numbers import NONE


@dataclass(frozen=True)
class Cell:
    """A table's value, and in smaller type what belongs to it (an interval, a standard error)."""

    text: str
    small: str = ""
    strong: bool = False
    left: bool = False
    """Words, which are set from the left; numbers end at the right."""


Row = Sequence["Cell | str"]


def as_cell(value: Cell | str) -> Cell:
    """A cell; what is empty is a dash."""
    cell = value if isinstance(value, Cell) else Cell(str(value))
    return cell if cell.text else replace(cell, text=NONE)


@dataclass(frozen=True)
class DataTable:
    """Rows under a header; each row's first cell names it. `groups[i]`, where given, is a heading above row i."""

    title: str
    header: Sequence[str]
    rows: Sequence[Row]
    note: str = ""
    groups: dict[int, str] = field(default_factory=dict)
    dash: str = "not measured, or no finite number"
    """What a dash in this table stands for."""

    kind = "table"

    @property
    def why(self) -> str:
        """What its dashes stand for, as a sentence; nothing where it has none."""
        cells = [as_cell(value) for row in self.rows for value in row[1:]]
        return f"A dash ({NONE}): {self.dash}." if any(NONE in (c.text, *c.small.split()) for c in cells) else ""


@dataclass(frozen=True)
class Figure:
    """A drawing with its data. `inline` takes its colours from the page; `standalone` is a file of its own."""

    name: str
    title: str
    caption: str
    inline: str
    standalone: str
    table: DataTable
    width: float
    """Units of the drawing, in which text is about 10 high."""
    wide: bool = False

    kind = "figure"


Block = DataTable | Figure


@dataclass(frozen=True)
class Section:
    id: str
    title: str
    intro: str
    blocks: Sequence[Block]
