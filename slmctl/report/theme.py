"""Colours of the page and its figures, each as a pair for light and dark paper, and how an arm looks in every figure.

All text colours keep 4.5:1 against their paper, all lines 3:1; tests compute both. An arm is told by colour, dash and
marker together, so that none of these is needed alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Color:
    """One role in two papers: `light` also serves standalone SVG files and print."""

    name: str
    light: str
    dark: str

    @property
    def css(self) -> str:
        return f"var(--{self.name})"


PAPER = Color("paper", "#ffffff", "#15181d")
PANEL = Color("panel", "#f5f7f9", "#1d2127")
INK = Color("ink", "#1c2229", "#e3e7ec")
SOFT = Color("soft", "#55606c", "#a4adb9")
AXIS = Color("axis", "#7b8591", "#7c8794")
RULE = Color("rule", "#dce1e6", "#323943")
ACCENT = Color("accent", "#0b5c94", "#79bdf0")
MARK = Color("mark", "#cfe6f7", "#17415f")
HEAT = Color("heat", "#1f77b4", "#3f9ad6")
GOOD = Color("good", "#16704a", "#57cb97")
NOTE = Color("note", "#0b5c95", "#79bdf1")
WARNING = Color("warning", "#8a5300", "#eab252")
BAD = Color("bad", "#b3261e", "#ff8f86")
SERIES = (
    Color("series-1", "#0072b2", "#5fb4ea"),
    Color("series-2", "#c24e00", "#f5924f"),
    Color("series-3", "#00795a", "#45c99d"),
    Color("series-4", "#a23b80", "#e48fc5"),
    Color("series-5", "#806000", "#d8b440"),
    Color("series-6", "#5a56c4", "#a9a7ff"),
    Color("series-7", "#4d5863", "#b9c2cc"),
)
"""After Okabe and Ito, darkened or lightened until each keeps 3:1 on its paper."""
ALL = (PAPER, PANEL, INK, SOFT, AXIS, RULE, ACCENT, MARK, HEAT, GOOD, NOTE, WARNING, BAD, *SERIES)

DASHES = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (6, 2, 1.5, 2)), (0, (8, 2)), (0, (3, 1.5)), (0, (1, 3)))
MARKERS = "os^DvPX"


@dataclass(frozen=True)
class Look:
    color: Color
    dash: object = "-"
    marker: str = "o"


def looks(names: Iterable[str]) -> dict[str, Look]:
    """The same look for the same arm in every figure, by order of the arms."""
    return {
        name: Look(SERIES[i % len(SERIES)], DASHES[i % len(DASHES)], MARKERS[i % len(MARKERS)]) for i, name in enumerate(names)
    }
