"""The same training with another setting (Fig. 9 of the paper: the ratio) and with other seeds."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from slmctl.report import numbers as n
from slmctl.report.blocks import Block, Cell, DataTable, Row, Section
from slmctl.report.facts import Facts, dig, items_of, rows_of
from slmctl.report.plots.lines import Series, curves
from slmctl.report.safe_text import visible
from slmctl.report.theme import looks


def repeats(facts: Facts) -> Section | None:
    sweeps = [
        s for s in rows_of(facts.results, "sweeps") if str(s.get("key")).rpartition(".")[2] != "seed"
    ]  # no axis: its spread
    blocks = [block for sweep in sweeps for block in _sweep(facts, sweep)]
    rows: list[Row] = []
    for s in rows_of(facts.results, "seeds"):
        loss = items_of(s, "target_loss")
        names = ", ".join(str(a) for a in s.get("arms") or [])
        rows.append(
            [
                str(s.get("arm")),
                Cell(names, left=True),
                n.count(loss.get("n")),
                Cell(n.fixed(loss.get("mean")), f"± {n.fixed(loss.get('sd'))}"),
            ]
        )
    if rows:
        note = (
            "The spread is that of single runs: two runs that differ by less may do so by their seeds alone. Means vary less; "
            "from three seeds on they are held against each other in the summary."
        )
        header = ["arm", "its seeds", "runs", "target loss, mean ± standard deviation"]
        dash = "a spread takes at least two seeds, and finite losses"
        blocks.append(DataTable("Spread over seeds", header, rows, note, dash=dash))
    return Section("repeats", "Other settings and seeds", "", blocks) if blocks else None


def _sweep(facts: Facts, sweep: dict[str, Any]) -> list[Block]:
    points = [p for p in rows_of(sweep, "points") if n.number(p.get("value")) is not None]
    points.sort(key=lambda p: float(p["value"]))
    if not points:
        return []
    x = [float(p["value"]) for p in points]
    key, arm = visible(sweep.get("key", "value"), 40), visible(sweep.get("arm", ""), 60)
    look = facts.look(str(sweep.get("arm")))
    title = f"Target loss by {key}: {arm}"
    caption = (
        f"Each point is an arm trained to its end with another {key} (Fig. 9 of the paper); bars are {facts.level} intervals, "
        "and lower is better."
    )
    target = Series(
        "target", look, x, [n.number(p.get("target_loss")) for p in points], [n.pair(p.get("interval")) for p in points]
    )
    others = list(dict.fromkeys(s for p in points for s in items_of(p, "general")))
    rows: list[Row] = [
        [
            n.general(p["value"]),
            str(p.get("arm", n.NONE)),
            n.fixed(p.get("target_loss")),
            n.interval(p.get("interval")) or n.NONE,
            *[n.fixed(dig(p, "general", s)) for s in others],
        ]
        for p in points
    ]
    header = [key, "arm", "target loss", f"{facts.level} interval", *[f"{s} loss" for s in others]]
    first = curves(facts.names.unique(f"sweep-{key}"), title, caption, [target], key, "nats a token", tokens=False)
    table = DataTable(title, header, rows, dash=f"not measured, or no finite number; {n.NEEDS}")
    blocks: list[Block] = [replace(first, table=table)]
    if others:
        series = [Series(s, looks(others)[s], x, [n.number(dig(p, "general", s)) for p in points]) for s in others]
        title = f"Loss on other sets by {key}: {arm}"
        caption = "What each value does elsewhere: a curve that rises is worse on that set."
        name = facts.names.unique(f"sweep-{key}-others")
        blocks.append(curves(name, title, caption, series, key, "nats a token", tokens=False))
    return blocks
