"""Curves of the arms, as SVG text."""

from __future__ import annotations

import io
from typing import Any

COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
"""Okabe and Ito's palette: told apart by colour-blind readers too."""
STYLES = ("-", "--", "-.", ":")


def curves(series: dict[str, tuple[list[float], list[float]]], x_label: str, y_label: str, title: str) -> str:
    """One figure with a line for each name. Returns an <svg> element."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import EngFormatter

    with plt.rc_context({"svg.fonttype": "none", "svg.hashsalt": title, "font.size": 11, "font.family": "sans-serif"}):
        figure, axes = plt.subplots(figsize=(7.2, 4.0), layout="constrained")
        lines = []
        for i, (x, y) in enumerate(series.values()):
            marker = "o" if len(x) <= 40 else ""
            lines += axes.plot(x, y, STYLES[i % 4], color=COLORS[i % 7], marker=marker, markersize=3.5, linewidth=1.6)
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        axes.set_title(title, fontsize=12)
        axes.xaxis.set_major_formatter(EngFormatter())
        axes.grid(alpha=0.3)
        if series:
            axes.legend(lines, list(series), frameon=False)  # given, because a label that starts with _ is left out
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None})
        plt.close(figure)
    text = out.getvalue()
    return text[text.index("<svg") :]


def smooth(values: list[float], window: int) -> list[float]:
    """Trailing mean over `window` values."""
    out, total = [], 0.0
    for i, v in enumerate(values):
        total += v - (values[i - window] if i >= window else 0.0)
        out.append(total / min(i + 1, window))
    return out


def training_curve(metrics: list[dict[str, Any]], key: str) -> tuple[list[float], list[float]]:
    """(tokens seen, smoothed value) of one metric, where it has a value."""
    found = [(m["tokens_seen"], m[key]) for m in metrics if m.get(key) is not None]
    window = max(1, len(found) // 50)
    return [float(x) for x, _ in found], smooth([float(y) for _, y in found], window)
