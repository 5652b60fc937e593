"""Values in rows: forest plots of differences, shares by kind, accuracies by task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from slmctl.report import numbers as n
from slmctl.report import theme
from slmctl.report.blocks import DataTable, Figure
from slmctl.report.plots.canvas import WIDTH, drawn, legend
from slmctl.report.safe_text import shortened
from slmctl.report.theme import Look


@dataclass(frozen=True)
class Dots:
    """One marker a row, with its interval where there is one."""

    name: str
    look: Look
    values: Sequence[float | None]
    intervals: Sequence[tuple[float, float] | None] = ()


def dots(
    name: str,
    title: str,
    caption: str,
    labels: Sequence[str],
    series: Sequence[Dots],
    x_label: str,
    table: DataTable,
    line: float | None = None,
    as_percent: bool = False,
) -> Figure:
    """A row for each label from top to bottom, in it a marker for each series. `line` is a value to compare with: markers of
    intervals that hold it are hollow."""
    step = 0.72 / max(len(series), 1)

    def paint(figure: Any, axes: Any) -> None:
        handles = []
        for k, s in enumerate(series):
            color = s.look.color.light
            handle = None
            for i, value in enumerate(s.values):
                if value is None:
                    continue
                y = i + (k - (len(series) - 1) / 2) * step
                ends = s.intervals[i] if i < len(s.intervals) else None
                if ends is not None:
                    axes.plot(ends, [y, y], color=color, linewidth=1.6, solid_capstyle="butt")
                open_ = line is not None and ends is not None and ends[0] <= line <= ends[1]
                fill = theme.PAPER.light if open_ else color
                look = {"marker": s.look.marker, "markersize": 6, "markeredgewidth": 1.4, "markeredgecolor": color}
                (handle,) = axes.plot([value], [y], linestyle="none", color=color, markerfacecolor=fill, **look)
            if handle is None:
                (handle,) = axes.plot([], [], linestyle="none", color=color, marker=s.look.marker)
            handles.append(handle)
        if line is not None:
            axes.axvline(line, color=theme.AXIS.light, linewidth=1)
        axes.set_yticks(range(len(labels)), [shortened(label, 24) for label in labels])
        axes.set_ylim(len(labels) - 0.4, -0.6)
        axes.tick_params(axis="y", length=0, labelcolor=theme.INK.light)
        axes.spines["left"].set_visible(False)
        axes.grid(axis="y", visible=False)
        axes.locator_params(axis="x", nbins=5)
        axes.set_xlabel(x_label)
        if as_percent:
            from matplotlib.ticker import FuncFormatter

            axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: n.percent(x, 0)))
        if len(series) > 1:
            legend(figure, handles, [s.name for s in series])

    height = 64 + len(labels) * (12 + 9 * len(series)) + (16 * -(-len(series) // 3) if len(series) > 1 else 0)
    return drawn(name, title, caption, table, paint, WIDTH, max(height, 110))
