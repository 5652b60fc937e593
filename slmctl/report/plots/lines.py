"""Curves over tokens or ratios, with intervals where there are some, and points with a fitted line."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from slmctl.report import numbers as n
from slmctl.report.blocks import DataTable, Figure
from slmctl.report.plots.canvas import HEIGHT, drawn, legend, thousands
from slmctl.report.safe_text import shortened
from slmctl.report.theme import Look

MOST_POINTS = 80
"""Points of a training curve; each is a mean over the steps between it and the one before."""


@dataclass(frozen=True)
class Series:
    """One curve: x, y and, where known, the interval of each y."""

    name: str
    look: Look
    x: Sequence[float]
    y: Sequence[float | None]
    intervals: Sequence[tuple[float, float] | None] = ()

    def interval(self, i: int) -> tuple[float, float] | None:
        return self.intervals[i] if i < len(self.intervals) else None


def curves(
    name: str,
    title: str,
    caption: str,
    series: Sequence[Series],
    x_label: str,
    y_label: str,
    tokens: bool = True,
    digits: int = 4,
    longest: int = 22,
) -> Figure:
    """A line for each series; `tokens` writes x as 200k. Names longer than `longest` are cut in the legend."""

    def paint(figure: Any, axes: Any) -> None:
        handles = []
        for s in series:
            y = [math.nan if v is None else v for v in s.y]
            few = len(s.x) <= 24
            style = {"color": s.look.color.light, "linewidth": 1.7, "marker": s.look.marker if few else "", "markersize": 4.5}
            handles += axes.plot(s.x, y, linestyle=s.look.dash, **style)
            known = [(x, v, i) for k, (x, v) in enumerate(zip(s.x, y, strict=True)) if (i := s.interval(k))]
            if known:
                size = [[max(v - low, 0.0) for _, v, (low, _) in known], [max(high - v, 0.0) for _, v, (_, high) in known]]
                bar = {"fmt": "none", "ecolor": s.look.color.light, "elinewidth": 1.1, "capsize": 2.5}
                axes.errorbar([x for x, _, _ in known], [v for _, v, _ in known], yerr=size, **bar)
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        if tokens:
            thousands(axes.xaxis)
        legend(figure, handles, [s.name for s in series], longest)

    table = series_table(title, series, x_label, tokens, digits)
    return drawn(name, title, caption, table, paint, height=HEIGHT if longest <= 22 else HEIGHT + 15 * len(series))


def series_table(title: str, series: Sequence[Series], x_label: str, tokens: bool = True, digits: int = 4) -> DataTable:
    """A row for each x that any series has, a column for each series."""
    found: dict[float, dict[int, str]] = {}
    for k, s in enumerate(series):
        for i, (x, y) in enumerate(zip(s.x, s.y, strict=True)):
            found.setdefault(x, {})[k] = f"{n.fixed(y, digits)} {n.interval(s.interval(i), digits)}".rstrip()
    rows = [[n.count(x) if tokens else n.general(x), *[found[x].get(k, "") for k in range(len(series))]] for x in sorted(found)]
    return DataTable(title, [x_label, *[s.name for s in series]], rows, dash="not measured there, or no finite number")


def training_curve(metrics: Sequence[dict[str, Any]], key: str, most: int = MOST_POINTS) -> tuple[list[float], list[float]]:
    """(tokens seen, value) of one metric where it has a value, as means over equally many steps, at most `most` of them."""
    found = [(seen, value) for m in metrics if (seen := n.number(m.get("tokens_seen"))) is not None
             and (value := n.number(m.get(key))) is not None]  # fmt: skip
    size = max(1, math.ceil(len(found) / most))
    bins = [found[i : i + size] for i in range(0, len(found), size)]
    return [b[-1][0] for b in bins], [sum(v for _, v in b) / len(b) for b in bins]


FEW_POINTS = 3
"""Points up to which a line lies close to them whatever they are, so that how close says nothing."""


@dataclass(frozen=True)
class Fit:
    """Points x, y and their least-squares line."""

    name: str
    look: Look
    x: Sequence[float]
    y: Sequence[float]
    slope: float | None
    intercept: float | None
    r2: float | None

    def quality(self, digits: int) -> str:
        """R² and of how many points, or why there is none."""
        points = f"{len(self.x)} point{'s' * (len(self.x) != 1)}"
        if len(self.x) <= FEW_POINTS:
            return f"{points}, too few for R²"
        if self.r2 is None:
            return f"{points}, no R² of losses that do not vary"
        return f"{points}, R² {n.fixed(self.r2, digits)}"


def fits(name: str, title: str, caption: str, found: Sequence[Fit], x_label: str, y_label: str) -> Figure:
    """Points and fitted lines of each arm."""

    def paint(figure: Any, axes: Any) -> None:
        handles = []
        for f in found:
            style = {"color": f.look.color.light, "marker": f.look.marker, "markersize": 5}
            if f.slope is not None and f.intercept is not None and f.x:
                ends = [min(f.x), max(f.x)]
                axes.plot(ends, [f.slope * x + f.intercept for x in ends], color=f.look.color.light, linestyle=f.look.dash)
            handles += axes.plot(f.x, f.y, linestyle="none", **style)
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        legend(figure, handles, [f"{shortened(f.name)}, {f.quality(2)}" for f in found], 60)

    rows = [[f.name, n.fixed(x), n.fixed(y)] for f in found for x, y in zip(f.x, f.y, strict=True)]
    lines = "; ".join(f"{f.name}: {_equation(f)}, {f.quality(3)}" for f in found) + "."
    table = DataTable(title, ["arm", x_label, y_label], rows, lines)
    return drawn(name, title, caption, table, paint, height=HEIGHT + 15 * max(0, len(found) - 1))


def _equation(fit: Fit) -> str:
    if fit.slope is None or fit.intercept is None:
        return "no line, since no two losses differ"
    return f"y = {n.general(fit.slope)}·x {n.MINUS if fit.intercept < 0 else '+'} {n.general(abs(fit.intercept))}"
