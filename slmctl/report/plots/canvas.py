"""The empty figure: sizes, type and colours that all drawings share, and the way to SVG text."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from slmctl.report import theme
from slmctl.report.blocks import DataTable, Figure
from slmctl.report.plots import svg
from slmctl.report.safe_text import shortened

WIDTH, HEIGHT = 380.0, 262.0
"""Units of a drawing: at a phone's 330 pixels its text of 11 is still 9.5 pixels high."""

_STYLE = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # an arm may be named $x$
    "font.family": "DejaVu Sans",
    "font.size": 11,
    "axes.labelsize": 11,
    "axes.unicode_minus": True,
    "text.color": theme.INK.light,
    "axes.labelcolor": theme.SOFT.light,
    "axes.edgecolor": theme.AXIS.light,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": theme.AXIS.light,
    "ytick.color": theme.AXIS.light,
    "xtick.labelcolor": theme.SOFT.light,
    "ytick.labelcolor": theme.SOFT.light,
    "xtick.labelsize": 10.5,
    "ytick.labelsize": 10.5,
    "xtick.major.size": 3,
    "ytick.major.size": 3,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": theme.RULE.light,
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "legend.fontsize": 10.5,
    "legend.handlelength": 2.4,
    "legend.borderpad": 0.1,
    "legend.borderaxespad": 0.2,
    "legend.columnspacing": 1.4,
    "figure.constrained_layout.w_pad": 0.02,
    "figure.constrained_layout.h_pad": 0.02,
}


def drawn(
    name: str,
    title: str,
    caption: str,
    table: DataTable,
    paint: Callable[[Any, Any], None],
    width: float = WIDTH,
    height: float = HEIGHT,
) -> Figure:
    """The figure that `paint(figure, axes)` paints. `name` is its id in the page and its file's name.

    The same data give the same text: no date is written and ids are made from `name`.
    """
    import matplotlib
    from matplotlib.figure import Figure as Drawing

    out = io.StringIO()
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": name}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # the reader's fonts draw it, not these
        figure = Drawing(figsize=(width / 72, height / 72), layout="constrained")
        paint(figure, figure.add_subplot())
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = out.getvalue()
    inline, alone = (make(text, f"figure-{name}", title, caption) for make in (svg.inline, svg.standalone))
    return Figure(name, title, caption, inline, alone, table, width, wide=width > 1.5 * WIDTH)


def legend(figure: Any, handles: Sequence[Any], labels: Sequence[str], longest: int = 22) -> None:
    """Above the plot, in as many columns as fit, labels cut to `longest`; they are given, because one that starts with _ is else
    left out."""
    if not handles:
        return
    names = [shortened(label, longest) for label in labels]
    columns = max(1, min(len(names), int(56 // (max(map(len, names)) + 7))))
    figure.legend(handles, names, loc="outside upper left", ncols=columns)


def thousands(axis: Any) -> None:
    """Ticks as 200k, 1.5M."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    from slmctl.report.numbers import short

    axis.set_major_locator(MaxNLocator(5))
    axis.set_major_formatter(FuncFormatter(lambda x, _: short(x)))
