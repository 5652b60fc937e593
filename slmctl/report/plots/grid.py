"""A matrix of numbers, shaded by size; the number is written in each cell, so that the shade is never needed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from slmctl.report import numbers as n
from slmctl.report import theme
from slmctl.report.blocks import DataTable, Figure
from slmctl.report.plots.canvas import WIDTH, drawn

DARKEST = 0.5
"""Opacity of the largest value's shade: text of the page's ink keeps 4.5:1 on it in both themes."""


def heat_map(
    name: str,
    title: str,
    caption: str,
    row_labels: Sequence[str],
    column_labels: Sequence[str],
    values: Sequence[Sequence[float | None]],
    row_name: str,
    column_name: str,
    dash: str,
) -> Figure:
    """`values[i][j]` in row i, column j; shades are by the logarithm where all values are positive. `dash` says what a missing
    value means."""
    known = [v for row in values for v in row if v is not None]
    scale = math.log if known and min(known) > 0 else float
    low, high = (scale(min(known)), scale(max(known))) if known else (0.0, 0.0)

    def paint(_: Any, axes: Any) -> None:
        from matplotlib.patches import Rectangle

        for i, row in enumerate(values):
            for j, v in enumerate(row):
                share = 0.0 if v is None or high <= low else (scale(v) - low) / (high - low)
                axes.add_patch(
                    Rectangle((j, i), 1, 1, color=theme.HEAT.light, alpha=0.04 + (DARKEST - 0.04) * share, linewidth=0)
                )
                axes.text(j + 0.5, i + 0.5, n.significant(v, 3), ha="center", va="center", fontsize=10 if len(row) <= 8 else 9)
        axes.set_xlim(0, max(len(column_labels), 1))
        axes.set_ylim(max(len(row_labels), 1), 0)
        axes.set_xticks([j + 0.5 for j in range(len(column_labels))], column_labels)
        axes.set_yticks([i + 0.5 for i in range(len(row_labels))], row_labels)
        axes.set_xlabel(column_name)
        axes.set_ylabel(row_name)
        axes.grid(visible=False)
        axes.tick_params(length=0)
        for side in axes.spines.values():
            side.set_visible(False)

    rows = [[label, *[n.general(v) for v in row]] for label, row in zip(row_labels, values, strict=True)]
    table = DataTable(title, [f"{row_name} ↓ {column_name} →", *column_labels], rows, dash=dash)
    caption += f" {table.why}" if table.why else ""
    return drawn(
        name, title, caption, table, paint, max(WIDTH, 70 + 42.0 * len(column_labels)), max(190, 60 + 30.0 * len(row_labels))
    )
