"""Tasks: accuracies with standard errors, and tests of pairs on the same items."""

from __future__ import annotations

from typing import Any

from slmctl.report import numbers as n
from slmctl.report.blocks import Block, Cell, DataTable, Row, Section
from slmctl.report.facts import Facts, dig, extreme, items_of, rows_of
from slmctl.report.plots.dots import Dots, dots
from slmctl.report.safe_text import visible


def tasks(facts: Facts) -> Section | None:
    if not facts.tasks:
        return None
    blocks: list[Block] = []
    rows: list[Row] = []
    for task in facts.tasks:
        found = [items_of(facts.models, m, "tasks", task) for m in facts.columns]
        first = next((f for f in found if f), {})
        shots = n.number(first.get("shots"))
        how = [n.count(first.get("items")) + " items", f"{shots:.0f} shots" if shots is not None else ""]
        how.append(visible(first.get("metric") or "", 30))
        cut = max((n.number(f.get("prompts_cut")) or 0 for f in found), default=0)
        how.append(f"up to {cut:.0f} prompts cut" if cut else "")
        cells = [Cell(n.percent(f.get("accuracy")), extreme(f) or _error(f)) for f in found]
        rows.append([Cell(visible(task, 60), ", ".join(h for h in how if h), left=True), *cells])
    note = "Share of items that are right, ± one standard error"
    if at_an_end := any(extreme(items_of(m, "tasks", t)) for m in facts.models.values() for t in facts.tasks):
        note += "; where none or all are right it would be 0, which says nothing of other items, so that it is left out"
    table = DataTable("Accuracy", ["task", *facts.columns], rows, f"{note}.", dash="this model was not measured on the task")
    series = []
    for model, record in facts.models.items():
        values = [n.number(dig(record, "tasks", t, "accuracy")) for t in facts.tasks]
        found = [items_of(record, "tasks", t) for t in facts.tasks]
        errors = [None if extreme(f) else n.number(f.get("standard_error")) for f in found]
        ends = [
            None if v is None or e is None else (max(v - e, 0.0), min(v + e, 1.0)) for v, e in zip(values, errors, strict=True)
        ]
        series.append(Dots(model, facts.look(model), values, ends))
    caption = "Further right is better; bars are one standard error each way, so bars that overlap are no clear difference."
    caption += " Where none or all are right there is no bar." if at_an_end else ""
    blocks += [
        table,
        dots(facts.names.unique("tasks"), "Accuracy by task", caption, facts.tasks, series, "accuracy", table, as_percent=True),
    ]
    pairs: list[Row] = [
        [
            Cell(visible(d.get("task"), 60), left=True),
            f"{d.get('a')} − {d.get('b')}",
            _points(d.get("difference")),
            " to ".join(_points(x) for x in points) if (points := n.pair(d.get("interval"))) else n.NONE,
            n.probability(d.get("p")),
            n.count(d.get("items")),
        ]
        for d in rows_of(facts.results, "task_differences")
    ]
    if pairs:
        header = ["task", "models", "difference, points", f"{facts.level} interval", "p", "items"]
        note = (
            "Both answer the same items; p is the exact two-sided McNemar test. The p here are not corrected: with many tasks, "
            "one small p is to be expected, so that the summary counts only what is left after Holm's correction."
        )
        blocks.append(DataTable("Paired tests", header, pairs, note, dash="not to be tested"))
    return Section("tasks", "Tasks", "", blocks)


def _error(task: dict[str, Any]) -> str:
    x = n.number(task.get("standard_error"))
    if x is None:
        return "" if n.number(task.get("accuracy")) is None else "no standard error of one item"
    return f"± {100 * x:.1f}"


def _points(value: object) -> str:
    x = n.number(value)
    return n.NONE if x is None else n.signed(100 * x, 1)
